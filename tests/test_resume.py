"Training that is stopped at any step goes on and ends with the same bits; its files are whole, few, and belong to one training."
import os, random, signal, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.torch_core import set_seed
from learnkit.core import DataError
from learnkit.data.records import read_folder
from learnkit.task.classification import classification_dls, classification_learner
from learnkit.task.gan import gan_learner
from learnkit.task.generation import generation_dls
from learnkit.train.resume import Checkpoints, read_state, write_state

pytestmark = pytest.mark.usefixtures('one_thread')
HERE = Path(__file__).resolve().parent

class Stop(Callback):
    "Press Ctrl-C in the event `event` for the `n`-th time; 0: never."
    order = 200
    def __init__(self, n=0, event='after_batch'): self.left,self.event = iter(range(n-1)),event if n else None # an iterator is not remembered
    def __call__(self, name):
        if name == self.event and (name != 'after_batch' or self.training) and next(self.left, None) is None: raise KeyboardInterrupt

def classes(drawings, **kw):
    "A learner with much that is random: order, variations of pictures, dropout."
    rs = read_folder(drawings)
    return classification_learner(classification_dls(rs, size=32, bs=16), **kw)

def digits(drawings, **kw): return gan_learner(generation_dls(drawings, size=16, bs=16), 'dcgan', width=4, **kw)

def cats(drawings, **kw):
    "The built-in body from random weights, and a callback that counts epochs without progress."
    return classes(drawings, pretrained=False, cbs=[EarlyStoppingCallback(patience=5)], **kw)

KINDS = {'two stages':(classes, dict(epochs=2)), 'from random weights':(cats, dict(epochs=2)), 'fast':(classes, dict(epochs=2, freeze_epochs=2, fast=True)),
    'mixup':(classes, dict(epochs=1, cbs=MixUp())), 'a GAN':(digits, dict(epochs=3)), 'bf16':(lambda d: classes(d, precision='bf16'), dict(epochs=1))}

def trained(kind, drawings, folder, stop=0, event='after_batch', minutes=0, seed=None):
    "A new learner, as in a new process, trained in `folder` until it is stopped."
    set_seed(random.SystemRandom().randrange(2**31) if seed is None else seed)
    make,kw = KINDS[kind]
    torch.manual_seed(3) # the weights at the start are part of the cell that is run again
    learn = make(drawings)
    learn.to_precision('bf16' if kind == 'bf16' else 'fp32')
    learn.add_cb(Stop(stop, event))
    learn.fine_tune(checkpoint=Checkpoints(folder, minutes=minutes), **kw)
    return learn

def weights(learn): return {k:v.detach().clone() for k,v in learn.model.state_dict().items()}

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()

@pytest.fixture(scope='module')
def whole(drawings, tmp_path_factory):
    "What each kind of training becomes if nobody stops it: weights and history."
    got = {}
    def get(kind):
        if kind not in got:
            learn = trained(kind, drawings, tmp_path_factory.mktemp('whole'), seed=11)
            got[kind] = weights(learn),learn.history
        return got[kind]
    return get

def rows(history): return [[float(o) for o in v] for h in history for v in h['values']]

PLACES = [('two stages', n) for n in (1, 3, 4, 6, 8, 11, 12)] + [('from random weights', n) for n in (2, 9)] + [('fast', n) for n in (2, 5, 9, 15)]
PLACES += [('mixup', 2), ('mixup', 6), ('a GAN', 2), ('a GAN', 7), ('bf16', 2), ('bf16', 7)]

@pytest.mark.parametrize('kind,n', [pytest.param(*o, marks=pytest.mark.fault('F7', f'{o[0]}: stopped after step {o[1]}')) for o in PLACES])
def test_stopped_training_ends_with_the_same_bits(kind, n, drawings, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt): trained(kind, drawings, tmp_path/'c', stop=n, seed=11)
    learn = trained(kind, drawings, tmp_path/'c')
    after,history = whole(kind)
    assert same(weights(learn), after)
    assert np.allclose(rows(learn.history), rows(history), equal_nan=True)
    assert [len(h['losses']) for h in learn.history] == [len(h['losses']) for h in history]

@pytest.mark.parametrize('event,n', [pytest.param(*o, marks=pytest.mark.fault('F7', f'stopped in {o[0]}, time {o[1]}')) for o in (
    ('before_validate', 1), ('before_validate', 3), ('after_epoch', 1), ('before_epoch', 2), ('before_fit', 2), ('after_fit', 1), ('before_step', 6))])
