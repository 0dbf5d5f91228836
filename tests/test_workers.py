"Worker processes that are killed, hang, find no shared memory or can't be started; memory and disk that end while pictures are kept."
import os, signal, subprocess, sys, textwrap, threading, time
from multiprocessing import active_children, get_start_method, set_start_method
from pathlib import Path
import numpy as np
import pytest, torch
import learnkit.all as lk
from fastai.callback.core import Callback
from PIL import Image
from learnkit.data.opening import Kept
from learnkit.data.workers import Crew, Lost

pytestmark = pytest.mark.usefixtures('one_thread')
ROOT = Path(__file__).resolve().parent.parent

def draw(path, i):
    "A picture whose red is twice its number `i`."
    a = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
    a[...,0] = 2*i
    Image.fromarray(a).save(path/f'{i}.png')
    return lk.Record(path/f'{i}.png', label='ab'[i % 2])

def loaders(path, n=40, workers=2, timeout=20, **kw):
    block = lk.classification_block(size=32, method='squish', augment=[])
    return block.dataloaders(lk.Records([draw(path, i) for i in range(n)]), bs=4, num_workers=workers, timeout=timeout, device=torch.device('cpu'), **kw)

def numbers(b): return (b[0][:,0,0,0]*255/2).round().int().tolist()

def pids(dl): return [p.pid for p,*_ in dl._crew.crew]

def alone(dl, before):
    "Are the processes `before` gone, all of them, and is none asked for any more?"
    return dl.fake_l.num_workers == 0 and dl._crew is None and not {*before} & {p.pid for p in active_children()} and not any(map(there, before))

def there(pid):
    "Is there a process `pid`, be it a zombie?"
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True

def whole(dl, got): return len(got) == len(dl) and sorted(i for o in got for i in o) == sorted(int(r.image.stem) for r in dl.dataset.items)

# Processes that are lost in the middle of an epoch

def lose(dl, how, at, which=0):
    "The batches of an epoch of `dl`, one of whose processes is lost after `at` batches."
    got = []
    for i,b in enumerate(dl):
        if i == at: [os.kill(pid, how) for pid in pids(dl)[which:which+1 or None]]
        got.append(numbers(b))
    return got

ways = [(part, how, at) for how in ('SIGKILL', 'SIGSTOP', 'SIGTERM') for part in ('training', 'validation') for at in ((0, 11) if part == 'training' else (0,))]

@pytest.mark.parametrize('part,how,at', [pytest.param(*o, marks=pytest.mark.fault('F13', f'worker gets {o[1]} in {o[0]}, batch {o[2]+1}')) for o in ways])
def test_a_process_is_lost(tmp_path, capsys, part, how, at):
    "The epoch ends with each picture once, later ones without processes."
    dls = loaders(tmp_path, n=125, timeout=2)
    dl = dls.train if part == 'training' else dls.valid
    first = [numbers(b) for b in dl]
    before = pids(dl)
    with lk.settings.using(progress=True): got = lose(dl, getattr(signal, how), at)
    assert whole(dl, first) and whole(dl, got) and alone(dl, before)
    assert [*map(len, got)] == [*map(len, first)] and (part == 'training' or got == first)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and told[0].startswith('loader: a worker process') and ('nothing for 2 seconds' if how == 'SIGSTOP' else how) in told[0]
    assert whole(dl, [numbers(b) for b in dl]) and 'thread' in dl.plan()

@pytest.mark.fault('F13', 'all workers are killed at once')
def test_all_processes_are_killed(tmp_path):
    dl = loaders(tmp_path, n=125, workers=3).train
    for _ in dl: pass
    before = pids(dl)
    assert whole(dl, lose(dl, signal.SIGKILL, 2, which=-3)) and alone(dl, before)

@pytest.mark.fault('F13', 'worker killed between two epochs')
def test_killed_between_epochs(tmp_path):
    dl = loaders(tmp_path).train
    for _ in dl: pass
    before = pids(dl)
    os.kill(before[1], signal.SIGKILL)
    assert whole(dl, [numbers(b) for b in dl]) and alone(dl, before)

class Killer(Callback):
    "Kill a worker in the middle of a training step."
    def after_pred(self):
        if self.training and self.iter == 3 and self.dl._crew is not None: os.kill(pids(self.dl)[0], signal.SIGKILL)

