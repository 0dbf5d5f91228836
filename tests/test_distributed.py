"Two real processes on this computer (gloo): the same numbers as one, each file written once, and an end in good order when one is killed."
import os, signal, socket, subprocess, sys
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import CancelFitException
from fastai.metrics import F1Score, error_rate
from fastai.torch_core import set_seed
from torch import nn
import learnkit.use.bundle # gives learners their `export`  # chkstyle: ignore
from learnkit.core import LearnkitError, MissingExtra
from learnkit.data.formats import read_coco
from learnkit.data.records import read_folder
from learnkit.settings import settings
from learnkit.task.classification import classification_dls, classification_learner
from learnkit.task.detection import detection_dls, detection_learner
from learnkit.train import distributed

HERE = Path(__file__).resolve()

def make(data, path, bs=8, without=10, **kw):
    "A learner without batch normalisation and dropout whose numbers of pictures do not divide by two."
    set_seed(3)
    records = [o for i,o in enumerate(read_folder(data)) if i%without]
    dls = classification_dls(records, size=32, bs=bs, augment=0)
    learn = classification_learner(dls, 'lenet5', metrics=[error_rate, F1Score()], precision='fp32', path=path, **kw)
    learn.model[1] = nn.Sequential(nn.Flatten(), nn.Linear(120, 2))
    return learn

def finder(data):
    "A learner that finds objects, whose pictures have different numbers of them."
    set_seed(3)
    rs = read_coco(data/'boxes.json')
    for i,r in enumerate(rs): r.boxes,r.labels = r.boxes+[[1, 1, 20+j, 20] for j in range(i%4)],r.labels+['cat']*(i%4)
    return detection_learner(detection_dls(rs, size=32, bs=4, valid=.15, augment=0), precision='fp32')

def weights(learn): return torch.cat([o.detach().flatten() for o in learn.model.parameters()])

def exercise(data, path):
    "All verbs in the block, once; what they gave."
    learn,res = make(data, path, class_weights=[1, 3]),{}
    learn.dls.train.drop_last = False
    learn.recorder.train_metrics = True
    with learn.distributed():
        learn.freeze()
        learn.fit(1, 1e-2)
        learn.unfreeze()
        res['rate'] = learn.lr_find(num_it=20, show_plot=False).valley
        learn.fine_tune(1, 1e-3)
        res['validate'] = list(learn.validate())
        res['train'] = learn.get_preds(ds_idx=0)
        res['nine'] = learn.get_preds(dl=learn.dls.test_dl(learn.dls.valid_ds.items[:9], with_labels=True), with_input=True, with_loss=True)
        res['batch'] = learn.get_preds(dl=[learn.dls.valid.one_batch()])[0]
        res['bundle'] = str(learn.export('model.learnkit'))
        learn.save('mid')
        learn.load('mid')
    again,found = make(data, path),finder(data)
    with again.distributed(): again.fit(2, 1e-2)
    with found.distributed(): res['found'] = found.get_preds()
    res |= dict(history=[(o['values'], o['losses'], o['steps']) for o in learn.history[-1:]+again.history], weights=[weights(o) for o in (learn, again)])
    return res | dict(left=[hasattr(learn, 'share_batches'), 'export' in vars(learn), type(learn.model).__name__, len(learn.dls.train)])

# What each of the two processes does (this file is started as a script)

class Killed(Callback):
    "The process dies after its first epoch, as if the power had failed."
    order = SaveModelCallback.order+1
    def after_epoch(self): os.kill(os.getpid(), signal.SIGKILL)

def refused(f, *args):
    "What `f` complains about."
    try: f(*args)
    except LearnkitError as e: return f'{type(e).__name__}: {e}'

def enter(learn):
    with learn.distributed(): raise CancelFitException

def export_code(learn):
    learn.model_kw = dict(head=len)
    with learn.distributed(): learn.export()

