'BigGAN and StyleGAN: shapes, who gets gradients, R1, the scale of weights, classes, truncation, the same pictures each time.'
import copy
import pytest, torch
from learnkit.core import DataError
from learnkit.models.biggan import BigGAN, ClassNorm, EqualConv, EqualLinear, ModulatedConv, ProjectionCritic, SpectralConv, SpectralEmbedding
from learnkit.models.biggan import SpectralLinear, StyleCritic, StyleGAN, StyleGenerator, ortho_penalty, r1_penalty, truncated
from learnkit.models.gan import GENERATORS, slopes

pytestmark = pytest.mark.usefixtures('one_thread')

SMALL = dict(width=4, critic_width=4, z_dim=12)
KINDS = dict(biggan=2, stylegan=0, styles_of_classes=3)

def make(kind, size=16, n_in=3, seed=0, **kw):
    torch.manual_seed(seed)
    cls = StyleGAN if kind.startswith('style') else BigGAN
    return cls(size, n_in, KINDS[kind], **{**SMALL, **kw})

def batch(net, n=6, seed=1):
    torch.manual_seed(seed)
    x = torch.rand(n, net.n_in, net.size, net.size)*2-1
    return x, torch.arange(n) % net.n_classes if net.n_classes else None, net.draw(n)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size,n_in', [(16,3), (32,1), (32,3), (64,3), (64,1)])
def test_shapes(kind, size, n_in):
    net = make(kind, size, n_in)
    x,y,z = batch(net, 3)
    fake = net.make(z, y)
    assert z.shape == (3,12) and fake.shape == x.shape and fake.dtype == torch.float32 and fake.isfinite().all()
    losses = {**net.critic_loss(x, fake, y, z), **net.generator_loss(fake, y, z)}
    assert {'real','fake','fool'} < {*losses} and all(v.ndim == 0 and v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    made = net.eval().generate(z, y)
    assert made.shape == x.shape and made.abs().max() <= 1 and torch.equal(net(z, y), made) and net.judge(made, y).shape == (3,)

def test_entered():
    assert GENERATORS['biggan'] is BigGAN and GENERATORS['stylegan'] is StyleGAN and (BigGAN.arch, StyleGAN.arch) == ('biggan','stylegan')
    assert BigGAN.conditional is True and StyleGAN.conditional is None
    for cls in (BigGAN,StyleGAN): assert len(cls.lr) == 2 and 0 <= cls.mom < 1 and 0 < cls.sqr_mom < 1 and 0 < cls.decay < 1

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('half', [False, True])
def test_gradients_to_one_network(kind, half):
    net = make(kind)
    with torch.no_grad():
        for p in net.parameters(): p += .05*torch.randn_like(p)
    x,y,z = batch(net)
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        losses = net.critic_loss(x, net.make(z, y), y, z)
        sum(losses.values()).backward()
    assert all(p.grad is None for p in net.generator.parameters()) and all(p.grad is None for p in net.averaged.parameters())
    for k,p in net.critic.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), k
    net.zero_grad()
    net.critic.requires_grad_(False)
    with torch.autocast('cpu', torch.bfloat16, enabled=half): sum(net.generator_loss(net.make(z, y), y, z).values()).backward()
    assert all(p.grad is None for p in net.critic.parameters()) and all(p.grad is None for p in net.averaged.parameters())
    for k,p in net.generator.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), k

@pytest.mark.parametrize('kind', KINDS)
def test_half_precision_gives_full_losses(kind):
    net = make(kind)
    x,y,z = batch(net)
    with torch.autocast('cpu', torch.bfloat16):
        fake = net.make(z, y)
        losses = {**net.critic_loss(x, fake, y, z), **net.generator_loss(fake, y, z)}
    assert fake.dtype == torch.float32 and all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())

@pytest.mark.parametrize('kind', KINDS)
def test_same_pictures_each_time(kind):
    net = make(kind).eval()
    _,y,z = batch(net)
    with torch.inference_mode():
        whole = net.generate(z, y)
        torch.randn(3)
        assert torch.equal(whole, net.generate(z, y))
        one = torch.cat([net.generate(z[i:i+1], None if y is None else y[i:i+1]) for i in range(len(z))])
    assert torch.allclose(whole, one, atol=1e-4)
    other = make(kind, seed=7).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.generate(z, y), net.generate(z, y))

@pytest.mark.parametrize('kind', KINDS)
def test_average_is_a_copy_and_stays(kind):
    net = make(kind)
    assert all(torch.equal(p, q) for p,q in zip(net.generator.state_dict().values(), net.averaged.state_dict().values()))
    before = copy.deepcopy(net.averaged.state_dict())
    x,y,z = batch(net)
    net.critic_loss(x, net.make(z, y), y, z)
    assert all(torch.equal(v, before[k]) for k,v in net.averaged.state_dict().items()) and not any(p.requires_grad for p in net.averaged.parameters())

