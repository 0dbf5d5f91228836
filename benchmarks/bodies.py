"""Pictures a second in a training step of the built-in bodies, in each precision, on this machine.

    python benchmarks/bodies.py [SIZE ...]
"""
import sys, torch
from torch import nn
from learnkit.models.tiny import BUILTIN, n_params
from learnkit.train.speed import DTYPES, _seconds

def step(net, x, y, dtype):
    "One forward and backward pass of `net` on the batch (`x`, `y`)."
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32): out = net(x)
    nn.functional.cross_entropy(out.float(), y).backward()

def main(sizes=(64, 128), bs=64):
    "Print a row for each body and size."
    print(f'{torch.get_num_threads()} threads, batches of {bs}, channels_last')
    for name in ('tiny', 'small'):
        for px in sizes:
            body = BUILTIN[name]()
            x,y = torch.randn(bs, 3, px, px).contiguous(memory_format=torch.channels_last),torch.randint(10, (bs,))
            head = nn.Linear(body(x).shape[1], 10)
            net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).to(memory_format=torch.channels_last)
            rates = {k:bs/_seconds(lambda: step(net, x, y, DTYPES[k])) for k in ('fp32', 'bf16')}
            print(f'{name:<6} {n_params(body):>9,} parameters  {px:>4} px  ' + '  '.join(f'{k} {v:6.0f}/s' for k,v in rates.items()))

if __name__ == '__main__': main(tuple(map(int, sys.argv[1:])) or (64, 128))
