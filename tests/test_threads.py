"Many callers and one learner: threads, processes and callbacks get right answers, and training never notices."
import faulthandler, functools, os, pickle, select, signal, socket, subprocess, sys, threading, time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.hook import ActivationStats
from fastai.callback.mixup import MixUp
import learnkit.all as lk
from learnkit.core import LearnkitError
from learnkit.train import distributed
from learnkit.train import predict as predicting

pytestmark = pytest.mark.usefixtures('one_thread')
HERE = Path(__file__).resolve()
fault = pytest.mark.fault

def within(f, seconds=60):
    "The result of `f`, which must not take longer; it has a thread of its own."
    out = []
    def _f():
        try: out.append((f(), None))
        except BaseException as e: out.append((None, e))
    t = threading.Thread(target=_f, daemon=True)
    t.start()
    t.join(seconds)
    assert out, f'a deadlock: nothing came for {seconds} s'
    if out[0][1] is not None: raise out[0][1]
    return out[0][0]

def at_once(f, n=16):
    "The results of `f(i)` of `n` threads that begin together."
    start,out = threading.Barrier(n),[None]*n
    def _f(i):
        start.wait(30)
        try: out[i] = f(i)
        except Exception as e: out[i] = e
    ts = [threading.Thread(target=_f, args=(i,), daemon=True) for i in range(n)]
    for t in ts: t.start()
    for t in ts: t.join(60)
    assert not any(t.is_alive() for t in ts), 'a deadlock'
    for o in out:
        if isinstance(o, Exception): raise o
    return out

# Learners

def classes(data, **kw):
    lk.set_seed(5)
    return lk.classification_learner(lk.classification_dls(data, size=32, bs=16), **dict(precision='fp32') | kw)

def masks(data, **kw):
    lk.set_seed(5)
    return lk.segmentation_learner(lk.segmentation_dls(lk.read_masks(data, images='.', masks='parts'), size=32, bs=16), precision='fp32', **kw)

def points(data, **kw):
    lk.set_seed(5)
    return lk.keypoints_learner(lk.keypoints_dls(lk.read_points(data/'points.csv'), size=32, bs=16), precision='fp32', **kw)

def boxes(data, **kw):
    lk.set_seed(5)
    return lk.detection_learner(lk.detection_dls(lk.read_coco(data/'boxes.json'), size=32, bs=16), precision='fp32', **kw)

def codes(data, **kw):
    lk.set_seed(5)
    return lk.vae_learner(lk.generation_dls(data, size=16, bs=16), z_dim=4, width=8, precision='fp32', **kw).keep_samples(0)

def game(data, **kw):
    lk.set_seed(5)
    return lk.gan_learner(lk.generation_dls(data, size=16, bs=16), 'dcgan', width=4, precision='fp32', **kw).keep_samples(0)

KINDS = dict(classification=classes, segmentation=masks, keypoints=points, detection=boxes, generation=codes)

def questions(learn, n=8): return [*range(n)] if hasattr(learn, 'sample') else [o.image for o in learn.dls.valid_ds.items[:n]]

def bits(p):
    "What the prediction `p` says, to the last bit."
    return p[0].tobytes() if hasattr(p[0], 'tobytes') else pickle.dumps([o.numpy() for o in (p[2] if isinstance(p[2], tuple) else [p[2]])])

def weights(learn): return torch.cat([o.detach().float().flatten() for o in learn.model.state_dict().values()])

# Many threads

@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F18', f'16 threads predict: {k}')) for k in KINDS])
def test_threads_get_what_one_gets(kind, drawings, tmp_path, monkeypatch):
    "The first question comes from 16 threads at once; one copy of the network is made for all."
    learn,made = KINDS[kind](drawings, path=tmp_path),[]
    monkeypatch.setattr(predicting, 'for_answers', lambda *args, _f=predicting.for_answers: made.append(1) or _f(*args))
    qs = questions(learn)
    got = at_once(lambda i: [bits(learn.predict(qs[(i+j) % len(qs)])) for j in range(8)])
    alone = [bits(learn.predict(o)) for o in qs]
    assert all(o[j] == alone[(i+j) % len(qs)] for i,o in enumerate(got) for j in range(8)) and len({*alone}) > 1
    assert len(made) <= 1

