"SampleScores of generated pictures: known answers for known sets, features that do not depend on the way in, reports about learners that generate."
import math, types
import numpy as np, pytest, torch
import learnkit.use.samples as us
from learnkit.core import DataError, MissingExtra, NotFound, OfflineError
from learnkit.data.records import read_folder
from learnkit.models.gan import GENERATORS
from learnkit.task.classification import classification_dls, classification_learner
from learnkit.task.generation import generation_dls, generation_learner
from learnkit.train.generate import GenerativeLearner
from learnkit.use.samples import (SampleScores, asked_accuracy, code_names, code_purity, compare_features, frechet_distance, kernel_distance, nearest_features,
    picture_features, precision_recall, realism, true_fid)
from PIL import Image
from torch import nn

def normal(n, f=6, seed=0, mean=0., scale=1.):
    "`n` rows of `f` normal numbers, float64."
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)*torch.as_tensor(scale)+torch.as_tensor(mean)

def exact(n, cov, mean, seed=0):
    "`n` rows whose sample mean and covariance are exactly these."
    x = normal(n, len(cov), seed)
    x = x-x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return x@torch.linalg.cholesky(cov).T+mean

# Distances

def test_frechet_of_equal_sets_is_0():
    a = normal(50)
    for o in (a, a.flip(0), a.numpy(), a.tolist()): assert 0 <= frechet_distance(a, o) < 1e-9
    assert 0 <= frechet_distance(few := normal(5, 40), few) < 1e-9, 'fewer pictures than features'
    assert 0 <= frechet_distance(a*1e3, a*1e3) < 1e-3

def test_frechet_is_the_closed_form():
    "Diagonal covariances: the sum over features of (difference of means)² + (difference of deviations)²."
    ma,mb,sa,sb = (torch.tensor(o, dtype=torch.float64) for o in ([0, 1, -2], [1, 1, 3], [1, .5, 2], [2, .5, .1]))
    a,b = exact(40, sa.square().diag(), ma),exact(70, sb.square().diag(), mb, seed=1)
    expected = ((ma-mb).square()+(sa-sb).square()).sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9) and frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)

def test_frechet_with_covariances_that_do_not_commute():
    from scipy.linalg import sqrtm
    ca,cb = (torch.cov(normal(30, 4, s).T) for s in (5, 6))
    expected = (ca+cb-2*torch.from_numpy(sqrtm((ca@cb).numpy()).real)).trace().item()
    assert frechet_distance(exact(50, ca, 0.), exact(60, cb, 0.)) == pytest.approx(expected, rel=1e-6)

def test_kernel_distance_has_no_bias():
    ds = [kernel_distance(normal(40, seed=2*i), normal(25, seed=2*i+1)) for i in range(60)]
    err = np.std(ds)/math.sqrt(len(ds))
    assert abs(np.mean(ds)) < 3*err and min(ds) < 0 < max(ds)
    assert kernel_distance(normal(40), normal(40, seed=1, mean=1.)) > 10*np.std(ds)

def test_kernel_distance_by_hand():
    a,b = torch.tensor([[1., 0], [0, 2], [1, 1]]),torch.tensor([[0., 1], [3, 1]])
    def k(x, y): return (float(x@y)/2+1)**3
    within = [np.mean([k(x, y) for i,x in enumerate(o) for j,y in enumerate(o) if i != j]) for o in (a, b)]
    assert kernel_distance(a, b) == pytest.approx(sum(within)-2*np.mean([k(x, y) for x in a for y in b]))

def test_kernel_distance_in_blocks():
    a,b = normal(300),normal(200, seed=1, mean=1.)
    whole,parts = kernel_distance(a, b),kernel_distance(a, b, block=50)
    assert whole != parts and parts == pytest.approx(whole, rel=.3) and parts == kernel_distance(a, b, block=50) != kernel_distance(a, b, block=50, seed=1)
    assert math.isfinite(kernel_distance(a, b[:3], block=2)), 'no block has less than two pictures'

# Precision and recall

