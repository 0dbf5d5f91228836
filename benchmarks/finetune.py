"""Seconds of `fine_tune` with plain fastai, tuned fastai and learnkit: the same pictures, weights, rates and batches, in fresh processes.

    LEARNKIT_MIRROR=FOLDER python benchmarks/finetune.py [--quick] [--regime S P] [--body resnet18 tiny] [--rounds 5] [--switch] [--null] [--resplit]

Arms: F0 fastai with its defaults. F1 fastai tuned: the better number of workers, channels_last, and bf16 by torch's own autocast, each only
where a trial on this machine shows it to be faster. L0 learnkit's default, which does the same work up to rounding. L1 learnkit with
`fast=True`. Regimes: S the small pictures as they are, P the same ones enlarged to 12 megapixels. Clocks: fixed work (the whole call of
`fine_tune`), and for a body with trained weights the time to the end of the first epoch whose accuracy reaches the target, which is F0's
median final accuracy less half a point. `--frozen K` measures K epochs with a frozen body instead.

Each finished run is kept in OUT/finetune.jsonl at once, and a second start with the same OUT does only what is missing.
"""
import argparse, json, statistics, sys, tempfile
from importlib import import_module
from pathlib import Path
from measure import *

ARMS = dict(
    F0=dict(do='fastai'),
    F1=dict(do='fastai', tuned=True),
    L0=dict(do='learnkit'),
    L1=dict(do='learnkit', tune=dict(fast=True, cache=True)))

SWITCHES = { # one lever off: the arm that it is compared with, and the arguments that differ
    'L0 precision=fp32': ('L0', dict(learner=dict(precision='fp32'))),
    'L0 decode_cache=0': ('L0', dict(dls=dict(decode_cache=0))),
    'L0 num_workers=2': ('L0', dict(dls=dict(num_workers=2))),
    'L1 precision=fp32': ('L1', dict(learner=dict(precision='fp32'))),
    'L1 decode_cache=0': ('L1', dict(dls=dict(decode_cache=0))),
    'L1 cache=False': ('L1', dict(tune=dict(cache=False)))}

TRAINED = 'tiny', # bodies whose weights come with learnkit; the others start from random weights, so their accuracy says nothing
WORKERS = dict(cpu=(0, 2), cuda=(2, 4, 8, 16)) # what F1 tries
AUGMENT = dict(max_rotate=5., max_zoom=1.075, max_lighting=.1, max_warp=.05) # learnkit's augment=0.5
PCT = .99 # as in the frozen stage of fine_tune

# The arms, each in a process of its own

def network(arch, pretrained=False, n_out=2):
    "The network of all arms: learnkit's body and fastai's head. What is imported here changes nothing of fastai."
    from fastai.layers import apply_init
    from fastai.vision.learner import create_head
    from learnkit.models.zoo import body
    from torch import nn
    net = body(arch, pretrained=pretrained)
    head = create_head(net.features, n_out, ps=.25)
    apply_init(head, nn.init.kaiming_normal_)
    return nn.Sequential(net, head)

def start(s, module):
    "Import `module`, set threads and seed; gives the module and the seconds."
    t = clock()
    res = import_module(module)
    t = clock()-t
    import torch
    torch.set_num_threads(cores())
    res.set_seed(s['seed'], reproducible=s['device'] == 'cpu')
    return res,t

def state(s):
    import torch
    return torch.load(s['weights'], map_location='cpu', weights_only=True)

def stopwatch(Callback, device):
    "A callback that notes seconds and accuracy of each epoch; `t0` is when `fine_tune` began. It has no `before_batch`, which would forbid kept features."
    import torch
    def now():
        if device != 'cpu': torch.accelerator.synchronize()
        return clock()
    class Stopwatch(Callback):
        order = 60
        def __init__(self): self.t0,self.rows,self.first,self.waited,self.mark,self.begun,self.trained = clock(),[],None,0,None,None,None
        def before_train(self): self.begun = self.mark = now()
        def around(self, one_batch):
            def _f(i, b):
                if self.training: self.arrived(clock())
                one_batch(i, b)
                self.mark = clock()
            return _f
        def arrived(self, t):
            self.waited += t-self.mark
            if self.first is None: self.first = t-self.t0
        def after_train(self): self.trained = now()
        def after_epoch(self):
            end,rec = now(),self.recorder
            err = dict(zip(rec.metric_names[1:], rec.values[-1])).get('error_rate') if rec.values else None
            a = self.begun or (self.rows[-1]['end']+self.t0 if self.rows else self.t0)
            b = self.trained or end
            self.rows.append(dict(train=b-a, valid=end-b, end=end-self.t0, accuracy=None if err is None else 1-float(err)))
            self.begun = self.trained = None
    return Stopwatch()