@pytest.mark.slow
@fault('F18', '16 threads, 200 predictions each')
def test_threads_for_long(drawings):
    learn = classes(drawings)
    qs = questions(learn, 16)
    alone = [bits(learn.predict(o)) for o in qs]
    assert all(o == [alone[j%16] for j in range(200)] for o in at_once(lambda i: [bits(learn.predict(qs[j%16])) for j in range(200)]))

@fault('F18', '16 threads predict lists')
def test_threads_with_lists(drawings):
    learn = classes(drawings)
    qs = questions(learn, 12)
    alone = [bits(o) for o in learn.predict(qs, bs=5)]
    for o in at_once(lambda i: [bits(p) for p in learn.predict(qs, bs=5)]): assert o == alone

@fault('F18', '16 threads ask first, with measured precision')
def test_threads_with_measured_precision(drawings):
    learn = classes(drawings, precision='auto')
    q = questions(learn, 1)[0]
    assert len({bits(learn.predict(q))} | {*at_once(lambda i: bits(learn.predict(q)))}) == 1

@fault('F18', '8 threads load one bundle')
def test_threads_load(drawings, tmp_path):
    learn = classes(drawings, path=tmp_path)
    path,qs = learn.export('m.learnkit'),questions(learn, 4)
    alone = [bits(o) for o in lk.load_learner(path).predict(qs)]
    for o in at_once(lambda i: [bits(p) for p in lk.load_learner(path).predict(qs)], 8): assert o == alone

@fault('F18', 'get_preds from 4 threads at once')
def test_threads_with_get_preds(drawings):
    learn = classes(drawings)
    alone,logger = learn.get_preds(),learn.logger
    for o in at_once(lambda i: learn.get_preds(), 4): assert all(map(torch.equal, o, alone))
    assert learn.logger is logger and learn.create_mbar

# Answers while training goes on

class Steps(Callback):
    "Keep the weights of each step, and give other threads time to ask."
    order,run_valid = 90,False
    def __init__(self, pause=0.): self.pause,self.seen,self.begun = pause,[],threading.Event()
    def _keep(self): self.seen.append({k:v.clone() for k,v in self.model.state_dict().items()})
    def before_train(self): self._keep() if not self.seen else None
    def after_batch(self):
        self._keep()
        self.begun.set()
        time.sleep(self.pause)

@contextmanager
def training(learn, pause=.01, verb='fit', **kw):
    "A block in which another thread trains `learn`; gives the callback that keeps the weights of each step."
    cb,err = Steps(pause),[]
    def _fit():
        try: getattr(learn, verb)(2, cbs=[cb], **kw)
        except BaseException as e: err.append(e)
    t = threading.Thread(target=_fit, daemon=True)
    t.start()
    assert cb.begun.wait(60)
    try: yield t,cb
    finally: t.join(60)
    assert not t.is_alive() and not err, err

def same_training(a, b):
    "Whether two learners have trained alike to the last bit, with the same numbers on the way."
    return torch.equal(weights(a), weights(b)) and str([o['values']+o['losses'] for o in a.history]) == str([o['values']+o['losses'] for o in b.history])

@functools.cache
def quiet(make, data, verb='fit', **kw):
    "A learner that was trained while nobody asked."
    learn = make(data)
    getattr(learn, verb)(2, cbs=[Steps()], **kw)
    return learn

CASES = dict(KINDS, gan=game, bf16=partial(classes, precision='bf16'), mixup=lambda d: classes(d).add_cb(MixUp()),
    hooks=lambda d: classes(d).add_cb(ActivationStats()))

QUICK = {'classification', 'generation', 'gan', 'mixup'}

@pytest.mark.parametrize('kind', [pytest.param(k, marks=[fault('F18', f'predict while another thread trains: {k}'), *[pytest.mark.slow]*(k not in QUICK)]) for k in CASES])
def test_answers_during_training(kind, drawings):
    "Each answer is that of the weights between two steps, and the training ends with the same bits as one that nobody asked."
    alone,learn = quiet(CASES[kind], drawings),CASES[kind](drawings)
    q,got = questions(learn, 1)[0],[]
    with training(learn) as (t,cb):
        while t.is_alive(): got.append(within(lambda: learn.predict(q)))
    assert same_training(alone, learn) and len(got) > 3
    if kind in ('generation', 'gan', 'bf16', 'hooks'): return
    possible = []
    for o in cb.seen:
        learn.model.load_state_dict(o)
        possible.append(learn.predict(q)[2])
    def near(a, b): return all(torch.allclose(x.float(), y.float(), atol=1e-4) for x,y in zip(*[o if isinstance(o, tuple) else (o,) for o in (a, b)]))
    if kind != 'detection': assert all(any(near(p[2], o) for o in possible) for p in got)

