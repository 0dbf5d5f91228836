'Every GAN: shapes, who gets gradients, the gradient penalty, augmentation, noise, codes, pyramids, and what is refused.'
import math
import pytest, torch
from torch import nn
from learnkit.core import DataError, NotFound
from learnkit.models.gan import (AUGMENTS, CGAN, DCGAN, GAN, GENERATORS, InfoGAN, LAPGAN, WGANGP, diff_augment, enlarge, generator_kind,
    pyramid, shared_information, slopes)

pytestmark = pytest.mark.usefixtures('one_thread')

KINDS = dict(dcgan=DCGAN, wgan_gp=WGANGP, cgan=CGAN, infogan=InfoGAN, lapgan=LAPGAN)
kinds = pytest.mark.parametrize('kind', KINDS)

def make(kind, size=16, n_in=1, n_classes=3, width=8, **kw):
    torch.manual_seed(0)
    return GENERATORS[kind](size, n_in, n_classes=n_classes, width=width, **kw)

def batch(net, n=4):
    'Real pictures, labels where the network takes them, and noise.'
    real = torch.rand(n, net.n_in, net.size, net.size)*2-1
    y = torch.arange(n)%net.n_classes if net.n_classes else None
    return real,y,net.draw(n, 'cpu')

def moved(net):
    'Names of the parts whose parameters have gradients other than zero.'
    return {k for k,m in net.named_children() if any(p.grad is not None and p.grad.any() for p in m.parameters())}

def seeded(seed=0): return torch.Generator().manual_seed(seed)

def test_names():
    assert {k:GENERATORS[k] for k in KINDS} == KINDS
    assert all(cls.arch == k for k,cls in KINDS.items())
    try:
        @generator_kind('mine')
        class Mine(DCGAN): pass
        assert GENERATORS['mine'] is Mine and Mine.arch == 'mine' and DCGAN.arch == 'dcgan'
    finally: GENERATORS.pop('mine', None)

@kinds
@pytest.mark.parametrize('size,n_in', [(16,1),(32,1),(32,3),(64,1),(64,3)])
def test_shapes(kind, size, n_in):
    net = make(kind, size, n_in).eval()
    assert (net.size,net.n_in) == (size,n_in) and net.n_classes == (3 if net.conditional else 0)
    z = torch.stack([net.noise(seeded(i)) for i in range(2)])
    assert z.shape == (2, net.z_dim) == net.draw(2, 'cpu').shape and z.dtype == torch.float32
    with torch.inference_mode(): x = net.generate(z, torch.tensor([2,0]) if net.n_classes else None)
    assert x.shape == (2, n_in, size, size) and x.dtype == torch.float32 and -1 <= x.min() and x.max() <= 1