def precision_of(learn):
    "The precision that a callback of `learn` trained in."
    kinds = [vars(o).get('dtype') or getattr(vars(o).get('context'), 'fast_dtype', None) for o in learn.cbs]
    return next((str(o).rpartition('.')[2] for o in kinds if o is not None), 'float32')

def measured(s, learn, tune, times):
    "Run `tune` under the stopwatch; `times` has the seconds of what came before."
    import torch
    from fastai.callback.core import Callback
    watch = stopwatch(Callback, s['device'])
    learn.add_cb(watch)
    learn.one_batch = watch.around(learn.one_batch)
    watch.t0 = clock()
    tune()
    if s['device'] != 'cpu': torch.accelerator.synchronize()
    total = clock()-watch.t0
    acc = watch.rows[-1]['accuracy'] if watch.rows else None
    if acc is None: acc = 1-float(learn.validate()[-1])
    for i,o in enumerate(watch.rows): o['frozen'] = bool(s['frozen']) or i < len(watch.rows)-s['epochs']
    own,child = peak_rss()
    workers = getattr(getattr(learn.dls.train, 'fake_l', None), 'num_workers', 0)
    res = dict(times, total=total, first_batch=watch.first, wait=watch.waited, epochs=watch.rows, accuracy=acc, rss=own,
        rss_child=child if workers else 0, workers=workers, threads=torch.get_num_threads(), precision=precision_of(learn))
    if s['device'] == 'cuda': res['gpu_mb'] = torch.cuda.max_memory_allocated()/2**20
    return res

def fastai_learner(s, fv, workers=None):
    "fastai's learner for `s`: the network and the transforms of learnkit, everything else fastai's own."
    net = network(s['arch'])
    net.load_state_dict(state(s))
    norm = fv.Normalize.from_stats(net[0].mean, net[0].std, cuda=s['device'] != 'cpu')
    block = fv.DataBlock(blocks=(fv.ImageBlock, fv.CategoryBlock), get_x=fv.ItemGetter(0), get_y=fv.ItemGetter(1),
        splitter=fv.IndexSplitter([i for i,o in enumerate(s['files']) if o[2] == 'valid']), item_tfms=fv.Resize(s['size']),
        batch_tfms=[*fv.aug_transforms(**AUGMENT), norm])
    kw = {} if workers is None else dict(num_workers=workers)
    t = clock()
    dls = block.dataloaders(s['files'], bs=s['bs'], device=s['device'], **kw)
    t = clock()-t
    learn = fv.Learner(dls, net, loss_func=fv.CrossEntropyLossFlat(), metrics=fv.error_rate,
        splitter=lambda m: [*m[0].groups(), fv.params(m[1:])])
    strange = [o for o in sys.modules if o.startswith(('learnkit.data', 'learnkit.train', 'learnkit.task'))]
    if strange: raise RuntimeError(f'{strange[0]} is imported, which changes fastai')
    return learn,t

def tuned(learn, fv, precision):
    "Give `learn` channels_last and `precision`."
    import torch
    class Layout(fv.Callback):
        order = -1
        def before_batch(self): self.learn.xb = tuple(o.contiguous(memory_format=torch.channels_last) for o in self.xb)
    class Autocast(fv.Callback):
        order = 10
        def before_batch(self):
            self.context = torch.autocast('cpu', dtype=torch.bfloat16)
            self.context.__enter__()
        def after_pred(self): self.learn.pred = self.pred.float()
        def after_loss(self): self.context.__exit__(None, None, None)
    learn.add_cbs([fv.ChannelsLast(), Layout()])
    if precision == 'bf16': learn.add_cb(Autocast())
    if precision == 'fp16': learn.to_fp16()
    return learn