@pytest.mark.fault('F13', 'worker killed in a training step, fit')
def test_killed_while_the_network_computes(tmp_path):
    "PyTorch's own loader raises an error then, wherever the program is."
    dls = loaders(tmp_path)
    learn = lk.classification_learner(dls, pretrained=False, precision='fp32', path=tmp_path, cbs=Killer())
    learn.fit(2)
    assert len(learn.recorder.losses) == 2*8 and len(learn.recorder.values) == 2 and dls.train.fake_l.num_workers == 0

class Slow(lk.ItemTransform):
    "Do not return for one picture, in a worker process."
    def __init__(self, main): self.main = main
    def encodes(self, o):
        if os.getpid() != self.main: time.sleep(600)
        return o

@pytest.mark.fault('F13', 'a transform that never returns')
def test_a_transform_hangs(tmp_path):
    block = lk.classification_block(item_tfms=[lk.Resize(32, 'squish'), Slow(os.getpid())], augment=[])
    dl = block.dataloaders(lk.Records([draw(tmp_path, i) for i in range(12)]), bs=4, num_workers=1, timeout=1, device=torch.device('cpu')).valid
    assert whole(dl, [numbers(b) for b in dl]) and dl.fake_l.num_workers == 0

def test_nobody_waits_longer_than_a_minute(tmp_path):
    dl = loaders(tmp_path, workers=1, timeout=0).train
    next(iter(dl))
    assert 0 < dl._crew.patience < 60

# Processes that can't work or can't be started

def run(code, *args, before=''):
    "The output of a Python process that runs `code`, behind the shell command `before`."
    code = textwrap.dedent(code)
    cmd = ['sh', '-c', f'{before} exec "$@"', 'sh', sys.executable, '-c', code, *map(str, args)]
    res = subprocess.run(['unshare', '-m', *cmd] if before else cmd, capture_output=True, text=True, cwd=ROOT, timeout=300,
        env=os.environ | dict(OMP_NUM_THREADS='1', LEARNKIT_PROGRESS='true'))
    assert res.returncode == 0, res.stderr[-2000:]
    return res.stdout

def may_mount():
    "May this process mount file systems that others don't see?"
    try: return subprocess.run(['unshare', '-m', 'mount', '-t', 'tmpfs', 'none', '/mnt'], capture_output=True).returncode == 0
    except OSError: return False

mounts = pytest.mark.skipif(not may_mount(), reason='needs the right to mount a small file system')

@pytest.mark.slow
@mounts
@pytest.mark.fault('F13', '/dev/shm of 1 MB')
def test_no_shared_memory(tmp_path):
    "A batch of 8 MB does not fit into 1 MB."
    for i in range(64): Image.new('RGB', (400, 400), (2*i, 0, 0)).save(tmp_path/f'{i}.png')
    out = run('''
        import sys, torch, learnkit.all as lk
        from pathlib import Path
        rs = lk.Records([lk.Record(f, label='ab'[int(f.stem) % 2]) for f in Path(sys.argv[1]).glob('*.png')])
        dls = lk.classification_dls(rs, size=400, method='squish', bs=16, num_workers=2, augment=[], device=torch.device('cpu'))
        got = [i for b in dls.valid for i in (b[0][:,0,0,0]*255/2).round().int().tolist()]
        print(sorted(got) == sorted(int(r.image.stem) for r in dls.valid_ds.items), dls.valid.fake_l.num_workers)
        ''', tmp_path, before='mount -t tmpfs -o size=1m tmpfs /dev/shm;')
    lines = out.splitlines()
    assert lines[-1] == 'True 0' and sum(o.startswith('loader: a worker process') for o in lines) == 1

@pytest.fixture
def method(request):
    was = get_start_method()
    set_start_method(request.param, force=True)
    yield request.param
    set_start_method(was, force=True)

@pytest.mark.parametrize('method', [pytest.param(o, marks=pytest.mark.fault('F14', f'a lambda among the transforms, {o}')) for o in ('spawn', 'forkserver')],
    indirect=True)
