"Whatever stops it, and wherever: a learner is in order afterwards, fits and predicts. What lr_find and memory leave behind."
import gc, os, random, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import numpy as np, pytest, torch
import learnkit.all as lk
from conftest import serving
from learnkit import core, web
from learnkit.core import DataError
from learnkit.data import images
from learnkit.train import learner, predict, speed
from learnkit.train.safety import is_finite, is_oom, tidied, undisturbed

@pytest.fixture(scope='module')
def dls(drawings): return lambda bs=32: lk.classification_dls(drawings, size=32, bs=bs, augment=.5)

@pytest.fixture
def make(dls, tmp_path, one_thread):
    "A function that makes a learner with a pretrained body: two batches to train on, one to validate on."
    def _f(precision='fp32', bs=32, **kw):
        lk.set_seed(2, reproducible=True)
        return lk.classification_learner(dls(bs), path=tmp_path/'work', precision=precision, **kw)
    return _f

@pytest.fixture(scope='session')
def a_picture(drawings): return sorted(o for o in drawings.rglob('*') if o.suffix in ('.png', '.jpg'))[0]

# What goes wrong: a real Ctrl-C, a mistake in somebody's function, memory that has come to its end

class Bomb:
    "Goes off the `at`th time it is called; with `memory` each time from then on, since there is no more of it."
    def __init__(self, kind, at=1): self.kind,self.at,self.n,self.gone = kind,at,0,False
    def __call__(self, *args, **kwargs):
        self.n += 1
        if self.gone or not (self.n == self.at or self.kind == 'memory' and self.n > self.at): return
        if self.kind == 'memory': raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
        self.gone = True
        if self.kind == 'error': raise RuntimeError('somebody made a mistake')
        signal.raise_signal(signal.SIGINT)

kinds = {'ctrl-c':KeyboardInterrupt, 'error':RuntimeError, 'memory':(RuntimeError, MemoryError, DataError)}

class Explodes(lk.Transform):
    order = 50
    def __init__(self, bomb): self.bomb = bomb
    def __call__(self, b, **kwargs):
        self.bomb()
        return b

def on_forward(learn, bomb, training=True):
    return learn.model[1].register_forward_hook(lambda m, a, o: bomb() if m.training == training else None)

def at_data(learn, bomb, mp, verb):
    learn.dls.train.after_batch.add(Explodes(bomb))
    verb(learn)

def at_forward(learn, bomb, mp, verb):
    on_forward(learn, bomb)
    verb(learn)

def at_backward(learn, bomb, mp, verb):
    learn.model[1].register_full_backward_hook(lambda m, i, o: bomb())
    verb(learn)

def at_step(learn, bomb, mp, verb):
    adamw = speed.adamw
    def half(*args, **kwargs): # one group of layers has taken its step, the next has not
        adamw(*args, **kwargs)
        bomb()
    mp.setattr(speed, 'adamw', half)
    verb(learn)

def at_validation(learn, bomb, mp, verb):
    on_forward(learn, bomb, False)
    verb(learn)

def at_save(learn, bomb, mp, verb):
    mp.setattr(core, '_flush', bomb)
    with learn.added_cbs(lk.SaveModelCallback()): verb(learn)

places = dict(data=at_data, forward=at_forward, backward=at_backward, step=at_step, validation=at_validation, save=at_save)
lost = dict(step='at most the step that was running')

# In order?

def state(learn):
    "All that has to be the same afterwards."
    m,opt = learn.model,learn.opt
    return dict(cbs=[type(o) for o in learn.cbs], dls=learn.dls, loaders=[*learn.dls.loaders], model=m, loss=learn.loss_func, logger=learn.logger,
        bar=learn.create_mbar, learns=[p.requires_grad for p in m.parameters()], frozen=opt.frozen_idx, hypers=[dict(h) for h in opt.hypers],
        forwards=['forward' in vars(o) for o in m.modules()], training=[o.training for o in m.modules()], grad=torch.is_grad_enabled(),
        autocast=[torch.is_autocast_enabled(o) for o in ('cpu', 'cuda')], inference=torch.is_inference_mode_enabled(), model_dir=learn.model_dir)

def own_threads(): return [o.name for o in threading.enumerate() if o.name.startswith(('learnkit', 'ThreadPool'))]

def nesting():
    n = torch.autocast_increment_nesting()-1
    torch.autocast_decrement_nesting()
    return n

