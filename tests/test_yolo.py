'Our one-stage detector: the contract in all its forms, odd pictures, and that it learns.'
from functools import partial
import pytest, torch
from fastai.vision.core import TensorBBox, TensorImage, TensorMultiCategory
from torchvision.ops import box_iou
from learnkit.core import DataError
from learnkit.models.detect import DETECTORS, detector
from learnkit.models.yolo import Yolo, YoloNeck, assign_places, best_boxes, edges_to_boxes, map_places, yolo_losses

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

plain = partial(detector, 'yolo', body='small', pretrained=False, width=16, depth=1)
BOXES = torch.tensor([[[-.8,-.6,.1,.2], [.2,.1,.9,.9]], [[-.5,-.5,.5,.5], [0,0,0,0]]])
LABELS = torch.tensor([[1,2], [2,0]])

def fits(found, b, most, n_classes):
    boxes,labels,scores = found
    assert boxes.shape == (b,most,4) and labels.shape == scores.shape == (b,most)
    assert labels.dtype == torch.int64 and scores.dtype == boxes.dtype == torch.float32
    assert boxes.abs().max() <= 1 and scores.min() >= 0 and scores.max() <= 1 and labels.min() >= 0 and labels.max() <= n_classes
    assert (scores[:,:-1] >= scores[:,1:]).all() and ((labels == 0) == (scores == 0)).all() and (boxes[labels == 0] == 0).all()

def right(losses):
    assert losses.keys() == {'classes','boxes'}
    for o in losses.values(): assert o.shape == () and o.dtype == torch.float32 and o.isfinite()

def test_contract():
    net,x = plain(2, most=7),torch.randn(2, 3, 64, 96)
    assert 'yolo' in DETECTORS and isinstance(net, Yolo) and net.arch == 'yolo' and net.most == 7
    assert net.body.reductions == [2,4,8,16]
    losses = net.train()(x, BOXES, LABELS)
    right(losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    found = net(x)
    fits(found, 2, 7, 2)
    again,losses = net(x, BOXES, LABELS)
    right(losses)
    for a,b in zip(found, again): assert torch.equal(a, b)
    with pytest.raises(DataError, match='objects'): net.train()(x)
    with pytest.raises(TypeError, match='widht'): plain(2, widht=8)

def test_eval_leaves_no_trace():
    net,x = plain(2).eval(),torch.randn(2, 3, 64, 64)
    before = {k:v.clone() for k,v in net.state_dict().items()}
    first,second = (net(x, BOXES, LABELS)[1] for _ in range(2))
    assert first == second and all(torch.equal(v, before[k]) for k,v in net.state_dict().items()) and not net.training

def test_one_pass():
    net,calls = plain(2).eval(),[]
    net.body.body.register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(1, 3, 64, 64), BOXES[:1], LABELS[:1])
    assert len(calls) == 1

@pytest.mark.parametrize('h,w', [(64,64), (50,75), (97,33), (20,200), (9,5)])
@pytest.mark.parametrize('n_classes', [1, 80])
def test_odd_sizes(h, w, n_classes):
    net,x = plain(n_classes, most=20),torch.randn(2, 3, h, w)
    right(net(x, BOXES, LABELS.clamp(max=n_classes)))
    net.min_score = 0.
    fits(net.eval()(x), 2, 20, n_classes)

def test_no_objects():
    net,x = plain(2),torch.randn(2, 3, 64, 64)
    flat,nan = torch.tensor([[[.1,.1,.1,.9], [.5,.5,.51,.51]]]*2),torch.full((2,1,4), float('nan'))
    for boxes,labels in (BOXES, LABELS*0), (BOXES[:,:1]*0, LABELS[:,:1]*0), (flat, LABELS.clamp(min=1)), (nan, LABELS[:,:1]):
        net.zero_grad()
        losses = net(x, boxes, labels)
        right(losses)
        assert losses['boxes'] == 0 and losses['classes'] > 0
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    half = net(x, BOXES, LABELS*torch.tensor([[1], [0]]))
    right(half)
    assert half['boxes'] > 0

def test_degenerate_boxes_are_no_targets():
    net,x = plain(2).eval(),torch.randn(2, 3, 64, 64)
    more = torch.cat([BOXES, torch.tensor([[[.3,.3,.3,.8]], [[.9,.9,.2,.2]]])], 1)
    a,b = net(x, BOXES, LABELS)[1],net(x, more, torch.cat([LABELS, LABELS[:,:1]], 1))[1]
    assert a == b

