"Disks that end, that may only be read, and files that are being written when the power fails: real ones."
import errno, json, os, resource, shutil, signal, subprocess, sys, tempfile
import pytest, torch
from fastai.callback.progress import CSVLogger
from fastai.callback.core import Callback
import learnkit.all as lk
from learnkit.cli import main
from learnkit.core import LearnkitError
from learnkit.data.loaders import Kept
from learnkit.train.generate import to_pictures
from learnkit.train.resume import read_state, write_state
from learnkit.train.speed import measured
from PIL import Image

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.skipif(not hasattr(os, 'fork'), reason='these faults are made in ways of Unix')]
fault = pytest.mark.fault

def classes(data, path, **kw):
    lk.set_seed(5)
    return lk.classification_learner(lk.classification_dls(data, size=32, bs=16), 'lenet5', path=path, precision='fp32', **kw)

@pytest.fixture(scope='module')
def learn(drawings, tmp_path_factory):
    learn = classes(drawings, tmp_path_factory.mktemp('learner'))
    with lk.settings.using(progress=False): learn.fit(1)
    return learn

def weights(learn): return torch.cat([o.detach().flatten().clone() for o in learn.model.state_dict().values()])

def works(learn):
    "Train and ask `learn`, as if nothing had happened."
    learn.fit(1)
    assert learn.opt is not None and len(learn.dls.train) and learn.predict(learn.dls.valid_ds.items[0].image).label in ('cats', 'dogs')
    assert all(torch.isfinite(o).all() for o in learn.get_preds())

# A process that dies while it writes

def dying(f):
    "Run `f` in a process of its own; gives the signal that ended it, 0 if it came to its end."
    if not (pid := os.fork()):
        try:
            f()
            os._exit(0)
        finally: os._exit(99)
    code = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(code) or os.WEXITSTATUS(code) == 0, 'the process failed before it could be killed'
    return os.WTERMSIG(code) if os.WIFSIGNALED(code) else 0

def calls(f):
    "How many calls `f` makes."
    n = [0]
    def count(frame, event, arg): n[0] += event in ('call', 'c_call')
    sys.setprofile(count)
    try: f()
    finally: sys.setprofile(None)
    return n[0]

def killed_at(f, at):
    "Call `f`, and die by SIGKILL at its call number `at`."
    n = [0]
    def count(frame, event, arg):
        n[0] += event in ('call', 'c_call')
        if n[0] == at: os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    f()

def cut_at(f, size):
    "Call `f`, and die when it writes beyond `size` bytes of a file."
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    f()

class Saves:
    "How a file is written, and how it is seen that it is whole: `old` and `new` are what may be in it."
    def __init__(self, learn, kind, path):
        self.learn,self.kind,self.path = learn,kind,path
        learn.path = path
        names = dict(save='models/m.pth', export='m.learnkit', pickle='m.pkl', book='cache/speed.json', pictures='p.png', checkpoint='c.safetensors')
        self.file = path/names[kind]
        self.write(1)
        self.old = self.file.read_bytes()

    def write(self, v):
        "Write the file with the contents number `v`."
        k,l = self.kind,self.learn
        with torch.no_grad(): next(l.model.parameters())[0,0,0,0] = float(v)
        if k == 'save': l.save('m')
        if k == 'export': l.export('m.learnkit')
        if k == 'pickle': l.export('m.pkl')
        if k == 'pictures': to_pictures(torch.full((4, 3, 64, 64), v/5)+torch.rand(4, 3, 64, 64)/5).save(self.file)
        if k == 'checkpoint': write_state(self.file, l.model.state_dict(), dict(v=v))
        if k == 'book':
            with lk.settings.using(cache_path=self.file.parent): measured(f'key {v}'*500, lambda: dict(a=v))

    def loads(self):
        "The number of the contents that the file has now; fails where it is damaged."
        k,l = self.kind,self.learn
        if k == 'pictures': return 1 if self.file.read_bytes() == self.old else Image.open(self.file).convert('RGB').width//130*2
        if k == 'book': return max(o['a'] for o in json.loads(self.file.read_text()).values())
        if k == 'checkpoint': return read_state(self.file)[1]['v']
        model = l.load('m').model if k == 'save' else lk.load_learner(self.file, **({'trust':True} if k == 'pickle' else {})).model
        assert torch.isfinite(torch.cat([o.flatten() for o in model.parameters()])).all()
        return round(next(model.parameters())[0,0,0,0].item())