@pytest.mark.parametrize('verb', [pytest.param(v, marks=fault('F18', f'predict during {v}')) for v in ('fine_tune', 'fit_one_cycle')])
def test_answers_during_other_verbs(verb, drawings):
    alone,learn = quiet(classes, drawings, verb),classes(drawings)
    with training(learn, verb=verb) as (t,_):
        while t.is_alive(): within(lambda: learn.predict(questions(learn, 1)[0]))
    assert same_training(alone, learn)

@fault('F18', 'predict while fast=True trains on kept features')
def test_answers_during_fast_training(drawings):
    "The body is left out while the head is trained, but not for an answer."
    alone,learn = quiet(classes, drawings, 'fine_tune', fast=True, freeze_epochs=4),classes(drawings)
    q = questions(learn, 1)[0]
    truth = learn.predict(q)[2].shape
    with training(learn, verb='fine_tune', fast=True, freeze_epochs=4) as (t,_):
        while t.is_alive(): assert within(lambda: learn.predict(q))[2].shape == truth
    assert same_training(alone, learn)

LOOKS = dict(features=lambda l, q: lk.features(l, [q]), picture_features=lambda l, q: lk.picture_features([q], l), grad_cam=lambda l, q: l.grad_cam(q))

@pytest.mark.parametrize('verb', [pytest.param(k, marks=fault('F18', f'{k} while another thread trains')) for k in LOOKS])
def test_looks_during_training(verb, drawings):
    "What looks into the network works meanwhile, and leaves the training as it is."
    alone,learn,n = quiet(classes, drawings),classes(drawings),0
    with training(learn) as (t,_):
        while t.is_alive():
            within(lambda: LOOKS[verb](learn, questions(learn, 1)[0]))
            n += 1
    assert same_training(alone, learn) and n

@fault('F18', 'predict while lr_find ruins the weights')
def test_answers_during_lr_find(drawings):
    learn = classes(drawings)
    q,got,t = questions(learn, 1)[0],[],threading.Thread(target=lambda: learn.lr_find(num_it=30, show_plot=False), daemon=True)
    before = learn.predict(q)[2]
    t.start()
    while t.is_alive(): got.append(within(lambda: learn.predict(q))[2])
    assert all(torch.allclose(o, before, atol=1e-5) for o in got) and torch.allclose(learn.predict(q)[2], before, atol=1e-5)

REFUSED = dict(get_preds=lambda l: l.get_preds(), validate=lambda l: l.validate(), show_results=lambda l: l.show_results(max_n=2), tta=lambda l: l.tta(),
    fit=lambda l: l.fit(1), fine_tune=lambda l: l.fine_tune(1), fit_one_cycle=lambda l: l.fit_one_cycle(1),
    lr_find=lambda l: l.lr_find(num_it=10, show_plot=False), load=lambda l: l.load('m'), freeze=lambda l: l.freeze())

@pytest.mark.parametrize('verb', [pytest.param(k, marks=fault('F18', f'{k} while another thread trains')) for k in REFUSED])
def test_refused_during_training(verb, drawings, tmp_path):
    alone,learn = quiet(classes, drawings),classes(drawings, path=tmp_path)
    learn.save('m')
    with training(learn):
        with pytest.raises(LearnkitError, match='being trained'): within(lambda: REFUSED[verb](learn))
    assert same_training(alone, learn)
    REFUSED[verb](learn)

@pytest.mark.parametrize('verb', [pytest.param(k, marks=fault('F18', f'{k} while another thread trains')) for k in ('save', 'export')])
def test_files_during_training(verb, drawings, tmp_path):
    "What is written is the network of a step, not half of one and half of the next."
    alone,learn,again = quiet(classes, drawings),classes(drawings, path=tmp_path),classes(drawings, path=tmp_path)
    with training(learn) as (t,cb): path = within(lambda: learn.save('m', with_opt=False) if verb == 'save' else learn.export('m.learnkit'))
    model = again.load('m').model if verb == 'save' else lk.load_learner(path).model
    assert same_training(alone, learn) and any(all(torch.equal(v, model.state_dict()[k]) for k,v in o.items()) for o in cb.seen)