def test_subclasses_and_bfloat16():
    net,x = plain(2).eval(),torch.randn(2, 3, 64, 64)
    known = net(x, BOXES, LABELS)
    dressed = net(TensorImage(x), TensorBBox(BOXES), TensorMultiCategory(LABELS))
    for a,b in zip((*known[0], *known[1].values()), (*dressed[0], *dressed[1].values())): assert type(b) is torch.Tensor and torch.equal(a, b)
    with torch.autocast('cpu', torch.bfloat16): found,losses = net(x, BOXES, LABELS)
    fits(found, 2, 100, 2)
    right(losses)
    for k,v in losses.items(): assert v.item() == pytest.approx(known[1][k].item(), rel=.05)
    with torch.autocast('cpu', torch.bfloat16): losses = net.train()(x, BOXES, LABELS)
    right(losses)
    sum(losses.values()).backward()

@pytest.mark.parametrize('body', ['tiny', 'resnet18', 'lenet5', 'vit_tiny_patch16_224', 'squeezenet1_1'])
def test_any_body(body):
    net,x = plain(2, body=body),torch.randn(2, 3, 64, 96)
    right(net(x, BOXES, LABELS))
    fits(net.eval()(x), 2, 100, 2)
    mids,sizes = net.places(x)[2:]
    assert mids.min() > 0 and (mids-sizes/2 < torch.tensor([96,64])).all() and (mids+sizes/2 > torch.tensor([90,58])).all(1).any()

@pytest.mark.parametrize('n_in', [1, 4])
def test_colours(n_in): right(plain(1, n_in=n_in)(torch.randn(2, n_in, 64, 64), BOXES, LABELS.clamp(max=1)))

@pytest.mark.parametrize('steps', [(), 8, 'abc', (0,), (-8, 16), (8.5,), (8, 10**300), (True,), None])
def test_steps_that_make_no_sense(steps):
    with pytest.raises(DataError, match='whole numbers of pixels'): plain(2, steps=steps)

def test_steps():
    net = plain(2, steps=(4,8,16,32,64)).eval()
    assert len({tuple(o.tolist()) for o in net.places(torch.randn(1, 3, 64, 64))[3]}) == 5
    assert [o.shape[-1] for o in YoloNeck([8], [16], 4, (4,16,32))([torch.randn(1, 8, 4, 4)])] == [16,4,2]

def test_places():
    maps = [torch.zeros(1, 1, 7, 10), torch.zeros(1, 1, 4, 5)]
    mids,sizes = map_places(maps, 50, 75, (8,16))
    assert mids[0].tolist() == [4,4] and mids[11].tolist() == [12,12] and mids[70].tolist() == [8,8]
    assert sizes[[0,-1]].tolist() == [[8,8], [16,16]]
    assert map_places(maps[1:], 40, 60, (16,))[1][0].tolist() == [12,10] # the body scaled the picture
    boxes = edges_to_boxes(torch.tensor([1,2,3,4.]).expand(90, 4), mids, sizes)
    assert boxes[0].tolist() == [-4,-12,28,36]

def test_assignment():
    mids,sizes = map_places([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], 64, 64, (8,16))
    boxes = edges_to_boxes(torch.ones(80, 4)*1.5, mids, sizes)
    scores = torch.full((80,3), .01)
    true = dict(boxes=torch.tensor([[2,2,30,30.], [10,10,60,60], [41,41,43,43]]), labels=torch.tensor([1,3,2]))
    place,obj,quality,share = assign_places(scores, boxes, mids, sizes, true, k=4)
    assert len(place.unique()) == len(place) <= 12 and set(obj.tolist()) == {0,1,2} # one object for a place, and none without
    assert ((quality > 0) & (quality <= 1) & (share > 0) & (share <= 1)).all()
    overlap = box_iou(true['boxes'], boxes)
    for i in range(3): assert share[obj == i].max() == 1 and quality[obj == i].max() == overlap[i,place[obj == i]].max()
    best = place[obj == 0][0]
    scores[best+1,0] = .9 # a sure neighbour takes over
    place,obj,_,share = assign_places(scores, boxes, mids, sizes, true, k=4)
    assert (share[place == best+1] == 1).all() and (place == best+1).any()
    twin = dict(boxes=true['boxes'][[0,0]], labels=true['labels'][[0,0]])
    assert set(assign_places(scores, boxes, mids, sizes, twin)[1].tolist()) == {0,1}

def test_tiny_objects_are_learned():
    mids,sizes = map_places([torch.zeros(1, 1, 8, 8)], 64, 64, (8,))
    boxes,scores = edges_to_boxes(torch.full((64,4), .5), mids, sizes),torch.full((64,1), .01)
    for xy in torch.rand(50, 2)*60:
        true = dict(boxes=torch.cat([xy, xy+1.5])[None], labels=torch.tensor([1]))
        assert len(assign_places(scores, boxes, mids, sizes, true)[0]) >= 1

