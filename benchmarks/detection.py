"""How well detectors, instances and key points are learned on two cores, in how many minutes, and how fast they run.

    LEARNKIT_MIRROR=FOLDER python benchmarks/detection.py [bccd pedestrians scenes masks faces coco] [--seeds 1] [--epochs N]
    LEARNKIT_MIRROR=FOLDER python benchmarks/detection.py --speed [--steps 8] [--rounds 3]

Without `--speed`, each set is learned with the recipe of `SETS` from the built-in body, in a process of its own with an empty home; nothing
is downloaded. Minutes are those of `fine_tune`, with validation. With `--speed`, a faster R-CNN on a mobilenet at 320 px trains beside the
loop of torchvision's reference (its own model, a PyTorch DataLoader with no worker or with two, whichever is faster, and SGD), and answers
about 100 pictures beside the plain loop that opens a picture and asks the network about it, one after the other. Ours comes twice: the
kind `fasterrcnn` over the zoo's body, which is narrower and looks at fewer proposals, and torchvision's own network in our loop.
"""
import argparse, statistics
from functools import partial
from pathlib import Path
from measure import *

# name: (data set, task, kind of network, size, pictures a batch, epochs after the frozen one, learning rate, figure, target, aim, minutes)
SETS = dict(
    bccd=('bccd', 'detection', 'yolo', 256, 8, 10, None, 'mAP50', .70, .85, 15),
    pedestrians=('PennFudanPed', 'detection', 'yolo', 256, 8, 24, None, 'mAP50', .60, .85, 15),
    scenes=('doodle_scenes', 'detection', 'yolo', 192, 8, 6, None, 'mAP50', .90, .97, 5),
    masks=('PennFudanPed', 'instance', 'maskrcnn', 256, 4, 12, None, 'mAP50', .40, .70, 20),
    faces=('face_keypoints', 'keypoints', 'heatmap', 128, 32, 12, None, 'pck', .80, .93, 8),
    coco=('coco', 'detection', 'yolo', 256, 8, 20, None, 'mAP50', None, None, None))

def records_of(data, path, lk):
    "The records of the data set `data` in `path`."
    if data == 'bccd': return lk.read_voc(path)
    if data == 'PennFudanPed': return lk.read_masks(path, images='PNGImages', masks='PedMasks', label='pedestrian', valid=30/130)
    if data == 'doodle_scenes':
        lk.write_doodle_scenes('scenes', n=500)
        return lk.read_coco('scenes')
    if data == 'face_keypoints': return lk.read_points(path)
    rs = lk.read_coco(path/'annotations'/'instances.json')
    held = set((path/'val.txt').read_text().split())
    for r in rs: r.split = 'valid' if held & {r.image.name, r.image.stem, f'images/{r.image.name}'} else 'train'
    return rs

def learned(spec):
    "One set learned once: figures, minutes, and what is slow."
    import learnkit.all as lk
    data,task,kind,size,bs,epochs,lr,*_ = SETS[spec['set']]
    path = None if data == 'doodle_scenes' else lk.get_data(data)
    rs = records_of(data, path, lk)
    lk.set_seed(spec['seed'])
    dls = getattr(lk, f'{task}_dls')(rs, size=size, bs=bs)
    learn = getattr(lk, f'{task}_learner')(dls, kind)
    start = clock()
    learn.fine_tune(spec['epochs'] or epochs, lr)
    minutes = (clock()-start)/60
    return dict(results=learn.results, minutes=minutes, train=len(dls.train_ds), valid=len(dls.valid_ds), peak=peak_rss()[0], params=lk.n_params(learn.model))

def show_sets(rows):
    "The table of all runs of each set."
    print('\n| set | network | pictures | minutes (at most) | figure | at least, aim | peak MB |\n|---|---|---|---|---|---|---|')
    for name,runs in rows.items():
        data,task,kind,size,_,epochs,_,figure,target,aim,most = SETS[name]
        good = [o for o in runs if 'error' not in o]
        if not good: print(f'| {name} | {kind} | | failed: {runs[0]["error"][:120]} |')
        if not good: continue
        values,minutes = [o['results'][figure] for o in good],[o['minutes'] for o in good]
        more = f', mAP {statistics.median(o["results"]["mAP"] for o in good):.3f}' if 'mAP' in good[0]['results'] else ''
        print(f'| {data} {task} | {kind}, {size} px, 1 + {epochs} epochs, {good[0]["params"]/1e6:.1f} M | {good[0]["train"]} + {good[0]["valid"]} '
            f'| {statistics.median(minutes):.1f} ({most or "-"}) | {figure} {", ".join(f"{v:.3f}" for v in values)}{more} | {target or "-"}, {aim or "-"} | {max(o["peak"] for o in good):.0f} |')

# Speed

def scenes_at(n, px, folder):
    "`n` drawn scenes with `px` pixels a side, as JPEG, with their boxes, so that both networks see the same pixels."
    import learnkit.all as lk
    from PIL import Image
    path = lk.write_doodle_scenes(Path(folder)/'drawn', n=n, size=px)
    rs = lk.read_coco(path)
    for r in rs:
        f = r.image.with_suffix('.jpg')
        Image.open(r.image).convert('RGB').save(f, quality=90)
        r.image = f
    return rs

