"""What the framework costs a step: learnkit's training loop against a bare PyTorch loop that does the same work.

    python benchmarks/loop.py [--quick] [--precision auto fp32 bf16] [--optimizer default foreach fused]

Both train the same network from the same weights on the same batches, which lie in memory, with AdamW of the same numbers, a one-cycle
schedule, channels_last and the same precision. They take turns in one process. The very small net has hardly any arithmetic, so its row
shows the fixed cost of a step in milliseconds. The first losses of both loops are compared: equal work gives equal losses.
"""
import argparse, math, statistics
from pathlib import Path
from measure import *

def tiny_net():
    "A net with two convolutions, so that a step costs next to nothing."
    from torch import nn
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())

CASES = dict(resnet18=('resnet18', 192, 64), tiny=('tiny', 128, 64), smallest=(tiny_net, 32, 8)) # body, pixels, pictures a batch
MOM,LOW,SQR,EPS,WD,LR,PCT,DIV,LAST = .95,.85,.99,1e-5,.01,1e-3,.25,25.,1e5 # of fastai's Adam and fit_one_cycle

def our_learner(arch, batches, precision, device):
    "learnkit's learner, whose loaders give `batches`."
    from PIL import Image
    import learnkit.all as lk
    lk.settings.set(progress=False)
    black = Image.new('RGB', (32, 32))
    records = [lk.Record(black, label=label, split=split) for split in ('train', 'valid') for label in ('a', 'b')]
    dls = lk.classification_dls(records, size=32, bs=2, device=lk.torch.device(device))
    learn = lk.classification_learner(dls, arch if isinstance(arch, str) else arch(), pretrained=False, precision=precision, ps=0., metrics=[], normalize=False)
    learn.dls = lk.DataLoaders(batches, batches[:1], device=lk.torch.device(device))
    learn.unfreeze()
    return learn

def one_cycle(p):
    "Rate and momentum after a share `p` of the steps: two halves of a cosine, as in fastai."
    def cos(a, b, p): return a+(1-math.cos(math.pi*p))*(b-a)/2
    if p < PCT: return cos(LR/DIV, LR, p/PCT),cos(MOM, LOW, p/PCT)
    return cos(LR, LR/LAST, (p-PCT)/(1-PCT)),cos(LOW, MOM, (p-PCT)/(1-PCT))

def bare_loop(model, batches, precision, optimizer, device):
    "A function that makes one pass over `batches` with a new one-cycle schedule and returns seconds and losses."
    import torch
    from torch import nn
    norms = [p for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()]
    plain = {id(p) for p in norms+[p for n,p in model.named_parameters() if n.endswith('bias')]}
    split = [[p for p in model.parameters() if (id(p) in plain) == o] for o in (False, True)]
    kw = {} if optimizer == 'default' else {optimizer:True}
    opt = torch.optim.AdamW([dict(params=split[0], weight_decay=WD), dict(params=split[1], weight_decay=0.)], lr=LR, betas=(MOM, SQR), eps=EPS, **kw)
    short = dict(bf16=torch.bfloat16, fp16=torch.float16).get(precision)
    def one_pass():
        model.train()
        losses,t = [],clock()
        for i,(x,y) in enumerate(batches):
            lr,mom = one_cycle(i/len(batches))
            for g in opt.param_groups: g['lr'],g['betas'] = lr,(mom, SQR)
            with torch.autocast(device, dtype=short, enabled=short is not None): out = model(x)
            loss = nn.functional.cross_entropy(out.float(), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.detach())
        if device != 'cpu': torch.accelerator.synchronize()
        return clock()-t,torch.stack(losses).cpu()
    return one_pass

def our_loop(learn, device):
    "The same for `learn`: one epoch of `fit_one_cycle`, timed from its first batch to its last."
    import torch
    from fastai.callback.core import Callback
    class Times(Callback):
        order = 60
        def before_train(self): self.losses,self.begun = [],clock()
        def after_loss(self):
            if self.training: self.losses.append(self.learn.loss.detach())
        def after_train(self):
            if device != 'cpu': torch.accelerator.synchronize()
            self.took = clock()-self.begun
    watch = Times()
    learn.add_cb(watch)
    def one_pass():
        learn.fit_one_cycle(1, LR, pct_start=PCT, div=DIV, div_final=LAST)
        return watch.took,torch.stack([o.as_subclass(torch.Tensor) for o in watch.losses]).cpu()
    return one_pass

