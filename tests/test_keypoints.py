"Points of one object: both networks, missing points, mirrors, places in the original picture, and what is refused."
import numpy as np, pytest, torch
from PIL import Image, ImageDraw
from fastai.torch_core import set_seed
from fastai.vision.core import TensorPoint
from learnkit.core import DataError, NotFound
from learnkit.data.points import read_points
from learnkit.data.records import Record, Records
from learnkit.data.sources import get_data
from learnkit.task.classification import classification_dls
from learnkit.task.keypoints import (PCK, PointError, PointLoss, heat_maps, keypoints_block, keypoints_dls, keypoints_learner, mean_shape, point_errors,
    shape_pairs, show_points, soft_argmax)
from learnkit.train.metrics import pck, share_near

pytestmark = pytest.mark.usefixtures('one_thread')
ARCHS = ['heatmap', 'regression']
NAMES = ['left', 'right', 'nose']

def dots(n=12, seed=0, sizes=((80, 40), (40, 60)), missing=True):
    "Records of dark pictures of `sizes` with a red, a blue and a green dot; the green one is now and then missing."
    rng,rs = np.random.default_rng(seed),[]
    for i in range(n):
        (w,h),im = sizes[i%len(sizes)],Image.new('RGB', sizes[i%len(sizes)], (30, 30, 30))
        x,y,draw = rng.uniform(.3, .7)*w,rng.uniform(.3, .7)*h,ImageDraw.Draw(im)
        points = [(x-w/5, y, 2), (x+w/5, y, 2), (x, y+h/5, 0 if missing and i%3 == 0 else 2)]
        for (a,b,v),color in zip(points, ('red', 'blue', 'lime')):
            if v: draw.ellipse((a-3, b-3, a+3, b+3), fill=color)
        rs.append(Record(im, points=points, split='valid' if i >= n*3//4 else 'train'))
    return Records(rs, about=dict(points=NAMES))

def loaders(rs=None, **kwargs): return keypoints_dls(dots() if rs is None else rs, **dict(size=32, bs=4, device='cpu') | kwargs)
def learner(arch='heatmap', dls=None, **kwargs): return keypoints_learner(dls or loaders(), arch, 'small', pretrained=False, precision='fp32', **kwargs)

@pytest.fixture(autouse=True)
def seed(): set_seed(3)

@pytest.mark.parametrize('arch', ARCHS)
def test_both_networks_give_the_same_form(arch):
    learn = learner(arch)
    x,y = learn.dls.train.one_batch()
    out = learn.model.train()(x)
    if arch == 'heatmap':
        out,maps = out
        assert maps.shape == (4, 3, 8, 8) and learn.model(torch.rand(2, 3, 40, 64))[1].shape == (2, 3, 10, 16)
    assert out.shape == (4, 3, 3) and out.dtype == torch.float32
    loss = learn.loss_func(learn.model(x), y)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in learn.model.parameters())
    out = learn.model.eval()(x)
    assert isinstance(out, torch.Tensor) and out.shape == (4, 3, 3)
    ps = learn.loss_func.activation(out)
    assert ps[..., 2].min() >= 0 and ps[..., 2].max() <= 1 and torch.equal(ps[..., :2], out[..., :2])
    learn.fit_one_cycle(1)
    assert {'pck', 'error'} <= learn.results.keys() and len(learn.splitter(learn.model)) == 3
    preds,targs = learn.get_preds()
    assert preds.shape == (3, 3, 3) and targs.shape == (3, 3, 2)
    assert learn.get_preds(with_loss=True)[2].shape == (3,)
    dec = learn.get_preds(with_decoded=True)[2]
    again = torch.stack([o[1] for o in learn.predict([r.image for r in learn.dls.valid_ds.items])])
    assert torch.allclose(dec, again, atol=1e-4, equal_nan=True)

@pytest.mark.parametrize('arch', ARCHS)
def test_half_precision_keeps_the_points(arch):
    learn = learner(arch)
    x = learn.dls.valid.one_batch()[0]
    net = learn.model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): short = net(x)
    assert short.dtype == torch.float32 and (short-net(x))[..., :2].abs().max() < .02

