"Losses and scores of masks: equal to PyTorch, fastai and a count by hand, also for what is rare (nothing that counts, sure answers, unequal batches)."
import warnings
import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import DiceLoss
from fastai.metrics import DiceMulti, JaccardCoeffMulti
from fastai.vision.core import TensorImage, TensorMask
from torch import nn
from learnkit.core import DataError, NotFound
from learnkit.data.masks import IGNORE
from learnkit.train import pixels
from learnkit.train.pixels import (BoundaryF, ClassIoU, MeanDice, MeanIoU, PixelAccuracy, PixelLoss, boundary_f, confusion, dice_loss, dice_of,
    focal_loss, iou_of, pixel_accuracy_of, pixel_cross_entropy, pixel_weights)

C = 4

@pytest.fixture
def batch():
    "Logits (3, C, 9, 7), masks with pixels that count for nothing, weights."
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, C, (3, 9, 7), generator=g)
    y[0,:3],y[1,4,4] = IGNORE,IGNORE
    return torch.randn(3, C, 9, 7, generator=g), y, torch.tensor([.5, 1., 3., 2.])

def sure(y, by=40.): return F.one_hot(y.where(y != IGNORE, 0), C).movedim(-1, 1)*by

# Losses

@pytest.mark.parametrize('weighted', [False, True])
def test_cross_entropy_and_its_gradient_are_those_of_torch(batch, weighted):
    x,y,w = batch
    w = w if weighted else None
    a,b = (x.clone().requires_grad_() for _ in range(2))
    ours,theirs = pixel_cross_entropy(a, TensorMask(y), w),nn.CrossEntropyLoss(weight=w, ignore_index=IGNORE)(b, y)
    ours.backward(), theirs.backward()
    assert torch.allclose(ours, theirs) and torch.allclose(a.grad, b.grad, atol=1e-7) and type(ours) is torch.Tensor
    for o,one in zip(pixel_cross_entropy(x, y, w, reduction='none'), range(3)):
        assert torch.allclose(o, nn.CrossEntropyLoss(weight=w, ignore_index=IGNORE)(x[one:one+1], y[one:one+1]))

def test_focal_loss_is_the_formula_and_cross_entropy_for_gamma_0(batch):
    x,y,w = batch
    assert torch.allclose(focal_loss(x, y, 0, w), pixel_cross_entropy(x, y, w))
    ce = F.cross_entropy(x, y, ignore_index=IGNORE, reduction='none')
    assert torch.allclose(focal_loss(x, y), ((1-(-ce).exp())**2*ce)[y != IGNORE].mean())
    for gamma in (.5, 2):
        z = sure(y).requires_grad_()
        focal_loss(z, y, gamma).backward()
        assert z.grad.isfinite().all()

def by_hand(x, y, smooth):
    "The Dice loss of one group of pictures, class by class."
    p,lost = x.softmax(1).movedim(1, -1)[y != IGNORE],[]
    t = y[y != IGNORE]
    for c in range(x.shape[1]):
        if not (t == c).any() and not (p[:,c] > .5).any(): continue
        lost.append(1 - (2*p[t == c,c].sum()+smooth)/(p[:,c].square().sum()+(t == c).sum()+smooth))
    return torch.stack(lost).mean()

def test_dice_loss_is_the_formula(batch):
    x,y,_ = batch
    y[2] = y[2].clamp(max=2)
    x[2,3] -= 20
    y[0][y[0] == 3] = 0
    x[0,3,5,2] += 20
    for smooth in (1., .1):
        assert torch.allclose(dice_loss(x, y, smooth), by_hand(x, y, smooth))
        assert torch.allclose(dice_loss(x, y, smooth, reduction='none'), torch.stack([by_hand(x[i:i+1], y[i:i+1], smooth) for i in range(3)]))

def test_dice_loss_is_fastais_where_both_say_the_same(batch):
    x,y,_ = batch
    y = y.clamp(max=C-1)
    theirs = DiceLoss(smooth=1., square_in_union=True, reduction='mean')(x[:1], y[:1])
    assert torch.allclose(dice_loss(x[:1], y[:1]), theirs, atol=1e-6)

def test_dice_gradient(batch):
    x,y,w = batch
    x = x.double()[:,:,:4,:3].requires_grad_()
    loss = PixelLoss(1, 1, 1, weights=w)
    loss(x, y[:,:4,:3]).backward()
    at,eps = (2, 1, 3, 2),1e-2
    ends = []
    for s in (-eps, eps):
        z = x.detach().clone()
        z[at] += s
        ends.append(loss(z, y[:,:4,:3]))
    assert torch.allclose((ends[1]-ends[0])/(2*eps), x.grad[at].float(), atol=1e-4)

