"""How good generated pictures are on two cores, in how many minutes.

    LEARNKIT_MIRROR=FOLDER python benchmarks/generation.py [vae dcgan cgan infogan wgan_gp lapgan diffusion biggan stylegan] [--seeds 1] [--epochs N]

Each kind is learned with its recipe of `RECIPES` from random weights, in a process of its own with an empty home; nothing is downloaded.
Minutes are those of `fine_tune`, with validation. 600 samples are compared with the pictures that the learner never saw (`mnist_png`: the 600
of the folder testing; drawings: 400), in the features of the built-in body: no figure here is an FID, and none is comparable beyond this
table. `factor`: the Fréchet distance of the same network before training divided by that after it. `asked`: the share of samples that a
classifier names as they were asked for; it learned from the real training pictures, shrunk as samples are, and its accuracy on others is told
too. `purity`: the share of real pictures to validate on whose class is the most frequent one of the category that InfoGAN reads in them;
`named`: the share of its samples that the classifier gives the name of their category. The files with pictures hold 10 by 10 samples that
nobody has chosen; of kinds with classes or categories each row is of one.
"""
import argparse, io, statistics
from dataclasses import replace
from pathlib import Path
from PIL import Image
from measure import *

# name: (data set, size, grey, pictures a batch, epochs, arguments of the learner, minutes at most, figures with least and aim)
FACTOR = dict(factor=(4, 12))
RECIPES = dict(
    vae=('mnist_png', 32, True, 64, 40, {}, 8, FACTOR),
    dcgan=('mnist_png', 32, True, 64, 50, {}, 8, FACTOR),
    cgan=('mnist_png', 32, True, 64, 90, {}, 8, FACTOR | dict(asked=(.90, .97))),
    infogan=('mnist_png', 32, True, 64, 60, {}, 8, FACTOR | dict(purity=(.60, .90))),
    wgan_gp=('mnist_png', 32, True, 64, 80, {}, 12, FACTOR),
    lapgan=('mnist_png', 32, True, 64, 70, {}, 12, FACTOR),
    diffusion=('mnist_png', 32, True, 64, 30, {}, 12, FACTOR),
    biggan=('drawn', 32, False, 32, 80, {}, 20, dict(factor=(3, 8), asked=(.80, .95))),
    stylegan=('drawn', 32, False, 32, 130, {}, 20, dict(factor=(3, 8))))
N = 600 # samples that are compared
MOST = 160_000 # bytes of a file with pictures

def records_of(data, lk):
    "The records of the data set `data`, with their split."
    if data == 'drawn': return lk.read_folder(lk.write_doodles('drawn', n=2000, size=64))
    return lk.read_folder(lk.get_data(data))

def learner_of(kind, dls, kw, lk):
    "A new learner of the kind `kind`."
    if kind == 'vae': return lk.vae_learner(dls, **kw)
    return lk.diffusion_learner(dls, **kw) if kind == 'diffusion' else lk.gan_learner(dls, kind, **kw)

def shrunk(rs, size):
    "The records `rs` with copies of their pictures that have the `size` of samples, in the folder shrunk."
    folder = Path('shrunk').resolve()
    folder.mkdir()
    for i,o in enumerate(rs): Image.open(o.image).convert('RGB').resize((size, size), Image.Resampling.BILINEAR).save(folder/f'{i}.png')
    return type(rs)([replace(o, image=folder/f'{i}.png', size=None) for i,o in enumerate(rs)])

def classifier_of(data, rs, size, lk):
    "A classifier of the real pictures, which sees them at twice the size of samples, but no more of them, and its accuracy on those that it never saw."
    augment = lk.augment_tfms(flip=data == 'drawn', rotate=8, zoom=1.1, light=.1, warp=0)
    learn = lk.classification_learner(lk.classification_dls(shrunk(rs, size), size=size*2, bs=64, augment=augment))
    with lk.settings.using(progress=False): learn.fine_tune(8)
    return learn,1-learn.results['error_rate']

def learned(spec):
    "One kind learned once: its figures and minutes, and a file of samples."
    import learnkit.all as lk
    kind = spec['kind']
    data,size,grey,bs,epochs,kw,_,figures = RECIPES[kind]
    rs = records_of(data, lk)
    lk.set_seed(spec['seed'])
    dls = lk.generation_dls(rs, size=size, grey=grey, bs=bs)
    learn = learner_of(kind, dls, kw, lk)
    params = sum(o.numel() for o in learn.model.parameters() if o.requires_grad)
    before = learn.score(N)
    start = clock()
    learn.fine_tune(spec['epochs'] or epochs)
    res = dict(minutes=(clock()-start)/60, peak=peak_rss()[0], epochs=spec['epochs'] or epochs, params=params, train=len(dls.train_ds))
    after = learn.score(N)
    res |= dict(before=dict(before), after=dict(after), factor=before.frechet/after.frechet, trained=learn.results)
    if spec['pictures']: save_pictures(learn, Path(spec['pictures'])/f'{kind}.png', lk)
    if {*figures} & {'asked', 'purity'}:
        classifier,res['classifier'] = classifier_of(data, rs, size, lk)
        if 'asked' in figures:
            asked = lk.asked_accuracy(learn, classifier, N)
            res |= dict(asked=asked.accuracy, classes=asked.classes.to_dict(), confusion=asked.confusion.values.tolist())
        else: res |= purities(learn, classifier, lk)
    return res