def reference(rs, names, bs, workers, px):
    "A function that makes `n` steps of torchvision's reference loop, and its model."
    import random, torch, torchvision
    from PIL import Image
    from torchvision.transforms import v2
    class Scenes(torch.utils.data.Dataset):
        tfm = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float, scale=True)])
        def __len__(self): return len(rs)
        def __getitem__(self, i):
            x,b,l = self.tfm(Image.open(rs[i].image).convert('RGB')),torch.tensor(rs[i].boxes),torch.tensor([names.index(o)+1 for o in rs[i].labels])
            if random.random() < .5: x,b = x.flip(-1),torch.stack([px-b[:,2], b[:,1], px-b[:,0], b[:,3]], 1)
            return x,dict(boxes=b.float(), labels=l)
    net = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=len(names)+1, trainable_backbone_layers=6)
    opt = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=.001, momentum=.9, weight_decay=1e-4)
    dl = torch.utils.data.DataLoader(Scenes(), batch_size=bs, shuffle=True, drop_last=True, num_workers=workers, collate_fn=lambda b: tuple(zip(*b)), persistent_workers=workers > 0)
    def one_pass():
        net.train()
        start,n = clock(),0
        for xs,ts in dl:
            loss = sum(net([*xs], [*ts]).values())
            opt.zero_grad()
            loss.backward()
            opt.step()
            n += len(xs)
        return n/(clock()-start)
    return one_pass,net

def ours(rs, bs, px, *arch):
    "A function that trains a learner of `arch` for an epoch and gives pictures a second, and the learner."
    import learnkit.all as lk
    from fastai.callback.core import Callback
    class Times(Callback):
        order = 60
        def before_train(self): self.begun = clock()
        def after_train(self): self.took = clock()-self.begun
    dls = lk.detection_dls(rs, size=px, bs=bs, valid=lambda r: r is rs[0])
    learn,watch = lk.detection_learner(dls, *arch, pretrained=False, metrics=[]),Times()
    def one_pass():
        learn.fit_one_cycle(1, 1e-3, cbs=watch)
        return len(dls.train)*bs/watch.took
    return one_pass,learn

def speed(spec):
    "Pictures a second of both loops, in turns, and of both ways to ask about 100 pictures."
    import tempfile, torch
    import learnkit.all as lk
    from PIL import Image
    from torchvision.transforms.functional import to_tensor
    lk.settings.set(progress=False)
    px,bs = 320,spec['bs']
    with tempfile.TemporaryDirectory() as d:
        rs = scenes_at(max(100, spec['steps']*bs+1), px, d)
        train,names = rs[:spec['steps']*bs+1],['cat', 'dog']
        loops = {f'torchvision, {w} workers':reference(train, names, bs, w, px) for w in (0, 2)}
        loops['learnkit'] = ours(train, bs, px, 'fasterrcnn', 'mobilenet_v3_large')
        loops['learnkit, torchvision\'s network'] = ours(train, bs, px, 'fasterrcnn_mobilenet_v3_large_320_fpn')
        for f,_ in loops.values(): f()
        rates = {k:[] for k in loops}
        for i in range(spec['rounds']):
            for k in (loops if i%2 == 0 else [*loops][::-1]): rates[k].append(loops[k][0]())
        net,files = loops['torchvision, 0 workers'][1].eval(),[r.image for r in rs[:100]]
        def plain():
            with torch.no_grad(): return [net([to_tensor(Image.open(f).convert('RGB'))]) for f in files]
        asks = dict(plain=plain) | {k:partial(v[1].predict, files) for k,v in loops.items() if k.startswith('learnkit')}
        took = {k:[] for k in asks}
        for f in asks.values(): f()
        for i in range(spec['rounds']):
            for k in (asks if i%2 == 0 else [*asks][::-1]):
                start = clock()
                asks[k]()
                took[k].append(100/(clock()-start))
    return dict(rates=rates, took=took)

def show_speed(res):
    "The ratios of each round, and their median."
    best = max((k for k in res['rates'] if not k.startswith('learnkit')), key=lambda k: statistics.median(res['rates'][k]))
    for what,rates,base in (('training', res['rates'], best), ('100 pictures', res['took'], 'plain')):
        for k in [o for o in rates if o.startswith('learnkit')]:
            ratios = sorted(y/x for x,y in zip(rates[base], rates[k]))
            print(f'{what}: {base} {statistics.median(rates[base]):.2f}, {k} {statistics.median(rates[k]):.2f} pictures a second, '
                f'ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sets', nargs='*', help=f'of {", ".join(SETS)}; default: all')
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--epochs', type=int, help='in place of those of the recipe, for a quick look')
    p.add_argument('--speed', action='store_true')
    p.add_argument('--steps', type=int, default=8)
    p.add_argument('--bs', type=int, default=4, help='pictures a batch, for --speed')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--out', default=HERE/'out'/'detection')
    a = p.parse_args()
    describe(machine())
    runs = Runs(Path(a.out)/'runs.jsonl')
    if a.speed:
        row = runs.do(f'speed {a.steps} {a.bs} {a.rounds} {source_hash()}', lambda: run_arm('detection.py', 'speed', steps=a.steps, bs=a.bs, rounds=a.rounds))
        return print(row['error']) if 'error' in row else show_speed(row)
    for o in a.sets:
        if o not in SETS: p.error(f'there is no set {o}; there are {", ".join(SETS)}')
    rows = {o:[runs.do(f'{o} {seed} {a.epochs} {source_hash()}', lambda: run_arm('detection.py', 'learned', set=o, seed=seed, epochs=a.epochs))
        for seed in range(a.seeds)] for o in a.sets or SETS}
    show_sets(rows)

if __name__ == '__main__':
    arm_main(dict(learned=learned, speed=speed))
    main()