@pytest.mark.parametrize('body', ['resnet18', 'vit_tiny_patch16_224'])
def test_other_bodies(body):
    learn = keypoints_learner(loaders(size=64), None, body, pretrained=False, precision='fp32')
    assert learn.model.train()(torch.rand(2, 3, 64, 64))[1].shape == (2, 3, 16, 16)

@pytest.mark.parametrize('with_maps', [False, True])
def test_missing_points_leave_gradients_finite(with_maps):
    loss,target = PointLoss(),TensorPoint(torch.tensor([[[.1, .2], [torch.nan]*2], [[torch.nan]*2]*2]))
    pred,maps = torch.rand(2, 2, 3, requires_grad=True),torch.rand(2, 2, 4, 4, requires_grad=True)
    res = loss((pred, maps) if with_maps else pred, target)
    res.backward()
    assert res.isfinite() and pred.grad.isfinite().all() and pred.grad[0, 0].abs().min() > 0
    assert (pred.grad[0, 1, :2] == 0).all() and (pred.grad[1, :, :2] == 0).all() and (pred.grad[..., 2] != 0).all()
    if with_maps: assert maps.grad.isfinite().all() and (maps.grad[0, 0] != 0).any() and (maps.grad[1] == 0).all()
    each = PointLoss(reduction='none')((pred, maps) if with_maps else pred, target)
    assert each.shape == (2,) and torch.isclose(each.mean(), res)

def test_no_point_in_a_whole_batch():
    pred = torch.rand(2, 3, 3, requires_grad=True)
    PointLoss()(pred, TensorPoint(torch.full((2, 3, 2), torch.nan))).backward()
    assert pred.grad.isfinite().all() and point_errors(pred, torch.full((2, 3, 2), torch.nan), (8, 8)).isnan().all()

def test_decodes_hides_what_is_not_there():
    dec = PointLoss().decodes(torch.tensor([[[.1, .2, .9], [.3, .4, .1]]]))
    assert isinstance(dec, TensorPoint) and dec[0, 0].tolist() == pytest.approx([.1, .2]) and dec[0, 1].isnan().all()

def test_maps_and_their_middle():
    points = torch.tensor([[[.25, -.5], [0., .125]]])
    maps = heat_maps(points, 24, 32)
    assert maps.shape == (1, 2, 24, 32) and torch.allclose(maps.sum((-2, -1)), torch.ones(1, 2))
    assert torch.allclose(soft_argmax(maps), points, atol=1e-3)
    assert heat_maps(torch.tensor([[[5., 5.]]]), 8, 8).isfinite().all()

@pytest.mark.parametrize('arch', ARCHS)
def test_a_network_starts_at_the_mean_shape(arch):
    learn = learner(arch, loaders(augment=0.))
    mean,points = mean_shape(learn.dls),np.array([r.points for r in dots().train])
    size = np.array([r.image.size for r in dots().train])[:, None]
    true = np.nanmean(np.where(points[..., 2:] > 0, points[..., :2], np.nan)*2/size-1, 0)
    assert np.abs(mean[:, :2].numpy()-true).max() < 1e-5
    out = learn.model.eval()(learn.dls.valid.one_batch()[0])
    if arch == 'regression': assert (out[..., :2]-mean[:, :2]).abs().max() < 1e-5
    else: assert (out[..., :2]*mean[:, :2] > 0).all(), 'a wide hill round each point of the mean shape, cut off by the edges'

def test_mean_shape_sees_padding():
    rs = Records([Record(Image.new('RGB', (80, 40)), points=[(0, 0, 2), (80, 40, 2)], split=o) for o in ('train', 'train', 'valid')])
    assert mean_shape(loaders(rs, method='pad', bs=2)).tolist() == [[-1, -.5, 0], [1, .5, 0]]

def test_pairs_by_names():
    dls = loaders()
    assert dls.about['pairs'] == [1, 0, 2] and dls.about['points'] == NAMES
    x,y = dls.train.one_batch()
    assert y.shape == (4, 3, 2)