def test_what_can_not_be_pickled(tmp_path, capsys, method):
    block = lk.classification_block(size=32, item_tfms=[lk.Resize(32, 'squish'), lambda o: o], augment=[])
    dl = block.dataloaders(lk.Records([draw(tmp_path, i) for i in range(20)]), bs=4, num_workers=2, device=torch.device('cpu')).train
    with lk.settings.using(progress=True): got = [[numbers(b) for b in dl] for _ in range(2)]
    told = capsys.readouterr().out.splitlines()
    assert all(whole(dl, o) for o in got) and dl.fake_l.num_workers == 0
    assert len(told) == 1 and told[0].startswith('loader: worker processes can not be started')

@pytest.mark.slow
@pytest.mark.parametrize('method', ['spawn', 'forkserver'], indirect=True)
def test_processes_that_are_not_forked(tmp_path, method):
    "They make what forked ones make, and find broken files."
    dl = loaders(tmp_path, workers=1, timeout=200).train
    f = dl.dataset.items[3].image
    f.unlink()
    got = [i for b in dl for i in numbers(b)]
    assert len(got) == 32 and int(f.stem) not in got and dl.fake_l.num_workers == 1 and [p.path for p in dl.aside.problems] == [f]

@pytest.mark.fault('F13', 'no process can be started')
def test_no_more_processes(tmp_path):
    "A limit on processes does not hold for root, so the error is raised where the system would."
    dl = loaders(tmp_path).train
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, 'fork', lambda: (_ for _ in ()).throw(BlockingIOError(11, 'Resource temporarily unavailable')))
        assert whole(dl, [numbers(b) for b in dl])
    assert dl.fake_l.num_workers == 0

@pytest.mark.slow
@pytest.mark.fault('F13', 'main process killed: its workers end')
def test_orphans_end(tmp_path):
    code = '''
        import os, signal, sys, time, torch
        from learnkit.data.workers import Crew
        crew = Crew(lambda o: o, 2)
        list(crew.map([(0, 1), (0, 2)]))
        print(*[p.pid for p,*_ in crew.crew], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        '''
    res = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT, timeout=120)
    ids = [*map(int, res.stdout.split())]
    for _ in range(200):
        if not any(map(runs, ids)): break
        time.sleep(.05)
    assert len(ids) == 2 and not any(map(runs, ids))

def runs(pid):
    "Is there a process `pid` that is no zombie?"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False

# The crew by itself

def test_the_seed_comes_with_the_job():
    crews = [Crew(lambda o: torch.rand(1).item(), n) for n in (1, 3)]
    one,three = [[*c.map((i, i) for i in range(7))] for c in crews]
    assert one == three and len({*one}) == 7
    for c in crews: c.end()

def test_a_pass_that_breaks_off_leaves_the_crew_ready():
    crew = Crew(lambda o: o+1, 2)
    for got in crew.map((0, i) for i in range(20)): break
    assert got == 1 and [*crew.map((0, i) for i in range(5))] == [1, 2, 3, 4, 5]
    crew.end()

def fails(o):
    if o == 3: raise ValueError(f'there is no {o}')
    return o

def test_an_error_says_where_it_happened():
    crew = Crew(fails, 2)
    with pytest.raises(ValueError, match='there is no 3') as e: [*crew.map((0, i) for i in range(9))]
    assert 'in fails' in ''.join(e.value.__notes__)
    assert [*crew.map((0, i) for i in range(3))] == [0, 1, 2]
    crew.end()

def test_what_can_not_be_sent():
    crew = Crew(lambda o: lambda: o, 1)
    with pytest.raises(Lost, match='could not hand over'): [*crew.map([(0, 1)])]
    crew.end()

def talkers(): return {t for t in threading.enumerate() if t.name == 'learnkit-worker'}

def test_a_forgotten_crew_ends():
    "Its processes and its threads: one that let go of a tensor while Python ended would end it with an abort."
    before,crew = talkers(),Crew(lambda o: torch.ones(o), 2)
    ids,new = [p.pid for p,*_ in crew.crew],talkers()-before
    for _ in crew.map((0, i) for i in range(9)): break
    del crew
    assert not any(map(there, ids)) and len(new) == 2 and not any(t.is_alive() for t in new)

# Memory and disk end while pictures are kept