def fastai_arm(s):
    "F0, and F1 where `s` says tuned."
    fv,t_import = start(s, 'fastai.vision.all')
    t = clock()
    learn,t_data = fastai_learner(s, fv, s['trial']['workers'] if s.get('tuned') else None)
    if s.get('tuned'): tuned(learn, fv, s['trial']['precision'])
    times = {'import':t_import, 'data':t_data, 'model':clock()-t-t_data}
    def tune():
        with learn.no_bar(), learn.no_logging():
            learn.freeze()
            if s['frozen']: learn.fit_one_cycle(s['frozen'], slice(s['lr']), pct_start=PCT)
            else: learn.fine_tune(s['epochs'], s['lr'], freeze_epochs=1, lr_mult=s['lr_mult'])
    return measured(s, learn, tune, times)

def learnkit_arm(s):
    "L0, L1, and those with a lever off."
    lk,t_import = start(s, 'learnkit.all')
    lk.settings.set(progress=False)
    t = clock()
    records = [lk.Record(Path(p), label=label, split=split) for p,label,split in s['files']]
    dls = lk.classification_dls(records, size=s['size'], bs=s['bs'], device=lk.torch.device(s['device']), **s.get('dls', {}))
    t_data = clock()-t
    learn = lk.classification_learner(dls, s['arch'], pretrained=False, **s.get('learner', {}))
    learn.model.load_state_dict(state(s))
    learn.pretrained = True
    learn.freeze()
    times = {'import':t_import, 'data':t_data, 'model':clock()-t-t_data}
    epochs,frozen = (0, s['frozen']) if s['frozen'] else (s['epochs'], 1)
    return measured(s, learn, lambda: learn.fine_tune(epochs, base_lr=s['lr'], freeze_epochs=frozen, lr_mult=s['lr_mult'], **s.get('tune', {})), times)

def trial(s):
    "Which precision and number of workers F1 gets, and the seconds of a step: tried on a few batches with an unfrozen body."
    import torch
    fv,_ = start(s, 'fastai.vision.all')
    def step_seconds(learn, precision, n=3):
        x,y = learn.dls.one_batch()
        if precision != 'plain': x = x.contiguous(memory_format=torch.channels_last)
        net = learn.model.to(s['device'], memory_format=torch.contiguous_format if precision == 'plain' else torch.channels_last)
        x,times = x.as_subclass(torch.Tensor),[]
        for _ in range(n+1):
            t = clock()
            with torch.autocast(s['device'], dtype=short, enabled=precision in ('bf16', 'fp16')): out = net(x)
            learn.loss_func(out.float(), fv.TensorBase(y)).backward()
            if s['device'] != 'cpu': torch.accelerator.synchronize()
            times.append(clock()-t)
        return min(times[1:])
    few = dict(s, files=[o for o in s['files'] if o[2] == 'train'][:6*s['bs']]+[o for o in s['files'] if o[2] == 'valid'][:s['bs']])
    short,name = (torch.bfloat16, 'bf16') if s['device'] == 'cpu' else (torch.float16, 'fp16')
    learn,_ = fastai_learner(few, fv, 0)
    steps = {o:step_seconds(learn, o) for o in ['plain', 'fp32']+[name]*quick_in(short, s['device'])}
    precision = min((o for o in steps if o != 'plain'), key=steps.get)
    passes = {}
    for n in WORKERS['cpu' if s['device'] == 'cpu' else 'cuda']:
        learn = tuned(fastai_learner(few, fv, n)[0], fv, precision)
        with learn.no_bar(), learn.no_logging():
            t = clock()
            learn.fit_one_cycle(1, s['lr'])
            passes[n] = clock()-t
    return dict(precision=precision, workers=min(passes, key=passes.get), steps=steps, passes=passes)

def quick_in(dtype, device):
    "Does `device` multiply small matrices faster in `dtype` than in fp32? Where it does not, a whole step could take minutes."
    import torch
    def seconds(a):
        times = []
        for _ in range(6):
            t = clock()
            a@a
            if device != 'cpu': torch.accelerator.synchronize()
            times.append(clock()-t)
        return min(times)
    a = torch.randn(256, 256, device=device)
    try: return device != 'cpu' or seconds(a.to(dtype)) < seconds(a)
    except RuntimeError: return False

# The parent: what to run

