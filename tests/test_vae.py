'The variational autoencoder: its two losses against values worked out by hand, codes from pictures and pictures from codes, the bundle.'
import pytest, torch
from PIL import Image
from torch.distributions import Normal, kl_divergence
from learnkit.core import DataError
from learnkit.data.images import image_files
from learnkit.models.gan import GENERATORS
from learnkit.task.generation import generation_dls, generation_learner
from learnkit.task.vae import VAE, VAELearner, code_cost, vae_learner, with_free_bits
from learnkit.train.generate import to_bytes
from learnkit.use.bundle import load_learner

pytestmark = pytest.mark.usefixtures('one_thread')

def net(**kw):
    torch.manual_seed(0)
    return VAE(**dict(size=16, n_in=1, z_dim=4, width=8) | kw)

def learner(path, grey=True, bs=16, **kw):
    torch.manual_seed(0)
    dls = generation_dls(path, size=16, grey=grey, bs=bs)
    return vae_learner(dls, **dict(z_dim=4, width=8, precision='fp32') | kw).keep_samples(0)

@pytest.fixture(scope='module')
def learn(drawings): return learner(drawings)

def test_cost_of_a_code():
    mean,logvar = torch.randn(5, 3),torch.randn(5, 3)
    truth = kl_divergence(Normal(mean, (logvar/2).exp()), Normal(0., 1.))
    torch.testing.assert_close(code_cost(mean, logvar), truth)
    assert code_cost(torch.zeros(1), torch.zeros(1)).item() == 0
    assert code_cost(torch.tensor([2.]), torch.zeros(1)).item() == pytest.approx(2)

def test_free_bits():
    costs = torch.tensor([[0., 2.], [.2, 4.]], requires_grad=True) # means .1 and 3
    assert with_free_bits(costs).item() == pytest.approx(3.1)
    assert with_free_bits(costs, .5).item() == pytest.approx(3.5)
    assert with_free_bits(costs, 4).item() == pytest.approx(8)
    with_free_bits(costs, .5).backward()
    assert costs.grad.tolist() == [[0, .5], [0, .5]], 'saying less gains nothing below the free bits'

@pytest.mark.parametrize('size', [16, 32, 64])
@pytest.mark.parametrize('n_in', [1, 3])
def test_shapes(size, n_in):
    m = net(size=size, n_in=n_in).eval()
    x,z = torch.rand(2, n_in, size, size)*2-1,torch.randn(2, 4)
    assert [o.shape for o in m.encode(x)] == [(2, 4)]*2
    y = m.generate(z)
    assert y.shape == x.shape and y.dtype == torch.float32 and y.abs().max() <= 1
    assert torch.equal(y, m.generate(z)) and m.noise(torch.Generator()).shape == (4,)

@pytest.mark.parametrize('sigma', [None, .5])
def test_everything_learns(sigma):
    m = net(sigma=sigma)
    losses = m(torch.rand(4, 1, 16, 16)*2-1)
    assert set(losses) == {'reconstruction', 'kl'} and all(o.ndim == 0 for o in losses.values())
    sum(losses.values()).backward()
    for k,p in m.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), k

def test_reconstruction_is_a_sum_over_a_picture():
    x = torch.tensor([-1., 1.]).repeat(2, 1, 16, 8)
    out = torch.zeros(2, 1, 16, 16)
    assert net().wrongness(out, x).item() == pytest.approx(256*torch.tensor(2.).log().item(), rel=1e-5)
    assert net(sigma=.5).wrongness(out, x).item() == pytest.approx(256*.5*4)

def test_price_of_the_code():
    x = torch.rand(4, 1, 16, 16)*2-1
    kl = [net(beta=b, free_bits=f).eval()(x)['kl'].item() for b,f in ((1, 0), (4, 0), (1, 1e3))]
    assert kl[1] == pytest.approx(4*kl[0]) and kl[2] == pytest.approx(4e3)

def test_half_precision():
    with torch.autocast('cpu', torch.bfloat16): losses = net()(torch.rand(4, 1, 16, 16)*2-1)
    assert all(o.dtype == torch.float32 and o.isfinite() for o in losses.values())

