'Diffusion: the schedule, the way from noise to a picture with a network that knows the answer, guidance, repeatable samples, the bundle.'
import pytest, torch
from torch import nn
from learnkit.core import DataError
from learnkit.models.gan import GENERATORS
from learnkit.task.diffusion import Diffusion, DiffusionLearner, cosine_schedule, diffusion_learner, mixed, time_code
from learnkit.task.generation import generation_dls, generation_learner
from learnkit.use.bundle import load_learner

pytestmark = pytest.mark.usefixtures('one_thread')

def shaken(m):
    'Layers that begin at nought would hide what reaches them.'
    torch.manual_seed(1)
    with torch.no_grad():
        for p in m.generator.parameters(): p += .05*torch.randn_like(p)
        for p,q in zip(m.averaged.parameters(), m.generator.parameters()): p.copy_(q)
    return m

def net(**kw):
    torch.manual_seed(0)
    return shaken(Diffusion(**dict(size=16, n_in=1, width=8, times=100, steps=5) | kw))

def learner(path, size=16, grey=True, labels=None, **kw):
    torch.manual_seed(0)
    dls = generation_dls(path, size=size, grey=grey, bs=16, labels=labels)
    return diffusion_learner(dls, **dict(width=8, steps=4, precision='fp32') | kw).keep_samples(0)

class Knows(nn.Module):
    'Answers as a perfect network would for one picture `x`.'
    def __init__(self, x, share):
        super().__init__()
        self.x,self.share = x,share
    def forward(self, noisy, t, y=None):
        share = self.share[(t*len(self.share)).round().long()-1].view(-1, 1, 1, 1)
        noise = (noisy-share.sqrt()*self.x)/(1-share).sqrt()
        return share.sqrt()*noise - (1-share).sqrt()*self.x

def test_schedule():
    s = cosine_schedule(1000)
    assert s.shape == (1000,) and (s.diff() < 0).all() and s[0] > .999 and 0 < s[-1] < 1e-4
    assert s[499].item() == pytest.approx(.5, abs=.02), 'at half time half of the variance is the picture'
    x,e = torch.ones(1, 1, 1, 1),torch.full((1, 1, 1, 1), 2.)
    assert mixed(x, e, torch.tensor([.36])).item() == pytest.approx(.6+.8*2)

def test_time_code():
    c = time_code(torch.tensor([.1, .101, .9]), 64)
    assert c.shape == (3, 64) and c.abs().max() <= 1 and (c[0]-c[1]).norm() < (c[0]-c[2]).norm()

@pytest.mark.parametrize('size', [16, 32, 64])
@pytest.mark.parametrize('n_in,n_classes', [(1, 0), (3, 2)])
def test_shapes(size, n_in, n_classes):
    m = net(size=size, n_in=n_in, n_classes=n_classes).eval()
    z = torch.stack([m.noise(torch.Generator().manual_seed(i)) for i in range(2)])
    assert z.shape == (2, m.z_dim) == (2, n_in*size*size)
    y = torch.tensor([0, 1]) if n_classes else None
    x = m.generate(z, y, steps=2)
    assert x.shape == (2, n_in, size, size) and x.dtype == torch.float32 and x.isfinite().all() and x.abs().max() <= 1
    assert torch.equal(x, m.generate(z, y, steps=2))

@pytest.mark.parametrize('n_classes', [0, 3])
def test_everything_learns(n_classes):
    m = net(n_classes=n_classes, drop=.5)
    loss = m(torch.rand(32, 1, 16, 16)*2-1, torch.arange(32) % 3 if n_classes else None)
    assert set(loss) == {'noise'} and loss['noise'].ndim == 0
    loss['noise'].backward()
    for k,p in m.generator.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), k
    assert not any(p.requires_grad or p.grad is not None for p in m.averaged.parameters())

def test_begins_with_no_answer():
    m = Diffusion(size=16, n_in=1, width=8)
    assert not m.generator(torch.randn(2, 1, 16, 16), torch.tensor([.1, .9])).any()
    assert m(torch.zeros(64, 1, 16, 16))['noise'].item() == pytest.approx(.5, abs=.1), 'for a grey picture it is the share of the noise'

@pytest.mark.parametrize('steps,eta', [(100, 0), (7, 0), (1, 0), (100, 1), (7, 1)])
def test_a_perfect_network_recovers_the_picture(steps, eta):
    m,x = net().eval(),torch.rand(2, 1, 16, 16)*2-1
    m.averaged = Knows(x, m.share)
    torch.testing.assert_close(m.generate(torch.randn(2, m.z_dim), steps=steps, eta=eta), x, atol=1e-4, rtol=0)

def test_fresh_noise_keeps_the_variance():
    'At each step of the first sampler, pictures of pure noise stay what the schedule says.'
    m,trace = net(size=32).eval(),[]
    m.averaged = Knows(torch.zeros(4, 1, 32, 32), m.share)
    m.generate(torch.randn(4, m.z_dim), steps=100, eta=1, trace=trace)
    for i in (10, 50, 90): assert trace[i].var().item() == pytest.approx(1-m.share[98-i].item(), rel=.15)

def test_validation_is_always_the_same():
    m,x = net(n_classes=2),torch.rand(4, 1, 16, 16)*2-1
    y = torch.tensor([0, 1, 0, 1])
    m.eval()
    a,b = m(x, y)['noise'],m(x, y)['noise']
    with torch.no_grad(): m.generator.last[-1].weight.zero_()
    assert torch.equal(a, b) and torch.equal(a, m(x, y)['noise']), 'the average is asked'
    m.train()
    assert m(x, y)['noise'] != m(x, y)['noise']

