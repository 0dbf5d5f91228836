"Fast fine-tuning: what stays as it is, what runs once, what is said; fused steps; what the probe keeps."
import pytest, torch
import learnkit.all as lk
from fastai.optimizer import Adam as FastaiAdam
from learnkit.models.zoo import Body
from learnkit.train.fast import growing_sizes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

@pytest.fixture
def make(drawings, tmp_path, one_thread):
    "A function that makes a learner with a pretrained body, on 64 drawings to train and 16 to validate on."
    def _f(size=48, bs=16, precision='fp32', augment=0., method='squish', **kw):
        lk.set_seed(2, reproducible=True)
        dls = lk.classification_dls(drawings, size=size, bs=bs, augment=augment, method=method)
        return lk.classification_learner(dls, path=tmp_path/'work', precision=precision, **kw)
    return _f

def state(m): return {k:v.detach().clone() for k,v in m.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())

class Seen(lk.Callback):
    "Remember the shapes that come to the body, and in which epoch."
    def __init__(self): self.shapes = []
    def after_pred(self): self.shapes.append((self.epoch, self.training, tuple(self.x.shape)))

def test_kept_features_are_those_of_the_pictures(make):
    "Without variation, and with all pictures in one batch, keeping changes nothing."
    got = []
    for cache in (True, False):
        learn = make(bs=64, ps=0.)
        learn.fine_tune(0, freeze_epochs=3, fast=True, cache=cache)
        got.append((learn.history[-1]['values'], state(learn.model[1])))
    (va,wa),(vb,wb) = got
    assert torch.tensor(va) == pytest.approx(torch.tensor(vb), abs=2e-3)
    assert all(torch.allclose(v.float(), wb[k].float(), atol=2e-3) for k,v in wa.items())

def _packed_flops(x, *shapes, out_shape=None, **kwargs):
    "What a packed convolution computes: its weight comes second, or third where something is added."
    return conv_flop_count(x, [o for o in shapes[:2] if o is not None and len(o) == 4][-1], out_shape)

PACKED = {torch.ops.mkldnn._convolution_pointwise:_packed_flops}

def test_a_frozen_body_runs_once(make):
    learn = make(augment=.5, method='crop')
    body = learn.model[0]
    before,forward = state(body),body.forward
    with FlopCounterMode(display=False) as one, torch.no_grad(): body.eval()(torch.randn(1, 3, 48, 48))
    with FlopCounterMode(display=False, custom_mapping=PACKED) as whole: learn.fine_tune(0, freeze_epochs=4, fast=True)
    pictures = whole.get_total_flops()/one.get_total_flops()
    assert 2*64+16 <= pictures < 2*64+16+12, 'two variations of each picture, the validation pictures once, and a few to try the copy'
    assert same(before, body.state_dict()) and body.forward == forward
    assert len(learn.history[-1]['values']) == 4 and all(p.requires_grad for p in learn.model.parameters())
    assert learn.dls.train.one_batch()[0].shape[1:] == (3, 48, 48)

def test_what_learns_and_at_which_size(make):
    learn,seen = make(size=96),Seen()
    groups = [[p.detach().clone() for p in g] for g in learn.splitter(learn.model)]
    early = {k:m.running_mean.clone() for k,m in learn.model[0].named_modules() if isinstance(m, nn.BatchNorm2d)}
    learn.fine_tune(3, fast=True, cache=False, cbs=seen)
    changed = [[not torch.equal(a, b) for a,b in zip(g, h)] for g,h in zip(groups, learn.splitter(learn.model))]
    assert not any(changed[0]) and all(any(o) for o in changed[1:])
    moved = [not torch.equal(v, learn.model[0].get_submodule(k).running_mean) for k,v in early.items()]
    assert any(moved) and not all(moved), 'batch norms of the first group keep their averages, later ones learn'
    steps = [s for e,t,s in seen.shapes if t][-12:]
    assert [s[-1] for s in steps[::4]] == [64, 80, 96]
    assert {s[-1] for e,t,s in seen.shapes if not t} == {96}

def test_sizes():
    assert growing_sizes((224, 160), 2) == [(160, 112), (224, 160)]
    assert growing_sizes((40, 40), 3) == [(32, 32), (40, 40), (40, 40)]

def test_lines(make, capsys):
    learn = make(precision='auto', augment=.5)
    with lk.settings.using(progress=True): learn.fine_tune(1, fast=True)
    said = capsys.readouterr().out
    assert 'precision: ' in said and 'measured' in said and 'features of 64 + 16 pictures, kept in 1 variation' in said
    assert 'the first group of layers stays as it is' in said
    again = make(precision='auto', augment=.5)
    with lk.settings.using(progress=True): again.fine_tune(1, fast=True)
    assert 'noted' in capsys.readouterr().out, 'the figure of the probe is kept'

def test_mixup_needs_pictures(make, capsys):
    learn = make(cbs=lk.MixUp())
    with lk.settings.using(progress=True): learn.fine_tune(0, freeze_epochs=1, fast=True)
    assert 'no features are kept (mix_up needs the pictures)' in capsys.readouterr().out

def test_too_many_features(make, capsys):
    learn = make()
    with lk.settings.using(progress=True, decoded_mb=.01): learn.fine_tune(0, freeze_epochs=1, fast=True)
    assert 'decoded_mb' in capsys.readouterr().out and learn.history

def test_tracking_sees_the_whole_model(make):
    learn = make()
    learn.fine_tune(1, fast=True, cbs=lk.SaveModelCallback(fname='best', monitor='valid_loss'))
    assert len(torch.load(learn.path/'models'/'best.pth', weights_only=True)) == len(learn.model.state_dict())