def options():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='a look, in a few minutes: tiny, 160 pictures, 96 px, one round')
    p.add_argument('--regime', nargs='+', choices=['S', 'P'])
    p.add_argument('--body', nargs='+', help='names of the zoo (default: resnet18 tiny)')
    p.add_argument('--arms', nargs='+', choices=ARMS, default=[*ARMS])
    p.add_argument('--rounds', type=int, help='seeds 0, 1, … (default: 5)')
    p.add_argument('--seeds', nargs='+', type=int, help='in place of --rounds')
    p.add_argument('--epochs', type=int, default=3, help='with all layers, after one with a frozen body')
    p.add_argument('--frozen', type=int, default=0, metavar='K', help='K epochs with a frozen body and nothing else')
    p.add_argument('--size', type=int, help='pixels (default: 128 for tiny, 192 for resnet18, else 224)')
    p.add_argument('--bs', type=int, help='pictures a batch (default: 64)')
    p.add_argument('--pictures', type=int, help='a stratified share of so many pictures, training and validation together')
    p.add_argument('--resplit', action='store_true', help='each seed has a split of its own')
    p.add_argument('--photos', help='folder that keeps the enlarged pictures (default: a temporary one)')
    p.add_argument('--megapixels', type=float, default=12, help='of the enlarged pictures')
    p.add_argument('--switch', action='store_true', help='also each lever of learnkit off by itself')
    p.add_argument('--null', action='store_true', help='F0 against F0 alone: is this machine quiet enough?')
    p.add_argument('--device', default='cpu', help="'cuda' for a GPU")
    p.add_argument('--peak', type=float, help='TFLOPS that the device can do at most: prints the share of it that training reaches')
    p.add_argument('--out', default=HERE/'out', type=Path)
    a = p.parse_args()
    a.body = a.body or (['tiny'] if a.quick else ['resnet18', 'tiny'])
    a.regime = a.regime or (['S'] if a.quick else ['S', 'P'])
    a.seeds = a.seeds or list(range(a.rounds or (1 if a.quick else 5)))
    if a.quick: a.size,a.bs,a.pictures = a.size or 96,a.bs or 32,a.pictures or 160
    a.bs = a.bs or 64
    return a

def arms_of(a):
    "Name -> arguments of each arm."
    if a.null: return {'F0':ARMS['F0'], 'F0 again':ARMS['F0']}
    more = {k:ARMS[base]|{o:ARMS[base].get(o, {})|v for o,v in kw.items()} for k,(base,kw) in SWITCHES.items() if base in a.arms} if a.switch else {}
    return {o:ARMS[o] for o in sorted(a.arms, key=['F0', 'L0', 'L1', 'F1'].index)} | more

def weights(arch, seed, folder):
    "A file with the weights that all arms of round `seed` begin with, their sha256, and the body's rates."
    import torch
    torch.manual_seed(seed)
    net = network(arch, arch in TRAINED)
    path = Path(folder)/f'{arch.replace("/", "_")}_{seed}.pt'
    torch.save(net.state_dict(), path)
    return dict(weights=str(path), sha=sha(*(o.contiguous().numpy().tobytes() for o in net.state_dict().values())), lr=net[0].lr, lr_mult=net[0].lr_mult)

def forward_flops(arch, size):
    "Floating-point operations of one forward pass of one picture."
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    net = network(arch).eval()
    with FlopCounterMode(display=False) as f, torch.no_grad(): net(torch.randn(1, 3, size, size))
    return f.get_total_flops()

def guess(a, files, tried, k):
    "Seconds of one arm of kind `k`, guessed from the trial."
    train,valid = (sum(o[2] == w for o in files)/a.bs for w in ('train', 'valid'))
    plain,quick = tried['steps']['plain'],min(tried['steps'].values())
    data = max(0, min(tried['passes'].values())/min(7, train+valid)-quick)
    step = dict(F0=plain, F1=quick, L0=quick, L1=quick*.6)[k[:2]]
    work,looks = (a.frozen*.7, a.frozen) if a.frozen else (.7+a.epochs, 1+a.epochs)
    return 12+step*(train*work+valid*looks/3)+data*(train+valid)*(looks if k[0] == 'F' else 1)