def test_stops_between_steps(event, n, drawings, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt): trained('two stages', drawings, tmp_path/'c', stop=n, event=event, seed=11)
    assert same(weights(trained('two stages', drawings, tmp_path/'c')), whole('two stages')[0])

@pytest.mark.fault('F7', 'Ctrl-C, and the same cell again')
@pytest.mark.parametrize('n', [1, 3, 7])
def test_the_same_learner_goes_on(n, drawings, tmp_path, whole):
    set_seed(11)
    torch.manual_seed(3)
    learn = classes(drawings)
    learn.to_precision('fp32').add_cb(Stop(n))
    with pytest.raises(KeyboardInterrupt): learn.fine_tune(2, checkpoint=tmp_path/'c')
    learn.remove_cbs(Stop)
    learn.fine_tune(2, checkpoint=tmp_path/'c')
    assert same(weights(learn), whole('two stages')[0])

@pytest.mark.fault('F7', 'stopped three times')
def test_stops_again_and_again(drawings, tmp_path, whole):
    for n in (2, 3, 4):
        with pytest.raises(KeyboardInterrupt): trained('two stages', drawings, tmp_path/'c', stop=n, seed=11 if n == 2 else None)
    assert same(weights(trained('two stages', drawings, tmp_path/'c')), whole('two stages')[0])

@pytest.mark.fault('F7', 'stopped between two files', lost='the minutes since the last file')
def test_files_every_few_minutes_only(drawings, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt): trained('two stages', drawings, tmp_path/'c', stop=7, minutes=60, seed=11)
    assert [o.name for o in Checkpoints(tmp_path/'c').files()] == ['0-00000-0000000.safetensors', '1-00000-0000000.safetensors'] # of the start, and of the second stage's
    learn = trained('two stages', drawings, tmp_path/'c', minutes=60)
    assert same(weights(learn), whole('two stages')[0])

def test_the_last_two_files_are_kept_and_nothing_else(drawings, tmp_path):
    trained('two stages', drawings, tmp_path/'c')
    assert len([*(tmp_path/'c').iterdir()]) == 2
    assert b'pickle' not in (tmp_path/'c'/'2-00000-0000000.safetensors').read_bytes()[:2000]

@pytest.mark.fault('F23', 'the cell of a complete training is run again')
def test_a_complete_training_is_not_repeated(drawings, tmp_path, monkeypatch, capsys):
    first = trained('two stages', drawings, tmp_path/'c', seed=11)
    before = {o.name:o.stat().st_mtime_ns for o in (tmp_path/'c').iterdir()}
    monkeypatch.setenv('LEARNKIT_PROGRESS', 'true')
    again = trained('two stages', drawings, tmp_path/'c', stop=1)
    assert same(weights(again), weights(first)) and rows(again.history) == rows(first.history)
    assert {o.name:o.stat().st_mtime_ns for o in (tmp_path/'c').iterdir()} == before
    assert 'this training is complete' in capsys.readouterr().out
    assert again.results == first.results

@pytest.mark.fault('F23', 'another training in the same folder')
def test_another_training_is_refused(drawings, tmp_path):
    with pytest.raises(KeyboardInterrupt): trained('two stages', drawings, tmp_path/'c', stop=3)
    before = weights(learn := classes(drawings))
    with pytest.raises(DataError, match='epochs was 2 and is 5.*another folder'): learn.fine_tune(5, checkpoint=tmp_path/'c')
    assert same(weights(learn), before)
    learn.fine_tune(1)
    few = classification_dls(read_folder(drawings)[::2], size=32, bs=16)
    with pytest.raises(DataError, match='pictures was'): classification_learner(few).fine_tune(2, checkpoint=tmp_path/'c')
    with pytest.raises(DataError, match='network was'): classification_learner(learn.dls, 'resnet18', pretrained=False).fine_tune(2, checkpoint=tmp_path/'c')

def test_a_folder_that_is_a_file(drawings, tmp_path):
    (tmp_path/'c').write_text('x')
    with pytest.raises(DataError, match='is a file'): classes(drawings).fine_tune(1, checkpoint=tmp_path/'c')

