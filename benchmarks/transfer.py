"""What the built-in body's weights are worth: error rates on real photographs with them and without them.

    LEARNKIT_MIRROR=FOLDER python benchmarks/transfer.py [--data cats_vs_dogs rps] [--seeds 0 1 2] [--epochs 3] [--size 128]

For each data set and seed: `fine_tune(epochs)` from the weights, and the same network from random weights with twice as many passes
(`fine_tune` makes one pass with a frozen body first, so 4 against 8). First line: share of right answers on the validation pictures
of Tiny ImageNet, asked as a user would ask, with `classify_with()`. FOLDER holds cats_vs_dogs.tar, rps.tar and tiny-imagenet-200.zip.
"""
import argparse, statistics, time, zipfile
import torch
from learnkit.all import *

def tiny_imagenet(path):
    "Share of the validation pictures in the zip at `path` that the built-in network names rightly."
    with zipfile.ZipFile(path) as z:
        top = 'tiny-imagenet-200'
        word = dict(o.split('\t', 1) for o in z.read(f'{top}/words.txt').decode().splitlines())
        ids = z.read(f'{top}/wnids.txt').decode().split()
        what_is = classify_with()
        name = dict(zip(ids, what_is.vocab))
        assert all(word[k].startswith(v.split(',')[0]) for k,v in name.items()), 'the classes in the file of weights are others'
        rows = [o.split('\t')[:2] for o in z.read(f'{top}/val/val_annotations.txt').decode().splitlines()]
        said = what_is([z.read(f'{top}/val/images/{f}') for f,_ in rows], bs=100)
    return sum(p.label == name[w] for p,(_,w) in zip(said, rows))/len(rows),len(rows)

def error(data, pretrained, seed, epochs, size):
    "Error rate on the validation pictures of `data`, and seconds of training."
    set_seed(seed, reproducible=True)
    dls = classification_dls(get_data(data), size=size, seed=seed)
    learn = classification_learner(dls, pretrained=pretrained)
    start = time.time()
    if pretrained: learn.fine_tune(epochs)
    else: learn.fine_tune(epochs*2+1)
    return learn.results['error_rate'],time.time()-start

def main():
    "Print the table."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', nargs='+', default=['cats_vs_dogs', 'rps'])
    p.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    p.add_argument('--epochs', type=int, default=3)
    p.add_argument('--size', type=int, default=128)
    a = p.parse_args()
    print(f'{torch.get_num_threads()} threads, {a.size} px, seeds {a.seeds}')
    file = settings.mirror/'tiny-imagenet-200.zip' if isinstance(settings.mirror, Path) else None
    if file and file.is_file(): print('Tiny ImageNet, validation pictures: top-1 {:.4f} of {}'.format(*tiny_imagenet(file)), flush=True)
    print(f'{"data":<14} {"weights":<9} {"epochs":>6}  {"error rate of each seed":<30} {"mean":>6}  seconds a run', flush=True)
    with settings.using(progress=False):
        for data in a.data:
            for pretrained in (True, False):
                got = [error(data, pretrained, s, a.epochs, a.size) for s in a.seeds]
                errs,secs = [e for e,_ in got],statistics.mean(s for _,s in got)
                n = a.epochs+1 if pretrained else 2*(a.epochs+1)
                print(f'{data:<14} {"built-in" if pretrained else "scratch":<9} {n:>6}  {"  ".join(f"{e:.4f}" for e in errs):<30} '
                    f'{statistics.mean(errs):.4f}  {secs:.0f}', flush=True)

if __name__ == '__main__': main()
