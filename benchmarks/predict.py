"""Seconds of a prediction: fastai's `predict` and `test_dl`, learnkit one by one and in a list, and bare torch, which is the limit.

    LEARNKIT_MIRROR=FOLDER python benchmarks/predict.py [--quick] [--body resnet18 tiny] [--rounds 3]

Each arm has a process of its own, the same weights and the same files. One picture: p50 and p95 of 200 calls after 20 to warm up. Many:
pictures a second for lists of 1, 8, 64 and 512. Bare torch opens the file with Pillow, crops, resizes, normalises, runs the network in
inference mode in learnkit's precision and layout, without folded normalisation, and takes the softmax. Memory: slope of the resident
memory over 300 further predictions. Cold: a fresh process from its start to the first prediction of an exported bundle.
"""
import argparse, json, statistics, tempfile
from pathlib import Path
from finetune import TRAINED, fastai_learner, network, start, state, weights
from measure import *

SIZES = dict(tiny=128, resnet18=192)
FASTAI,LIST,ONE,MANY,BARE = 'fastai predict','fastai test_dl','learnkit one','learnkit list','bare torch'

# The arms

def timed_one(s, one):
    "Milliseconds of single calls of `one` (file -> probabilities), and the growth of memory in MB a call."
    files = s['ask']
    for i in range(s['warmups']): one(files[i%len(files)])
    times = []
    for i in range(s['calls']):
        t = clock()
        one(files[i%len(files)])
        times.append(1000*(clock()-t))
    sizes = []
    for i in range(s['growth']):
        one(files[i%len(files)])
        sizes.append(rss())
    import numpy as np
    q = statistics.quantiles(times, n=20)
    return dict(p50=statistics.median(times), p95=q[18], mean=statistics.mean(times), growth=float(np.polyfit(range(len(sizes)), sizes, 1)[0]),
        rise=sizes[-1]-sizes[0])