def check(learn, before, picture):
    "Is `learn` as it was `before`, does it hold nothing of a batch, and does it train and answer?"
    after = state(learn)
    assert {k:v for k,v in after.items() if v != before[k]} == {}
    assert is_finite(learn.model) and all(torch.isfinite(v).all() for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    assert learn.xb == (None,) and learn.pred is None and learn.loss is None and learn.loss_grad is None
    assert all(p.grad is None for p in learn.model.parameters()) and nesting() == 0 and own_threads() == []
    assert learn.lock.acquire(timeout=1)
    learn.lock.release()
    for m in learn.model.modules(): m._forward_hooks.clear(), m._backward_hooks.clear()
    for dl in learn.dls.loaders: dl.after_batch.fs = [o for o in dl.after_batch.fs if not isinstance(o, Explodes)]
    learn.fit(1)
    assert is_finite(learn.model) and len(learn.history[-1]['values']) == 1
    assert learn.predict(picture).label in learn.dls.vocab and len(learn.get_preds()[0]) == len(learn.dls.valid_ds)

def stopped(learn, kind, f):
    "Call `f`, which has to end as `kind` says, and return the note for the user."
    with pytest.raises(kinds[kind]) as e: f()
    return '\n'.join(getattr(e.value, '__notes__', []))

def fit(learn): learn.fit_one_cycle(2)

@pytest.mark.parametrize('place,kind', [pytest.param(p, k, marks=pytest.mark.fault('F5', f'{k} in {p}', lost=lost.get(p, 'nothing')))
    for p in places for k in kinds])
def test_training_is_stopped(make, a_picture, monkeypatch, place, kind):
    learn,bomb = make(),Bomb(kind, 2 if place in ('data', 'forward', 'backward') else 1)
    learn.unfreeze()
    before = state(learn)
    with monkeypatch.context() as mp: note = stopped(learn, kind, lambda: places[place](learn, bomb, mp, fit))
    assert 'fit was stopped in epoch 0 of 2' in note and 'learner is in order' in note
    check(learn, before, a_picture)

# Half precision, mixup, and kept features

@pytest.mark.parametrize('place,kind', [pytest.param(p, k, marks=pytest.mark.fault('F5', f'{k} in {p}, bf16', lost=lost.get(p, 'nothing')))
    for p,k in [('data', 'error'), ('forward', 'ctrl-c'), ('forward', 'memory'), ('backward', 'error'), ('step', 'ctrl-c'), ('validation', 'error')]])
def test_half_precision_is_switched_off(make, a_picture, monkeypatch, place, kind):
    learn,bomb = make('bf16'),Bomb(kind)
    before = state(learn)
    assert before['autocast'] == [False, False]
    with monkeypatch.context() as mp: stopped(learn, kind, lambda: places[place](learn, bomb, mp, fit))
    check(learn, before, a_picture)

@pytest.mark.parametrize('place,kind', [pytest.param(p, k, marks=pytest.mark.fault('F5', f'{k} in {p}, mixup', lost=lost.get(p, 'nothing')))
    for p,k in [('forward', 'ctrl-c'), ('backward', 'memory'), ('step', 'error'), ('validation', 'ctrl-c')]])
def test_mixup_gives_the_loss_back(make, a_picture, monkeypatch, place, kind):
    learn,bomb = make(),Bomb(kind)
    before = state(learn)
    with monkeypatch.context() as mp: stopped(learn, kind, lambda: places[place](learn, bomb, mp, lambda learn: learn.fit(1, cbs=lk.MixUp())))
    check(learn, before, a_picture)

@pytest.mark.parametrize('stage,at,kind', [pytest.param(s, n, k, marks=pytest.mark.fault('F5', f'{k} in the {s} stage of fine_tune(fast={f})'))
    for s,n,f in [('frozen', 1, False), ('unfrozen', 3, False)] for k in kinds])
def test_fine_tune_is_stopped(make, a_picture, stage, at, kind):
    learn,bomb = make(),Bomb(kind, at)
    before = state(learn)
    assert before['frozen'] == 2 and not all(before['learns'])
    on_forward(learn, bomb)
    note = stopped(learn, kind, lambda: learn.fine_tune(2))
    assert 'fine_tune was stopped' in note and 'checkpoint="folder"' in note and len(learn.history) == (stage == 'unfrozen')
    check(learn, before, a_picture)

@pytest.mark.parametrize('place,at,kind', [pytest.param(p, n, k, marks=pytest.mark.fault('F5', f'{k} in {p}, fast=True'))
    for p,n,k in [('features', 1, 'ctrl-c'), ('features', 1, 'error'), ('frozen', 1, 'ctrl-c'), ('frozen', 2, 'memory'), ('unfrozen', 3, 'ctrl-c'), ('unfrozen', 3, 'error')]])
def test_fast_is_stopped(make, a_picture, monkeypatch, place, at, kind):
    learn,bomb = make(),Bomb(kind, at)
    before = state(learn)
    if place == 'features': learn.dls.valid.after_batch.add(Explodes(bomb))
    else: on_forward(learn, bomb)
    stopped(learn, kind, lambda: learn.fine_tune(2, fast=True))
    check(learn, before, a_picture)
    learn.fine_tune(1, fast=True)

# Other verbs

def weights(learn): return [o.detach().clone() for o in (*learn.model.parameters(), *learn.model.buffers())]
def averages(learn): return [v.clone() if isinstance(v, torch.Tensor) else v for _,_,s,_ in learn.opt.all_params() for _,v in sorted(s.items())]
def dice(learn):
    loaders = [dl.rng.getstate() for dl in learn.dls.loaders]
    return [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), random.getstate(), loaders]