def measure_case(a, name, arch, px, bs):
    "Run both loops in turn; gives the seconds of each step and what they say about each other."
    import copy, torch
    torch.manual_seed(0)
    xs = [torch.randn(bs, 3, px, px, device=a.device).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    batches = [(xs[i%4], torch.randint(2, (bs,), device=a.device)) for i in range(a.steps if name != 'smallest' else 50*a.steps)]
    learn = our_learner(arch, batches, a.precision, a.device)
    model = copy.deepcopy(learn.model)
    ours,bare = our_loop(learn, a.device),bare_loop(model, batches, a.precision, a.optimizer, a.device)
    (_,l0),(_,l1) = ours(),bare()
    same = (l0-l1).abs()[:3].max().item()
    pairs = []
    for i in range(a.rounds):
        both = (ours()[0], bare()[0]) if i%2 == 0 else (bare()[0], ours()[0])[::-1]
        pairs.append([o/len(batches) for o in both])
        print(f'{name:<9} round {i+1}/{a.rounds}: ours {1000*pairs[-1][0]:.2f} ms a step, bare {1000*pairs[-1][1]:.2f} ms', flush=True)
    res = dict(size=px, bs=bs, steps=len(batches), ours=[o for o,_ in pairs], bare=[o for _,o in pairs], loss_difference=same)
    mid = interval([100*(o/b-1) for o,b in pairs])
    return res | dict(overhead=mid, extra_ms=statistics.median(1000*(o-b) for o,b in pairs), groups=len(learn.opt.param_lists))

def options():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='tiny and the smallest, fewer rounds')
    p.add_argument('--case', nargs='+', choices=CASES)
    p.add_argument('--precision', choices=['auto', 'fp32', 'bf16', 'fp16'], default='auto', help='auto: bf16 where the processor multiplies faster in it')
    p.add_argument('--optimizer', choices=['default', 'foreach', 'fused'], default='default', help="which kind of torch's AdamW the bare loop has")
    p.add_argument('--rounds', type=int, help='default: 10')
    p.add_argument('--steps', type=int, default=6, help='a pass')
    p.add_argument('--size', type=int, help='pixels, in place of those of the case')
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', default=HERE/'out', type=Path)
    a = p.parse_args()
    a.case,a.rounds = a.case or (['tiny', 'smallest'] if a.quick else [*CASES]),a.rounds or (3 if a.quick else 10)
    return a

def main():
    "Print the table."
    import warnings
    warnings.filterwarnings('ignore')
    a,facts = options(),machine()
    describe(facts)
    import torch
    from learnkit.train.speed import has_fast_bf16
    torch.set_num_threads(cores())
    if a.precision == 'auto': a.precision = 'bf16' if has_fast_bf16(a.device) else 'fp32'
    print(f"{a.precision}, torch's AdamW ({a.optimizer}) in the bare loop", flush=True)
    print(f'about {minutes(sum(dict(resnet18=1.5, tiny=.4).get(o, .15)*2*a.steps*(a.rounds+1) for o in a.case))} (a guess)', flush=True)
    res,watch,before = {},Watch(),calibrate(a.device)
    for k in a.case:
        arch,px,bs = CASES[k]
        res[k] = measure_case(a, k, arch, a.size or px, bs)
    cal,busy = [before, calibrate(a.device)],watch.stop()
    rows = []
    for k,o in res.items():
        mid,low,high = o['overhead']
        rows.append([f'{k} {o["size"]} px, {o["bs"]} a batch', *(1000*statistics.median(o[w]) for w in ('ours', 'bare')),
            f'{mid:+.1f} % ({low:+.1f} to {high:+.1f})', f'{o["extra_ms"]:.2f}', f'{o["loss_difference"]:.1e}'])
    print()
    table(['net', 'ours, ms a step', 'bare, ms a step', 'overhead', 'ms more a step', 'first losses differ by'], rows)
    print(f'Medians of {a.rounds} turns (bootstrap 95 %). Drift {100*(max(cal)/min(cal)-1):.1f} %, '+', '.join(f'{k} {v}' for k,v in busy.items()))
    a.out.mkdir(parents=True, exist_ok=True)
    write_json(a.out/'loop.json', dict(machine=facts, precision=a.precision, optimizer=a.optimizer, calibration=cal, busy=busy, cases=res))

if __name__ == '__main__': main()