@kinds
@pytest.mark.parametrize('mixed', [False, True])
def test_who_gets_gradients(kind, mixed):
    net = make(kind, size=32)
    real,y,z = batch(net)
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
        with torch.no_grad(): fake = net.make(z, y)
        losses = net.critic_loss(real, fake, y, z)
    assert all(v.ndim == 0 and v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert moved(net) == {'critic'} and all(p.grad is not None for p in net.critic.parameters())
    net.zero_grad(set_to_none=True)
    net.critic.requires_grad_(False)
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed): losses = net.generator_loss(net.make(z, y), y, z)
    assert all(v.ndim == 0 and v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert moved(net) == {'generator'} and all(p.grad is not None for p in net.generator.parameters())
    assert not any(p.requires_grad for p in net.averaged.parameters())

@kinds
def test_fakes_carry_no_gradient_into_the_critic_step(kind):
    net = make(kind)
    real,y,z = batch(net)
    sum(net.critic_loss(real, net.make(z, y), y, z).values()).backward()
    assert moved(net) == {'critic'}

@kinds
def test_losses_of_both_turns_have_names_of_their_own(kind):
    net = make(kind)
    real,y,z = batch(net)
    critic,generator = net.critic_loss(real, net.make(z, y), y, z),net.generator_loss(net.make(z, y), y, z)
    assert critic and generator and not critic.keys() & generator.keys()

@kinds
def test_a_few_turns_change_both_and_not_the_average(kind):
    net = make(kind)
    opts = [torch.optim.Adam(m.parameters(), lr, betas=(net.mom, net.sqr_mom)) for m,lr in zip((net.critic, net.generator), net.lr[::-1])]
    before = {k:[p.clone() for p in m.parameters()] for k,m in net.named_children()}
    for _ in range(2):
        real,y,z = batch(net)
        for opt,train in zip(opts, (True, False)):
            net.critic.requires_grad_(train)
            losses = net.critic_loss(real, net.make(z, y), y, z) if train else net.generator_loss(net.make(z, y), y, z)
            net.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            opt.step()
    same = {k:all(torch.equal(a, b) for a,b in zip(before[k], m.parameters())) for k,m in net.named_children()}
    assert same == dict(generator=False, critic=False, averaged=True)

@kinds
def test_generate_uses_the_average(kind):
    net = make(kind).eval()
    _,y,z = batch(net)
    x = net.generate(z, y)
    with torch.no_grad():
        for p in net.generator.parameters(): p += .1
    assert torch.equal(x, net.generate(z, y)) and torch.equal(x, net(z, y))
    with torch.no_grad():
        for p in net.averaged.parameters(): p += .1
    assert not torch.equal(x, net.generate(z, y))

@kinds
def test_a_picture_does_not_depend_on_its_neighbours(kind):
    net = make(kind).eval()
    _,y,z = batch(net)
    with torch.inference_mode(): x,one = net.generate(z, y),net.generate(z[2:3], y[2:3] if net.n_classes else None)
    assert torch.allclose(x[2:3], one, atol=1e-5)

@kinds
def test_noise_depends_on_its_generator_alone(kind):
    net = make(kind)
    a,state = net.noise(seeded(3)),torch.get_rng_state()
    assert torch.equal(a, net.noise(seeded(3))) and not torch.equal(a, net.noise(seeded(4)))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    z = net.draw(3, 'cpu')
    torch.manual_seed(5)
    assert torch.equal(z, net.draw(3, 'cpu'))

@kinds
def test_weights_go_into_another_network(kind):
    net,other = make(kind).eval(),GENERATORS[kind](16, 1, n_classes=3, width=8).eval()
    other.load_state_dict(net.state_dict())
    _,y,z = batch(net)
    assert torch.equal(net.generate(z, y), other.generate(z, y))

@kinds
@pytest.mark.parametrize('size', [8, 30, 48])
def test_sizes_that_do_not_halve_are_refused(kind, size):
    with pytest.raises(DataError, match=f'not of {size}'): make(kind, size)

@kinds
def test_unknown_augmentation(kind):
    with pytest.raises(NotFound, match='translation'): make(kind, augment='translatoin')

def test_classes():
    for n in (0, 1):
        with pytest.raises(DataError, match=f'got {n}'): CGAN(n_classes=n)
    net = make('cgan').eval()
    with pytest.raises(DataError, match='0 to 2'): net.generate(net.draw(2))
    with pytest.raises(DataError, match='0 to 2'): net.make(net.draw(2))

def test_class_changes_picture_and_verdict():
    net = make('cgan').eval()
    z = net.draw(1).expand(2, -1)
    x = net.generate(z, torch.tensor([0,1]))
    assert not torch.equal(x[0], x[1])
    said = net.critic(x[:1].expand(2, -1, -1, -1), torch.tensor([0,1]))
    assert said[0] != said[1]

def test_losses_at_the_start_are_those_of_a_guess():
    net = make('dcgan', width=8)
    with torch.no_grad():
        for p in net.critic.head.parameters(): p.zero_()
    real,y,z = batch(net)
    losses = {**net.critic_loss(real, net.make(z), y, z), **net.generator_loss(net.make(z), y, z)}
    assert losses.keys() == {'real','fake','fool'} and all(v.item() == pytest.approx(math.log(2)) for v in losses.values())

def test_slopes_by_hand():
    x = torch.randn(3, 1, 4, 4)
    assert torch.allclose(slopes(lambda x: 3*x.flatten(1).sum(1), x), torch.full((3,), 12.))
    assert torch.allclose(slopes(lambda x: x.flatten(1).square().sum(1)/2, x), x.flatten(1).norm(dim=1))
    w = torch.tensor(2., requires_grad=True)
    slopes(lambda x: w*x.flatten(1).sum(1), x).sum().backward()
    assert w.grad.item() == pytest.approx(3*4)
    assert slopes(lambda x: 0*x.flatten(1).sum(1), x).max() < 1e-5

def test_penalty_by_hand():
    net = make('wgan_gp', augment='')
    net.critic = nn.Sequential(nn.Flatten(), nn.Linear(256, 1), nn.Flatten(0))
    with torch.no_grad(): net.critic[1].weight.fill_(.25)
    real,y,z = batch(net)
    losses = net.critic_loss(real, net.make(z), y, z)
    assert losses['penalty'].item() == pytest.approx(10*(16*.25-1)**2, rel=1e-4)

def test_penalty_stays_fp32_under_autocast():
    net,seen = make('wgan_gp'),[]
    x = torch.randn(2, 1, 16, 16)
    net.critic.body.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    exact = slopes(net.critic, x)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = slopes(net.critic, x)
        net.critic(x)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]
    assert torch.equal(exact, mixed) and mixed.dtype == torch.float32

