"NaN in weights, losses and pictures; memory that ends in training, validation and prediction, by a fake and for good."
import gc, math, os, subprocess, sys
from pathlib import Path
import pytest, torch
import learnkit.all as lk
from learnkit.core import DataError
from learnkit.task.gan import gan_learner
from learnkit.train.guards import NanGuard, TrainingBroke, first_broken, in_parts, items_of, joined_parts
from learnkit.train.safety import finite_or_raise, is_finite, is_oom
from test_safety import nesting
from torch import nn

@pytest.fixture(scope='session')
def a_picture(drawings): return sorted(o for o in drawings.rglob('*') if o.suffix in ('.png', '.jpg'))[0]

@pytest.fixture
def make(drawings, tmp_path, one_thread):
    "A function that makes a learner with a pretrained body: batches of 16 of 64 drawings."
    def _f(precision='fp32', bs=16, **kw):
        lk.set_seed(3, reproducible=True)
        return lk.classification_learner(lk.classification_dls(drawings, size=32, bs=bs, augment=0.), path=tmp_path/'work', precision=precision, **kw)
    return _f

def whole(learn): return is_finite(learn.model) and all(is_finite({k:v}) for s in learn.opt.state.values() for k,v in s.items())

class At(lk.Callback):
    "Does `f(learn)` in event `when` of the training step with the number `step` and of `more` steps after it."
    def __init__(self, when, step, f, more=0, order=20):
        self.f,self.step,self.more,self.order,self.seen = f,step,more,order,[]
        setattr(self, when, self.go)
    def go(self):
        if self.training and self.step <= self.train_iter <= self.step+self.more: self.f(self.learn)

# Numbers that are none

def nan_loss(learn): learn.loss_grad = learn.loss = learn.loss*math.nan
def inf_loss(learn): learn.loss_grad = learn.loss = learn.loss+math.inf

def nan_grads(learn): next(p for p in learn.model.parameters() if p.grad is not None).grad.fill_(math.nan)

def nan_weights(learn):
    with torch.no_grad(): next(learn.model[1].parameters()).fill_(math.nan)

breaks = {'a loss that is NaN':('after_loss', nan_loss, 0), 'an infinite loss':('after_loss', inf_loss, 0), 'gradients that are NaN':('before_step', nan_grads, 20),
    'weights that become NaN':('after_batch', nan_weights, 20)}

@pytest.mark.parametrize('what,precision', [pytest.param(k, p, marks=pytest.mark.fault('F4', f'{k} at step 7, {p}', lost='the steps since the last copy'))
    for k in breaks for p in (('fp32', 'bf16') if 'loss' in k else ('fp32',))])
def test_training_goes_on(make, what, precision, capsys):
    learn,(when,f,order) = make(precision),breaks[what]
    learn.unfreeze()
    with lk.settings.using(progress=True): learn.fit(3, 1e-3, cbs=At(when, 7, f, order=order))
    assert whole(learn) and nesting() == 0 and all(math.isfinite(o) for row in learn.history[-1]['values'] for o in row)
    said = capsys.readouterr().out
    assert said.count('training goes on with 0.5 of the learning rate') == 1 and ('in epoch 1, step 3' in said or 'in epoch 2, step 0' in said)
    assert learn.opt.hypers[-1]['lr'] == 1e-3, 'the rate of the optimiser is that of the schedule'

@pytest.mark.fault('F4', 'half the rate, on top of a schedule', lost='the step that broke')
def test_the_rate_is_halved(make):
    rates = []
    class Rates(lk.Callback):
        order = 90
        def before_step(self): rates.append((self.train_iter, self.opt.hypers[-1]['lr']))
    def train(*cbs):
        learn = make()
        rates.clear()
        learn.fit_one_cycle(2, 1e-2, cbs=[Rates(), *cbs])
        return dict(rates),learn.recorder.lrs
    (a,la),(b,lb) = train(),train(At('after_loss', 3, nan_loss))
    assert sorted(set(a)-set(b)) == [3]
    assert all(b[k] == pytest.approx(a[k]*(.5 if k > 3 else 1)) for k in b)