def test_precision_and_recall_of_toy_sets():
    a,b = normal(200, 2),normal(200, 2, seed=1)
    assert precision_recall(a, a) == (1, 1) and precision_recall(a, a+100) == (0, 0)
    assert min(precision_recall(a, b)) > .85
    one = a[:1]+1e-3*normal(200, 2, seed=2)
    p,r = precision_recall(a, one)
    assert p > .9 and r < .05, 'always the same: right, and poor'
    both = torch.cat([b, b+100])
    p,r = precision_recall(a, both)
    assert .4 < p <= .5 and r > .85, 'half of them wrong'
    assert precision_recall(a, both)[::-1] == precision_recall(both, a), 'the tables turned'

def test_balls_by_hand():
    real,made = torch.tensor([[0.], [1], [3], [10]]),torch.tensor([[-1.], [4.9], [5.1], [17.5]])
    assert precision_recall(real, made, k=1) == (.75, 1), "the balls reach 1, 1, 2, 7 far; those of the samples 5.9, .2, .2, 12.4"

def test_parts_are_the_whole():
    a,b = normal(1300, 3),normal(700, 3, seed=1)
    d = torch.cdist(b, a)
    reach = torch.cdist(a, a).topk(4, largest=False).values[:,-1]
    assert precision_recall(a, b)[0] == pytest.approx((d <= reach).any(1).double().mean().item(), abs=2e-3)
    dist,at = nearest_features(b, a, 2)
    assert torch.allclose(dist, d.topk(2, largest=False).values) and torch.equal(at, d.topk(2, largest=False).indices)

def test_realism():
    a = normal(300, 2)
    far = torch.tensor([[0., 0], [3, 3], [9, 9]])
    r = realism(a, far)
    assert r[0] > 1 > r[1] > r[2] > 0
    real = torch.tensor([[0.], [1], [3], [10]])
    assert realism(real, torch.tensor([[.5], [4.]]), k=1).tolist() == [2, 1/3], 'the half of the real pictures with the widest balls is left out'
    assert realism(real, real, k=1).isfinite().all()

def test_what_can_not_be_compared():
    a = normal(10)
    with pytest.raises(DataError, match='different networks.*6 and 4'): frechet_distance(a, normal(10, 4))
    with pytest.raises(DataError, match=r'at least 2 pictures.*\(1, 6\)'): kernel_distance(a, a[:1])
    with pytest.raises(DataError, match=r'at least 4 pictures.*\(3, 6\)'): precision_recall(a, a[:3])
    with pytest.raises(DataError, match='not finite'): frechet_distance(a, a*math.nan)

# Codes

def test_purity():
    codes,labels = [0, 0, 0, 1, 1, 2],['a', 'a', 'b', 'b', 'b', 'a']
    assert code_names(codes, labels) == {0:'a', 1:'b', 2:'a'} and code_purity(codes, labels) == pytest.approx(5/6)
    assert code_purity(torch.tensor(codes), torch.tensor([7, 7, 8, 8, 8, 7])) == pytest.approx(5/6)
    assert code_names(torch.tensor([3]), torch.tensor([4])) == {3:4}
    assert code_purity(labels, labels) == 1 and code_purity([0]*6, labels) == .5
    with pytest.raises(DataError, match='6 codes and 2 labels'): code_purity(codes, ['a', 'b'])
    with pytest.raises(DataError, match='0 codes'): code_purity([], [])

# Features

@pytest.fixture(scope='module')
def files(drawings): return sorted(drawings.rglob('cats/*.png'))[:10]

def pixels(files): return torch.stack([torch.tensor(np.array(Image.open(o).convert('RGB'))) for o in files]).permute(0, 3, 1, 2)

def test_features_of_every_kind_of_pictures(files, drawings, one_thread):
    a = picture_features(files)
    assert a.shape == (10, 256) and a.dtype == torch.float64 and a.isfinite().all() and a.std(0).max() > 0 and not a.requires_grad
    x = pixels(files)
    kinds = [x, x/127.5-1, [Image.open(o) for o in files], read_folder(drawings).filter(lambda o: o.image in files)]
    for o in kinds: assert torch.allclose(picture_features(o), a, atol=1e-5)
    assert torch.equal(picture_features(files), a) and torch.allclose(picture_features(files, bs=3), a, atol=1e-5)
    assert len(picture_features(files[0].parent)) == len([*files[0].parent.iterdir()])