def test_what_does_not_go():
    with pytest.raises(DataError, match='no classes'): VAE(n_classes=3)
    with pytest.raises(DataError, match='24 pixels'): VAE(size=24)
    assert GENERATORS['vae'] is VAE and VAE.arch == 'vae'

def test_learns_and_tells_both_parts(drawings):
    learn = learner(drawings, lr=5e-3)
    before = sum(learn.validate()[1:])
    learn.fine_tune(6)
    assert isinstance(learn, VAELearner) and learn.recorder.metric_names[1:4] == ['train_loss', 'valid_loss', 'reconstruction']
    assert learn.results['valid_loss'] == pytest.approx(learn.results['reconstruction'] + learn.results['kl'], rel=.1)
    assert learn.results['valid_loss'] < before

def test_embed_and_reconstruct_take_everything(learn, drawings):
    files = image_files(drawings/'train')[:3]
    many = learn.embed([*files])
    assert many.shape == (3, 4) and learn.embed([*files], bs=2).shape == (3, 4)
    for o in (files[0], str(files[0]), files[0].read_bytes(), Image.open(files[0])): torch.testing.assert_close(learn.embed(o), many[0], atol=1e-4, rtol=1e-4)
    x = learn.dls.valid.one_batch()[0]
    torch.testing.assert_close(learn.embed(x), learn.embed([o.image for o in learn.dls.valid_ds.items]), atol=1e-4, rtol=1e-4)
    assert learn.embed([]).shape == (0, 4) and learn.reconstruct([]) == []
    one,some,batch = learn.reconstruct(files[0]),learn.reconstruct([*files]),learn.reconstruct(x)
    assert one.size == (16, 16) and one.mode == 'L' and len(some) == 3 and len(batch) == len(x)
    assert abs(to_bytes(learn.made(many))[0,...,0].astype(int) - one).max() <= 1
    with pytest.raises(DataError, match='not a picture'): learn.embed(3)

def test_embed_leaves_the_network_as_it_was(learn, drawings):
    learn.model.train()
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.reconstruct(image_files(drawings/'train')[0])
    assert learn.model.training and all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('z_dim', [1, 2, 4])
def test_maps(drawings, z_dim):
    left,right = learner(drawings, z_dim=z_dim).latent_map(n=5)
    assert right.images and sum(len(o.get_offsets()) for o in left.collections) == 16
    assert [o.get_text() for o in left.get_legend().get_texts()] == ['cats', 'dogs']

def test_map_without_labels_and_without_pictures(drawings, tmp_path):
    learn = learner(drawings/'train'/'cats', bs=8)
    left,right = learn.latent_map(n=4)
    assert left.get_legend() is None and right.images
    loaded = load_learner(learn.export(tmp_path/'v.learnkit'))
    with pytest.raises(DataError, match='without its data'): loaded.latent_map()

def test_show_results(learn):
    axs = learn.show_results(3, seed=1)
    assert len(axs) == 6 and all(len(ax.images) == 1 for ax in axs)
    again = learn.show_results(3, seed=1)
    assert all((a.images[0].get_array() == b.images[0].get_array()).all() for a,b in zip(axs, again))

@pytest.mark.parametrize('grey', [True, False])
def test_bundle_gives_the_same_samples(drawings, tmp_path, grey):
    learn = learner(drawings, grey, sigma=.4, beta=.5, free_bits=.1)
    learn.fit(1)
    loaded = load_learner(learn.export(tmp_path/'v.learnkit'))
    assert isinstance(loaded, VAELearner) and (loaded.model.sigma, loaded.model.beta, loaded.model.free_bits) == (.4, .5, .1)
    assert [o.tobytes() for o in learn.sample(3, seed=5)] == [o.tobytes() for o in loaded.sample(3, seed=5)]
    file = image_files(drawings/'train')[0]
    torch.testing.assert_close(learn.embed(file), loaded.embed(file))
    assert len(loaded.interpolate(0, 1, 4)) == 4

def test_by_its_name(drawings):
    learn = generation_learner(generation_dls(drawings, size=16, bs=16), 'vae', model_kw=dict(width=8))
    assert isinstance(learn, VAELearner) and learn.model.n_in == 3
    with pytest.raises(DataError, match='knows no classes'): learn.sample(1, label='cats')
    with pytest.raises(TypeError, match='zdim'): vae_learner(learn.dls, zdim=3)