WRITES = ['save', 'export', 'pickle', 'book', 'pictures', 'checkpoint']

@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F8', f'SIGKILL at 20 calls of writing: {k}')) for k in WRITES])
def test_killed_while_writing(kind, learn, tmp_path):
    "The old file or the new one is there, 20 times of 20, and the next writer is not in trouble."
    s,seen = Saves(learn, kind, tmp_path),[]
    dying(lambda: s.write(2))
    s.file.write_bytes(s.old)
    n = calls(lambda: s.write(2))
    s.file.write_bytes(s.old)
    for i in range(20):
        assert dying(lambda: killed_at(lambda: s.write(2), 1+(n-1)*i//20)) == signal.SIGKILL
        seen.append(s.loads())
        if seen[-1] != 1: s.file.write_bytes(s.old)
    assert {*seen} <= {1, 2} and seen[0] == 1
    s.write(3)
    assert s.loads() in (2, 3)

@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F8', f'ended at 9 lengths of the file: {k}')) for k in ('save', 'export', 'pickle', 'pictures', 'checkpoint')])
def test_cut_while_writing(kind, learn, tmp_path):
    "The process ends in the middle of a write; the old file is there."
    s = Saves(learn, kind, tmp_path)
    for i in range(9):
        assert dying(lambda: cut_at(lambda: s.write(2), max(1, len(s.old)*i//10))) == signal.SIGXFSZ
        assert s.file.read_bytes() == s.old and s.loads() == 1

# A disk that is full

@pytest.fixture
def disk(tmp_path):
    "A disk of 5 MB of its own."
    at = tmp_path/'disk'
    at.mkdir()
    done = shutil.which('mount') and subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=5m', 'tmpfs', at], capture_output=True)
    if not done or done.returncode: pytest.skip('no disk can be mounted here (that needs root)')
    yield at
    subprocess.run(['umount', '-l', at], check=True)

def fill(at, leave=0):
    "Fill the disk at `at`, all but `leave` bytes."
    with open(at/'ballast', 'wb', buffering=0) as f:
        try:
            while True: f.write(b'x'*(1 << 16))
        except OSError as e: assert e.errno == errno.ENOSPC
        f.truncate(max(0, f.tell()-leave))

def files(at): return sorted(str(o.relative_to(at)) for o in at.rglob('*') if o.is_file() and o.name != 'ballast')

@pytest.mark.parametrize('leave', [0, 16_000])
@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F9', f'the disk is full: {k}')) for k in ('save', 'export', 'pickle', 'pictures', 'checkpoint')])
def test_full_disk(kind, leave, learn, disk):
    "One sentence with the path and what is free; the file that was there stays, and the learner too."
    s = Saves(learn, kind, disk)
    fill(disk, leave)
    before,opt,dls = files(disk),learn.opt,learn.dls
    with pytest.raises(LearnkitError, match=rf'{s.file.name}.*full.*MB are free'): s.write(2)
    assert s.file.read_bytes() == s.old and files(disk) == before and (learn.opt, learn.dls, learn.path) == (opt, dls, disk)
    works(learn)
    (disk/'ballast').unlink()
    s.write(3)
    assert s.loads() in (2, 3)

@fault('F9', 'the disk is full: notes about speed')
def test_full_disk_and_notes(learn, disk):
    s = Saves(learn, 'book', disk)
    fill(disk)
    with lk.settings.using(cache_path=s.file.parent): assert measured('another key'*2000, lambda: dict(a=7)) == (dict(a=7), False)
    assert s.file.read_bytes() == s.old and files(disk) == ['cache/speed.json']

@fault('F9', 'the disk is full: temporary file of decoded pictures')
def test_full_disk_and_the_cache(drawings, disk, monkeypatch):
    "The pictures that find no room are decoded again, and are the same."
    monkeypatch.setattr(tempfile, 'tempdir', str(disk))
    names = sorted(drawings.rglob('*.jpg'))+sorted(drawings.rglob('*.png'))
    kept,plain = Kept(.01),Kept(0)
    for i in range(3):
        for o in names[:40]: assert kept.open(o).tobytes() == plain.open(o).tobytes()
        if i == 0: fill(disk)
        if i == 0: names = names[40:]+names[:40]

@fault('F9', 'the disk is full: training and decoded pictures')
def test_full_disk_and_training(drawings, disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(disk))
    fill(disk)
    lk.set_seed(5)
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16, decode_cache=.01), 'lenet5', path=tmp_path, precision='fp32')
    works(learn)

@fault('F9', 'the disk is full: folder of a run from the command line')
def test_full_disk_and_the_command_line(drawings, disk, capsys):
    fill(disk, 20_000)
    code = main(['train', str(drawings), '--out', str(disk/'out'), '--epochs', '0', '--size', '32', '--arch', 'lenet5'])
    err = capsys.readouterr().err
    assert code == 1 and str(disk/'out') in err and 'full' in err and 'Traceback' not in err
    assert all(o.suffix != '.learnkit' for o in disk.rglob('*'))

@pytest.mark.slow
@fault('F9', 'the disk is full: built-in data')
def test_full_disk_and_data(disk, monkeypatch):
    "Nothing half written is taken for the data set later."
    monkeypatch.setenv('LEARNKIT_CACHE_PATH', str(disk/'cache'))
    fill(disk, 30_000)
    with pytest.raises((LearnkitError, OSError), match='full|No space'): lk.get_data('doodles')
    (disk/'ballast').unlink()
    assert not [o for o in (disk/'cache').rglob('*.png')] or lk.read_folder(lk.get_data('doodles'))

# A disk that can only be read

@pytest.fixture
def readonly(disk):
    "A function that makes the disk read-only, and gives its folder."
    def _f():
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        with pytest.raises(OSError): (disk/'x').touch()
        return disk
    return _f

def everywhere(at, monkeypatch):
    "Let all places for files be in the folder `at`."
    monkeypatch.setenv('LEARNKIT_CACHE_PATH', str(at/'cache'))
    monkeypatch.setattr(tempfile, 'tempdir', str(at))
    monkeypatch.chdir(at)

NO_DISK = dict(fit=lambda l: l.fit(1), fine_tune=lambda l: l.fine_tune(1), lr_find=lambda l: l.lr_find(num_it=8, show_plot=False),
    validate=lambda l: l.validate(), predict=lambda l: l.predict(l.dls.valid_ds.items[0].image), get_preds=lambda l: l.get_preds(),
    interpret=lambda l: l.interpret().top_losses(2), show_results=lambda l: l.show_results(max_n=2))

@pytest.mark.parametrize('verb', [pytest.param(k, marks=fault('F10', f'no folder can be written to: {k}')) for k in NO_DISK])
def test_nothing_can_be_written(verb, drawings, readonly, monkeypatch):
    "What needs no file works, with measured precision, too."
    everywhere(at := readonly(), monkeypatch)
    lk.set_seed(5)
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), path=at, precision='auto')
    before = weights(learn)
    NO_DISK[verb](learn)
    if verb == 'lr_find': assert torch.equal(before, weights(learn))
    assert list(at.iterdir()) == []

@fault('F10', 'no folder can be written to: fine_tune(fast=True) and a cache of pictures that spills')
def test_nothing_can_be_written_fast(drawings, readonly, monkeypatch):
    everywhere(at := readonly(), monkeypatch)
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16, decode_cache=.01), path=at, precision='fp32')
    learn.fine_tune(1, fast=True)