def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x,y in zip(a, b))

@pytest.mark.parametrize('place,at,kind', [pytest.param(p, n, k, marks=pytest.mark.fault('F6', f'{k or "nothing"} in lr_find, {p or "its end"}'))
    for p,n,k in [('forward', 1, 'ctrl-c'), ('forward', 7, 'error'), ('backward', 12, 'ctrl-c'), ('step', 4, 'ctrl-c'), ('step', 9, 'error'), ('data', 11, 'memory'), (None, 0, None)]])
def test_lr_find_gives_all_back(make, a_picture, monkeypatch, place, at, kind):
    learn = make()
    learn.fit(1)
    before,was,avgs,rngs,history = state(learn),weights(learn),averages(learn),dice(learn),len(learn.history)
    def verb(learn): learn.lr_find(num_it=14, show_plot=False, end_lr=10, stop_div=False)
    if place is None: verb(learn)
    else:
        with monkeypatch.context() as mp: note = stopped(learn, kind, lambda: places[place](learn, Bomb(kind, at), mp, verb))
        assert 'lr_find was stopped; weights, optimiser and random numbers are as before' in note
    assert same(weights(learn), was) and same(averages(learn), avgs) and same(dice(learn), rngs) and len(learn.history) == history
    if place: check(learn, before, a_picture)

@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.fault('F5', f'{k} in predict')) for k in kinds])
def test_predict_is_stopped(make, a_picture, monkeypatch, kind):
    learn,bomb,ask = make(),Bomb(kind),predict.ask
    learn.predict(a_picture)
    before = state(learn)
    def asked(*args):
        bomb()
        return ask(*args)
    with monkeypatch.context() as mp:
        mp.setattr(predict, 'ask', asked)
        stopped(learn, kind, lambda: learn.predict([a_picture]*3))
    check(learn, before, a_picture)

@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.fault('F5', f'{k} in show_results')) for k in kinds])
def test_show_results_is_stopped(make, a_picture, monkeypatch, kind):
    learn,bomb = make(),Bomb(kind, 1 if kind == 'error' else 2)
    before = state(learn)
    if kind == 'error': on_forward(learn, bomb, False)
    with monkeypatch.context() as mp:
        mp.setattr(type(learn), 'show', bomb)
        note = stopped(learn, kind, lambda: learn.show_results(max_n=4))
    assert 'show_results was stopped; the learner is as it was before.' in note
    check(learn, before, a_picture)

@pytest.mark.parametrize('verb', [pytest.param(v, marks=pytest.mark.fault('F5', f'ctrl-c in {v}')) for v in ('validate', 'get_preds', 'tta')])
def test_validation_is_stopped(make, a_picture, verb):
    learn = make()
    before = state(learn)
    on_forward(learn, Bomb('ctrl-c'), False)
    note = stopped(learn, 'ctrl-c', getattr(learn, verb))
    assert 'the learner is as it was before' in note
    check(learn, before, a_picture)

# Scanning and fetching