def test_extremes(batch):
    _,y,_ = batch
    right,wrong = sure(y),sure((y+1).where(y < C-1, 0))
    assert PixelLoss(1, 1, 1)(right, y) < 1e-6
    assert dice_loss(wrong, y) > .9 and torch.isfinite(PixelLoss(1, 1, 1)(wrong*1e4, y))

def test_pixels_that_do_not_count_have_no_gradient_and_no_say(batch):
    x,y,w = batch
    x.requires_grad_()
    loss = PixelLoss(1, 1, 1, weights=w)
    res = loss(x, y)
    res.backward()
    ignored = (y == IGNORE)[:,None].expand_as(x)
    assert not x.grad[ignored].any() and x.grad[~ignored].all()
    assert torch.allclose(loss(x.detach().masked_fill(ignored, 9.), y), res)
    z = x.detach().clone()
    z[0,0,0,0] = -torch.inf
    assert torch.allclose(loss(z, y), res)

@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_nothing_that_counts_costs_nothing(batch, reduction):
    x,y,w = batch
    x.requires_grad_()
    res = PixelLoss(1, 1, 1, weights=w, reduction=reduction)(x, torch.full_like(y, IGNORE))
    assert res.shape == (() if reduction == 'mean' else (3,)) and not res.any()
    res.sum().backward()
    assert x.grad is not None and not x.grad.any()
    y[1] = IGNORE
    each = PixelLoss(1, 1, 1, weights=w, reduction='none')(x, y)
    assert each.isfinite().all() and each[1] == 0 and each[0] > 0

def test_the_sum_is_the_sum(batch):
    x,y,w = batch
    a = PixelLoss(.5, 2, 3, weights=w, gamma=1, smooth=.5)
    assert torch.allclose(a(x, y), .5*pixel_cross_entropy(x, y, w) + 2*dice_loss(x, y, .5) + 3*focal_loss(x, y, 1, w))
    assert torch.allclose(PixelLoss(0, 1)(x, y), dice_loss(x, y))
    assert str(a) == '0.5 × cross entropy + 2 × Dice loss + 3 × focal loss (gamma 1) with class weights' and str(PixelLoss()) == 'cross entropy'

def test_batch_and_pictures_agree_where_each_counts_the_same(batch):
    x,y,_ = batch
    y = y.clamp(max=C-1)
    assert torch.allclose(PixelLoss(reduction='none')(x, y).mean(), PixelLoss()(x, y))

def test_layout_and_half_precision(batch):
    x,y,w = batch
    loss = PixelLoss(1, 1, 1, weights=w)
    full = loss(x, y)
    assert torch.allclose(loss(x.contiguous(memory_format=torch.channels_last), y), full)
    with torch.autocast('cpu', torch.bfloat16): half = loss(x.bfloat16(), y)
    assert half.dtype == torch.float32 and torch.allclose(half, loss(x.bfloat16().float(), y), atol=1e-6)
    with torch.autocast('cpu', torch.bfloat16): assert torch.allclose(loss(x, y), full, atol=1e-6)

def test_mass_is_what_the_mean_was_divided_by(batch):
    x,y,w = batch
    for loss in (PixelLoss(), PixelLoss(weights=w)):
        parts = [(loss(x[o], y[o]), loss.mass(y[o])) for o in (slice(1), slice(1, 3))]
        assert torch.allclose(sum(a*b for a,b in parts)/sum(b for _,b in parts), loss(x, y))
    assert 0 < PixelLoss().mass(torch.full_like(y, IGNORE)) < 1e-6

def test_what_does_not_fit_says_so(batch):
    x,y,_ = batch
    y[1,2,3] = 30
    with pytest.raises(DataError, match=r'stands 30, but there are 4 classes: 0 to 3, and 255 .* mask_map=\{30: .* ignore=30'): PixelLoss()(x, y)
    with pytest.raises(DataError, match='stands -1'): dice_loss(x, y.where(y != 30, -1))
    with pytest.raises(DataError, match=r'\(3, 4, 9, 7\) and masks of the shape \(3, 8, 7\)'): PixelLoss()(x, y[:,1:])
    with pytest.raises(DataError, match='Give one number a class'): PixelLoss(weights=[1, 2])(x, y.clamp(max=3))
    with pytest.raises(DataError, match='teaches nothing'): PixelLoss(0)
    with pytest.raises(NotFound, match='sum'): PixelLoss(reduction='sum')