@pytest.mark.parametrize('layer', [SpectralConv(5, 9), SpectralConv(9, 5, 1), SpectralLinear(7, 30), SpectralLinear(30, 7, bias=False), SpectralEmbedding(4, 9)])
def test_spectral_norm(layer):
    torch.manual_seed(3)
    layer.weight.data = torch.randn_like(layer.weight)*torch.rand(layer.weight.shape[1:])*9
    for _ in range(200): layer.normed()
    top = torch.linalg.matrix_norm(layer.normed().flatten(1), 2)
    assert abs(top-1) < .01
    layer.eval()
    u = layer.u.clone()
    assert torch.equal(layer.normed(), layer.normed()) and torch.equal(u, layer.u)
    layer.u *= 3 # an average over steps has no length 1
    assert abs(torch.linalg.matrix_norm(layer.normed().flatten(1), 2)-1) < .01

def test_spectral_gradient_is_the_true_one():
    layer = SpectralLinear(6, 4).double()
    layer.weight.data = torch.randn(4, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    for _ in range(300): layer.normed()
    target = torch.randn(4, 6, dtype=torch.double)
    layer.eval()
    got, = torch.autograd.grad((layer.normed()*target).sum(), layer.weight)
    w = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    w.data.copy_(layer.weight.data)
    true, = torch.autograd.grad((w/torch.linalg.matrix_norm(w, 2)*target).sum(), w)
    assert torch.allclose(got, true, atol=1e-3)

def test_orthogonal_start():
    net = make('biggan', width=8)
    for m in net.modules():
        if not hasattr(m, 'normed'): continue
        w = m.weight.detach().flatten(1)
        g = w @ w.T if len(w) <= w.shape[1] else w.T @ w
        assert torch.allclose(g, torch.eye(len(g)), atol=1e-4)
    assert ortho_penalty(net.generator) < 1e-4
    layer = torch.nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[1.,2.],[3.,4.]])
    assert ortho_penalty(layer).item() == 2*11**2
    assert 'ortho' not in make('biggan', ortho=0.).generator_loss(torch.zeros(2, 3, 16, 16), torch.tensor([0,1]), None)

def test_class_norm():
    norm = ClassNorm(5, 3)
    x = torch.randn(8, 5, 4, 4)*3+2
    res = norm(x, torch.zeros(8, 3))
    assert res.mean((0,2,3)).abs().max() < 1e-5 and (res.std((0,2,3))-1).abs().max() < .01
    assert not torch.allclose(res, norm(x, torch.ones(8, 3)), atol=.01)

@pytest.mark.parametrize('kind', ['biggan','styles_of_classes'])
def test_the_class_changes_picture_and_judgement(kind):
    net = make(kind).eval()
    x,y,z = batch(net)
    zero,one = (net.generate(z, torch.full((6,), o)) for o in (0, 1))
    assert (zero-one).abs().mean(dim=(1,2,3)).min() > 1e-3
    assert not torch.allclose(net.critic(x, y), net.critic(x, (y+1) % net.n_classes))

def test_projection():
    critic = ProjectionCritic(16, 3, 3, 4).eval()
    x = torch.randn(2, 3, 16, 16)
    h = torch.relu(critic.blocks(x)).sum((2,3))
    differ = critic(x, torch.tensor([2,2])) - critic(x, torch.tensor([0,0]))
    table = critic.fits.normed()
    assert torch.allclose(differ, h @ (table[2]-table[0]), atol=1e-4)

def test_truncated():
    z = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    t = truncated(z, .5)
    assert t.abs().max() <= .5 and torch.equal(z.argsort(), t.argsort()) and truncated(z, None) is z
    again = torch.randn(90000, generator=torch.Generator().manual_seed(1))
    again = again[again.abs() < .5] # what drawing again gives
    assert abs(t.std()-again.std()) < .01 and torch.allclose(truncated(z, 9.), z, atol=.01) and not truncated(z, 0.).any()
    with pytest.raises(DataError, match='-1'): truncated(z, -1)

@pytest.mark.parametrize('kind', KINDS)
def test_truncation_makes_pictures_alike(kind):
    net = make(kind)
    x,y,z = batch(net, 12)
    net.make(z, y)
    y = None if y is None else torch.zeros_like(y)
    net.averaged.load_state_dict(net.generator.state_dict())
    net.eval()
    def differ(**kw): return net.generate(z, y, **kw).std(0).mean().item()
    assert differ(truncation=.02) < .1*differ() and differ(truncation=0.) < 1e-5
    net.truncation = 0.
    assert differ() < 1e-5

def test_r1_by_hand():
    a = torch.randn(3, 8, 8)
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(r1_penalty(lambda x, y: (x*a).flatten(1).sum(1), x), a.square().sum())
    assert torch.allclose(r1_penalty(lambda x, y: x.square().flatten(1).sum(1), x), 4*x.square().flatten(1).sum(1).mean())
    assert torch.allclose(r1_penalty(lambda x, y: y*x.flatten(1).sum(1), x, torch.tensor([0.,1,2,3])), torch.tensor(3*64*(0+1+4+9)/4))