def worker(data, out):
    "The part of one process; leaves what it saw in `out`."
    rank,replace = int(os.environ['RANK']),os.replace
    def log_replace(src, dst):
        with open(out/'written.txt', 'a') as f: f.write(f'{rank} {Path(dst).name}\n')
        replace(src, dst)
    os.replace = log_replace
    with distributed.main_first(): turn = (out/'turn').exists() or (out/'turn').touch()
    res = exercise(data, out) | dict(turn=turn, odd=refused(enter, make(data, out, bs=9)))
    res |= dict(unlike=refused(enter, make(data, out, without=10+rank)), failed=refused(export_code, make(data, out)))
    torch.save(res, out/f'{rank}.pt')
    learn = make(data, out)
    with learn.distributed(): learn.fit(3, 1e-3, cbs=[SaveModelCallback(every_epoch=True)] + [Killed()]*rank)

if __name__ == '__main__': worker(Path(sys.argv[1]), Path(sys.argv[2]))

# What the test sees of them

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

@pytest.fixture(scope='module')
def pair(drawings, tmp_path_factory):
    "Both processes, run to their end: folder, exit codes, stdout and stderr of each."
    out = tmp_path_factory.mktemp('pair')
    env = os.environ | dict(OMP_NUM_THREADS='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(),
        LEARNKIT_PROGRESS='true', LEARNKIT_CACHE_PATH=str(out/'cache'))
    ps = [subprocess.Popen([sys.executable, HERE, drawings, out], env=env | dict(RANK=str(r), LOCAL_RANK=str(r)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) for r in (0, 1)]
    said = [p.communicate(timeout=120) for p in ps]
    if not (out/'1.pt').exists(): raise RuntimeError('\n'.join(o[1] for o in said))
    return out, [p.returncode for p in ps], said

@pytest.fixture(scope='module')
def ranks(pair): return [torch.load(pair[0]/f'{r}.pt', weights_only=False) for r in (0, 1)]

@pytest.fixture(scope='module')
def alone(drawings, one_thread, tmp_path_factory):
    with settings.using(progress=False): return exercise(drawings, tmp_path_factory.mktemp('alone'))

def close(a, b):
    "Whether `a` and `b`, however nested, hold the same numbers up to rounding."
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(close, a, b))
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('what', ['weights', 'history', 'validate', 'train', 'nine', 'batch', 'rate'])
def test_two_are_like_one(ranks, alone, what):
    for o in ranks: assert close(o[what], alone[what]), (o[what], alone[what])

def test_findings_and_unequal_targets_come_together(ranks, alone):
    found,targs = alone['found']
    for r in ranks: assert all(torch.allclose(a.float(), b.float(), atol=1e-4) for a,b in zip(r['found'][0], found))
    assert [(o > 0).sum().item() for o in ranks[0]['found'][1][1]] == [(o > 0).sum().item() for o in targs[1]]

def test_ranks_agree_to_the_last_bit(ranks):
    assert all(map(torch.equal, *[o['weights'] for o in ranks]))
    assert str(ranks[0]['history']) == str(ranks[1]['history'])

def test_numbers_do_not_divide(drawings, tmp_path):
    dls = make(drawings, tmp_path).dls
    assert len(dls.train_ds)%8 and len(dls.valid_ds)%2 and len(dls.valid_ds) > 9

def test_all_is_put_back(ranks, alone): assert ranks[0]['left'] == ranks[1]['left'] == alone['left'] == [False, False, 'Sequential', alone['left'][-1]]

def test_files_are_written_once(pair, ranks):
    written = (pair[0]/'written.txt').read_text().split()
    assert set(written[::2]) == {'0'} and {'model.learnkit', 'mid.pth', 'model_0.pth'} <= set(written[1::2])
    assert written.count('mid.pth') == written.count('model.learnkit') == 1
    assert ranks[0]['bundle'] == ranks[1]['bundle'] == str(pair[0]/'model.learnkit')

def test_the_first_goes_first(ranks): assert (ranks[0]['turn'], ranks[1]['turn']) == (None, True)

def test_only_the_first_speaks(pair):
    first,second = (o[0] for o in pair[2])
    assert second == '' and first.count('distributed: 2 processes (cpu, gloo) share each batch of 8') == 4
    assert first.count('epoch ') == 4