def test_mirrored_pictures_swap_their_points():
    "The red dot is always the first point, wherever it lies, and the left one of the first two is the first."
    rs = dots(40, missing=False, sizes=((64, 64),))
    x,y = keypoints_dls(rs, size=64, bs=30, augment=1., device='cpu').train.one_batch()
    y = y.as_subclass(torch.Tensor)
    first = y[:, 0].isfinite().all(-1) & y[:, 1].isfinite().all(-1)
    assert first.sum() > 20 and (y[first, 0, 0] < y[first, 1, 0]).all()
    at = ((y[:, 0]+1)*32).nan_to_num().long().clamp(0, 63)
    red = x.as_subclass(torch.Tensor)[torch.arange(len(x)), :, at[:, 1], at[:, 0]]
    assert (red[first, 0] > red[first, 2]).any() and (red[first, 2] > red[first, 0]).any(), 'both mirrored and unmirrored pictures occur'

def test_pairs_by_shape():
    rng = np.random.default_rng(0)
    shape = np.array([(-1, 0), (1, 0), (0, 1), (-.5, 2), (.5, 2), (0, 3.)])
    sets = shape*rng.uniform(5, 20, (50, 1, 1)) + rng.uniform(0, 100, (50, 1, 2)) + rng.normal(0, .2, (50, 6, 2))
    assert shape_pairs(sets) == [1, 0, 2, 4, 3, 5]
    seen = np.concatenate([sets, np.full((50, 6, 1), 2.)], -1)
    seen[::2, 1] = 0
    assert shape_pairs(seen) == [1, 0, 2, 4, 3, 5]
    assert shape_pairs(rng.uniform(0, 100, (50, 6, 2))) is None
    assert shape_pairs(sets[:1]) is None and shape_pairs(sets+np.array([(0, 0), (40, 9), (90, 3), (0, 50), (7, 80), (0, 0)])) is None

def test_no_mirror_where_nothing_tells(capsys, monkeypatch):
    monkeypatch.setenv('LEARNKIT_PROGRESS', 'true')
    rng = np.random.default_rng(1)
    rs = Records([Record(Image.new('RGB', (20, 20)), points=[(*o, 2) for o in rng.uniform(0, 20, (5, 2))]) for _ in range(10)])
    dls = loaders(rs)
    assert 'not mirrored' in capsys.readouterr().out and dls.about == dict(points=[*'01234'], pairs=None)
    def kinds(dls): return [type(t).__name__ for f in dls.train.after_batch.fs for t in getattr(f, 'tfms', [])]
    assert kinds(dls)[0] == 'Rotate' and kinds(loaders(rs, pairs=[1, 0, 2, 3, 4]))[0] == 'Flip' and kinds(loaders(pairs=False))[0] == 'Rotate'
    assert loaders(rs, pairs=[1, 0, 2, 3, 4]).about['pairs'] == [1, 0, 2, 3, 4] and loaders(rs, pairs=False).about['pairs'] is None

def test_faces_have_the_layout_that_everyone_knows(mirror):
    rs = read_points(get_data('face_keypoints', mirror=mirror))
    pairs = shape_pairs([r.points for r in rs])
    known = (0, 16), (8, 8), (17, 26), (27, 27), (31, 35), (36, 45), (37, 44), (39, 42), (41, 46), (48, 54), (60, 64), (57, 57)
    for a,b in known: assert pairs[a] == b and pairs[b] == a

class Knows(torch.nn.Module):
    "A network that always finds the same points."
    def __init__(self, found):
        super().__init__()
        self.found = torch.nn.Parameter(found)
    def forward(self, x): return self.found.expand(len(x), -1, -1)

@pytest.mark.parametrize('method', ['squish', 'pad'])
def test_predict_gives_pixels_of_the_original(method, tmp_path):
    learn = learner(dls=loaders(method=method))
    for r,(x,y) in zip(dots().valid, learn.dls.valid_ds):
        xy = learn.dls.valid.after_item((x, y))[1].as_subclass(torch.Tensor)
        learn.model = Knows(torch.cat([xy.nan_to_num(), torch.where(xy[:, :1].isnan(), -4., 4.)], -1)[None])
        facts = learn.predict(r.image).to_dict()
        assert facts['names'] == NAMES and len(facts['points']) == 3
        for (a,b,score),(px,py,v) in zip(facts['points'], r.points):
            assert (score > .5) == (v > 0)
            if v: assert (a, b) == pytest.approx((px, py), abs=1e-3)
    r.image.save(tmp_path/'a.png')
    one,many = learn.predict(tmp_path/'a.png'),learn.predict([r.image, tmp_path/'a.png'])
    assert one.to_dict() == many[1].to_dict() and one._repr_png_()[:4] == b'\x89PNG'

