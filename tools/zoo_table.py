"""Count parameters and multiply-adds of timm's models and write the table that the zoo reads.

    python tools/zoo_table.py [ACCURACY.csv]

Each network is built without memory (PyTorch's `meta` device), so no weights are needed; half an hour on one core.
ACCURACY.csv has the columns arch, top1 (ImageNet-1k, per cent) and size (of the pictures, in pixels), as timm publishes them in
results/results-imagenet.csv; without it the accuracies that the table already has are kept. Networks that the table already has are not counted again.
"""
import csv, sys, warnings
from pathlib import Path
import timm, torch
from torch.utils.flop_counter import FlopCounterMode
from learnkit.core import atomic_path

TABLE = Path(__file__).parents[1]/'learnkit'/'models'/'timm.csv'
COLUMNS = 'arch params gmac size top1 at'.split()

def read(path):
    "The rows of the csv at `path` by architecture."
    return {o['arch']:o for o in csv.DictReader(path.open())} if path and path.is_file() else {}

def count(name, size):
    "Parameters, and multiply-adds (in thousands of millions) for a picture of `size` = (colours, height, width)."
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device): net = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), counter: net(torch.zeros(1, *size, device=device))
            return sum(p.numel() for p in net.parameters()),counter.get_total_flops()/2e9
        except Exception as e: err = e
    print(f'{name}: {type(err).__name__}: {str(err)[:100]}', flush=True)
    return None,None

def main():
    warnings.filterwarnings('ignore')
    timm.layers.set_fused_attn(False)
    have,acc,seen,rows = read(TABLE),read(Path(sys.argv[1]) if len(sys.argv) > 1 else None),{},[]
    names = timm.list_models(pretrained=True)
    for i,name in enumerate(names):
        cfg,old = timm.get_pretrained_cfg(name),have.get(name, {})
        if not old.get('params'):
            key = name.partition('.')[0],cfg.input_size,cfg.num_classes
            if key not in seen: seen[key] = count(name, cfg.input_size)
            n,gmac = seen[key]
            old = old | dict(params=n or '', gmac='' if gmac is None else f'{gmac:.3g}')
        got = dict(top1=acc[name]['top1'], at=acc[name]['size']) if name in acc else {}
        rows.append(old | dict(arch=name, size=cfg.input_size[-1]) | got)
        if i % 50 == 49: write(rows, have)
        if i % 100 == 99: print(f'{i+1}/{len(names)}', flush=True)
    write(rows, {})

def write(rows, rest):
    "Write `rows`, and those of `rest` that are not among them."
    done = {o['arch'] for o in rows}
    with atomic_path(TABLE) as tmp, Path(tmp).open('w', newline='') as f:
        out = csv.DictWriter(f, COLUMNS, extrasaction='ignore', lineterminator='\n')
        out.writeheader()
        out.writerows([*rows, *(v for k,v in rest.items() if k not in done)])

if __name__ == '__main__': main()
