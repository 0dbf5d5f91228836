"""What the benchmarks share: arms in fresh processes, guards against a busy machine, paired ratios, tables and plots.

An arm is one way to do the work. It runs in a process of its own (`run_arm` starts it, `arm_main` is its other end), with an empty home
folder, so that nothing kept from an earlier run helps. A fixed convolution is timed between arms (`calibrate`); where that time drifts by
more than 5 % over a pair of arms, the pair is dropped. This module imports no torch by itself, so that an arm can time its own imports.
"""
import hashlib, json, os, platform, random, resource, statistics, subprocess, sys, tempfile, time, traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRIFT = 0.05 # pairs with a larger drift of the calibration are dropped
clock = time.perf_counter

def cores():
    "Cores that this process may use; OMP_NUM_THREADS takes precedence."
    return int(os.environ.get('OMP_NUM_THREADS') or (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()))

# The machine, and how quiet it is

def _cpuinfo(key):
    "The first value of `key` in /proc/cpuinfo, or nothing."
    try: return next((o.split(':', 1)[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith(key)), '')
    except OSError: return ''

def _version(o):
    try: return version(o)
    except PackageNotFoundError: return None

def machine():
    "What was measured on: processor, cores, versions, day, command."
    import torch
    flags = [o for o in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if o in _cpuinfo('flags').split()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    libs = {o:_version(o) for o in ('learnkit', 'fastai', 'torch', 'torchvision', 'pillow')}
    return dict(processor=_cpuinfo('model name') or platform.processor() or platform.machine(), flags=flags, cores=os.cpu_count(), threads=cores(), gpu=gpu,
        system=platform.platform(terse=True), python=platform.python_version(), versions=libs, date=f'{date.today()}', command=' '.join(sys.argv))

def describe(m):
    "Two lines about the machine `m`."
    libs = ', '.join(f'{k} {v}' for k,v in m['versions'].items())
    print(f'{m["processor"]}, {m["cores"]} cores, {m["threads"]} threads, {" ".join(m["flags"])}{", "+m["gpu"] if m["gpu"] else ""}\n'
        f'{m["system"]}, Python {m["python"]}, {libs}, {m["date"]}', flush=True)

def calibrate(device='cpu', n=20):
    "Median seconds of a fixed convolution on `device` with all threads: the yardstick between arms."
    import torch
    torch.set_num_threads(cores())
    gen = torch.Generator().manual_seed(0)
    x,w = (torch.randn(*o, generator=gen).to(device) for o in ((16, 64, 56, 56), (64, 64, 3, 3)))
    times = []
    with torch.inference_mode():
        for _ in range(n+3):
            start = clock()
            torch.nn.functional.conv2d(x, w, padding=1)
            if device != 'cpu': torch.accelerator.synchronize()
            times.append(clock()-start)
    return statistics.median(times[3:])

def _ticks():
    "(all, idle, stolen) ticks of all cores so far, and seconds that this process and its children have computed; `None` without /proc."
    try: o = list(map(int, Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9]))
    except OSError: return None
    return sum(o),o[3]+o[4],o[7],sum(os.times()[:4])

class Watch:
    "Load average, and the shares of the processors' time that were stolen by the host or used by other processes since the start."
    def __init__(self): self.start = _ticks()
    def stop(self):
        res = dict(load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None)
        if self.start is None or not (now := _ticks()): return res
        total,idle,steal,own = (b-a for a,b in zip(self.start, now))
        if not total: return res
        own *= os.sysconf('SC_CLK_TCK')
        return res | dict(steal=round(steal/total, 4), others=round(max(0, total-idle-steal-own)/total, 4))

def _status(key):
    "Megabytes that /proc/self/status gives for `key`, or `None`."
    try: return next((int(o.split()[1])/1024 for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(key+':')), None)
    except OSError: return None

def _maxrss(who): return resource.getrusage(who).ru_maxrss/(2**20 if sys.platform == 'darwin' else 1024)

def peak_rss():
    "Largest resident memory of this process, and of the largest of its children that have ended, in MB."
    return _status('VmHWM') or _maxrss(resource.RUSAGE_SELF),_maxrss(resource.RUSAGE_CHILDREN)

def rss():
    "Resident memory of this process now, in MB (its peak where there is no /proc)."
    return _status('VmRSS') or _maxrss(resource.RUSAGE_SELF)

# Arms

def arm_main(arms):
    "Where this process was started by `run_arm`: do the work of `arms[name](spec)`, write what it returns, and end."
    if sys.argv[1:2] != ['--arm']: return
    spec,out = json.loads(Path(sys.argv[2]).read_text()),Path(sys.argv[3])
    import warnings
    warnings.filterwarnings('ignore')
    try: res = arms[spec['do']](spec)
    except Exception as e:
        traceback.print_exc()
        res = dict(error=f'{type(e).__name__}: {e}'[:500])
    out.write_text(json.dumps(res))
    sys.exit()

def run_arm(script, do, timeout=7200, **spec):
    "Do `do` of `script` in a fresh process with an empty home, and return its dict: with `error` in it if it failed, `said` what it printed."
    with tempfile.TemporaryDirectory(prefix='arm_') as d:
        d = Path(d)
        ask,res,out = d/'ask.json',d/'res.json',d/'out.txt'
        ask.write_text(json.dumps(dict(spec, do=do)))
        home = dict(HOME='', XDG_CACHE_HOME='.cache', XDG_CONFIG_HOME='.config', LEARNKIT_CACHE_PATH='learnkit')
        home = {k:str(d/'home'/v) for k,v in home.items()}
        env = os.environ | home | dict(OMP_NUM_THREADS=str(cores()), PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
        mirror = env.get('LEARNKIT_MIRROR')
        if mirror and '://' not in mirror: env['LEARNKIT_MIRROR'] = str(Path(mirror).expanduser().resolve())
        (d/'home').mkdir()
        start = clock()
        with out.open('w') as f:
            try: rc = subprocess.run([sys.executable, '-W', 'ignore', str(HERE/script), '--arm', str(ask), str(res)], env=env, cwd=d/'home', stdout=f,
                stderr=subprocess.STDOUT, timeout=timeout).returncode
            except subprocess.TimeoutExpired: rc = f'more than {timeout} s'
        wall,said = clock()-start,out.read_text(errors='replace').strip()
        got = json.loads(res.read_text()) if res.is_file() else dict(error=f'no answer ({rc}): {said[-300:]}')
    return got | dict(process=wall, said=said[-3000:])

class Runs:
    "The runs of a benchmark: each is appended to the file `path` at once, and one that is there is not done again."
    def __init__(self, path):
        self.path,self.rows = Path(path),[]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file(): self.rows = [json.loads(o) for o in self.path.read_text().splitlines() if o.strip()]
        self.cal = None

    def find(self, key): return next((o for o in self.rows if o['key'] == key and 'error' not in o), None)

    def do(self, key, f, device='cpu'):
        "The run with `key`: from the file, or `f()` with the calibration and the load around it."
        if old := self.find(key): return old | dict(old=True)
        before,watch = self.cal or calibrate(device),Watch()
        row = f()
        row = row | dict(key=key, busy=watch.stop(), cal=[before, calibrate(device)])
        self.cal = row['cal'][1]
        self.rows.append(row)
        with self.path.open('a') as o: o.write(json.dumps(row)+'\n')
        return row

def source_hash():
    "A hash of learnkit's modules: runs of other code do not count."
    return sha(*(o.read_bytes() for o in sorted(HERE.parent.glob('learnkit/**/*.py'))))

def sha(*parts):
    "The first 12 digits of the sha256 of `parts` (bytes or text)."
    h = hashlib.sha256()
    for o in parts: h.update(o.encode() if isinstance(o, str) else o)
    return h.hexdigest()[:12]

# Pictures

def picture_list(n=None, data='cats_vs_dogs'):
    "The pictures of `data`, training and validation, as (path, label, split): all, or a stratified share of `n`."
    from learnkit.data.records import read_folder
    from learnkit.data.sources import get_data
    rs = [(str(o.image), o.label, o.split) for o in read_folder(get_data(data))]
    if not n or n >= len(rs): return rs
    groups = {}
    for o in rs: groups.setdefault(o[1:], []).append(o)
    rng = random.Random(0)
    keep = {o for v in groups.values() for o in rng.sample(v, max(1, round(len(v)*n/len(rs))))}
    return [o for o in rs if o in keep]

def resplit(files, seed):
    "The same `files` with another split: in each class as many to validate on as before."
    groups = {}
    for o in files: groups.setdefault(o[1], []).append(o)
    rng,res = random.Random(seed),{}
    for v in groups.values():
        splits = [o[2] for o in v]
        rng.shuffle(splits)
        res |= {o[0]:(*o[:2], w) for o,w in zip(v, splits)}
    return [res[o[0]] for o in files]

def files_hash(files):
    "A hash of names, sizes, labels and split of `files`."
    return sha(*(f'{Path(p).name} {Path(p).stat().st_size} {label} {split}\n' for p,label,split in files))

def _enlarge(src, dst, megapixels):
    from PIL import Image, ImageOps
    with Image.open(src) as im:
        im = ImageOps.exif_transpose(im).convert('RGB')
        k = (megapixels*1e6/(im.width*im.height))**0.5
        im.resize((round(im.width*k), round(im.height*k)), Image.Resampling.BICUBIC).save(dst, quality=90)

def enlarged(files, folder, megapixels=12):
    "Copies of `files` in `folder` with `megapixels` million pixels, JPEG of quality 90; those that are there are kept."
    start,res = clock(),[(str(Path(folder)/f'{split}_{label}_{Path(p).stem}.jpg'), label, split) for p,label,split in files]
    Path(folder).mkdir(parents=True, exist_ok=True)
    todo = [(a[0], b[0]) for a,b in zip(files, res) if not Path(b[0]).is_file()]
    print(f'{len(todo)} of {len(files)} pictures to enlarge to {megapixels} MP into {folder}', flush=True)
    def one(o):
        tmp = Path(o[1]).with_suffix('.part.jpg')
        _enlarge(o[0], tmp, megapixels)
        tmp.rename(o[1])
    with ThreadPoolExecutor(cores()) as ex:
        for i,_ in enumerate(ex.map(one, todo)):
            if i and i%100 == 0: print(f'  {i} pictures, {clock()-start:.0f} s', flush=True)
    print(f'  {sum(Path(o[0]).stat().st_size for o in res)/2**20:,.0f} MB, {clock()-start:.0f} s', flush=True)
    return res

def warm(files):
    "Read each of `files` once, so that the first arm finds them in memory as the others do."
    for p,*_ in files: Path(p).read_bytes()

# Figures

def interval(values, n=10_000):
    "Median of `values` and its bootstrap interval of 95 %."
    if not values: return None,None,None
    rng,mid = random.Random(0),statistics.median(values)
    if len(values) == 1: return mid,mid,mid
    ms = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(n))
    return mid,ms[int(.025*n)],ms[int(.975*n)]

def drift(*rows):
    "Largest over smallest calibration of the runs `rows`, less 1."
    cal = [c for o in rows for c in o['cal']]
    return max(cal)/min(cal)-1

def paired(a, b, f):
    "Ratios f(a)/f(b) of the runs of the same seed: those of quiet pairs, and of all pairs, as {seed: ratio}."
    b = {o['seed']:o for o in b}
    both = [(o, b[o['seed']]) for o in a if o['seed'] in b and f(o) is not None and f(b[o['seed']]) is not None]
    every = {x['seed']:f(x)/f(y) for x,y in both}
    return {x['seed']:every[x['seed']] for x,y in both if drift(x, y) <= DRIFT},every

def ratio(a, b, f):
    "The median ratio of `paired` as a dict, ready for json, and as a text."
    quiet,every = paired(a, b, f)
    use = quiet or every
    if not use: return None,'–'
    mid,low,high = interval(list(use.values()))
    span = f'{low:.2f} to {high:.2f}, n={len(use)}' if len(use) > 1 else 'n=1'
    note = '' if len(quiet) == len(every) else f'; {len(quiet)} of {len(every)} pairs quiet' if quiet else '; NO quiet pair'
    return dict(median=mid, low=low, high=high, quiet=quiet, all=every),f'{mid:.2f}× ({span}{note})'

def slope(x, y):
    "Slope, intercept and R² of log y over log x."
    import numpy as np
    lx,ly = np.log(x),np.log(y)
    k,c = np.polyfit(lx, ly, 1)
    rest = ((ly-k*lx-c)**2).sum()
    return float(k),float(c),float(1-rest/max(((ly-ly.mean())**2).sum(), 1e-12))

# Reports

def table(head, rows):
    "Print `rows` as a markdown table."
    rows = [[f'{o:.3g}' if isinstance(o, float) else '–' if o is None else str(o) for o in r] for r in rows]
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for r in [head, ['-'*o for o in widths], *rows]: print('| '+' | '.join(c.ljust(w) for c,w in zip(r, widths))+' |')
    print(flush=True)

def write_json(path, obj):
    "Write `obj` to the file `path`, and say so."
    Path(path).write_text(json.dumps(obj, indent=1))
    print(f'written: {path}', flush=True)

def new_plot(n, width=5, height=3.8):
    "A figure and its `n` axes, three in a row at most."
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    cols,rows = min(n, 3),-(-n//3)
    fig,axs = plt.subplots(rows, cols, figsize=(width*cols, height*rows), squeeze=False, layout='constrained')
    for ax in axs.flat[n:]: ax.axis('off')
    return fig,list(axs.flat[:n])

def bars(ax, names, parts, title, unit='seconds'):
    "Stacked horizontal bars: `parts` is {part: one number for each of `names`}."
    left = [0]*len(names)
    for part,vals in parts.items():
        ax.barh(names, vals, left=left, label=part)
        left = [a+b for a,b in zip(left, vals)]
    ax.invert_yaxis()
    ax.set(title=title, xlabel=unit)
    if len(parts) > 1: ax.legend(fontsize=7, ncols=4, loc='upper center', bbox_to_anchor=(.5, -.16))

def save_plot(fig, path):
    fig.savefig(path, dpi=120)
    print(f'written: {path}', flush=True)

def minutes(s): return f'{s:.0f} s' if s < 100 else f'{s/60:.0f} min' if s < 6000 else f'{s/3600:.1f} h'