@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.fault('F5', f'{k} in the scan of a folder')) for k in kinds])
def test_a_scan_ends_at_once(drawings, monkeypatch, kind):
    files,bomb,check_image = [*drawings.rglob('*.png'), *drawings.rglob('*.jpg')]*40,Bomb(kind, 40),images.check_image
    def looks(*args):
        bomb()
        time.sleep(.001)
        return check_image(*args)
    monkeypatch.setattr(images, 'check_image', looks)
    with pytest.raises(kinds[kind]): images.check_images(files, full=True, n_workers=4)
    assert bomb.n < len(files)//2 and own_threads() == []
    bomb.kind,bomb.gone = 'error',True
    assert images.check_images(files[:80]) == []

class Half(BaseHTTPRequestHandler):
    "Sends a file of 4 MB, from where it is asked to begin, and calls `bomb` in the middle of the first answer."
    data = bytes(range(256))*(1 << 14)
    def do_GET(self):
        start = int(self.headers.get('Range', 'bytes=0-').split('=')[1].split('-')[0])
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(self.data)-start))
        self.send_header('ETag', '"one"')
        if start: self.send_header('Content-Range', f'bytes {start}-{len(self.data)-1}/{len(self.data)}')
        self.end_headers()
        try:
            self.wfile.write(self.data[start:1 << 21])
            if self.server.bomb is not None:
                time.sleep(.2)
                self.server.bomb()
                time.sleep(.2)
            self.wfile.write(self.data[max(start, 1 << 21):])
        except OSError: pass # the other side has gone
    def log_message(self, *args): pass

@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.fault('F5', f'{k} in a download')) for k in kinds])
def test_a_download_goes_on(tmp_path, monkeypatch, kind):
    server,dest = ThreadingHTTPServer(('127.0.0.1', 0), Half),tmp_path/'file.bin'
    server.starts,server.bomb = [],Bomb(kind) if kind == 'ctrl-c' else None
    with serving(server):
        url = f'http://127.0.0.1:{server.server_port}/file.bin'
        with monkeypatch.context() as mp:
            if kind != 'ctrl-c': mp.setattr(web.Progress, 'update', Bomb(kind, 4))
            with pytest.raises(kinds[kind]): web.fetch(url, dest)
        server.bomb = None
        part = dest.with_name('file.bin.part')
        assert not dest.exists() and part.stat().st_size > 0, 'what has come is kept, under another name'
        assert web.fetch(url, dest).read_bytes() == Half.data and server.starts[-1] > 0, 'the second time goes on'

# The parts

def test_ctrl_c_twice():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
    assert done == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        with undisturbed():
            for _ in range(2): signal.raise_signal(signal.SIGINT)
            done.append(2)
    assert done == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler

@pytest.mark.fault('F5', 'ctrl-c again while the learner is put in order')
def test_ctrl_c_in_the_clean_up(make, a_picture):
    class Twice(lk.Callback):
        def after_pred(self): signal.raise_signal(signal.SIGINT)
        def after_fit(self): signal.raise_signal(signal.SIGINT)
    learn = make()
    before = state(learn)
    stopped(learn, 'ctrl-c', lambda: learn.fit(1, cbs=Twice()))
    check(learn, before, a_picture)

class Untidy(lk.Callback):
    "Its own clean-up fails."
    order = -50
    def after_cancel_fit(self): raise ValueError('also broken')
    def after_fit(self): raise ValueError('broken')

@pytest.mark.fault('F5', 'a clean-up of a callback that fails itself')
def test_all_callbacks_have_their_turn(make, a_picture, tmp_path):
    learn,seen = make(),[]
    class Hooks(lk.HookCallback):
        def hook(self, m, i, o): seen.append(1)
    before,hooks = state(learn),Hooks(modules=[learn.model[1]])
    log = lk.CSVLogger(fname=tmp_path/'log.csv')
    on_forward(learn, Bomb('error', 2))
    stopped(learn, 'error', lambda: learn.fit(2, cbs=[Untidy(), hooks, log, lk.GradientAccumulation(64)]))
    assert log.file.closed and len(seen) == 1
    check(learn, before, a_picture)
    assert len(seen) == 1, 'the hook is gone'

@pytest.mark.fault('F5', 'an error with bars on the screen')
def test_bars_are_closed(make, a_picture, monkeypatch, capsys):
    learn = make()
    before = state(learn)
    on_forward(learn, Bomb('error', 2))
    closed = []
    with lk.settings.using(progress=True), monkeypatch.context() as mp:
        mp.setattr(learner, 'IN_NOTEBOOK', True)
        cb = learn.progress
        class Watch(lk.Callback):
            def after_pred(self):
                for o in (cb.pbar, cb.mbar): o.on_iter_end = lambda f=o.on_iter_end: (closed.append(1), f())
        stopped(learn, 'error', lambda: learn.fit(2, cbs=Watch()))
    assert len(closed) >= 2 and not hasattr(cb, 'mbar') and learn.progress is cb
    check(learn, before, a_picture)

