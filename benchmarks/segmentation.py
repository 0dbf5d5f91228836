"""How well masks are learned on two cores, in how many minutes, and how fast beside plain fastai.

    LEARNKIT_MIRROR=FOLDER python benchmarks/segmentation.py [unet segnet fcn deeplab lraspp person parts] [--seeds 1] [--epochs N]
    LEARNKIT_MIRROR=FOLDER python benchmarks/segmentation.py --speed [--epochs 4] [--rounds 2]

Without `--speed`, each set is learned with the recipe of `SETS` from the built-in body, in a process of its own with an empty home; nothing
is downloaded. Minutes are those of `fine_tune`, with validation. With `--speed`, CamVid is learned by fastai's `unet_learner` and by ours, in
turns: the same resnet18 with random weights, the same pixels, epochs, pictures a batch, learning rate, strength of variation and loss (cross
entropy without the void class), scored by one function over the same validation pixels. The decoders are not the same: each has its own.
"""
import argparse, statistics
from pathlib import Path
from measure import *

# name: (data set, decoder, size, pictures a batch, epochs after the frozen one, learning rate, figures with least and aim, minutes at most)
CAMVID = dict(mIoU=(.30, .45))
SETS = dict(
    unet=('camvid', 'unet', (150, 200), 8, 12, None, dict(mIoU=(.40, .55), accuracy=(.82, .88)), 15),
    segnet=('camvid', 'segnet', (150, 200), 8, 12, None, CAMVID, 20),
    fcn=('camvid', 'fcn8', (150, 200), 8, 12, None, CAMVID, 20),
    deeplab=('camvid', 'deeplab', (150, 200), 8, 12, None, {}, None),
    lraspp=('camvid', 'lraspp', (150, 200), 8, 12, None, {}, None),
    person=('PennFudanPed', 'unet', 192, 8, 24, None, {'IoU pedestrian':(.65, .80)}, 8),
    parts=('doodle_parts', 'unet', 128, 8, 16, None, dict(mIoU=(.85, .95)), 3))

def records_of(data, lk):
    "The records of the data set `data`."
    if data == 'camvid': return lk.read_masks(lk.get_data(data))
    if data == 'PennFudanPed': return lk.read_masks(lk.get_data(data), images='PNGImages', masks='PedMasks', label='pedestrian', valid=30/130)
    return lk.read_masks(lk.write_doodles('drawn', n=400, size=128), images='.', masks='parts')

def learned(spec):
    "One set learned once: figures, minutes, and what is slow."
    import learnkit.all as lk
    data,decoder,size,bs,epochs,lr,*_ = SETS[spec['set']]
    rs = records_of(data, lk)
    lk.set_seed(spec['seed'])
    dls = lk.segmentation_dls(rs, size=size, bs=bs)
    more = [lk.ClassIoU('pedestrian')] if data == 'PennFudanPed' else []
    learn = lk.segmentation_learner(dls, decoder=decoder, metrics=[lk.MeanIoU(), lk.PixelAccuracy(), *more])
    start = clock()
    learn.fine_tune(spec['epochs'] or epochs, lr)
    took = (clock()-start)/60
    return dict(results=learn.results, minutes=took, train=len(dls.train_ds), valid=len(dls.valid_ds), peak=peak_rss()[0], params=lk.n_params(learn.model))

def show_sets(rows):
    "The table of all runs of each set."
    print('\n| set | network | pictures | minutes (at most) | figures | at least, aim | peak MB |\n|---|---|---|---|---|---|---|')
    for name,runs in rows.items():
        data,decoder,size,_,epochs,_,figures,most = SETS[name]
        good = [o for o in runs if 'error' not in o]
        if not good: print(f'| {name} | {decoder} | | failed: {runs[0]["error"][:120]} |')
        if not good: continue
        values = '; '.join(f'{k} {", ".join(format(o["results"][k], ".3f") for o in good)}' for k in figures or ['mIoU', 'accuracy'])
        print(f'| {data} | {decoder}, {size} px, 1 + {epochs} epochs, {good[0]["params"]/1e6:.1f} M | {good[0]["train"]} + {good[0]["valid"]} '
            f'| {statistics.median(o["minutes"] for o in good):.1f} ({most or "-"}) | {values} | {"; ".join(f"{a}, {b}" for a,b in figures.values()) or "-"} '
            f'| {max(o["peak"] for o in good):.0f} |')

# Beside fastai

VOID = 11 # number of the class of CamVid that counts for nothing