def test_the_verbs_of_a_loss(batch):
    x,y,_ = batch
    loss = PixelLoss()
    p = loss.activation(TensorImage(x).bfloat16())
    assert p.dtype == torch.float32 and torch.allclose(p.sum(1), torch.ones(3, 9, 7))
    assert torch.equal(loss.decodes(x).long(), x.argmax(1)) and loss.decodes(x).dtype == torch.uint8
    assert torch.allclose(loss.with_mirror(p, p.flip(-1), {}), p) and loss.y_int

def test_weights_for_rare_classes():
    n = [900, 90, 10, 0]
    w = pixel_weights(n, 1)
    share = torch.tensor(n)*w
    assert torch.allclose(share[:3], share[0].expand(3)) and w[3] == 1 and torch.isclose(w[:3].mean(), torch.tensor(1.))
    assert torch.allclose(pixel_weights(n, 0), torch.ones(4)) and torch.isclose((pixel_weights(n)[2]/pixel_weights(n)[0])**2, torch.tensor(90.))
    with pytest.raises(DataError, match='No weights'): pixel_weights([0, 0])

# Scores

def test_confusion_is_the_count_by_hand():
    rng = np.random.default_rng(0)
    p,t = rng.integers(0, C, (3, 8, 5)),rng.integers(0, C, (3, 8, 5))
    t[0,:2] = IGNORE
    res = confusion(p.astype(np.uint8), t.astype(np.uint8), C)
    hand = np.zeros((C, C), int)
    for a,b in zip(t.ravel(), p.ravel()):
        if a != IGNORE: hand[a,b] += 1
    assert (res.numpy() == hand).all() and torch.equal(confusion(torch.tensor(p), torch.tensor(t), C), res)
    assert not confusion(p, np.full_like(t, IGNORE), C).any() and not confusion(p[:0], t[:0], C).any()

def test_confusion_refuses_what_is_no_class():
    with pytest.raises(DataError, match='stands 7'): confusion([[0]], [[7]], C)
    with pytest.raises(DataError, match='numbers 7 to 7'): confusion([[7]], [[0]], C)
    with pytest.raises(DataError, match='shape'): confusion([[1]], [[1, 2]], C)
    assert confusion([[255]], [[255]], C).sum() == 0

def test_scores_of_a_table():
    t = [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert torch.allclose(iou_of(t), torch.tensor([.75, 2/3, torch.nan]).double(), equal_nan=True)
    assert torch.allclose(dice_of(t), torch.tensor([6/7, .8, torch.nan]).double(), equal_nan=True)
    assert pixel_accuracy_of(t) == 5/6 and np.isnan(pixel_accuracy_of([[0, 0], [0, 0]]))

def edge_by_hand(p, t, c, radius):
    "Boundary F of one class, pixel by pixel."
    def edge(y):
        H,W = y.shape
        return [(i, j) for i in range(H) for j in range(W) if y[i,j] == c and any(
            0 <= k < H and 0 <= l < W and y[k,l] != c and y[k,l] != IGNORE for k,l in ((i-1, j), (i+1, j), (i, j-1), (i, j+1)))]
    a,b = edge(np.where(t == IGNORE, IGNORE, p)),edge(t)
    if not a and not b: return np.nan
    def share(o, q): return np.mean([any((i-k)**2+(j-l)**2 <= radius**2 for k,l in q) for i,j in o]) if o else 0
    u,v = share(a, b),share(b, a)
    return 2*u*v/(u+v) if u+v else 0

@pytest.mark.parametrize('radius', [0, 1, 1.5, 2.3])
def test_boundary_f_is_the_count_by_hand(radius):
    rng = np.random.default_rng(3)
    t = np.kron(rng.integers(0, 3, (2, 3, 3)), np.ones((1, 4, 4), int))
    p = np.roll(t, 1, 2)
    p[0,:3,:3],t[1,5:8] = 2,IGNORE
    hand = [np.nanmean([edge_by_hand(a, b, c, radius) for c in range(3)]) for a,b in zip(p, t)]
    assert np.allclose(boundary_f(p, t, 4, radius).numpy(), hand, atol=1e-6)

def test_boundary_f_of_plain_pictures():
    flat,t = torch.zeros(1, 20, 20).long(),torch.zeros(1, 20, 20).long()
    assert boundary_f(flat, t, 2).isnan().all()
    t[:,5:9] = 1
    assert boundary_f(flat, t, 2) == 0 and boundary_f(t, t, 2) == 1 and boundary_f(t.roll(1, 1), t, 2) == 1 and boundary_f(t.roll(2, 1), t, 2) < 1

# Scores of a learner

class Same(nn.Module):
    "A network that says what the picture says."
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.ones(1))
    def forward(self, x): return x*self.by