@pytest.mark.fault('F4', 'three tries, then an error', lost='the steps since the last copy')
def test_it_stops_with_the_cause(make, a_picture):
    learn = make()
    learn.fit(1)
    good = [o.detach().clone() for o in learn.model.parameters()]
    n = []
    def broken(pred, y):
        n.append(1)
        return (pred.softmax(1)*0).log().mean()
    learn.loss_func = broken
    with pytest.raises(TrainingBroke, match='for the 4th time.*answers of the network are finite.*loss function .broken.*logarithm') as e: learn.fit(3)
    assert len(n) == 4 and 'Exception occured' not in str(e.value)
    assert all(map(torch.equal, good, learn.model.parameters())) and whole(learn)
    learn.loss_func = lk.CrossEntropyLossFlat()
    learn.fit(1)
    assert learn.predict(a_picture).label and not hasattr(learn.nan_guard.good, 'to')

@pytest.mark.parametrize('how', [pytest.param(o, marks=pytest.mark.fault('F4', f'a rate that throws weights {o}', lost='the steps since the last copy')) for o in ('too far', 'out of range')])
def test_a_rate_too_high(make, how):
    learn = make()
    def blow(learn):
        with torch.no_grad(): learn.model[1][-1].weight.fill_(3e38 if how == 'too far' else math.inf)
    cause = r'first layer whose numbers were not finite is 1.\d \(Linear\)' if how == 'too far' else 'weights were not finite after a step'
    with pytest.raises(TrainingBroke, match=f'for the 4th time.*{cause}.*'+r'learning rate \(0.0025\) is probably too high'):
        learn.fit(9, .02, cbs=At('before_batch', 1, blow, more=30))
    assert whole(learn)

def test_fp16_is_named(make):
    learn = make()
    guard,learn.pred = learn.nan_guard,torch.tensor([math.inf])
    learn.add_cb(lk.MixedPrecision('bf16'))
    learn.mixed_precision.dtype,guard.factor,guard.full_rates = torch.float16,1.,[1e-3]
    assert "precision='bf16'" in guard._cause()

@pytest.mark.parametrize('part', [pytest.param(o, marks=pytest.mark.fault('F4', f'NaN in {o}', lost='the batch it was in')) for o in ('a picture', 'a target', 'all of a mask')])
def test_a_bad_batch_is_left_out(make, drawings, tmp_path, part, capsys, one_thread):
    if part == 'all of a mask':
        dls = lk.segmentation_dls(lk.read_masks(drawings, images='.', masks='parts'), size=32, bs=16, augment=0.)
        learn,bad = lk.segmentation_learner(dls, path=tmp_path),255
        learn.loss_func = lk.CrossEntropyLossFlat(axis=1, ignore_index=255)
    elif part == 'a target':
        dls = lk.regression_dls([lk.Record(r.image, value=i/80) for i,r in enumerate(lk.read_folder(drawings))], size=32, bs=16, augment=0.)
        learn,bad = lk.regression_learner(dls, path=tmp_path),math.nan
    else: learn,bad = make(),math.nan
    seen = []
    def spoil(learn):
        seen.append((learn.dl, learn.iter))
        if part == 'all of a mask': learn.yb[0].fill_(bad)
        else: (learn.xb if part == 'a picture' else learn.yb)[0][3] = bad
    with lk.settings.using(progress=True): learn.fit(2, cbs=At('before_batch', 2, spoil, order=-5))
    said = capsys.readouterr().out
    assert 'numbers: a batch is left out, since' in said and 'goes on with' not in said and len(learn.recorder.losses) == 7
    assert whole(learn) and learn.nan_guard.factor == 1 and len(learn.nan_guard.left) == 1
    assert any(str(r.image) in said for r in learn.dls.train_ds.items)

@pytest.mark.fault('F4', 'NaN in every picture', lost='nothing')
def test_only_bad_batches(make):
    learn = make()
    def spoil(learn): learn.xb[0][0] = math.nan
    with pytest.raises(TrainingBroke, match='21 batches had to be left out'): learn.fit(9, cbs=At('before_batch', 0, spoil, more=99, order=-5))
    assert whole(learn)

def test_the_right_picture_is_named(make):
    learn,found = make(),[]
    class Look(lk.Callback):
        def before_batch(self):
            if self.training: found.append((items_of(self.learn, [0, 5]), self.x[[0, 5]].clone()))
    learn.fit(1, cbs=Look())
    for items,x in found:
        for (i,path),o in zip(items, x):
            assert learn.dls.train_ds.items[i].image == path
            assert torch.allclose(learn.dls.valid.after_batch(learn.dls.train.create_batch([learn.dls.train.do_item(i)]))[0][0], o, atol=1e-5)

@pytest.mark.fault('F4', 'weights that were NaN before')
def test_bad_weights_at_the_beginning(make):
    learn = make()
    nan_weights(learn)
    with pytest.raises(TrainingBroke, match='not finite before this training began'): learn.fit(1)

