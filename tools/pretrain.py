"""Train the built-in body on Tiny ImageNet and write its weights into the package.

    python tools/pretrain.py --data tiny-imagenet-200.zip --out runs/tiny

Tiny ImageNet has 200 kinds of things in pictures of 64 by 64 pixels. `--stages 28x48,14x64` means 28 passes over pictures scaled
to 48 pixels, then 14 over pictures of 64. A run that was stopped goes on after the last whole pass when the same command is given
again; `OUT/log.csv` has a row for each pass, `OUT/tiny.safetensors` the weights (16 bit). `--install` copies them to where the
package looks for them and prints what `learnkit/models/tiny.py` has to know about the file.
On a processor each worker is a process with a share of the threads, and all of them average their gradients.
"""
import argparse, io, json, math, os, shutil, time, zipfile
from pathlib import Path
import numpy as np, torch, torch.distributed as dist, torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from learnkit.core import atomic_path
from learnkit.models.tiny import n_params, tiny_classifier
from learnkit.models.weights import IMAGENET
from learnkit.web import file_hash

WEIGHTS = Path(__file__).parents[1]/'learnkit'/'models'/'tiny.safetensors'

# The pictures

def names_of(z):
    "The folders' names (WordNet numbers) in the order of the answers, and their words."
    ids = z.read('tiny-imagenet-200/wnids.txt').decode().split()
    words = dict(o.split('\t', 1) for o in z.read('tiny-imagenet-200/words.txt').decode().splitlines())
    return ids,[words[o] for o in ids]

def listing(z):
    "`(file, answer)` of the training pictures and of the validation pictures."
    ids,_ = names_of(z)
    place = {o:i for i,o in enumerate(ids)}
    train = sorted(o for o in z.namelist() if '/train/' in o and o.endswith(('.webp', '.JPEG')))
    rows = [o.split('\t')[:2] for o in z.read('tiny-imagenet-200/val/val_annotations.txt').decode().splitlines()]
    return [(o, place[o.split('/')[2]]) for o in train],[(f'tiny-imagenet-200/val/images/{f}', place[w]) for f,w in rows]

def unpack(data, out):
    "Decode all pictures once into `out`: arrays of (N, 3, 64, 64), 0 to 255, that every process can map into its memory."
    with zipfile.ZipFile(data) as z:
        have = set(z.namelist())
        (out/'names.json').write_text(json.dumps(dict(zip(*names_of(z))), indent=1))
        for part,rows in zip(('train', 'valid'), listing(z)):
            if (out/f'{part}_y.npy').exists(): continue
            x = np.lib.format.open_memmap(out/f'{part}_x.npy', 'w+', np.uint8, (len(rows), 3, 64, 64))
            for i,(f,_) in enumerate(rows):
                f = f if f in have else str(Path(f).with_suffix('.webp'))
                x[i] = np.asarray(Image.open(io.BytesIO(z.read(f))).convert('RGB')).transpose(2, 0, 1)
            x.flush()
            np.save(out/f'{part}_y.npy', np.array([y for _,y in rows]))

def normalise(x):
    "Pixels from 0 to 1 -> what the net sees."
    mean,std = (torch.tensor(IMAGENET[k], device=x.device)[:,None,None] for k in ('mean', 'std'))
    return (x-mean)/std

def uniform(n, lo, hi, gen): return torch.rand(n, generator=gen)*(hi-lo)+lo

def augment(x, px, least, gen):
    "Cut a random part (at least the share `least` of the area) out of each picture, mirror half, change light and colour; scale to `px`."
    n = len(x)
    side,ratio = uniform(n, least, 1, gen).sqrt(),uniform(n, math.log(3/4), math.log(4/3), gen).exp().sqrt()
    w,h = (side*ratio).clamp(max=1),(side/ratio).clamp(max=1)
    dx,dy = uniform(n, -1, 1, gen)*(1-w),uniform(n, -1, 1, gen)*(1-h)
    w,o = w*(torch.rand(n, generator=gen)-0.5).sign(),torch.zeros(n)
    theta = torch.stack([w, o, dx, o, h, dy], 1).view(n, 2, 3).to(x.device)
    grid = F.affine_grid(theta, (n, 3, px, px), align_corners=False)
    x = F.grid_sample(x.float().div_(255), grid, mode='bilinear', padding_mode='reflection', align_corners=False)
    light,contrast,colour = (uniform(n, lo, hi, gen).view(n, 1, 1, 1).to(x.device) for lo,hi in ((-0.2, 0.2), (0.7, 1.3), (0.6, 1.4)))
    grey,mean = x.mean(1, keepdim=True),x.mean((1, 2, 3), keepdim=True)
    x = grey+(x-grey)*colour
    return normalise(((x-mean)*contrast+mean+light).clamp_(0, 1))

