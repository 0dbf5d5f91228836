"Scores of generated pictures: known answers for known sets, features that do not depend on the way in, reports about learners that generate."
import math
import numpy as np, pytest, torch
import learnkit.use.samples as us
from learnkit.core import DataError, MissingExtra, NotFound, OfflineError
from learnkit.data.records import read_folder
from learnkit.task.classification import classification_dls, classification_learner
from learnkit.use.samples import (code_names, code_purity, frechet_distance, kernel_distance, nearest_features, picture_features, precision_recall, realism,
    true_fid)
from PIL import Image

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
    assert code_purity(torch.tensor(codes), torch.tensor([7, 7, 8, 8, 8, 7])) == pytest.approx(5/6) and code_names(torch.tensor([3]), torch.tensor([4])) == {3:4}
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