def timed_many(s, many):
    "Pictures a second of `many` (files -> N lists of probabilities) for each length of list, the median of five runs for 64 and less."
    res = {}
    many(s['ask'][:8])
    for n in s['many']:
        files,times = (s['ask']*(n//len(s['ask'])+1))[:n],[]
        for _ in range(1 if n > 64 else 5):
            t = clock()
            many(files)
            times.append(clock()-t)
        res[n] = n/statistics.median(times)
    return dict(rate=res)

def finished(s, one=None, many=None, **kw):
    "All that is measured of an arm."
    res = dict(kw)
    if one: res |= timed_one(s, one)
    res |= timed_many(s, many or (lambda files: [one(o) for o in files]))
    probs = many(s['ask']) if many else [one(o) for o in s['ask']]
    return res | dict(probs=[[float(v) for v in p] for p in probs], peak=peak_rss()[0])

def fastai_arm(s, batched=False):
    "fastai's own ways: `predict` in a loop, or `test_dl` and `get_preds`."
    fv,_ = start(s, 'fastai.vision.all')
    learn,_ = fastai_learner(s, fv)
    with learn.no_bar(), learn.no_logging():
        if batched: return finished(s, many=lambda files: learn.get_preds(dl=learn.dls.test_dl(files))[0])
        return finished(s, lambda o: learn.predict(o)[2])

def learnkit_learner(s, **kwargs):
    "learnkit's learner for `s`."
    lk,_ = start(s, 'learnkit.all')
    lk.settings.set(progress=False)
    records = [lk.Record(Path(p), label=label, split=split) for p,label,split in s['files']]
    dls = lk.classification_dls(records, size=s['size'], bs=s['bs'], device=lk.torch.device(s['device']))
    learn = lk.classification_learner(dls, s['arch'], pretrained=False, **kwargs)
    learn.model.load_state_dict(state(s))
    return learn

def precision_of(learn): return str(getattr(learn, 'predict_dtype', None) or 'torch.float32').rpartition('.')[2]

def learnkit_arm(s, batched=False):
    "learnkit's ways: one file, or a list of files."
    learn = learnkit_learner(s)
    one,many = (lambda o: learn.predict(o)[2]),(lambda files: [o[2] for o in learn.predict(files)])
    res = finished(s, many=many) if batched else finished(s, one)
    return res | dict(precision=precision_of(learn))

def bare_arm(s):
    "The limit: Pillow and torch, no framework."
    import numpy as np, torch
    from PIL import Image
    torch.set_num_threads(cores())
    net = network(s['arch']).eval()
    net.load_state_dict(state(s))
    net = net.to(s['device'], memory_format=torch.channels_last)
    mean,std = (torch.tensor(o).view(3, 1, 1) for o in (net[0].mean, net[0].std))
    short,px = getattr(torch, s['precision']),s['size']
    def tensor(path):
        im = Image.open(path).convert('RGB')
        side = min(im.size)
        x,y = ((o-side)//2 for o in im.size)
        im = im.crop((x, y, x+side, y+side)).resize((px, px), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(im)).permute(2, 0, 1)
        return (x.float()/255-mean)/std
    def many(files, bs=64):
        res = []
        with torch.inference_mode(), torch.autocast(s['device'], dtype=short, enabled=short != torch.float32):
            for i in range(0, len(files), bs):
                x = torch.stack([tensor(o) for o in files[i:i+bs]]).to(s['device']).contiguous(memory_format=torch.channels_last)
                res.append(net(x).float().softmax(1).cpu())
        return torch.cat(res)
    return finished(s, lambda o: many([o])[0], many, precision=s['precision'])

def train_arm(s):
    "Tune the body for an epoch and write the weights, so that labels are compared where the network knows something."
    import torch
    learn = learnkit_learner(s, precision='fp32')
    learn.pretrained = True
    learn.fine_tune(1, base_lr=s['lr'], lr_mult=s['lr_mult'])
    torch.save(learn.model.state_dict(), s['weights'])
    return dict(accuracy=1-learn.results['error_rate'], sha=sha(*(o.contiguous().numpy().tobytes() for o in learn.model.state_dict().values())))

def export_arm(s):
    "Write the bundle that the cold start reads."
    learn = learnkit_learner(s)
    learn.predict(s['ask'][0])
    path = Path(learn.export(s['bundle']))
    return dict(mb=path.stat().st_size/2**20, precision=precision_of(learn))

def cold_arm(s):
    "From the bundle to the first prediction, in a fresh process."
    t = clock()
    from importlib import import_module
    load_learner = import_module('learnkit.all').load_learner
    a = clock()
    import torch
    torch.set_num_threads(cores())
    learn = load_learner(s['bundle'])
    b = clock()
    learn.predict(s['ask'][0])
    return {'import':a-t, 'load':b-a, 'first prediction':clock()-b}

DO = {FASTAI:'fastai', LIST:'test_dl', ONE:'one', MANY:'list', BARE:'bare'}
PARTS = dict(fastai=fastai_arm, test_dl=lambda s: fastai_arm(s, True), one=learnkit_arm, list=lambda s: learnkit_arm(s, True), bare=bare_arm,
    train=train_arm, export=export_arm, cold=cold_arm)

# The parent

def options():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='a look: tiny, fewer calls, one round')
    p.add_argument('--body', nargs='+')
    p.add_argument('--size', type=int, help='pixels (default: 128 for tiny, 192 for resnet18, else 224)')
    p.add_argument('--rounds', type=int, help='default: 3')
    p.add_argument('--calls', type=int, help='single calls that are timed (default: 200)')
    p.add_argument('--many', nargs='+', type=int, help='lengths of the lists')
    p.add_argument('--growth', type=int, help='calls over which memory is watched (default: 300)')
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', default=HERE/'out', type=Path)
    a = p.parse_args()
    a.body = a.body or (['tiny'] if a.quick else ['resnet18', 'tiny'])
    a.rounds = a.rounds or (1 if a.quick else 3)
    a.calls,a.growth = a.calls or (30 if a.quick else 200),a.growth or (50 if a.quick else 300)
    a.many = a.many or ([1, 8, 64] if a.quick else [1, 8, 64, 512])
    return a

def run_body(a, arch, files, runs, folder):
    "All rounds of one body; gives {arm: runs}."
    size,w = a.size or SIZES.get(arch, 224),weights(arch, 0, folder)
    ask = [p for p,_,split in files if split == 'valid']
    common = dict(arch=arch, size=size, bs=64, device=a.device, calls=a.calls, warmups=max(1, a.calls//10), growth=a.growth, many=a.many)
    spec = dict(common, files=files, ask=ask, seed=0, bundle=str(Path(folder)/f'{arch}.learnkit'), **w)
    trained = run_arm('predict.py', 'train', **spec) if arch in TRAINED else dict(sha=w['sha'])
    if 'error' in trained: print(f'training FAILED, the head stays random: {trained["error"]}', flush=True)
    key = dict(common, files=files_hash(files), sha=trained.get('sha', w['sha']), code=source_hash(), threads=cores())
    acc = f' after 1 + 1 epochs, accuracy {trained["accuracy"]:.3f}' if 'accuracy' in trained else ' (random: labels say little)'
    print(f'\n## {arch} {size} px: {len(ask)} files {key["files"]}, weights {key["sha"]}{acc}', flush=True)
    export = run_arm('predict.py', 'export', **spec)
    if 'error' in export: print(f'the bundle FAILED: {export["error"]}', flush=True)
    spec['precision'] = export.get('precision', 'float32')
    done,names = {k:[] for k in [*DO, 'cold']},[*DO, 'cold']
    for r in range(a.rounds):
        for k in names if r%2 == 0 else reversed(names):
            label = json.dumps(dict(key, arm=k, round=r, precision=spec['precision']), sort_keys=True)
            row = runs.do(label, lambda: run_arm('predict.py', DO.get(k, k), **spec), a.device) | dict(arm=k, seed=r)
            done[k].append(row)
            kept = '  (kept from before)' if row.get('old') else ''
            print(f'round {r+1}/{a.rounds} {k:<15} {line(row)}{kept}', flush=True)
    return dict(common, precision=spec['precision'], export=export.get('mb')),done

def line(o):
    "One run in a few words."
    if 'error' in o: return f'FAILED: {o["error"]}'
    one = f'one picture {o["p50"]:.1f} ms' if 'p50' in o else ', '.join(f'{k} {v:.2f} s' for k,v in o.items() if k in ('import', 'load', 'first prediction'))
    rate = ', '.join(f'{n}: {v:.0f}/s' for n,v in o.get('rate', {}).items())
    return f'{one}{"; " if one and rate else ""}{rate}; {o["process"]:.0f} s, drift {100*drift(o):.1f} %'

def med(rows, f):
    "Median of `f` over `rows`, where it has a value."
    vals = [v for o in rows if 'error' not in o and (v := f(o)) is not None]
    return statistics.median(vals) if vals else None

def report(a, about, done):
    "Print the tables of one body and return the figures."
    ok = {k:[o for o in v if 'error' not in o] for k,v in done.items()}
    counts = [str(n) for n in a.many]
    base = med_probs(ok[FASTAI])
    rows,res = [],dict(about, arms={}, ratios={})
    for k in DO:
        r = ok[k]
        probs = med_probs(r)
        far,same = compare(probs, base) if probs and base else (None, None)
        res['arms'][k] = dict(p50=[o.get('p50') for o in r], p95=[o.get('p95') for o in r], rate=[o['rate'] for o in r], growth=[o.get('growth') for o in r],
            rise=[o.get('rise') for o in r], difference=far, same=same, failed=[o['error'] for o in done[k] if 'error' in o])
        rows.append([k, *(med(r, lambda o: o.get(p)) for p in ('p50', 'p95')), *(med(r, lambda o: o['rate'][n]) for n in counts),
            *(med(r, f) for f in (lambda o: o.get('growth'), lambda o: round(o['peak']))),
            None if far is None else f'{far:.1e}', None if same is None else f'{100*same:.1f} %'])
    print(f'\n### {about["arch"]} {about["size"]} px, learnkit in {about["precision"]}\n')
    table(['arm', 'p50 ms', 'p95 ms', *(f'{n} at once, a second' for n in counts), 'growth MB a call', 'peak MB', 'furthest from fastai', 'same labels'], rows)
    most = counts[-1]
    asks = {'one picture, fastai predict / learnkit':(FASTAI, ONE, lambda o: o['p50']), 'one picture, learnkit / bare torch':(ONE, BARE, lambda o: o['p50']),
        f'{most} pictures, loop of fastai predict / learnkit list':(FASTAI, MANY, lambda o: 1/o['rate'][most]),
        f'{most} pictures, fastai test_dl / learnkit list':(LIST, MANY, lambda o: 1/o['rate'][most]),
        f'{most} pictures, learnkit one by one / list':(ONE, MANY, lambda o: 1/o['rate'][most]),
        f'{most} pictures, learnkit list / bare torch':(MANY, BARE, lambda o: 1/o['rate'][most])}
    texts = []
    for k,(x,y,f) in asks.items():
        res['ratios'][k],text = ratio(ok[x], ok[y], f)
        texts.append([k, text])
    table(['time of', 'ratio'], texts)
    res['cold'] = {k:med(ok['cold'], lambda o: o[k]) for k in ('import', 'load', 'first prediction', 'process')}
    table(['bundle MB', 'import s', 'load s', 'first prediction s', 'whole process s'], [[about['export'], *res['cold'].values()]])
    return res

def med_probs(rows): return rows[0]['probs'] if rows else None

def compare(a, b):
    "Largest difference of two lists of probabilities, and the share of pictures with the same label."
    far = max(abs(x-y) for p,q in zip(a, b) for x,y in zip(p, q))
    return far,statistics.mean(p.index(max(p)) == q.index(max(q)) for p,q in zip(a, b))

def plot(results, path):
    "Milliseconds of one picture and pictures a second for each body."
    fig,axs = new_plot(2*len(results))
    for i,o in enumerate(results):
        one = {k:statistics.median(v['p50']) for k,v in o['arms'].items() if v['p50'] and v['p50'][0] is not None}
        bars(axs[2*i], [*one], {'p50':[*one.values()]}, f'{o["arch"]} {o["size"]} px, one picture', 'milliseconds')
        for k,v in o['arms'].items():
            if not v['rate']: continue
            ns = [*v['rate'][0]]
            axs[2*i+1].plot([int(n) for n in ns], [statistics.median(r[n] for r in v['rate']) for n in ns], 'o-', ms=3, label=k)
        axs[2*i+1].set(xscale='log', yscale='log', title=f'{o["arch"]} {o["size"]} px', xlabel='pictures at once', ylabel='pictures a second')
        axs[2*i+1].legend(fontsize=7)
    save_plot(fig, path)

def main():
    "Run what is missing and print the tables."
    a,begun = options(),clock()
    runs,facts,results = Runs(a.out/'predict.jsonl'),machine(),[]
    describe(facts)
    n = 3*(a.calls+a.growth+sum(a.many)+300)
    print(f'About {minutes(len(a.body)*a.rounds*(60+n*.035))} (a guess: 35 ms a call).', flush=True)
    files = picture_list(160 if a.quick else None)
    warm(files)
    with tempfile.TemporaryDirectory(prefix='predict_') as folder:
        for arch in a.body: results.append(report(a, *run_body(a, arch, files, runs, folder)))
    print(f'Ratios: median of the pairs of the same round (bootstrap 95 %). {minutes(clock()-begun)} in all.')
    write_json(a.out/'predict.json', dict(machine=facts, results=results))
    plot(results, a.out/'predict.png')

if __name__ == '__main__':
    arm_main(PARTS)
    main()