def test_wasserstein_critic_has_no_batch_norm():
    net = make('wgan_gp').eval()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.critic.modules()) and net.n_critic > 1

@pytest.mark.parametrize('policy', ['', *AUGMENTS, 'color, translation,cutout'])
@pytest.mark.parametrize('n_in', [1, 3])
def test_augmentation_keeps_shape_and_gradient(policy, n_in):
    torch.manual_seed(0)
    x = torch.randn(6, n_in, 16, 16, requires_grad=True)
    res = diff_augment(x, policy)
    assert res.shape == x.shape and res.dtype == x.dtype
    res.sum().backward()
    assert x.grad.isfinite().all() and all(g.any() for g in x.grad)

def test_translation_moves_by_whole_pixels():
    torch.manual_seed(0)
    x = torch.zeros(300, 1, 32, 32)
    x[:,:,16,16] = 1
    at = diff_augment(x, 'translation').flatten(1)
    assert torch.equal(at.sum(1), torch.ones(300)) and torch.equal(at.max(1).values, torch.ones(300))
    rows,cols = at.argmax(1)//32,at.argmax(1)%32
    for o in (rows, cols): assert o.unique().tolist() == list(range(12, 21))

def test_nothing_is_mirrored():
    torch.manual_seed(0)
    x = torch.zeros(100, 1, 16, 16)
    x[:,:,8,7],x[:,:,8,8] = 1.,.5
    moved = diff_augment(x, 'translation').flatten(1)
    assert ((moved == .5).float().argmax(1)-(moved == 1).float().argmax(1) == 1).all()

def test_cutout_covers_at_most_a_quarter():
    torch.manual_seed(0)
    share = (diff_augment(torch.ones(200, 3, 16, 16), 'cutout') == 0).float().mean((1,2,3))
    assert share.max() <= .26 and share.min() > .04

def test_unknown_change():
    with pytest.raises(NotFound, match='cutout'): diff_augment(torch.zeros(1, 1, 8, 8), 'cutuot')

def test_codes_are_valid():
    net = make('infogan', n_cat=4, n_cont=3, z_dim=20)
    for z in (net.draw(50, 'cpu'), torch.stack([net.noise(seeded(i)) for i in range(50)])):
        noise,cat,cont = net.split(z)
        assert (noise.shape[1],cat.shape[1],cont.shape[1]) == (13,4,3)
        assert torch.equal(cat.sort(1).values, torch.tensor([0.,0,0,1]).expand(50, -1)) and len(cat.argmax(1).unique()) == 4
        assert cont.abs().max() <= 1 and cont.min() < -.5 and cont.max() > .5

def test_with_code_changes_only_what_is_named():
    net = make('infogan', n_cat=4, n_cont=3, z_dim=20)
    z = net.draw(5)
    was = z.clone()
    new = net.with_code(z, 'category', 2)
    assert torch.equal(net.split(new)[1], torch.tensor([0.,0,1,0]).expand(5, -1))
    assert torch.equal(new[:,:13], z[:,:13]) and torch.equal(new[:,17:], z[:,17:])
    new = net.with_code(z, 1, -2)
    rest = [i for i in range(20) if i != 18]
    assert (new[:,18] == -2).all() and torch.equal(new[:,rest], z[:,rest]) and torch.equal(z, was)

@pytest.mark.parametrize('code,value,say', [('category',4,'0 to 3'), ('category',1.5,'0 to 3'), (3,0.,"'category', 0, 1, 2"), ('slant',0.,'no code')])
def test_codes_that_do_not_exist(code, value, say):
    net = make('infogan', n_cat=4, n_cont=3, z_dim=20)
    with pytest.raises(DataError, match=say): net.with_code(net.draw(1), code, value)