@pytest.mark.fault('F5', 'ctrl-c in the second epoch with SaveModelCallback')
def test_the_best_so_far_is_loaded(make, a_picture):
    learn = make()
    learn.save('model')
    learn.fit(1)
    before,later,best = state(learn),[o.detach().clone() for o in learn.model.parameters()],[]
    on_forward(learn, Bomb('ctrl-c', 1))
    stopped(learn, 'ctrl-c', lambda: learn.fit(3, cbs=lk.SaveModelCallback()))
    assert same([*learn.model.parameters()], later), 'nothing was saved in this training, so nothing older is loaded'
    class Keep(lk.Callback):
        order = 90
        def after_epoch(self): best.append(weights(learn))
    on_forward(learn, Bomb('ctrl-c', 3))
    note = stopped(learn, 'ctrl-c', lambda: learn.fit(3, cbs=[lk.SaveModelCallback(), Keep()]))
    assert len(best) == 1 and same(weights(learn), best[0]) and 'the best so far, from' in note and 'model.pth' in note
    check(learn, before, a_picture)

def test_start_epoch_is_named(make):
    learn = make()
    on_forward(learn, Bomb('ctrl-c', 4))
    note = stopped(learn, 'ctrl-c', lambda: learn.fit(3))
    assert 'epoch 1 of 3 (counted from 0), batch 1 of 2' in note and 'with start_epoch=1 it takes up this schedule' in note
    learn.fit(3, start_epoch=1)

def test_the_line_comes_with_ctrl_c_alone(make, capsys):
    learn = make()
    on_forward(learn, Bomb('error'))
    with lk.settings.using(progress=True): stopped(learn, 'error', lambda: learn.fine_tune(1))
    assert 'was stopped' not in capsys.readouterr().out
    on_forward(learn, Bomb('ctrl-c'))
    with lk.settings.using(progress=True): stopped(learn, 'ctrl-c', lambda: learn.fine_tune(1))
    assert capsys.readouterr().out.count('was stopped') == 1

def test_a_lock_that_was_never_given_back(make):
    learn = make()
    with pytest.raises(RuntimeError):
        with tidied(learn):
            learn.lock.acquire()
            raise RuntimeError
    done = []
    t = threading.Thread(target=lambda: done.append(learn.lock.acquire(timeout=5)))
    t.start()
    t.join()
    assert done == [True]

@pytest.mark.fault('F15', 'what an error keeps of a batch is let go')
def test_nothing_of_the_batch_is_kept(make):
    learn = make()
    class Big: pass
    class Hold(lk.Callback):
        def after_pred(self):
            big = self.learn.big = Big()
            big.x = self.pred
            del self.learn.big
            deep(big)
    def deep(big): raise torch.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(DataError) as e: learn.fit(1, cbs=Hold())
    gc.collect()
    assert not any(type(o) is Big for o in gc.get_objects()), 'even while the error is at hand'
    assert e.value.__cause__ is not None and is_oom(e.value)

SCRIPT = '''
import signal, sys, threading, time, os
import learnkit.all as lk
from test_safety import state
dls = lk.classification_dls(sys.argv[1], size=32, bs=8)
learn = lk.classification_learner(dls, path=sys.argv[2], precision='bf16')
learn.fit(1)
before,n = state(learn),0
for i in range(8):
    threading.Timer(.03+.04*i, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try: learn.fine_tune(50)
    except KeyboardInterrupt: n += 1
    after = state(learn)
    assert after == before, [k for k in after if after[k] != before[k]]
learn.fit(1)
learn.predict(dls.valid_ds.items[0].image)
print('in order', n)
'''

@pytest.mark.slow
@pytest.mark.fault('F5', 'eight signals at any time in a training')
def test_signals_at_any_time(drawings, tmp_path):
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parent), LEARNKIT_PROGRESS='false', LEARNKIT_CACHE_PATH=str(tmp_path/'cache'))
    res = subprocess.run([sys.executable, '-c', SCRIPT, str(drawings), str(tmp_path)], env=env, capture_output=True, text=True, timeout=300)
    assert res.returncode == 0 and 'in order 8' in res.stdout, res.stderr[-3000:]