def learner(metrics, ignore=True, n=11, bs=4):
    "A learner that validates on `n` pictures, in batches of unequal size."
    g = torch.Generator().manual_seed(2)
    x,y = torch.randn(n, C, 12, 10, generator=g),torch.randint(0, 3, (n, 12, 10), generator=g)
    if ignore: y[:,:2] = IGNORE
    items = [(TensorImage(a), TensorMask(b)) for a,b in zip(x, y)]
    dls = DataLoaders(*(DataLoader(items, bs=bs, num_workers=0) for _ in range(2)))
    dls.vocab = ['sky', 'house', 'person', 'dog']
    learn = Learner(dls, Same(), loss_func=PixelLoss(), metrics=metrics)
    learn.logger = lambda *_: None
    return learn, x, y

@pytest.mark.parametrize('bs', [4, 64])
def test_metrics_of_batches_are_those_of_all_pictures(bs):
    learn,x,y = learner([PixelAccuracy(), MeanIoU(), MeanDice(), ClassIoU('person'), ClassIoU(1), BoundaryF(2)], bs=bs)
    t = confusion(x.argmax(1), y, C)
    wanted = [pixel_accuracy_of(t), iou_of(t).nanmean(), dice_of(t).nanmean(), iou_of(t)[2], iou_of(t)[1], boundary_f(x.argmax(1), y, C, 2).nanmean()]
    for _ in range(2): assert np.allclose(learn.validate()[1:], wanted)
    assert [o.name for o in learn.metrics] == ['accuracy', 'mIoU', 'dice', 'IoU person', 'IoU 1', 'boundary_f']
    assert all(torch.equal(o.counts, t) for o in learn.metrics[:5])

def test_only_the_first_counts(monkeypatch):
    calls,count = [],pixels.confusion
    monkeypatch.setattr(pixels, 'confusion', lambda *a: calls.append(1) or count(*a))
    learner([MeanIoU(), PixelAccuracy(), ClassIoU('dog')])[0].validate()
    assert len(calls) == 3

def test_scores_of_training_and_validation_do_not_mix():
    learn,x,y = learner([PixelAccuracy(), MeanIoU()])
    learn.recorder.train_metrics = True
    learn.fit(1, 0.)
    t = confusion(x.argmax(1), y, C)
    names,values = learn.recorder.metric_names,learn.recorder.values[-1]
    at = [i-1 for i,o in enumerate(names) if 'mIoU' in o]
    assert len(at) == 2 and np.allclose([values[i] for i in at], iou_of(t).nanmean())

def test_metrics_are_fastais_where_nothing_is_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        res = learner([MeanIoU(), JaccardCoeffMulti(), MeanDice(), DiceMulti()], ignore=False)[0].validate()
    assert np.isclose(res[1], res[2]) and np.isclose(res[3], res[4])

def test_a_metric_without_a_learner_of_its_own():
    learn,x,y = learner([MeanIoU()])
    m = PixelAccuracy()
    m.reset()
    assert m.value is None
    learn.xb,learn.yb,learn.pred = (x,),(TensorMask(y),),x
    m.accumulate(learn)
    assert m.value == pixel_accuracy_of(confusion(x.argmax(1), y, C))

def test_a_class_that_is_none_says_so():
    with pytest.raises(NotFound, match="no class 'persn'. Did you mean 'person'"): learner([ClassIoU('persn')])[0].validate()
    with pytest.raises(NotFound, match='no class 9'): learner([ClassIoU(9)])[0].validate()

def test_predictions_with_losses(batch):
    learn,x,y = learner([])
    preds,targs,losses = learn.get_preds(with_loss=True)
    assert torch.allclose(losses, PixelLoss(reduction='none')(x, y), atol=1e-6) and torch.allclose(preds, x.softmax(1), atol=1e-6)
    assert learn.loss_func.reduction == 'mean'