# Callbacks of the training itself

class Ask(Callback):
    "Call `f` of the learner in each `event`, and keep what it says."
    order = 80
    def __init__(self, event, f): self.event,self.f,self.got,self.busy = event,f,[],False
    def __call__(self, name):
        if name != self.event or self.busy: return
        self.busy = True
        self.got.append(self.f(self.learn))
        self.busy = False

ASKED = dict(predict=lambda l: l.predict(l.dls.valid_ds.items[0].image), get_preds=lambda l: l.get_preds(), validate=lambda l: l.validate(),
    show_results=lambda l: l.show_results(max_n=2))

@pytest.mark.parametrize('event,verb', [pytest.param(e, v, marks=fault('F18', f'{v} in {e} of a training'))
    for v,es in dict(predict=['after_pred', 'after_batch', 'after_epoch', 'after_validate'], get_preds=['after_batch', 'before_validate', 'after_validate', 'after_epoch'],
        validate=['after_train', 'after_epoch'], show_results=['after_epoch']).items() for e in es])
def test_asked_by_a_callback(event, verb, drawings):
    "fastai waits for ever for its own lock here, and loses its place in the training."
    alone,learn = quiet(classes, drawings),classes(drawings)
    cb = Ask(event, ASKED[verb])
    within(lambda: learn.fit(2, cbs=[Steps(), cb]))
    assert same_training(alone, learn) and cb.got
    if verb == 'validate' and event == 'after_epoch': assert [*cb.got[-1]] == pytest.approx(learn.history[-1]['values'][-1][1:])
    if verb == 'get_preds' and event == 'after_epoch': assert all(map(torch.equal, cb.got[-1], learn.get_preds()))

@fault('F18', 'get_preds in a callback of validate')
def test_get_preds_within_validate(drawings):
    learn = classes(drawings)
    alone,preds = [*learn.validate()],learn.get_preds()
    cb = Ask('after_validate', lambda l: l.get_preds())
    assert within(lambda: [*learn.validate(cbs=cb)])[:2] == alone[:2]
    assert all(map(torch.equal, cb.got[0], preds))

@fault('F18', 'a callback waits for the answer of another thread')
def test_a_real_deadlock_is_told(drawings, monkeypatch):
    monkeypatch.setattr(predicting, '_patience', .3)
    learn = classes(drawings)
    def ask(l): return within(lambda: l.predict(l.dls.valid_ds.items[0].image))
    with pytest.raises(LearnkitError, match='has not come to the end of a step'): within(lambda: learn.fit(1, cbs=Ask('after_batch', ask)))
    learn.fit(1)
    assert within(lambda: learn.predict(learn.dls.valid_ds.items[0].image)).label in ('cats', 'dogs')

@fault('F18', 'a callback asks many threads between epochs')
def test_threads_of_a_callback(drawings):
    alone,learn = quiet(classes, drawings),classes(drawings)
    q = questions(learn, 1)[0]
    cb = Ask('after_epoch', lambda l: at_once(lambda i: bits(l.predict(q)), 4))
    within(lambda: learn.fit(2, cbs=[Steps(), cb]))
    assert same_training(alone, learn) and all(len({*o}) == 1 for o in cb.got)

# Processes

def forked(f, seconds=60):
    "What `f` gives in a process of its own, made by fork."
    r,w = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(w, pickle.dumps(f()))
            os._exit(0)
        finally: os._exit(1)
    os.close(w)
    try:
        assert select.select([r], [], [], seconds)[0], 'the forked process hangs'
        return pickle.loads(os.read(r, 1 << 16))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(r)

needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')

@needs_fork
@pytest.mark.parametrize('threads', [pytest.param(n, marks=fault('F18', f'predict in forked processes, {n} threads of PyTorch before')) for n in (1, 4)])
def test_forked(threads, drawings):
    "Run in a process of its own, since a pool of threads, once made, stays."
    env = os.environ | dict(OMP_NUM_THREADS=str(threads))
    res = subprocess.run([sys.executable, HERE, 'fork', str(drawings), str(threads)], env=env, timeout=200, text=True, capture_output=True)
    assert res.returncode == 0 and res.stdout.endswith('same\n'), res.stdout+res.stderr