def test_losses_know_what_is_right():
    mids,sizes = map_places([torch.zeros(1, 1, 8, 8)], 64, 64, (8,))
    true = [dict(boxes=torch.tensor([[8,8,40,40.]]), labels=torch.tensor([2]))]
    boxes = true[0]['boxes'].expand(1, 64, 4)
    sure = torch.full((1,64,2), -9.)
    wrong = yolo_losses(sure, boxes, mids, sizes, true)
    assert wrong['boxes'] == pytest.approx(0, abs=1e-5)
    place = assign_places(sure[0].sigmoid(), boxes[0], mids, sizes, true[0])[0]
    sure[0,place,1] = 9
    good = yolo_losses(sure, boxes, mids, sizes, true)
    assert good['classes'] < .05 < wrong['classes']
    worse = yolo_losses(sure, boxes-6, mids, sizes, true)
    assert worse['boxes'] > .3
    one,two = (yolo_losses(sure, boxes-6, mids, sizes, true, weights=(0.,o)) for o in (1.,2.))
    assert two['classes'] == 0 and two['boxes'] == pytest.approx(2*one['boxes'].item())

def test_best_boxes():
    boxes = torch.tensor([[0,0,10,10.], [1,0,11,10], [0,0,10,10], [30,30,40,40]])
    scores = torch.tensor([[.5,.001], [.6,.0], [.0,.4], [.2,.3]])
    found = best_boxes(scores, boxes, across=1)
    assert found['labels'].tolist() == [1,2,2,1] and found['scores'].tolist() == pytest.approx([.6,.4,.3,.2])
    assert found['boxes'][0].tolist() == [1,0,11,10]
    assert len(best_boxes(scores, boxes, most=2)['labels']) == 2 and len(best_boxes(scores, boxes, overlap=.9)['labels']) == 5
    none = best_boxes(scores, boxes, min_score=.9)
    assert none['boxes'].shape == (0,4) and none['labels'].dtype == torch.int64

def test_one_animal_is_not_two():
    "Of findings of different classes in nearly the same box only the surest keeps its score; what shares less of the box is left alone."
    boxes = torch.tensor([[0,0,10,10.], [0,1,10,10], [0,0,10,5.5], [20,0,30,10]])
    scores = torch.tensor([[.5,.6,.4], [.55,.0,.0], [.0,.0,.3], [.2,.0,.0]])
    def _found(**kw): return [found[o].tolist() for found in [best_boxes(scores, boxes, **kw)] for o in ('labels','scores','boxes')]
    labels,sure,places = _found()
    assert labels == [2,3,1,1,3] and sure == pytest.approx([.6,.3,.2,.55/4,.1]) and places == boxes[[0,2,3,1,0]].tolist()
    assert [o[:2] for o in _found(most=2)] == [labels[:2],sure[:2],places[:2]]
    labels,sure,_ = _found(across=1)
    assert labels == [2,1,3,3,1] and sure == pytest.approx([.6,.55,.4,.3,.2])
    assert _found(across=.5)[1] == pytest.approx([.6,.2,.55/4,.1,.075])
    net,x = plain(3, min_score=0., most=50).eval(),torch.randn(1, 3, 64, 64)
    doubted = net(x)
    net.across = 1
    assert doubted[2].sum() < net(x)[2].sum() and plain(3, across=.7).across == .7
    fits(doubted, 1, 50, 3)

def test_learns():
    net,x = plain(2),torch.randn(2, 3, 64, 64)*.1
    for i,(bs,ls) in enumerate(zip(BOXES, LABELS)):
        for (x0,y0,x1,y1),l in zip(((bs+1)*32).int().tolist(), ls.tolist()): x[i,:l,y0:y1,x0:x1] += l
    opt,first = torch.optim.Adam(net.parameters(), 5e-3),None
    for _ in range(80):
        losses = net(x, BOXES, LABELS)
        first = first or {k:v.item() for k,v in losses.items()}
        opt.zero_grad()
        sum(losses.values()).backward()
        opt.step()
    assert all(losses[k] < .5*first[k] for k in first)
    boxes,labels,_ = net.eval()(x)
    for i,n in (0,2), (1,1):
        overlap = box_iou(BOXES[i,:n], boxes[i,:n])
        assert overlap.amax(1).min() > .6 and (labels[i,overlap.argmax(1)] == LABELS[i,:n]).all()