def test_grey_is_repeated(files, one_thread):
    grey = pixels(files[:3]).float().mean(1, keepdim=True)/127.5-1
    assert torch.allclose(picture_features(grey), picture_features(grey.expand(-1, 3, -1, -1)), atol=1e-5)

def test_size_and_middle(files, one_thread):
    x = pixels(files[:3])/127.5-1
    wide = torch.cat([x[..., :10], x, x[..., :10]], 3)
    assert torch.allclose(picture_features(wide), picture_features(x), atol=1e-5)
    assert not torch.allclose(picture_features(x, size=64), picture_features(x), atol=1e-3)
    assert len(picture_features([Image.open(files[0]).resize((90, 40)), files[1]])) == 2, 'of several sizes'

@pytest.mark.parametrize('arch,grey', [('small', False), (None, True)])
def test_features_of_a_learner(arch, grey, drawings, files, one_thread):
    dls = classification_dls(drawings, size=32, bs=16)
    learn = classification_learner(dls, arch, precision='fp32')
    a = picture_features(files, learn)
    x = learn._inputs(files)
    with torch.inference_mode(): body = us.body_of(learn.model).eval()(x.as_subclass(torch.Tensor)).mean((2, 3)).double()
    assert a.shape == body.shape and torch.allclose(a, body, atol=.1*body.abs().max()), 'as the learner sees them, but for the way of scaling'
    same = picture_features(files, us.body_of(learn.model), size=32)
    assert torch.allclose(same, a, atol=1e-6), 'size and normalisation are those of the learner'

def test_no_pictures(files, tmp_path):
    x = pixels(files[:2]).float()
    with pytest.raises(DataError, match='from -1 to 1, and these go from .* to 255'): picture_features(x)
    with pytest.raises(DataError, match=r'shape \(2, 4, 8, 8\) holds no pictures'): picture_features(torch.zeros(2, 4, 8, 8))
    with pytest.raises(DataError, match='no pictures to look at'): picture_features([])
    with pytest.raises(NotFound): picture_features(tmp_path/'nowhere')
    with pytest.raises(NotFound, match='resnet'): picture_features(files, 'resnet81')

# FID