def run_setting(a, regime, arch, files, photos, runs, folder):
    "All rounds of one regime and body; gives what they had in common and {arm: runs}."
    size,arms,code = a.size or dict(tiny=128, resnet18=192).get(arch, 224),arms_of(a),source_hash()
    common = dict(regime=regime, arch=arch, size=size, bs=a.bs, epochs=a.epochs, frozen=a.frozen, device=a.device, megapixels=a.megapixels*(regime == 'P'))
    ws = {s:weights(arch, s, folder) for s in a.seeds}
    say = ' '.join(f'{s}:{o["sha"]}' for s,o in ws.items())
    train = sum(o[2] == 'train' for o in files)
    work = f'{a.frozen} frozen epochs' if a.frozen else f'1 + {a.epochs} epochs'
    print(f'\n## {arch} {size} px, regime {regime}: {train} + {len(files)-train} pictures, {work}, batches of {a.bs}\n'
        f'files and split {files_hash(files)}; weights by seed {say}; rate {ws[a.seeds[0]]["lr"]:g}, '
        f'first layers {ws[a.seeds[0]]["lr_mult"]:g} times slower', flush=True)
    key = dict(common, null=a.null, files=files_hash(files), code=code, threads=cores())
    def label(arm, seed, **kw): return json.dumps(dict(key, arm=arm, seed=seed, **kw), sort_keys=True)
    plan = [(i, seed, k) for i,seed in enumerate(a.seeds) for k in (arms if i%2 == 0 else reversed(arms))]
    keys = {(seed, k):label(k, seed, sha=ws[seed]['sha'], args=arms[k], **({'resplit':True} if a.resplit else {})) for _,seed,k in plan}
    missing = [o for o in plan if not runs.find(keys[o[1:]])]
    if missing:
        files = photos(files) if regime == 'P' else files
        warm(files)
    split_of = {o:resplit(files, o) if a.resplit else files for o in a.seeds}
    tried = runs.do(label('trial', a.seeds[0]), lambda: run_arm('finetune.py', 'trial', **common, files=files, **ws[a.seeds[0]], seed=0), a.device)
    if 'error' in tried: raise SystemExit(f'The trial failed: {tried["error"]}\n{tried["said"]}')
    print('trial for F1: '+', '.join(f'{k} {v:.3f} s a step' for k,v in tried['steps'].items())+'; '
        +', '.join(f'{k} workers {v:.1f} s a pass' for k,v in tried['passes'].items())+f' -> {tried["precision"]}, {tried["workers"]} workers', flush=True)
    secs = {k:guess(a, files, tried, k) for k in arms}
    print(f'{len(missing)} of {len(plan)} runs to do, about {minutes(sum(secs[k] for *_,k in missing))} (a guess from the steps of the trial)', flush=True)
    done = {k:[] for k in arms}
    for n,(_,seed,k) in enumerate(plan, 1):
        row = runs.do(keys[seed, k], lambda: run_arm('finetune.py', **common | ws[seed] | arms[k], files=split_of[seed], seed=seed, trial=tried), a.device)
        row = row | dict(arm=k, seed=seed)
        done[k].append(row)
        if 'error' not in row: secs[k] = statistics.median(o['process'] for o in done[k] if 'error' not in o)
        left = sum(secs[o[2]] for o in plan[n:] if not runs.find(keys[o[1:]]))
        print(f'[{n}/{len(plan)}] seed {seed} {k:<18} {line(row)}{"  (kept from before)" if row.get("old") else f"; {minutes(left)} left"}', flush=True)
    kept = {k:tried[k] for k in ('precision', 'workers', 'steps', 'passes')}
    return dict(common, hash=key['files'], weights={s:o['sha'] for s,o in ws.items()}, trial=kept),done

def line(o):
    "One run in a few words."
    if 'error' in o: return f'FAILED: {o["error"]}'
    busy = ', '.join(f'{k} {v}' for k,v in o['busy'].items() if v is not None)
    return f'{o["total"]:7.1f} s, accuracy {o["accuracy"]:.4f}, {o["precision"]}, {o["rss"]:.0f} MB, drift {100*drift(o):.1f} %, {busy}'

# The report

def reached(o, target):
    "Seconds until the first validation of the run `o` that reaches `target`, or `None`."
    return next((e['end'] for e in o['epochs'] if (e['accuracy'] or 0) >= target), None)