def scaled(x, px):
    "Validation pictures, whole, at `px`."
    x = x.float().div_(255)
    return normalise(x if px == x.shape[-1] else F.interpolate(x, (px, px), mode='bilinear', antialias=True))

# Training

def rate(done, args):
    "The learning rate when the share `done` of all steps is behind us: up for a twentieth, then down along a cosine."
    warm = 0.05
    return args.lr*(done/warm if done < warm else (1+math.cos(math.pi*(done-warm)/(1-warm)))/2)

def average(tensors, n):
    "Replace each of `tensors` by its mean over the `n` processes."
    if n == 1: return
    flat = torch.cat([o.flatten() for o in tensors])
    dist.all_reduce(flat)
    for o,f in zip(tensors, flat.div_(n).split([o.numel() for o in tensors])): o.copy_(f.view_as(o))

class Run:
    "One process of a training."
    def __init__(self, rank, args):
        self.rank,self.args,self.n = rank,args,args.workers
        self.dev = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        torch.manual_seed(args.seed)
        self.net = tiny_classifier(drop=args.drop).to(self.dev, memory_format=torch.channels_last)
        decay = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        self.opt = torch.optim.SGD([dict(params=decay, weight_decay=args.wd), dict(params=plain, weight_decay=0.)], lr=args.lr,
            momentum=0.9, nesterov=True)
        self.data = {o:tuple(np.load(Path(args.out)/f'{o}_{k}.npy', mmap_mode='r' if k == 'x' else None) for k in 'xy') for o in ('train', 'valid')}
        self.sizes = [px for n,px in args.stages for _ in range(n)]
        self.epoch = 0

    def take(self, part, idx):
        "The pictures and answers with the numbers `idx`."
        x,y = self.data[part]
        return torch.from_numpy(x[idx]).to(self.dev),torch.from_numpy(y[idx]).to(self.dev)

    def logits(self, x):
        with torch.autocast(self.dev.type, dtype=torch.bfloat16): return self.net(x.contiguous(memory_format=torch.channels_last)).float()

    def train(self):
        "One pass over the training pictures; gives the mean loss."
        args,px = self.args,self.sizes[self.epoch]
        gen = torch.Generator().manual_seed(args.seed*1000+self.epoch)
        order = torch.randperm(len(self.data['train'][1]), generator=gen).numpy()
        own = torch.Generator().manual_seed((args.seed*1000+self.epoch)*64+self.rank)
        steps,share,total = len(order)//args.bs,args.bs//self.n,0.
        self.net.train()
        for i in range(steps):
            for g in self.opt.param_groups: g['lr'] = rate((self.epoch+i/steps)/len(self.sizes), args)
            idx = order[i*args.bs:(i+1)*args.bs][self.rank*share:(self.rank+1)*share]
            x,y = self.take('train', np.sort(idx))
            loss = F.cross_entropy(self.logits(augment(x, px, args.least, own)), y, label_smoothing=args.smooth)
            self.opt.zero_grad()
            loss.backward()
            average([p.grad for p in self.net.parameters()], self.n)
            self.opt.step()
            total += loss.item()
            if self.rank == 0 and i % 100 == 0: print(f'pass {self.epoch+1}/{len(self.sizes)}, {px} px, step {i}/{steps}, loss {total/(i+1):.3f}', flush=True)
        average([b for b in self.net.buffers() if b.is_floating_point()], self.n)
        return total/steps

    def validate(self, px):
        "Loss and share of right answers on the validation pictures at `px`."
        mine = np.arange(len(self.data['valid'][1]))[self.rank::self.n]
        res = torch.zeros(2)
        self.net.eval()
        with torch.inference_mode():
            for idx in np.array_split(mine, -(-len(mine)//200)):
                x,y = self.take('valid', idx)
                out = self.logits(scaled(x, px))
                res += torch.stack([F.cross_entropy(out, y, reduction='sum'), (out.argmax(1) == y).sum()]).cpu()
        if self.n > 1: dist.all_reduce(res)
        return [o/len(self.data['valid'][1]) for o in res.tolist()]

    def save(self, path):
        with atomic_path(path) as tmp: torch.save(dict(net=self.net.state_dict(), opt=self.opt.state_dict(), epoch=self.epoch), tmp)

    def load(self, path):
        if not path.exists(): return
        state = torch.load(path, map_location=self.dev, weights_only=True)
        self.net.load_state_dict(state['net'])
        self.opt.load_state_dict(state['opt'])
        self.epoch = state['epoch']

    def go(self):
        "All passes that are still to do, each followed by a row in the log."
        out = Path(self.args.out)
        self.load(out/'last.pt')
        while self.epoch < min(self.args.until, len(self.sizes)):
            start,px = time.time(),self.sizes[self.epoch]
            loss = self.train()
            valid,right = self.validate(max(px, 64))
            self.epoch += 1
            if self.rank: continue
            self.save(out/'last.pt')
            new = not (out/'log.csv').exists()
            with (out/'log.csv').open('a') as f:
                if new: f.write('pass,pixels,train_loss,valid_loss,top1,seconds\n')
                f.write(f'{self.epoch},{px},{loss:.4f},{valid:.4f},{right:.4f},{time.time()-start:.0f}\n')
        rows = {px:self.validate(px) for px in (64, 96, 128)}
        if self.rank: return
        for px,(valid,right) in rows.items(): print(f'validation at {px} px: loss {valid:.4f}, top-1 {right:.4f}', flush=True)
        sd = {k:(v.half() if v.is_floating_point() else v).contiguous().cpu() for k,v in self.net.state_dict().items()}
        words = [*json.loads((out/'names.json').read_text()).values()]
        with atomic_path(out/'tiny.safetensors') as tmp: save_file(sd, tmp, metadata=dict(classes=json.dumps(words)))

def work(rank, args):
    "What each process does."
    if not torch.cuda.is_available(): torch.set_num_threads(max(1, torch.get_num_threads()//args.workers))
    if args.workers > 1:
        dist.init_process_group('gloo', init_method=f'file://{Path(args.out).absolute()/"meet"}', rank=rank, world_size=args.workers)
    Run(rank, args).go()
    if args.workers > 1: dist.destroy_process_group()

def install(out):
    "Copy the weights into the package and print the facts."
    shutil.copyfile(out/'tiny.safetensors', WEIGHTS)
    print(f'sha256={file_hash(WEIGHTS)!r}, params={n_params(tiny_classifier()):_}, mb={WEIGHTS.stat().st_size/1e6:.1f}')
    print('The accuracy is the first line of: python benchmarks/transfer.py')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='tiny-imagenet-200.zip', help='the zip of Tiny ImageNet')
    p.add_argument('--out', default='runs/tiny', help='folder for the log, the last state and the weights')
    p.add_argument('--stages', default='30x48,14x64,4x96,1x128', help='passes x pixels, one after another')
    p.add_argument('--until', type=int, default=48, help='stop after this pass; the rate falls as if all were made')
    p.add_argument('--bs', type=int, default=128, help='pictures a step, over all workers')
    p.add_argument('--lr', type=float, default=0.2, help='highest learning rate')
    p.add_argument('--wd', type=float, default=5e-4, help='weight decay of the kernels')
    p.add_argument('--least', type=float, default=0.3, help='least share of a picture that is cut out')
    p.add_argument('--smooth', type=float, default=0., help='label smoothing')
    p.add_argument('--drop', type=float, default=0., help='dropout before the last layer')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--workers', type=int, default=1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1), help='processes')
    p.add_argument('--install', action='store_true', help='only copy the weights of --out into the package')
    args = p.parse_args()
    out = Path(args.out)
    if args.install: return install(out)
    args.stages = [tuple(map(int, o.split('x'))) for o in args.stages.split(',')]
    out.mkdir(parents=True, exist_ok=True)
    (out/'meet').unlink(missing_ok=True)
    if not (out/'valid_y.npy').exists(): unpack(args.data, out)
    if args.workers > 1: torch.multiprocessing.spawn(work, (args,), args.workers)
    else: work(0, args)

if __name__ == '__main__': main()