@pytest.mark.parametrize('kind', ['stylegan','styles_of_classes'])
def test_r1_stays_in_full_precision(kind):
    net = make(kind)
    x,y,_ = batch(net)
    full = r1_penalty(net.critic, x, y)
    with torch.autocast('cpu', torch.bfloat16): half = r1_penalty(net.critic, x, y)
    assert torch.equal(full, half) and half.dtype == torch.float32 and half.requires_grad
    assert torch.allclose(full, slopes(lambda o: net.critic(o, y), x).square().mean())

def test_r1_is_lazy():
    net = make('stylegan', every=4, r1=.5, augment='')
    x,y,z = batch(net)
    values = [net.critic_loss(x, x, y, z)['r1'].item() for _ in range(9)]
    assert [v > 0 for v in values] == [True,False,False,False]*2+[True] and net.steps == 9
    assert values[0] == pytest.approx(.25*4*r1_penalty(net.critic, x).item(), rel=1e-4)
    other = make('stylegan', every=4, r1=.5, augment='')
    other.load_state_dict(net.state_dict())
    assert not other.critic_loss(x, x, y, z)['r1']

def test_demodulated_weights():
    conv = ModulatedConv(6, 7, w_dim=5)
    w,x = torch.randn(4, 5)*3,torch.randn(4, 6, 9, 9)
    ws = conv.weights(w)
    assert ws.shape == (4,7,6,3,3) and torch.allclose(ws.flatten(2).norm(dim=2), torch.ones(4, 7), atol=1e-4)
    slow = torch.cat([torch.nn.functional.conv2d(o[None], k, padding=1) for o,k in zip(x, ws)])
    assert torch.allclose(conv(x, w), slow, atol=1e-4)
    plain = ModulatedConv(6, 3, 5, 1, demodulate=False)
    slow = torch.cat([torch.nn.functional.conv2d(o[None], k) for o,k in zip(x, plain.weights(w))])
    assert torch.allclose(plain(x, w), slow, atol=1e-4)

@pytest.mark.parametrize('n', [4, 400])
def test_equal_scale(n):
    torch.manual_seed(0)
    lin,conv = EqualLinear(n, 200, start=1., rate=.1),EqualConv(n, 20)
    assert abs(lin.weight.std()-10) < 1 and abs(conv.weight.std()-1) < .1
    assert abs((lin(torch.randn(500, n))-1).std()-1) < .15 and abs(conv(torch.randn(9, n, 9, 9))[...,1:-1,1:-1].std()-1) < .25

def test_noise_is_drawn_in_training_only():
    net = StyleGenerator(16, 3, 0, 8, 4, 8)
    for o in net.levels: o.strength.data.fill_(1.)
    z = torch.randn(3, 8)
    assert not torch.equal(net(z), net(z))
    net.eval()
    assert torch.equal(net(z), net(z)) and net.levels[1].noise.shape == (2,8,8)

def test_style_mixing():
    net = make('stylegan', size=32, mixing=1.)
    torch.manual_seed(0)
    z = torch.randn(1, 12).expand(30, -1)
    styles = []
    net.generator.draw = lambda ws: styles.append(ws) or torch.zeros(len(ws), 3, 32, 32)
    net.make(z)
    ws, = styles
    own = net.generator.mapping(z[:1])
    same = (ws-own[:,None]).abs().amax(2) < 1e-5
    assert same[:,0].all() and not same[:,-1].any() and len({tuple(o) for o in same.tolist()}) == 3
    net.mixing = 0.
    net.make(z)
    assert torch.allclose(styles[1], own[:,None].expand_as(styles[1]), atol=1e-5)

def test_mean_style_moves_with_the_generator_alone():
    net = make('styles_of_classes')
    x,_,z = batch(net)
    y = torch.tensor([0,0,0,1,1,1])
    with torch.no_grad(): net.make(z, y)
    assert not net.generator.w_mean.any()
    net.make(z, y)
    w = net.generator.mapping(z, y)
    assert torch.allclose(net.generator.w_mean[0], .01*w[:3].mean(0), atol=1e-6) and not net.generator.w_mean[2].any()

def test_critic_sees_the_spread_of_a_batch():
    critic = StyleCritic(16, 3, 0, 4)
    x = torch.randn(4, 3, 16, 16)
    assert not torch.allclose(critic(x)[:1], critic(x[:1].expand(4, -1, -1, -1))[:1], atol=1e-4)
    assert critic(x[:1]).isfinite().all()

def test_errors():
    for cls in (BigGAN,StyleGAN):
        with pytest.raises(DataError, match='48'): cls(48, n_classes=2)
        with pytest.raises(DataError, match='8'): cls(8, n_classes=2)
    for n in (0, 1):
        with pytest.raises(DataError, match='2 or more'): BigGAN(n_classes=n)
    with pytest.raises(DataError, match='z_dim is 3'): BigGAN(32, n_classes=2, z_dim=3)
    net = make('biggan')
    with pytest.raises(DataError, match='biggan'): net.generate(torch.randn(2, 12))
    with pytest.raises(DataError, match='stylegan'): make('styles_of_classes').generate(torch.randn(2, 12))
    with pytest.raises(DataError, match='truncation'): net.generate(torch.randn(2, 12), torch.tensor([0,1]), truncation=-.5)
    with pytest.raises(TypeError): BigGAN(32, n_classes=2, widht=3)