def test_it_learns_and_says_what_is_missing():
    rs = dots(80, sizes=((48, 48),))
    learn = learner(dls=loaders(rs, size=48, bs=12, augment=.3))
    learn.fit_one_cycle(10, 1e-2)
    assert learn.results['pck'] > .9 and learn.results['error'] < .08
    facts = learn.predict([r.image for r in rs.valid])
    right = [(p[2] > .5) == (q[2] > 0) for o,r in zip(facts, rs.valid) for p,q in zip(o.points, r.points)]
    assert np.mean(right) > .9

def test_metrics():
    true,guess = torch.rand(6, 4, 2)-.5,torch.rand(6, 4, 2)-.5
    e = point_errors(guess, true, (64, 32))
    px = torch.tensor([32., 16.])
    assert torch.allclose(e.float(), ((guess-true)*px).norm(dim=-1)/((true.amax(1)-true.amin(1))*px).amax(-1)[:, None])
    m = PCK(.5)
    m.reset()
    m.errors = [e]
    assert m.value == pck(guess*px, true*px, ((true.amax(1)-true.amin(1))*px).amax(-1), .5) == (e <= .5).float().mean()
    m.errors = [e, torch.full((2, 4), torch.nan)]
    assert m.value == share_near(e, .5) and PointError.value.fget(m) == pytest.approx(e.mean().item())
    lonely = torch.tensor([[[0., 0.], [torch.nan]*2]])
    assert point_errors(lonely+.5, lonely, (64, 32))[0, 0] == pytest.approx(np.hypot(16, 8)/64)
    assert PCK.name == 'pck' and PointError.name == 'error'

def test_with_mirror():
    preds = torch.rand(2, 3, 3)
    mirrored = preds[:, [1, 0, 2]]*torch.tensor([-1., 1., 1.])
    assert torch.allclose(PointLoss().with_mirror(preds, mirrored, dict(pairs=[1, 0, 2])), preds)
    assert PointLoss().with_mirror(preds, mirrored, {}) is preds

def test_drawing():
    learn = learner()
    learn.dls.show_batch(max_n=2)
    learn.show_results(max_n=2)
    x,facts = torch.rand(3, 20, 40),dict(points=[[1, 2, .9], [30, 10, .8], [0, 0, .1]])
    ax = show_points(x, facts, about=dict(lines=[(0, 1)]))
    assert [len(c.get_offsets()) for c in ax.collections] == [3] and len(ax.lines) == 1
    assert np.isnan(np.asarray(ax.collections[0].get_offsets()[2], float)).all()
    assert len(show_points(x, facts, pred=facts).lines) == 3

def test_block():
    dls = keypoints_block(size=32).dataloaders(dots(), bs=4, device='cpu')
    learn = learner(dls=dls)
    assert learn.predict(dots()[0].image).to_dict().keys() == {'points'}

def test_what_is_refused():
    def records(**kw): return [Record(Image.new('RGB', (20, 20)), **kw) for _ in range(4)]
    with pytest.raises(DataError, match='pose_dls'): loaders(records(points=[(1, 1, 2)], boxes=[[0, 0, 9, 9]]))
    with pytest.raises(DataError, match='no points.*read_points'): loaders(records(label='cat'))
    with pytest.raises(DataError, match='no records'): loaders([])
    with pytest.raises(DataError, match='has 2 points and not 1.*v = 0'): loaders(records(points=[(1, 1, 2)])+records(points=[(1, 1, 2), (2, 2, 2)]))
    with pytest.raises(DataError, match='has 3 points and not 2'): loaders(names=['a', 'b'])
    for pairs in ([0, 1], [1, 2, 0], [0, 1, 3], [0, 1, 'a']):
        with pytest.raises(DataError, match='each of 3 points'): loaders(pairs=pairs)
    with pytest.raises(NotFound, match='method for points'): loaders(method='crop')
    with pytest.raises(NotFound, match='Did you mean .heatmap'): learner('heatmaps')
    with pytest.raises(TypeError, match='Did you mean size'): loaders(sise=3)
    with pytest.raises(DataError, match='keypoints_dls'): learner(dls=classification_dls(records(label='cat')+records(label='dog'), size=32, bs=2, device='cpu'))