def test_a_batch_that_does_not_divide(ranks):
    for o in ranks: assert o['odd'].startswith('DataError: A batch of 9 pictures') and 'pass bs=8 or bs=10' in o['odd']

def test_other_data(ranks):
    for o in ranks: assert o['unlike'].startswith('DataError: The processes see different data: they have [')

def test_a_failure_of_the_first_is_told_to_all(ranks):
    first,second = (o['failed'] for o in ranks)
    assert first.startswith('DataError: The argument head=') and second == f'LearnkitError: The first process failed: {first}'

def test_a_killed_process(pair, drawings, tmp_path):
    out,codes,said = pair
    assert codes == [1, -signal.SIGKILL]
    assert said[0][1].splitlines()[-1].endswith(')') and 'learnkit.core.LearnkitError: Process 0 of 2 lost another one' in said[0][1].splitlines()[-1]
    learn = make(drawings, out)
    before = weights(learn).clone()
    learn.load('model_0')
    assert not torch.equal(weights(learn), before) and torch.isfinite(weights(learn)).all()
    assert sorted(o.name for o in (out/'models').iterdir()) == ['mid.pth', 'model_0.pth']

def test_command_line(drawings, tmp_path):
    words = f'-m torch.distributed.run --standalone --nproc_per_node 2 -m learnkit.cli train {drawings} --out {tmp_path/"out"} --epochs 0 --size 32 --bs 8'
    env = os.environ | dict(OMP_NUM_THREADS='1', LEARNKIT_PROGRESS='true')
    res = subprocess.run([sys.executable, *words.split()], env=env, text=True, capture_output=True, timeout=120)
    assert res.returncode == 0, res.stderr
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['batch.png', 'confusion.png', 'curves.png', 'model.learnkit', 'results.png']
    assert res.stdout.count('Learning classification') == res.stdout.count('epoch ') == res.stdout.count('error_rate=') == 1
    assert '2 processes (cpu, gloo) share each batch of 8' in res.stdout

# One process

def test_one_process_changes_nothing(drawings, tmp_path, capsys):
    learn = make(drawings, tmp_path)
    with settings.using(progress=True), distributed.main_first(), learn.distributed() as same: assert same is learn
    assert capsys.readouterr().out.count('\n') == 1

def test_accelerate_is_an_extra(drawings, tmp_path, monkeypatch):
    learn = make(drawings, tmp_path)
    for k,v in dict(WORLD_SIZE='2', RANK='0').items(): monkeypatch.setenv(k, v)
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(MissingExtra, match=r'learnkit\[distributed\]'): enter(learn)

def test_save_is_whole_or_not_at_all(drawings, tmp_path, monkeypatch):
    learn = make(drawings, tmp_path)
    path = learn.save('a')
    before = path.read_bytes()
    def half(state, file, **kw):
        Path(file).write_bytes(b'half')
        raise OSError('no space left')
    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(OSError): learn.save('a')
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1

@pytest.mark.parametrize('n', range(20))
@pytest.mark.parametrize('bs', [1, 3, 4])
@pytest.mark.parametrize('drop_last', [False, True])
def test_shares_make_the_batches_of_one(n, bs, drop_last):
    order = [*range(100, 100+n)]
    parts = [distributed._part(order, bs, drop_last, r, 3) for r in range(3)]
    whole = [order[i:i+bs] for i in range(0, n, bs) if not drop_last or i+bs <= n]
    counts = parts[0][1]
    assert all(c == counts for _,c in parts) and [sum(o) for o in counts] == [len(o) for o in whole]
    each = [max(1, o) for o in distributed.shares(bs, 3)]
    batches = [[p[i:i+k] for i in range(0, len(p), k)] for (p,_),k in zip(parts, each)]
    assert all(len(o) == len(whole) for o in batches)
    assert [sum([o[b][:counts[b][r]] for r,o in enumerate(batches)], []) for b in range(len(whole))] == whole