@pytest.mark.fault('F4', 'NaN is never saved')
def test_nan_is_not_saved(make):
    net = nn.BatchNorm1d(3)
    finite_or_raise(net), finite_or_raise(net.state_dict())
    net.register_buffer('mask', torch.full((2,), -math.inf))
    finite_or_raise(net)
    net.running_var[0] = math.inf
    with pytest.raises(DataError, match='nothing was saved'): finite_or_raise(net)

def test_lr_find_may_break(make):
    learn = make()
    learn.lr_find(num_it=20, end_lr=1e9, stop_div=False, show_plot=False, suggest_funcs=None)
    assert whole(learn)

def test_a_guard_changes_nothing(make):
    def train(guard):
        learn = make()
        if not guard: learn.remove_cbs(NanGuard)
        learn.fine_tune(1)
        return [*learn.model.state_dict().values()],learn.recorder.lrs
    (a,la),(b,lb) = train(True),train(False)
    assert all(map(torch.equal, a, b)) and la == lb

def test_where_it_breaks():
    net = nn.Sequential(nn.Linear(2, 2), nn.Flatten(), nn.Linear(2, 2))
    net[2].weight.data.fill_(math.inf)
    assert first_broken(net, (torch.ones(1, 2),)) == '2 (Linear)' and first_broken(net[:2], (torch.ones(1, 2),)) is None

# A batch in parts

class Tight(nn.Module):
    "A network that has no room for more than `most` pictures."
    def __init__(self, net, most=8, e=None):
        super().__init__()
        self.net,self.most,self.e,self.seen = net,most,e or torch.OutOfMemoryError('CUDA out of memory'),[]
    def forward(self, *xs):
        self.seen.append((len(xs[0]), self.training))
        if len(xs[0]) > self.most: raise self.e
        return self.net(*xs)

def tight(learn, most=8, e=None):
    "`learn`, its body's first layers too large for batches over `most`."
    learn.model[1] = Tight(learn.model[1], most, e)
    return learn

def plain(learn, most=8):
    "`learn` with a small network without batch norms."
    torch.manual_seed(5)
    learn.model = nn.Sequential(nn.Identity(), Tight(nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)), most))
    learn.splitter = lambda m: [[*m.parameters()]]
    learn.create_opt()
    return learn

def test_gradients_are_those_of_the_batch(one_thread):
    "For a loss that can't be put together from parts, with dropout."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(.5), nn.Flatten(), nn.Linear(144, 3))
    x,y,w = torch.randn(10, 3, 8, 8),torch.randint(3, (10,)),torch.tensor([1., 9, 3])
    for n in (3, 4, 9):
        net.train()
        torch.manual_seed(1)
        out = torch.cat([net(o) for o in x.tensor_split(math.ceil(10/n))])
        nn.functional.cross_entropy(out, y, weight=w).square().backward()
        true = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        torch.manual_seed(1)
        got = in_parts(net, (x,), n)
        nn.functional.cross_entropy(got, y, weight=w).square().backward()
        assert torch.allclose(got, out, atol=1e-6) and all(torch.allclose(p.grad, g, atol=1e-5) for p,g in zip(net.parameters(), true))
        net.zero_grad()

def test_batch_norms_learn_once(one_thread):
    net,x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),torch.randn(8, 3, 6, 6)
    in_parts(net, (x,), 4).sum().backward()
    assert net[1].num_batches_tracked == 2
    once = net[1].running_mean.clone()
    net[1].reset_running_stats()
    for o in x.split(4): net(o)
    assert torch.allclose(once, net[1].running_mean)

def test_answers_are_put_together():
    a,b = torch.ones(2, 3),torch.zeros(1, 3)
    assert joined_parts([a, b], [2, 1]).tolist() == [[1]*3]*2+[[0]*3]
    got = joined_parts([dict(loss=torch.tensor(1.), all=(a, [a])), dict(loss=torch.tensor(4.), all=(b, [b]))], [2, 1])
    assert got['loss'] == 2 and got['all'][0].shape == (3, 3) and isinstance(got['all'], tuple) and got['all'][1][0].shape == (3, 3)
    assert joined_parts([torch.ones(2, 5, 4), torch.ones(1, 7, 4)], [2, 1]).sum((1, 2)).tolist() == [20, 20, 28]
    assert joined_parts([[dict(a=1), dict(a=2)], [dict(a=3)]], [2, 1]) == [dict(a=1), dict(a=2), dict(a=3)]
    with pytest.raises(TypeError, match="str of parts of a batch can't"): joined_parts(['a', 'b'], [1, 1])