@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F10', f'the folder can only be read: {k}')) for k in ('save', 'export', 'pickle', 'pictures', 'checkpoint')])
def test_what_needs_a_file_says_so(kind, learn, disk, readonly):
    s = Saves(learn, kind, disk)
    readonly()
    opt,dls = learn.opt,learn.dls
    with pytest.raises(LearnkitError, match=rf'{s.file.name} could not be written.*(?i:read-only).*nother'): s.write(2)
    assert s.loads() == 1 and (learn.opt, learn.dls) == (opt, dls)
    works(learn)

@fault('F10', 'a bundle on a disk that can only be read')
def test_bundle_on_a_readonly_disk(learn, disk, readonly, monkeypatch):
    learn.path = disk
    path,q = learn.export('m.learnkit'),learn.dls.valid_ds.items[0].image
    everywhere(readonly(), monkeypatch)
    assert torch.allclose(lk.load_learner(path).predict(q)[2], learn.predict(q)[2], atol=1e-6)

@fault('F10', 'the cache can only be read: built-in data')
def test_data_without_a_cache(readonly, monkeypatch):
    "The sentence says what can be done."
    monkeypatch.setenv('LEARNKIT_CACHE_PATH', str(readonly()/'cache'))
    with pytest.raises(LearnkitError, match='cache.*(cache_path|LEARNKIT_CACHE_PATH)'): lk.get_data('doodles')