def usual(rows, target):
    "The same for the median run of `rows`: the first epoch whose median accuracy reaches `target`."
    for es in zip(*(o['epochs'] for o in rows)):
        if statistics.median(e['accuracy'] or 0 for e in es) >= target: return statistics.median(e['end'] for e in es)

def med(rows, f): return statistics.median(f(o) for o in rows) if rows else None

def phases(o):
    "Seconds of the run `o` by what they were spent on."
    es = o['epochs']
    parts = {k:o[k] for k in ('import', 'data', 'model')}
    parts['frozen epochs'],parts['other epochs'] = (sum(e['train'] for e in es if e['frozen'] == o) for o in (True, False))
    return parts | dict(validation=sum(e['valid'] for e in es), rest=max(0, o['total']-sum(e['train']+e['valid'] for e in es)))

def report(a, about, done):
    "Print the tables of one setting and return the figures."
    ok = {k:[o for o in v if 'error' not in o] for k,v in done.items()}
    bad = {k:[o for o in v if 'error' in o] for k,v in done.items()}
    bases = ['F0'] if a.null else [o for o in ('F0', 'F1') if ok.get(o)]
    timed = about['arch'] in TRAINED and bool(ok.get('F0')) and not a.null
    target = med(ok['F0'], lambda o: o['accuracy'])-.005 if timed else None
    res,rows = dict(about, target=target, arms={}),[]
    for k in (o for o in done if o not in SWITCHES):
        r,out = ok[k],dict(seconds=[o['total'] for o in ok[k]], accuracy=[o['accuracy'] for o in ok[k]], failed=[o['error'] for o in bad[k]])
        row = [k, ' '.join(f'{o["total"]:.1f}' for o in r) or bad[k][0]['error'][:60], med(r, lambda o: o['total'])]
        for b in bases:
            out[f'{b}/{k}'],text = ratio(ok[b], r, lambda o: o['total'])
            row.append(text if k != b else '1')
        if timed:
            times = [reached(o, target) for o in r]
            out['target seconds'],out['target seconds of the median run'] = times,usual(r, target)
            row.append(f'{med(times, float):.1f}' if r and None not in times else f'missed in {times.count(None)} of {len(r)}' if r else '–')
            for b in bases:
                whole = r and None not in times and None not in [reached(o, target) for o in ok[b]]
                out[f'{b}/{k} to target'],text = ratio(ok[b], r, lambda o: reached(o, target)) if whole else (None, 'no ratio')
                row.append(text if k != b else '1' if whole else '–')
            first = usual(ok['F0'], target)
            row.append(f'{u:.1f} ({first/u:.2f}×)' if first and (u := usual(r, target)) else '–')
        base = {o['seed']:o['accuracy'] for o in ok.get('F0', [])}
        diff = interval([100*(o['accuracy']-base[o['seed']]) for o in r if o['seed'] in base])
        out['points from F0'] = diff
        row += [med(r, lambda o: o['accuracy']), '–' if diff[0] is None else f'{diff[0]:+.1f} ({diff[1]:+.1f} to {diff[2]:+.1f})',
            med(r, lambda o: round(o['rss'])), med(r, lambda o: round(o['rss_child'])) or '–']
        if a.device == 'cuda': row.append(med(r, lambda o: round(o['gpu_mb'])))
        out['phases'] = {p:med(r, lambda o: phases(o)[p]) for p in phases(r[0])} if r else {}
        out['curves'] = [[(e['end'], e['accuracy']) for e in o['epochs']] for o in r]
        res['arms'][k] = out
        rows.append(row)
    head = ['arm', 'fine_tune, seconds of each seed', 'median', *(f'{b} / arm' for b in bases)]
    if timed: head += [f'seconds to {target:.3f}', *(f'{b} / arm to target' for b in bases), 'median run (F0 / arm)']
    head += ['accuracy', 'points from F0', 'peak MB', 'worker MB', *(['GPU MB'] if a.device == 'cuda' else [])]
    print(f'\n### {about["arch"]} {about["size"]} px, regime {about["regime"]}\n')
    table(head, rows)
    if a.null and (f := res['arms']['F0 again']['F0/F0 again']): print(f'null test: {f["median"]:.3f}, '
        f'{"within" if .97 <= f["median"] <= 1.03 else "OUTSIDE"} 0.97 to 1.03\n')
    inner = [k for k in ok if ok[k]]
    names = [*phases(ok[inner[0]][0])] if inner else []
    more = {'first batch':lambda o: o['first_batch'] or 0, 'waiting for data':lambda o: o['wait'], 'whole process':lambda o: o['process']}
    table(['arm', *names, *more], [[k, *(med(ok[k], lambda o: phases(o)[p]) for p in names), *(med(ok[k], f) for f in more.values())] for k in inner])
    if a.switch: res['switches'] = switches(ok, bad)
    if a.peak and not a.frozen: res['peak'] = share(a, about, ok)
    return res