def test_several_processes_are_refused(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr('learnkit.train.resume.num_distrib', lambda: 2)
    with pytest.raises(DataError, match='one process.*several'): classes(drawings).fine_tune(1, checkpoint=tmp_path/'c')
    assert not (tmp_path/'c').exists()

@pytest.mark.parametrize('how', [pytest.param(o, marks=pytest.mark.fault('F8', f'the newest file is {o}')) for o in ('cut', 'empty', 'garbage')])
def test_a_damaged_file_is_passed_over(how, drawings, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt): trained('two stages', drawings, tmp_path/'c', stop=6, seed=11)
    new = Checkpoints(tmp_path/'c').files()[-1]
    data = new.read_bytes()
    new.write_bytes(dict(cut=data[:len(data)//2], empty=b'', garbage=os.urandom(5000))[how])
    assert same(weights(trained('two stages', drawings, tmp_path/'c')), whole('two stages')[0])

@pytest.mark.fault('F4', 'weights that are not finite are not written')
def test_no_file_holds_nan(drawings, tmp_path):
    class Spoil(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.train_iter == 3:
                with torch.no_grad(): next(iter(self.model.parameters())).fill_(float('nan'))
                self.learn.stages.cb.write(self.epoch, self.iter+1)
                raise KeyboardInterrupt
    learn = classes(drawings)
    with pytest.raises(KeyboardInterrupt): learn.fine_tune(1, freeze_epochs=0, checkpoint=Checkpoints(tmp_path/'c', minutes=0), cbs=Spoil())
    for o in Checkpoints(tmp_path/'c').files(): assert all(torch.isfinite(v).all() for k,v in read_state(o)[0].items() if v.is_floating_point())
    assert [o.name for o in Checkpoints(tmp_path/'c').files()][-1] == '0-00000-0000002.safetensors'

def test_best_metric_is_remembered(drawings, tmp_path):
    def learner(): return classes(drawings, pretrained=False, path=tmp_path, cbs=SaveModelCallback(fname='best'))
    learn = learner()
    learn.add_cb(Stop(9))
    with pytest.raises(KeyboardInterrupt): learn.fine_tune(2, checkpoint=Checkpoints(tmp_path/'c', minutes=0))
    best = learn.save_model.best
    again = learner()
    seen = []
    class Look(Callback):
        order = 99
        def before_train(self): seen.append(self.learn.save_model.best)
    again.fine_tune(2, checkpoint=tmp_path/'c', cbs=Look())
    assert np.isfinite(best) and seen[0] == pytest.approx(best)

def test_state_files_are_plain(tmp_path):
    write_state(tmp_path/'a', dict(x=torch.arange(3)), dict(a=[1, None, 'b']))
    tensors,page = read_state(tmp_path/'a')
    assert tensors['x'].tolist() == [0, 1, 2] and page == dict(a=[1, None, 'b'])
    with pytest.raises(DataError, match='no checkpoint'): read_state(HERE/'conftest.py')

# A power cut

SCRIPT = '''
import sys, os, signal, torch
sys.path.insert(0, sys.argv[5])
torch.set_num_threads(1)
import test_resume as t
from pathlib import Path
class Kill(t.Callback):
    order = 210
    def after_batch(self):
        if self.training: Kill.n += 1
        if self.training and Kill.n == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)
Kill.n = 0
t.Stop = lambda *a: Kill()
learn = t.trained('two stages', Path(sys.argv[1]), Path(sys.argv[2]), seed=11 if sys.argv[4] == '1' else None)
t.write_state(Path(sys.argv[2])/'end', t.weights(learn), {})
'''

def power_cut(drawings, folder, n, seed=True):
    "Train in a process of its own that is killed after step `n`; 0: never."
    words = [sys.executable, '-c', SCRIPT, drawings, folder, n, int(seed), HERE]
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, env=os.environ | dict(OMP_NUM_THREADS='1'))

STEPS = sorted(random.Random(0).sample(range(1, 13), 10))

@pytest.mark.slow
@pytest.mark.parametrize('n', [pytest.param(o, marks=pytest.mark.fault('F7', f'kill -9 after step {o} of 12')) for o in STEPS])
def test_kill_and_go_on(n, drawings, tmp_path, whole):
    assert power_cut(drawings, tmp_path/'c', n).returncode == -signal.SIGKILL
    done = power_cut(drawings, tmp_path/'c', 0, seed=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same(read_state(tmp_path/'c'/'end')[0], whole('two stages')[0])