def test_an_interruption_puts_everything_back(make):
    class Stop(lk.Callback):
        def after_epoch(self): raise KeyboardInterrupt
    learn = make()
    dls,body = learn.dls,learn.model[0]
    with pytest.raises(KeyboardInterrupt): learn.fine_tune(1, fast=True, cbs=Stop())
    assert learn.dls is dls and 'forward' not in vars(body)
    learn.fine_tune(1, fast=True)

def test_fused_steps_are_fastais(make):
    "Frozen groups, no weight decay for batch norm, rates of groups: the weights after some steps are the same."
    got = []
    for opt in (lk.Adam, FastaiAdam):
        learn = make(opt_func=opt, ps=0.)
        learn.fit_one_cycle(1, slice(1e-3, 1e-2))
        learn.unfreeze()
        learn.fit_one_cycle(1, slice(1e-4, 1e-3), wd=.1)
        got.append(learn)
    a,b = got
    assert type(a.opt).__name__ == 'FusedAdam' and type(b.opt).__name__ == 'Optimizer'
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.allclose(p, q, rtol=1e-3, atol=1e-4)
    a.save('m')
    assert a.load('m').opt.state_dict()['state'][0].keys() == b.opt.state_dict()['state'][0].keys()

def test_compiled_in_place(make):
    learn = make()
    names = list(learn.model.state_dict())
    learn.compile(backend='eager').fine_tune(1)
    assert list(learn.model.state_dict()) == names and learn.predict(learn.dls.valid_ds.items[0].image).label

def test_accumulated_gradients(make):
    "Four batches of 16 before a step are one step."
    learn,steps = make(cbs=lk.GradientAccumulation(64)),[]
    class Count(lk.Callback):
        def after_step(self): steps.append(self.iter)
    learn.fit(1, cbs=Count())
    assert steps == [3]

def test_from_random_weights_fast_is_ordinary(drawings, tmp_path, one_thread):
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'small', path=tmp_path/'work', precision='fp32')
    learn.fine_tune(1, fast=True)
    assert isinstance(learn.model[0], Body) and len(learn.history[-1]['values']) == 2

def test_mirror_images_are_both_kept(make, monkeypatch):
    "Where a picture is only mirrored, its two variations are all there are: one epoch has the one, the next the other."
    from learnkit.train import fast
    made = []
    class Kept(fast.Features):
        def __init__(self, *args, **kw): super().__init__(*args, **kw), made.append(self)
    monkeypatch.setattr(fast, 'Features', Kept)
    learn = make(augment=lk.augment_tfms(1., rotate=0, zoom=1, light=0, warp=0))
    learn.fine_tune(0, freeze_epochs=3, fast=True)
    a,b = made[0].views
    x = torch.stack([learn.dls.valid.after_item((lk.PILImage.create(o.image),))[0] for o in learn.dls.train_ds.items[:4]])
    x = learn.dls.valid.after_batch((x,))[0].as_subclass(torch.Tensor)
    with torch.no_grad(): pair = [learn.model[0].eval()(o) for o in (x, x.flip(-1))]
    assert torch.allclose(a[:4], pair[0], atol=1e-4) and torch.allclose(b[:4], pair[1], atol=1e-4)

class Fastais(lk.Transform):
    "The transforms within `ours`, as fastai runs them, on training pictures."
    def __init__(self, ours):
        super().__init__(split_idx=0, order=ours.order)
        self.tfms = ours.tfms
    def __call__(self, b, split_idx=None, **kwargs): return b if split_idx == 1 else lk.compose_tfms(b, self.tfms, split_idx=split_idx)

def test_the_default_is_what_fastai_does(drawings, tmp_path, one_thread):
    "Same seed, same weights: fastai's loader, variation and optimiser lead where learnkit's lead, up to rounding, if memory is laid out in the same way."
    from fastai.callback.channelslast import ChannelsLast
    from fastai.data.block import DataBlock as FastaiBlock
    from fastai.learner import Learner
    from learnkit.data.loaders import split_records
    ends = []
    rs = lk.read_folder(drawings)
    for block in (FastaiBlock, lk.DataBlock):
        lk.set_seed(6, reproducible=True)
        kw = dict(blocks=(lk.ImageBlock, lk.CategoryBlock), splitter=split_records, item_tfms=lk.fit_size(32, 'squish'))
        ours = lk.augment_tfms(.5)
        kw['batch_tfms'] = [Fastais(ours[0])] if block is FastaiBlock else ours
        dls = block(**kw).dataloaders(rs, bs=16, num_workers=0, device=torch.device('cpu'))
        lk.set_seed(7)
        if block is FastaiBlock:
            model = lk.classification_model(None, dls, ps=.25).to(memory_format=torch.channels_last)
            norm = lk.Normalize.from_stats(model[0].mean, model[0].std, cuda=False)
            dls.add_tfms([norm], 'after_batch')
            learn = Learner(dls, model, loss_func=lk.CrossEntropyLossFlat(), splitter=lk.three_groups, metrics=lk.error_rate, cbs=ChannelsLast())
            learn.freeze()
        else: learn = lk.classification_learner(dls, precision='fp32', path=tmp_path/'work')
        for dl in dls.loaders: dl.rng.seed(3)
        lk.set_seed(8)
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, base_lr=1e-3, lr_mult=10)
        ends.append(torch.cat([o.detach().flatten() for o in learn.model.parameters()]))
    assert (ends[0]-ends[1]).norm()/ends[0].norm() < 1e-6
