"""How the seconds of `fine_tune` grow: with the number of pictures, with their pixels, and with the epochs of a frozen body.

    LEARNKIT_MIRROR=FOLDER python benchmarks/curve.py [--quick] [--body tiny] [--arms L0 L1] [--rounds 3]

One thing varies, the others stay: 1 + 1 epochs at 128 px for the pictures, 250 pictures for the pixels, 500 pictures at 128 px for K frozen
epochs alone. Each point is a fresh process. Given are the slope of log seconds over log x with its R² (1: in proportion, 2: with the square,
0: not at all), and for pictures and epochs the straight line: seconds at nothing, and for each picture or epoch.
"""
import argparse, json, statistics, tempfile
from pathlib import Path
from finetune import ARMS, line, weights
from measure import *

GRID = dict(pictures=[250, 500, 1000], pixels=[128, 160, 192, 224], frozen=[1, 2, 4])
FIXED = dict(pictures=dict(size=128, epochs=1, frozen=0), pixels=dict(pictures=250, epochs=1, frozen=0), frozen=dict(pictures=500, size=128, epochs=0))
FIELD = dict(pictures='pictures', pixels='size', frozen='frozen')

def options():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='smaller points, one round')
    p.add_argument('--body', default='tiny')
    p.add_argument('--arms', nargs='+', choices=ARMS, default=['L0', 'L1'])
    p.add_argument('--vary', nargs='+', choices=GRID, default=[*GRID])
    p.add_argument('--rounds', type=int, help='default: 3')
    p.add_argument('--bs', type=int, help='pictures a batch (default: 64)')
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', default=HERE/'out', type=Path)
    a = p.parse_args()
    a.rounds,a.bs = a.rounds or (1 if a.quick else 3),a.bs or (16 if a.quick else 64)
    return a

def points(a):
    "All points to measure as (what varies, x, settings)."
    grid = dict(pictures=[40, 80, 160], pixels=[64, 96, 128], frozen=[1, 2, 4]) if a.quick else GRID
    small = dict(size=64, pictures=80) if a.quick else {}
    return [(o, x, FIXED[o] | {k:v for k,v in small.items() if k in FIXED[o]} | {FIELD[o]:x}) for o in a.vary for x in grid[o]]

def main():
    "Run what is missing and print the slopes."
    a,begun = options(),clock()
    runs,facts,code = Runs(a.out/'curve.jsonl'),machine(),source_hash()
    describe(facts)
    plan = [(r, o, x, kw, k) for r in range(a.rounds) for o,x,kw in points(a) for k in (a.arms if r%2 == 0 else a.arms[::-1])]
    cost = sum((kw['pictures']*(2*kw['epochs']+kw['frozen']+1)*(kw['size']/128)**2*(.008 if a.body == 'tiny' else .025)+12) for *_,kw,_ in plan)
    print(f'{len(plan)} runs, about {minutes(cost)} (a guess)', flush=True)
    found,lists = {},{}
    with tempfile.TemporaryDirectory(prefix='curve_') as folder:
        w = weights(a.body, 0, folder)
        for n,(r,o,x,kw,k) in enumerate(plan, 1):
            files = lists.setdefault(kw['pictures'], picture_list(kw['pictures']) if kw['pictures'] not in lists else None)
            if r == 0: warm(files)
            common = dict(arch=a.body, bs=a.bs, device=a.device, **{i:v for i,v in kw.items() if i != 'pictures'})
            key = json.dumps(dict(common, arm=k, args=ARMS[k], round=r, files=files_hash(files), sha=w['sha'], code=code, threads=cores()), sort_keys=True)
            spec = dict(common, files=files, seed=r, trial=dict(workers=0, precision='fp32'), **w)
            row = runs.do(key, lambda: run_arm('finetune.py', **ARMS[k], **spec), a.device)
            if 'error' not in row: found.setdefault((o, k), {}).setdefault(len(files) if o == 'pictures' else x, []).append(row['total'])
            print(f'[{n}/{len(plan)}] {o} {x:<5} {k} {line(row)}{"  (kept from before)" if row.get("old") else ""}', flush=True)
    report(a, facts, found)
    print(f'{minutes(clock()-begun)} in all')

def report(a, facts, found):
    "Print, write and draw the slopes of `found`: {(what varies, arm): {x: seconds}}."
    import numpy as np
    rows,res = [],[]
    for (o,k),d in found.items():
        x = sorted(d)
        y = [statistics.median(d[i]) for i in x]
        s,_,r2 = slope(x, y) if len(x) > 1 else (None, None, None)
        each,at0 = map(float, np.polyfit(x, y, 1)) if len(x) > 1 and o != 'pixels' else (None, None)
        rows.append([o, k, '  '.join(f'{i}: {v:.1f}' for i,v in zip(x, y)), s, None if r2 is None else f'{r2:.3f}', at0, each])
        res.append(dict(varied=o, arm=k, seconds=d, slope=s, r2=r2, at_nothing=at0, for_each=each))
    print()
    table(['varied', 'arm', 'x: seconds', 'slope', 'R²', 'seconds at nothing', 'seconds for each'], rows)
    write_json(a.out/'curve.json', dict(machine=facts, body=a.body, results=res))
    kinds = list(dict.fromkeys(o for o,_ in found))
    if not kinds: return
    fig,axs = new_plot(len(kinds))
    for ax,kind in zip(axs, kinds):
        for r in (r for r in res if r['varied'] == kind):
            x = sorted(r['seconds'])
            name = f'{r["arm"]}, slope {r["slope"]:.2f}' if r['slope'] is not None else r['arm']
            ax.plot(x, [statistics.median(r['seconds'][i]) for i in x], 'o-', ms=4, label=name)
        ax.set(xscale='log', yscale='log', xlabel=kind, ylabel='seconds of fine_tune', title=f'{a.body}, {kind}')
        ax.legend(fontsize=7)
    save_plot(fig, a.out/'curve.png')

if __name__ == '__main__': main()