@pytest.mark.slow
@pytest.mark.fault('F16', 'RLIMIT_AS: memory ends while pictures are kept')
def test_memory_ends(tmp_path):
    "Sixty pictures of 6 MB, and 150 MB for them."
    for i in range(60): Image.new('RGB', (2000, 1000), (4*i, 0, 9)).save(tmp_path/f'{i}.png')
    out = run('''
        import resource, sys, torch, learnkit.all as lk
        from pathlib import Path
        from learnkit.data.opening import Kept
        files,kept = [Path(sys.argv[1])/f'{i}.png' for i in range(60)],Kept(1000)
        kept.open(files[0])
        used = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used+150_000_000, used+150_000_000))
        for _ in range(2): assert [kept.open(f).getpixel((5, 5)) for f in files] == [(4*i, 0, 9) for i in range(60)]
        print(0 < sum(not isinstance(o, tuple) for o in kept.there.values()) < 30, kept.short)
        ''', tmp_path)
    lines = out.splitlines()
    assert lines[-1] == 'True True' and sum('memory is short' in o for o in lines) == 1

@pytest.mark.fault('F16', 'memory ends for good')
def test_memory_that_does_not_suffice(tmp_path, monkeypatch):
    "What is kept is given up first; if that is not enough, the error is raised, and no picture is called broken."
    dls = loaders(tmp_path, workers=0)
    for _ in dls.train: pass
    assert len(dls.train.kept) > 30
    (tmp_path/'5.png').touch()
    os.utime(tmp_path/'5.png', ns=(1, 1))
    def _full(*args, **kwargs): raise MemoryError
    monkeypatch.setattr('learnkit.data.opening.open_image', _full)
    with pytest.raises(MemoryError): [b for _ in range(2) for part in dls for b in part]
    assert len(dls.train.kept) == 0 and not len(dls.aside)

def test_shrink_halves(tmp_path):
    kept = Kept()
    for i in range(8): kept.open(draw(tmp_path, i).image)
    assert [round(kept.shrink()*1e6) for _ in range(5)] == [4*3072, 2*3072, 3072, 3072, 0] and len(kept) == 0
    kept.open(tmp_path/'3.png')
    assert not any(isinstance(o, np.ndarray) for o in kept.there.values()), 'nothing is kept in memory any more'

def keeps(kept, files, capsys):
    "Are `files` opened correctly twice, and is one line said?"
    with lk.settings.using(progress=True):
        for _ in range(2): assert [kept.open(f).getpixel((0, 0))[0] for f in files] == [2*i for i in range(len(files))]
    return sum('no more decoded pictures are kept' in o for o in capsys.readouterr().out.splitlines()) == 1

@pytest.mark.fault('F9', 'RLIMIT_FSIZE: the file of decoded pictures may not grow')
def test_the_file_may_not_grow(tmp_path, capsys):
    import resource
    files,kept = [draw(tmp_path, i).image for i in range(20)],Kept(mb=.004)
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, was[1]))
        assert keeps(kept, files, capsys)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert len(kept) == 4, 'one in memory, three in the file'

@pytest.mark.fault('F10', 'no folder for temporary files')
def test_no_temporary_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path/'nowhere'))
    assert keeps(Kept(mb=.004), [draw(tmp_path, i).image for i in range(6)], capsys)

@pytest.mark.slow
@mounts
@pytest.mark.fault('F9', 'temporary disk of 1 MB is full')
def test_the_disk_is_full(tmp_path):
    "Half of the free disk is taken at the most; here others fill the rest meanwhile."
    for i in range(20): draw(tmp_path, i)
    out = run('''
        import os, sys
        from pathlib import Path
        from learnkit.data.opening import Kept
        files,kept = [Path(sys.argv[1])/f'{i}.png' for i in range(20)],Kept(mb=.004)
        for f in files[:3]: kept.open(f)
        with open('/mnt/other', 'wb', buffering=0) as o:
            while True:
                try: o.write(bytes(4096))
                except OSError: break
        for _ in range(2): assert [kept.open(f).getpixel((0, 0))[0] for f in files] == [2*i for i in range(20)]
        print(2 < len(kept) < 20)
        ''', tmp_path, before='mount -t tmpfs -o size=1m tmpfs /mnt; TMPDIR=/mnt; export TMPDIR;')
    assert out.splitlines()[-1] == 'True' and out.count('no more decoded pictures are kept') == 1