errors = {'on a GPU':torch.OutOfMemoryError('CUDA out of memory'), "in PyTorch's allocator":RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    'in numpy':MemoryError('Unable to allocate 2 GiB'), 'in cuBLAS':RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`')}

@pytest.mark.parametrize('where', [pytest.param(k, marks=pytest.mark.fault('F15', f'memory ends {k}')) for k in errors])
def test_training_goes_on_in_parts(make, where, capsys):
    learn = tight(make(), e=errors[where])
    with lk.settings.using(progress=True): learn.fit(1)
    said = capsys.readouterr().out
    assert 'memory: 16 pictures at a time are too many, so training goes on with 8 at a time; a step is still one of the whole batch' in said
    assert 'validation goes on with 8 at a time' in said and said.count('memory:') == 2
    assert len(learn.recorder.losses) == 4 and whole(learn) and nesting() == 0 and learn.train_part == 8
    assert len(learn.get_preds()[0]) == 16 and learn.opt.state[next(learn.model[1].parameters())]['step'] == 4

@pytest.mark.fault('F15', 'the steps of a batch in parts')
def test_steps_are_those_of_the_batch(make):
    ends = []
    for most in (8, 99):
        learn = plain(make(bs=32), most)
        for dl in learn.dls.loaders: dl.rng.seed(1)
        learn.fit(2, 1e-2)
        ends.append((torch.cat([p.detach().flatten() for p in learn.model.parameters()]), learn.history[-1]))
    (a,ha),(b,hb) = ends
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(torch.tensor(ha['values']), torch.tensor(hb['values']), atol=1e-5)

@pytest.mark.parametrize('how', [pytest.param(o, marks=pytest.mark.fault('F15', f'memory ends, {o}')) for o in ('bf16', 'mixup', 'accumulation', 'fast', 'train_metrics', 'growing')])
def test_parts_and_the_rest(make, how):
    from learnkit.train.fast import GrowingSize
    learn = tight(make('bf16' if how == 'bf16' else 'fp32', bs=32))
    cbs = dict(mixup=lk.MixUp, accumulation=lambda: lk.GradientAccumulation(64), growing=GrowingSize).get(how, list)()
    if how == 'train_metrics': learn.recorder.train_metrics = True
    if how == 'fast': learn.fine_tune(1, fast=True)
    else: learn.fine_tune(1, cbs=cbs)
    assert whole(learn) and learn.train_part == 8 and nesting() == 0 and len(learn.history) == 2
    assert all(math.isfinite(o) for h in learn.history for row in h['values'] for o in row)

@pytest.mark.parametrize('task', [pytest.param(o, marks=pytest.mark.fault('F15', f'memory ends in {o}')) for o in ('segmentation', 'keypoints', 'detection', 'vae', 'diffusion')])
def test_parts_for_all_tasks(drawings, tmp_path, task, one_thread):
    if task in ('vae', 'diffusion'):
        dls = lk.generation_dls(drawings, size=16, bs=16)
        learn = lk.vae_learner(dls, path=tmp_path, precision='fp32') if task == 'vae' else lk.diffusion_learner(dls, path=tmp_path, precision='fp32', width=8)
        learn.keep_samples(0)
    else:
        source = lk.read_masks(drawings, images='.', masks='parts') if task == 'segmentation' else drawings
        dls = getattr(lk, f'{task}_dls')(source, size=32 if task != 'detection' else 64, bs=16)
        learn = getattr(lk, f'{task}_learner')(dls, path=tmp_path, precision='fp32')
    net = learn.model
    forward,seen = net.forward,[]
    def small(*xs):
        seen.append(len(xs[0]))
        if len(xs[0]) > 5: raise torch.OutOfMemoryError('CUDA out of memory')
        return forward(*xs)
    net.forward = small
    learn.fit(1)
    assert whole(learn) and learn.train_part == 4 and max(seen[2:6]) <= 8
    del net.forward

@pytest.mark.fault('F15', 'a GAN does not fit')
def test_a_gan_says_what_to_do(drawings, tmp_path, one_thread):
    learn = gan_learner(lk.generation_dls(drawings, size=16, bs=16), width=8, path=tmp_path)
    def full(*args): raise torch.OutOfMemoryError('CUDA out of memory')
    learn.model.draw = full
    with pytest.raises(DataError, match='A batch of 16 pictures does not fit into memory. Give the loaders a smaller batch, such as bs=8'): learn.fit(1)
    del learn.model.draw
    learn.fit(1)

@pytest.mark.parametrize('norm', [pytest.param(o, marks=pytest.mark.fault('F15', f'not even {"two" if o else "one"} fit')) for o in (True, False)])
def test_nothing_fits(make, a_picture, norm):
    learn = tight(make(), 0) if norm else plain(make(), 0)
    with pytest.raises(DataError, match='Even 2 pictures do not fit into memory.*smaller' if norm else 'Even one picture does not fit') as e: learn.fit(1)
    assert is_oom(e.value)
    learn.model[1].most = 99
    learn.fit(1)
    assert learn.predict(a_picture).label

@pytest.mark.fault('F15', "the optimiser's averages do not fit")
def test_the_optimiser_does_not_fit(make, monkeypatch):
    from learnkit.train import speed
    learn = make()
    def full(*args, **kwargs): raise torch.OutOfMemoryError('CUDA out of memory')
    with monkeypatch.context() as mp:
        mp.setattr(speed, 'adamw', full)
        with pytest.raises(DataError, match='averages of the optimiser do not fit'): learn.fit(1)
    assert learn.train_part is None and whole(learn)

@pytest.mark.fault('F16', 'memory of the processor ends while pictures are kept')
def test_the_cache_shrinks_first(make):
    learn = make(bs=32)
    kept = learn.dls.train.kept
    learn.fit(1)
    n = len(kept)
    learn.model[1].register_forward_hook(lambda *a: (_ for _ in ()).throw(MemoryError('no room')) if len(kept) > n//2 else None)
    learn.fit(1)
    assert 0 < len(kept) <= n//2 and learn.train_part is None

@pytest.mark.fault('F15', 'memory is as before')
def test_memory_is_as_before(make):
    learn = make()
    learn.fit(1)
    tight(learn)
    def tensors(): return gc.collect() and sum(o.nbytes for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))
    before = tensors()
    learn.model[1].most = 4
    learn.fit(1)
    assert learn.train_part == 4 and tensors() <= before*1.001

LIMITED = '''
import ctypes, gc, resource, sys, torch
import learnkit.all as lk
from torch import nn
torch.set_num_threads(1)
dls = lk.classification_dls(sys.argv[1], size=32, bs=64, augment=0.)
learn = lk.classification_learner(dls, path=sys.argv[2], precision='fp32')
large = [nn.Upsample(scale_factor=16), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Sigmoid()] # 15 MB for a picture
learn.model = nn.Sequential(*large, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
learn.splitter = lambda m: [[*m.parameters()]]
learn.create_opt()
learn.train_part = learn.valid_part = 2
learn.fit(1)
learn.train_part = learn.valid_part = None
gc.collect()
if hasattr(ctypes.CDLL(None), 'malloc_trim'): ctypes.CDLL(None).malloc_trim(0) # what is free already is no room
now = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now+150_000_000, -1))
with lk.settings.using(progress=True): learn.fit(1)
print('parts', learn.train_part, 'losses', len(learn.recorder.losses))
'''

@pytest.mark.slow
@pytest.mark.fault('F16', 'RLIMIT_AS: memory that really ends')
def test_memory_really_ends(drawings, tmp_path):
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parent), LEARNKIT_CACHE_PATH=str(tmp_path/'cache'), OMP_NUM_THREADS='1')
    res = subprocess.run([sys.executable, '-c', LIMITED, str(drawings), str(tmp_path)], env=env, capture_output=True, text=True, timeout=500)
    first = min(res.stdout.find(o) % 10**6 for o in ('loader: memory is short', 'memory: 64 pictures'))
    assert res.returncode == 0 and 'parts None' not in res.stdout and 'losses 1' in res.stdout and 'memory: 64 pictures' in res.stdout, res.stdout+res.stderr[-3000:]
    assert res.stdout[first:].startswith('loader'), 'first the pictures that are kept are forgotten'

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.fault('F15', 'memory of a GPU that really ends')
def test_memory_of_a_gpu_really_ends(make):
    learn = make(bs=32)
    learn.unfreeze()
    learn.fit(1)
    torch.cuda.empty_cache()
    learn.dls.train.after_batch.add(lk.Transform(lambda x: x.repeat_interleave(20, 2).repeat_interleave(20, 3) if x.ndim == 4 else x))
    base = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((base+600e6)/torch.cuda.get_device_properties(0).total_memory)
    try: learn.fit(1)
    finally: torch.cuda.set_per_process_memory_fraction(1.)
    assert learn.train_part is not None and whole(learn) and torch.cuda.memory_allocated() < base*1.1+50e6