@fault('F10', 'the folder for the learner does not exist, or is a file')
def test_folders_that_are_not_there(learn, tmp_path):
    learn.path = tmp_path/'new'/'folder'
    assert learn.save('m').is_file() and learn.export('m.learnkit').is_file()
    (tmp_path/'file').write_text('x')
    learn.path = tmp_path/'file'/'below'
    for f in (lambda: learn.save('m'), lambda: learn.export('m.learnkit')):
        with pytest.raises(LearnkitError, match=r'below.*could not be written'): f()
    works(learn)

@fault('F10', 'the cache is a file')
def test_the_cache_is_a_file(drawings, tmp_path, monkeypatch):
    (tmp_path/'x').write_text('')
    monkeypatch.setenv('LEARNKIT_CACHE_PATH', str(tmp_path/'x'))
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), path=tmp_path, precision='auto')
    works(learn)
    with pytest.raises(LearnkitError, match='cache_path|LEARNKIT_CACHE_PATH'): lk.get_data('doodles')

# The log of a run

@fault('F25', 'SIGKILL in the third epoch: the log of a run')
def test_the_log_is_whole(drawings, tmp_path):
    "Each epoch that was told is in the file, the last line complete."
    class Die(Callback):
        order = 99
        def after_epoch(self):
            if self.epoch == 2: os.kill(os.getpid(), signal.SIGKILL)
    learn = classes(drawings, tmp_path)
    assert dying(lambda: learn.fit(5, cbs=[CSVLogger('log.csv'), Die()])) == signal.SIGKILL
    head,*rows = (tmp_path/'log.csv').read_text().splitlines()
    assert head == 'epoch,train_loss,valid_loss,error_rate,time' and [o.split(',')[0] for o in rows] == ['0', '1', '2']
    assert all(len(o.split(',')) == 5 and float(o.split(',')[1]) > 0 for o in rows)

@fault('F25', 'Ctrl-C in the third epoch: the history of a learner')
def test_the_history_is_kept(drawings, tmp_path):
    "What was shown in the table is there to be plotted."
    class Stop(Callback):
        def before_train(self):
            if self.epoch == 2: raise KeyboardInterrupt
    learn = classes(drawings, tmp_path)
    with pytest.raises(KeyboardInterrupt): learn.fit(5, cbs=[Stop()])
    assert sum(len(o['values']) for o in learn.history) == 2
    learn.plot_curves()