@pytest.mark.parametrize('kw', [dict(n_cat=1), dict(n_cont=-1), dict(z_dim=12)])
def test_codes_need_room(kw):
    with pytest.raises(DataError, match='z_dim='): make('infogan', **kw)

def test_read_code():
    net = make('infogan', n_cat=4, n_cont=0, z_dim=20).eval()
    probs,means = net.read_code(torch.randn(3, 1, 16, 16))
    assert probs.shape == (3, 4) and means.shape == (3, 0) and torch.allclose(probs.sum(1), torch.ones(3)) and not probs.requires_grad
    real,y,z = batch(net)
    assert 'numbers' not in net.critic_loss(real, net.make(z), y, z)

def test_reading_codes_trains_both():
    net = make('infogan')
    real,y,z = batch(net)
    net.critic_loss(real, net.make(z), y, z)['category'].backward()
    assert moved(net) == {'critic'} and net.critic.reader[0].weight.grad.any()
    net.zero_grad(set_to_none=True)
    net.critic.requires_grad_(False)
    net.generator_loss(net.make(z), y, z)['category_made'].backward()
    assert moved(net) == {'generator'}

def test_shared_information():
    sure = torch.eye(3).repeat(5, 1)
    assert shared_information(sure, sure).item() == pytest.approx(math.log(3), abs=1e-4)
    assert abs(shared_information(sure, torch.full((15,3), 1/3)).item()) < 1e-4
    assert abs(shared_information(sure[:1], sure[:1]).item()) < 1e-4
    p = torch.rand(8, 3).requires_grad_()
    shared_information(p.softmax(1), sure[:8]).backward()
    assert p.grad.isfinite().all() and p.grad.any()

def test_views_can_be_left_out():
    net = make('infogan')
    real,y,z = batch(net)
    assert net.critic_loss(real, net.make(z), y, z).keys() == {'real','fake','views','category','numbers'}
    net.views = 0
    assert net.critic_loss(real, net.make(z), y, z).keys() == {'real','fake','category','numbers'}

@pytest.mark.parametrize('n_in', [1, 3])
def test_a_pyramid_holds_the_whole_picture(n_in):
    torch.manual_seed(0)
    x = torch.rand(2, n_in, 64, 64)*2-1
    levels = pyramid(x, 4)
    assert [o.shape[-1] for o in levels] == [8, 16, 32, 64] and levels[-1] is x
    lost = [b-enlarge(a) for a,b in zip(levels, levels[1:])]
    again = levels[0]
    for o in lost: again = enlarge(again)+o
    assert torch.allclose(again, x, atol=1e-6)

def test_levels_learn_from_real_pyramids():
    net = make('lapgan', size=32)
    real,y,z = batch(net)
    assert torch.equal(net.make(z), z)
    losses = net.critic_loss(real, net.make(z), y, z)
    assert losses.keys() == {'critic8','critic16','critic32'}
    losses['critic16'].backward()
    assert [any(p.grad is not None for p in m.parameters()) for m in net.critic.levels] == [False, True, False]
    assert net.generator_loss(net.make(z), y, z).keys() == {'fool8','fool16','fool32'}
    net.generator_loss(net.make(z), y, z)['fool8'].backward()
    assert net.generator.first.last.weight.grad.any() and not any(p.grad is not None for p in net.generator.details.parameters())

def test_lapgan_goes_from_coarse_to_fine():
    net = make('lapgan', size=32).eval()
    z = net.draw(2)
    assert net.z_dim == sum(net.generator.parts) == net.generator.parts[0]+16**2+32**2
    with torch.no_grad():
        for m in net.averaged.details: nn.init.zeros_(m[-1].weight), nn.init.zeros_(m[-1].bias)
    assert torch.allclose(net.generate(z), enlarge(enlarge(net.averaged.level(0, z))), atol=1e-6)

def test_lapgan_has_a_generator_turn_without_real_pictures():
    net = make('lapgan')
    losses = net.generator_loss(net.draw(3), None, net.draw(3))
    assert all(v.isfinite() for v in losses.values())

def test_the_base_alone_refuses_too():
    class Named(GAN): arch = 'named'
    with pytest.raises(DataError, match='named makes'): Named(20, 3, 0, 8)