def score(learn):
    "mIoU over the 11 classes and accuracy, without void, of `learn` on its validation pictures: the same arithmetic for both."
    import torch
    n,counts = VOID,torch.zeros(VOID*VOID)
    learn.model.eval()
    with torch.no_grad():
        for x,y in learn.dls.valid:
            p,y = learn.model(x).as_subclass(torch.Tensor)[:,:n].argmax(1),y.as_subclass(torch.Tensor)
            there = y < n
            counts += torch.bincount(y[there]*n+p[there], minlength=n*n)
    counts = counts.view(n, n)
    both = counts.sum(0)+counts.sum(1)-counts.diagonal()
    return dict(mIoU=(counts.diagonal()/both)[both > 0].mean().item(), accuracy=(counts.diagonal().sum()/counts.sum()).item())

def timed(learn, epochs, lr):
    "Seconds of each epoch of one-cycle training, without the score."
    start = clock()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return (clock()-start)/epochs

def fastai(spec):
    "CamVid with plain fastai, as its course does it."
    from fastai.vision.all import (CrossEntropyLossFlat, DataBlock, FuncSplitter, ImageBlock, MaskBlock, Resize, ResizeMethod, aug_transforms, get_image_files,
        np, resnet18, set_seed, unet_learner)
    path,size,bs = Path(spec['path']),(150, 200),8
    codes,valid = np.loadtxt(path/'codes.txt', dtype=str),{*(path/'valid.txt').read_text().split()}
    set_seed(spec['seed'])
    files = sorted(get_image_files(path/'images'))
    block = DataBlock((ImageBlock, MaskBlock(codes)), get_y=lambda o: path/'labels'/f'{o.stem}_P.png', splitter=FuncSplitter(lambda o: o.name in valid),
        item_tfms=Resize(size, method=ResizeMethod.Squish), batch_tfms=aug_transforms(max_rotate=5., max_zoom=1.075, max_lighting=.1, max_warp=.05))
    dls = block.dataloaders(files, bs=bs, num_workers=spec['workers'])
    learn = unet_learner(dls, resnet18, pretrained=False, loss_func=CrossEntropyLossFlat(axis=1, ignore_index=VOID))
    return dict(seconds=timed(learn, spec['epochs'], spec['lr'])) | score(learn)

def learnkit(spec):
    "CamVid with learnkit."
    import learnkit.all as lk
    lk.set_seed(spec['seed'])
    dls = lk.segmentation_dls(lk.read_masks(spec['path']), size=(150, 200), bs=8)
    learn = lk.unet_learner(dls, lk.resnet18, pretrained=False, loss_func=lk.PixelLoss())
    with lk.settings.using(progress=False): took = timed(learn, spec['epochs'], spec['lr'])
    return dict(seconds=took) | score(learn)

def show_speed(rows):
    "Seconds an epoch and scores of both, and their ratios."
    for k,runs in rows.items():
        print(f'{k}: ' + '; '.join(f'{o["seconds"]:.1f} s an epoch, mIoU {o["mIoU"]:.3f}, accuracy {o["accuracy"]:.3f}' for o in runs))
    ratios = sorted(a['seconds']/b['seconds'] for a,b in zip(rows['fastai'], rows['learnkit']))
    print(f'ratio of seconds an epoch: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sets', nargs='*', help=f'of {", ".join(SETS)}; default: all')
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--epochs', type=int, help='in place of those of the recipe, for a quick look')
    p.add_argument('--speed', action='store_true')
    p.add_argument('--workers', type=int, default=2, help="worker processes of fastai's loader, for --speed")
    p.add_argument('--lr', type=float, default=2e-3, help='for --speed')
    p.add_argument('--rounds', type=int, default=2)
    p.add_argument('--out', default=HERE/'out'/'segmentation')
    a = p.parse_args()
    describe(machine())
    runs = Runs(Path(a.out)/'runs.jsonl')
    def arm(name, **spec): return runs.do(f'{name} {spec} {source_hash()}', lambda: run_arm('segmentation.py', name, **spec))
    if a.speed:
        from learnkit.data.sources import get_data
        path,rows = str(get_data('camvid').resolve()),dict(fastai=[], learnkit=[])
        for i in range(a.rounds):
            for k in (rows if i%2 == 0 else [*rows][::-1]):
                more = dict(workers=a.workers) if k == 'fastai' else {}
                rows[k].append(arm(k, path=path, seed=i, epochs=a.epochs or 4, lr=a.lr, **more))
        errors = [o['error'] for o in rows['fastai']+rows['learnkit'] if 'error' in o]
        return print(errors[0]) if errors else show_speed(rows)
    for o in a.sets:
        if o not in SETS: p.error(f'there is no set {o}; there are {", ".join(SETS)}')
    show_sets({o:[arm('learned', set=o, seed=seed, epochs=a.epochs) for seed in range(a.seeds)] for o in a.sets or SETS})

if __name__ == '__main__':
    arm_main(dict(learned=learned, fastai=fastai, learnkit=learnkit))
    main()