@needs_fork
@fault('F18', 'fork while another thread is at the learner')
def test_forked_with_a_lock_held(drawings):
    learn = classes(drawings)
    q = questions(learn, 1)[0]
    alone,held,free = bits(learn.predict(q)),threading.Event(),threading.Event()
    def hold():
        with learn.lock: held.set(), free.wait(60)
    t = threading.Thread(target=hold, daemon=True)
    t.start()
    held.wait(60)
    try: assert forked(lambda: bits(learn.predict(q))) == alone
    finally: free.set(), t.join(60)

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

def pair(data, out, where):
    "Two processes that train together and have come to their end, and what they said."
    env = os.environ | dict(OMP_NUM_THREADS='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), LEARNKIT_CACHE_PATH=str(out/'cache'))
    ps = [subprocess.Popen([sys.executable, HERE, 'pair', data, out, where], env=env | dict(RANK=str(r), LOCAL_RANK=str(r)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) for r in (0, 1)]
    return ps,[p.communicate(timeout=100) for p in ps]

WHERE = ['after_batch', 'before_backward', 'after_validate', 'a transform']

@pytest.mark.slow
@pytest.mark.parametrize('where', [pytest.param(o, marks=fault('F21', f'process 1 of 2 raises in {o}')) for o in WHERE])
def test_one_of_two_processes_raises(where, drawings, tmp_path):
    "Both end, not with 0; the learner of the other is whole again, and what was saved can be loaded."
    ps,said = pair(drawings, tmp_path, where)
    assert all(p.returncode for p in ps), said
    assert 'LearnkitError: Process 0 of 2 lost another one' in said[0][1] and 'KeyError' in said[1][1], said
    for r in (0, 1): assert (tmp_path/f'after{r}.txt').read_text() == 'Sequential False False True 0', said[r]
    learn = classes(drawings, path=tmp_path)
    assert torch.isfinite(weights(learn.load('mid'))).all()

@pytest.mark.slow
@fault('F21', 'process 1 of 2 ends before it has joined')
def test_one_of_two_processes_never_comes(drawings, tmp_path):
    ps,said = pair(drawings, tmp_path, 'the first lines')
    assert all(p.returncode for p in ps) and 'LearnkitError: Process 0 of 2 lost another one' in said[0][1], said

# What the processes above do (this file is started as a script)

def ask_in_forks(data, threads):
    torch.set_num_threads(threads)
    learn = classes(data)
    qs = questions(learn, 4)
    learn.fit(1)
    torch.set_num_threads(1) # as in a forked process: bits are promised for the same number of threads
    alone = [bits(o) for o in learn.predict(qs)]
    one = [bits(learn.predict(o)) for o in qs]
    torch.set_num_threads(threads)
    got = [forked(lambda: ([bits(o) for o in learn.predict(qs)], [bits(learn.predict(o)) for o in qs])) for _ in range(3)]
    print('same' if all(o == (alone, one) for o in got) else 'different')

def fail_in_one(data, path, where):
    "Train with another process; the second raises. Leaves how the learner is afterwards."
    class Fail(Callback):
        order = 55
        def __call__(self, name):
            if name == where and self.epoch == 1 and getattr(self, 'iter', 0) < 5: raise KeyError('a fault of this test')
    learn,rank = classes(data, path=path),int(os.environ['RANK'])
    if where == 'a transform' and rank: learn.dls.train.after_item.add([lk.Transform(lambda o: {}['a fault of this test'] if vars(learn).get('epoch') else o)])
    if where == 'the first lines': distributed._start = 15
    if where == 'the first lines' and rank: raise KeyError('a fault of this test')
    try:
        with learn.distributed(timeout=20):
            learn.fit(1, 1e-3)
            learn.save('mid')
            learn.fit(3, 1e-3, cbs=[Fail()] if rank else None)
    finally:
        hooks = sum(len(m._forward_hooks) for m in learn.model.modules())
        state = type(learn.model).__name__, hasattr(learn, 'share_batches'), 'export' in vars(learn), bool(torch.isfinite(weights(learn)).all()), hooks
        (path/f'after{rank}.txt').write_text(' '.join(map(str, state)))

if __name__ == '__main__':
    what,data,*rest = sys.argv[1:]
    faulthandler.dump_traceback_later(90, exit=True)
    if what == 'fork': ask_in_forks(Path(data), int(rest[0]))
    else: fail_in_one(Path(data), Path(rest[0]), rest[1])