def purities(learn, classifier, lk):
    "How well the categories that `learn` has found agree with classes: of real pictures, and of samples."
    import torch
    net = learn.model.eval()
    with torch.inference_mode(): found = [(net.read_code(x.as_subclass(torch.Tensor))[0].argmax(1), y) for x,y in learn.dls.valid]
    codes,labels = (torch.cat([o[i] for o in found]).tolist() for i in (0, 1))
    z = torch.stack([net.noise(lk.picture_rng(0, i)) for i in range(N)])
    asked,named = net.split(z)[1].argmax(1).tolist(),[o.label for o in classifier.predict(lk.to_pictures(learn.made(z)))]
    names = {k:str(learn.dls.vocab[v]) for k,v in lk.code_names(codes, labels).items()}
    return dict(purity=lk.code_purity(codes, labels), named=sum(names.get(c) == o for c,o in zip(asked, named))/N, names=names)

# Pictures

def rows_of(learn, lk):
    "100 samples, in rows of 10 of one class or category, if there are any."
    import torch
    net = learn.model
    if net.n_classes: return learn.sample_tensor(100, label=[i//10*net.n_classes//10 for i in range(100)], seed=0)[0]
    z = torch.stack([net.noise(lk.picture_rng(0, i)) for i in range(100)])
    if hasattr(net, 'with_code'): z = torch.cat([net.with_code(o, 'category', i % net.n_cat) for i,o in enumerate(z.split(10))])
    return learn.made(z)

def save_pictures(learn, path, lk):
    "Write samples of `learn` to `path` as PNG, with as many colours as fit into `MOST` bytes."
    im = lk.to_pictures(rows_of(learn, lk)).grid(10, zoom=2)
    for n in (256, 128, 64, 32, 16, 8):
        im.quantize(n, dither=0).save(out := io.BytesIO(), format='PNG', optimize=True)
        if out.tell() < MOST: break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue())

# Report

def values(runs, f): return ', '.join(f(o) for o in runs)

def show_kinds(rows):
    "The table of all runs of each kind."
    print('\n| set | kind | pictures | minutes (at most) | Fréchet before, after | figures | at least, aim | kernel | precision, recall | peak MB |\n'
        '|---|---|---|---|---|---|---|---|---|---|')
    for kind,runs in rows.items():
        data,size,grey,bs,_,_,most,figures = RECIPES[kind]
        good = [o for o in runs if 'error' not in o]
        if not good: print(f'| {data} | {kind} | failed: {runs[0]["error"][:160]} |')
        if not good: continue
        a = good[0]
        said = '; '.join(f'{k} {values(good, lambda o: format(o[k], ".1f" if k == "factor" else ".3f"))}' for k in figures)
        if 'named' in a: said += f'; named {values(good, lambda o: format(o["named"], ".3f"))}'
        if 'classifier' in a: said += f'; classifier {values(good, lambda o: format(o["classifier"], ".3f"))}'
        print(f'| {data} | {kind}, {size} px, {"grey, " if grey else ""}batches of {bs}, {a["epochs"]} epochs, {a["params"]/1e6:.2f} M | {a["train"]}, {a["after"]["pictures"]} to compare '
            f'| {statistics.median(o["minutes"] for o in good):.1f} ({most}) | {values(good, lambda o: format(o["before"]["frechet"], ".0f"))}, '
            f'{values(good, lambda o: format(o["after"]["frechet"], ".1f"))} | {said} | {"; ".join(f"{k} {u}, {v}" for k,(u,v) in figures.items())} '
            f'| {values(good, lambda o: format(o["after"]["kernel"], ".2f"))} '
            f'| {values(good, lambda o: format(o["after"]["precision"], ".2f")+" "+format(o["after"]["recall"], ".2f"))} | {max(o["peak"] for o in good):.0f} |')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('kinds', nargs='*', help=f'of {", ".join(RECIPES)}; default: all')
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--epochs', type=int, help='in place of those of the recipe, for a quick look, which writes no pictures unless --pictures is given')
    p.add_argument('--out', default=HERE/'out'/'generation')
    p.add_argument('--pictures', type=Path, help='folder for samples; default: pictures beside this file')
    a = p.parse_args()
    for o in a.kinds:
        if o not in RECIPES: p.error(f'there is no kind {o}; there are {", ".join(RECIPES)}')
    describe(machine())
    runs,folder = Runs(Path(a.out)/'runs.jsonl'),a.pictures or (None if a.epochs else HERE/'pictures')
    def arm(kind, seed):
        spec = dict(kind=kind, seed=seed, epochs=a.epochs)
        pictures = str(folder.resolve()) if folder and not seed else None
        return runs.do(f'{spec} {RECIPES[kind]} {source_hash()}', lambda: run_arm('generation.py', 'learned', pictures=pictures, **spec))
    show_kinds({o:[arm(o, seed) for seed in range(a.seeds)] for o in a.kinds or RECIPES})

if __name__ == '__main__':
    arm_main(dict(learned=learned))
    main()