def test_fid_says_what_is_missing(files, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torchmetrics', None)
    with pytest.raises(MissingExtra, match=r'learnkit\[fid\]'): true_fid(files, files)
    monkeypatch.setattr(us, 'need', lambda *args: None)
    monkeypatch.setenv('LEARNKIT_OFFLINE', 'true')
    with pytest.raises(OfflineError, match='weights of Inception v3.*frechet_distance'): true_fid(files, files)

def test_fid_puts_pictures_in_as_they_are(files, monkeypatch, tmp_path):
    "What the library is given, and what it gives back."
    seen = []
    class Metric:
        device = torch.device('cpu')
        def __init__(self, net): self.net = net
        def to(self, device): return self
        def update(self, x, real): seen.append((x, real))
        def compute(self): return torch.tensor(7.)
    fake = types.SimpleNamespace(FrechetInceptionDistance=Metric, NoTrainInceptionV3=lambda *args: args)
    monkeypatch.setattr(us, 'need', lambda *args: fake)
    monkeypatch.setattr(us, '_inception_file', lambda: 'weights')
    x = pixels(files[:3])
    assert true_fid(files[:3], x[:,:1], bs=2) == 7
    real,made = ([a for a,r in seen if r == o] for o in (True, False))
    assert torch.equal(torch.cat(real), x) and torch.equal(torch.cat(made), x[:,:1].expand(-1, 3, -1, -1)) and [len(o) for o in made] == [2, 1]
    assert all(o.dtype == torch.uint8 for o in (*real, *made))

# Learners

class Reciter(nn.Module):
    "A generator that has learned nothing: it gives the pictures of `shown`, by number, with some noise; with classes, those of the class."
    arch,conditional,learner,lr,mom,sqr_mom = 'reciter',None,GenerativeLearner,1e-3,.5,.99
    def __init__(self, size=32, n_in=3, n_classes=0, z_dim=2, noise=0.):
        super().__init__()
        self.size,self.n_in,self.n_classes,self.z_dim,self.level = size,n_in,n_classes,z_dim,noise
        self.generator,self.shown = nn.Linear(1, 1),None

    def noise(self, rng): return torch.rand(self.z_dim, generator=rng)
    def forward(self, x, y=None): return dict(none=self.generator.weight.sum()*0)
    def generate(self, z, y=None):
        pools = [self.shown[0][self.shown[1] == o] if self.n_classes else self.shown[0] for o in (y.tolist() if self.n_classes else [0]*len(z))]
        x = torch.stack([p[int(a[0]*len(p))] for p,a in zip(pools, z)])
        return (x+self.level*torch.randn(x.shape, generator=torch.Generator().manual_seed(int(z[0,1]*1e6)))).clamp(-1, 1)

@pytest.fixture(scope='module')
def reciter(drawings, one_thread):
    "A function that gives a learner which recites the pictures of a set, and that set."
    dls = generation_dls(drawings, size=32, bs=16)
    def _of(split, labels=True, **kwargs):
        own = dls if labels else generation_dls(drawings, size=32, bs=16, labels=False)
        GENERATORS['reciter'] = Reciter
        try: learn = generation_learner(own, 'reciter', model_kw=kwargs, precision='fp32')
        finally: GENERATORS.pop('reciter')
        found = [o for o in dls.test_dl([*getattr(dls, f'{split}_ds').items], with_labels=True)]
        learn.model.shown = *(torch.cat([o[i] for o in found]).as_subclass(torch.Tensor) for i in (0, 1)),
        return learn
    return _of

def test_score(reciter, drawings):
    learn = reciter('valid')
    good = learn.score(16)
    assert isinstance(good, SampleScores) and [*good] == ['frechet', 'kernel', 'precision', 'recall', 'samples', 'pictures']
    assert good.samples == good.pictures == 16 and good.precision == 1 and learn.score(16) == good != learn.score(16, seed=1)
    bad = reciter('valid', noise=1.).score(16)
    assert bad.frechet > 2*good.frechet and bad.kernel > good.kernel and bad.precision < .2
    assert repr(good).startswith(f'frechet {good.frechet:.3g}, kernel ') and repr(good).endswith('samples 16, pictures 16')
    assert learn.score(5).pictures == 5 and learn.score(90).pictures == 16 and learn.score(90, of='train').pictures == 64 and learn.score(90, of='all').pictures == 80
    with pytest.raises(NotFound, match='set of pictures .validation.'): learn.score(5, of='validation')

def test_score_is_that_of_the_features(reciter):
    learn = reciter('train', labels=False)
    x,y = learn.sample_tensor(20, seed=3)
    real = torch.cat([o[0] for o in learn.dls.valid]).as_subclass(torch.Tensor)
    expected = compare_features(picture_features(real), picture_features(x))
    got = learn.score(20, seed=3)
    assert y is None and {k:pytest.approx(v, rel=1e-6) for k,v in expected.items()} == got

def test_score_with_a_classifier(reciter, drawings):
    judge = classification_learner(classification_dls(drawings, size=32, bs=16), 'small', precision='fp32')
    learn = reciter('valid')
    assert learn.score(16, features=judge).frechet != learn.score(16).frechet

def test_asked(reciter, drawings):
    learn = reciter('train')
    class Judge: # knows the pictures by heart, and takes every second dog for a cat
        dls = types.SimpleNamespace(vocab=['birds', 'cats', 'dogs'])
        def predict(self, ims):
            known = {us.to_pictures(x[None])[0].tobytes():int(y) for x,y in zip(*learn.model.shown)}
            return [types.SimpleNamespace(label='dogs' if known[o.tobytes()] and i % 4 == 1 else 'cats') for i,o in enumerate(ims)]
    res = asked_accuracy(learn, Judge(), 20)
    assert res.accuracy == .75 and res.samples == 20 and res.classes.to_dict() == dict(cats=1, dogs=.5) and repr(res) == 'accuracy 0.75, samples 20'
    assert res.confusion.loc['dogs'].to_dict() == dict(birds=0, cats=5, dogs=5) and res.confusion.values.sum() == 20
    Judge.dls.vocab = ['cats', 'mice']
    with pytest.raises(DataError, match='does not know dogs. It names: cats, mice'): asked_accuracy(learn, Judge(), 4)
    with pytest.raises(DataError, match='generates without labels'): asked_accuracy(reciter('train', labels=False), Judge(), 4)

def test_asked_of_a_real_classifier(reciter, drawings):
    judge = classification_learner(classification_dls(drawings, size=32, bs=16), 'small', precision='fp32')
    res = asked_accuracy(reciter('train'), judge, 6)
    assert 0 <= res.accuracy <= 1 and list(res.confusion) == ['cats', 'dogs'] and res.confusion.sum(axis=1).tolist() == [3, 3]

# The report

def test_report_waits(reciter, monkeypatch):
    learn = reciter('train')
    def no(*args): raise AssertionError
    monkeypatch.setattr(us, 'picture_features', no)
    assert 'Report on 30 samples (reciter)' in repr(learn.interpret(30))

def test_copies_are_found(reciter):
    copies,fresh = (reciter(o).interpret(30).copies for o in ('train', 'valid'))
    assert copies.nearer > .98 and copies.copies > .98 and copies.sample < 1e-3 < copies.real
    assert .3 < fresh.nearer < .7 and fresh.copies < .2 and fresh.sample > 1

def test_nearest_are_drawn(reciter):
    rep = reciter('train').interpret(30)
    axs = rep.plot_nearest(3)
    titles = [o.get_title() for o in axs]
    assert len(axs) == 12 and all(o.startswith('sample') for o in titles[::4]) and titles[1::4] == ['0.0']*3
    assert all(np.array_equal(a.images[0].get_array(), b.images[0].get_array()) for a,b in zip(axs[::4], axs[1::4])), 'beside each the picture that it is'
    assert len(rep.plot_nearest(2, ncols=1)) == 8
    ax = rep.plot_distances()
    assert [o.get_text() for o in ax.get_legend().get_texts()] == ['validation pictures', 'samples'] and rep.plot_distances(ax) is ax

def test_best_and_worst(reciter):
    rep = reciter('valid', noise=.3).interpret(20)
    best,worst = ([float(o.get_title().split()[-1]) for o in f(5)] for f in (rep.plot_best, rep.plot_worst))
    r = rep.realism.sort().values
    assert best == [pytest.approx(o, abs=.006) for o in r.flip(0)[:5].tolist()] and worst == [pytest.approx(o, abs=.006) for o in r[:5].tolist()]
    assert {o.get_title().split()[0] for o in rep.plot_samples(range(20))} == {'cats', 'dogs'}
    assert rep.scores.samples == 20 and rep.scores == compare_features(rep.valid.feats, rep.made.feats)

def test_table_of_classes(reciter):
    rep = reciter('valid').interpret(24)
    t = rep.report()
    assert t.index.tolist() == ['cats', 'dogs', 'all'] and list(t) == ['kernel', 'precision', 'recall', 'realism', 'samples', 'pictures']
    assert t.samples.tolist() == [12, 12, 24] and t.pictures.tolist() == [8, 8, 16] and t.precision.tolist() == [1, 1, 1]
    assert t.kernel['all'] == pytest.approx(rep.scores.kernel, abs=6e-4)
    assert reciter('valid', labels=False).interpret(16).report().index.tolist() == ['all']
    few = reciter('valid').interpret(6).report()
    assert few.precision[:2].isna().all() and few.samples.tolist() == [3, 3, 6], 'too few of a class say nothing'