def switches(ok, bad):
    "Print how much longer each lever's absence takes."
    rows,res = [],{}
    for k,(base,_) in SWITCHES.items():
        if k not in ok: continue
        res[k],text = ratio(ok[k], ok.get(base, []), lambda o: o['total'])
        secs = med(ok[k], lambda o: o['total']) if ok[k] else bad[k][0]['error'][:60]
        rows.append([k, secs, text, med(ok[k], lambda o: o['accuracy']), med(ok[k], lambda o: round(o['rss']))])
    table(['lever off', 'seconds', 'time without it / with it', 'accuracy', 'peak MB'], rows)
    return res

def share(a, about, ok):
    "Print the share of `--peak` that the last epoch's training reaches, its waiting for data included, for the arms that train all layers at full size."
    f,res = 3*forward_flops(about['arch'], about['size']),{}
    n = about['train']//about['bs']*about['bs']
    for k,r in ok.items():
        if r and r[0]['epochs'] and k[:2] != 'L1': res[k] = med(r, lambda o: n*f/o['epochs'][-1]['train'])/(a.peak*1e12)
    table(['arm', 'TFLOPS', f'share of {a.peak:g} TFLOPS'], [[k, v*a.peak, f'{100*v:.1f} %'] for k,v in res.items()])
    return res

def plot(results, path):
    "Seconds by phase for each setting, and accuracy against time where weights were trained."
    acc = [o for o in results if o['target'] is not None]
    fig,axs = new_plot(len(results)+len(acc))
    for ax,o in zip(axs, results):
        arms = {k:v for k,v in o['arms'].items() if v['phases']}
        parts = next(iter(arms.values()))['phases'] if arms else {}
        bars(ax, [*arms], {p:[v['phases'][p] for v in arms.values()] for p in parts}, f'{o["arch"]} {o["size"]} px, {o["regime"]}')
    for ax,o in zip(axs[len(results):], acc):
        for i,(k,v) in enumerate(o['arms'].items()):
            for j,c in enumerate(v['curves']): ax.plot(*zip(*c), 'o-', ms=3, lw=1, color=f'C{i}', label=None if j else k)
        ax.axhline(o['target'], color='grey', lw=.8, ls='--')
        ax.set(title=f'{o["arch"]} {o["size"]} px, {o["regime"]}', xlabel='seconds of fine_tune', ylabel='accuracy')
        ax.legend(fontsize=7)
    save_plot(fig, path)

def main():
    "Run what is missing and print the tables."
    a,begun = options(),clock()
    runs,facts,results = Runs(a.out/'finetune.jsonl'),machine(),[]
    describe(facts)
    small = picture_list(a.pictures)
    with tempfile.TemporaryDirectory(prefix='finetune_') as folder:
        photos = lambda files: enlarged(files, a.photos or Path(folder)/'photos', a.megapixels)
        for regime in a.regime:
            for arch in a.body:
                about,done = run_setting(a, regime, arch, small, photos, runs, folder)
                results.append(report(a, about | dict(train=sum(o[2] == 'train' for o in small), pictures=len(small)), done))
    print(f'Ratios: median of the pairs of the same seed (bootstrap 95 %). Pairs with a drift above {100*DRIFT:g} % are left out. '
        f'{minutes(clock()-begun)} in all.')
    write_json(a.out/'finetune.json', dict(machine=facts, results=results))
    plot(results, a.out/'finetune.png')

if __name__ == '__main__':
    arm_main(dict(fastai=fastai_arm, learnkit=learnkit_arm, trial=trial))
    main()