def test_classes_are_forgotten_in_training_only():
    seen = []
    for drop in (0, 1):
        m = net(n_classes=2, drop=drop)
        m.generator.register_forward_pre_hook(lambda mod, args: seen.append(args[2].tolist()))
        m(torch.zeros(4, 1, 16, 16), torch.tensor([0, 1, 0, 1]))
    m.averaged.register_forward_pre_hook(lambda mod, args: seen.append(args[2].tolist()))
    m.eval()(torch.zeros(4, 1, 16, 16), torch.tensor([0, 1, 0, 1]))
    assert seen == [[0, 1, 0, 1], [2, 2, 2, 2], [0, 1, 0, 1]]

def test_guidance():
    m = net(n_classes=2).eval()
    z,y = torch.randn(2, m.z_dim),torch.tensor([0, 1])
    calls = []
    m.averaged.register_forward_hook(lambda mod, args, out: calls.append(1))
    plain = m.generate(z, y, guidance=1)
    assert len(calls) == m.steps, 'without guidance the network is asked once'
    free = m.generate(z)
    torch.testing.assert_close(m.generate(z, y, guidance=0), free)
    torch.testing.assert_close(m.generate(z, torch.full((2,), 2), guidance=3), free)
    torch.testing.assert_close(m.generate(z, y, guidance=1+1e-6), plain, atol=1e-3, rtol=0)
    assert not torch.allclose(plain, free) and not torch.allclose(plain, m.generate(z, y, guidance=3))

def test_fresh_noise_is_repeatable_and_each_picture_alone():
    m,z = net().eval(),torch.randn(3, 256)
    a = m.generate(z, eta=1)
    assert torch.equal(a, m.generate(z, eta=1)) and not torch.allclose(a, m.generate(z))
    torch.testing.assert_close(m.generate(z[1:2], eta=1), a[1:2], atol=1e-4, rtol=0)

def test_what_does_not_go():
    m,z = net().eval(),torch.randn(1, 256)
    for steps in (0, 101):
        with pytest.raises(DataError, match=f'steps={steps}'): m.generate(z, steps=steps)
    with pytest.raises(DataError, match='without classes'): m.generate(z, torch.tensor([0]))
    with pytest.raises(DataError, match='30 pixels'): Diffusion(size=30)
    assert GENERATORS['diffusion'] is Diffusion and Diffusion.conditional is None

def test_half_precision():
    m = net(n_classes=2)
    with torch.autocast('cpu', torch.bfloat16): loss = m(torch.rand(4, 1, 16, 16)*2-1, torch.tensor([0, 1, 0, 1]))['noise']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()

def test_learns_and_averages(drawings):
    learn = learner(drawings, lr=4e-3)
    start = [p.clone() for p in learn.model.averaged.parameters()]
    before = learn.validate()[0]
    learn.fine_tune(6)
    assert isinstance(learn, DiffusionLearner) and learn.results['valid_loss'] < before
    assert any(not torch.equal(a, b) for a,b in zip(start, learn.model.averaged.parameters()))

@pytest.mark.parametrize('labels,grey', [(None, True), (False, False)])
def test_bundle_gives_the_same_samples(drawings, tmp_path, labels, grey):
    learn = learner(drawings, labels=labels, grey=grey, times=50)
    learn.fit(1, lr=.05)
    learn.model.steps,learn.model.guidance = 6,2.5
    loaded = load_learner(learn.export(tmp_path/'d.learnkit'))
    assert isinstance(loaded, DiffusionLearner) and (loaded.model.steps, loaded.model.guidance, loaded.model.times) == (6, 2.5, 50)
    label = None if labels is False else 'dogs'
    assert [o.tobytes() for o in learn.sample(3, label, seed=5)] == [o.tobytes() for o in loaded.sample(3, label, seed=5)]
    again = load_learner(loaded.export(tmp_path/'e.learnkit'))
    assert again.model.steps == 6 and [o.tobytes() for o in again.sample(1, label, seed=5)] == [o.tobytes() for o in learn.sample(1, label, seed=5)]

def test_steps_and_guidance_are_handed_on(drawings):
    learn = learner(drawings)
    learn.fit(1, lr=.05)
    a = learn.sample_tensor(2, 'cats', seed=1, steps=3, guidance=4)[0]
    learn.model.steps,learn.model.guidance = 3,4
    assert torch.equal(a, learn.sample_tensor(2, 'cats', seed=1)[0])
    assert not torch.equal(a, learn.sample_tensor(2, 'dogs', seed=1)[0])

def test_show_denoising(drawings):
    learn = learner(drawings)
    axs = learn.show_denoising(3, seed=1, ncols=4)
    assert len(axs) == 12 and all(len(o.images) == 1 for o in axs) and axs[3].get_title() == '4'
    assert len(learn.show_denoising(1, label='cats', steps=2)) == 3
    plain = learner(drawings, labels=False)
    assert len(plain.show_denoising(2, ncols=3)) == 6
    with pytest.raises(DataError, match='knows no classes'): plain.show_denoising(2, label='cats')

def test_by_its_name(drawings):
    learn = generation_learner(generation_dls(drawings, size=16, bs=16), 'diffusion', model_kw=dict(width=8))
    assert isinstance(learn, DiffusionLearner) and learn.model.n_classes == 2 and learn.model.n_in == 3
    with pytest.raises(TypeError, match='guidence'): diffusion_learner(learn.dls, guidence=3)
