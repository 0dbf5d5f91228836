"Average precision is COCO's: equal to its own program on random and on real cases."
import numpy as np, pytest
from learnkit.core import DataError
from learnkit.data.formats import read_coco
from learnkit.data.objects import decode_runs, encode_runs
from learnkit.data.sources import get_data
from learnkit.train.metrics import OKS_SIGMAS, average_precision, box_iou, mask_iou, oks, pck, point_distances, share_near

def coco_program(): return pytest.importorskip('pycocotools', reason='pycocotools is not installed (extra dev)')

def theirs(targets, preds, kind, size=(200, 200), n_points=17):
    "The twelve (or ten) numbers of pycocotools."
    coco_program()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    h,w = size
    def shape(m): return {'size':list(m.shape), 'counts':encode_runs(m)['counts']}
    notes,res = [],[]
    for i,t in enumerate(targets, 1):
        for k,(b,c) in enumerate(zip(t['boxes'], t['labels'])):
            o = dict(id=len(notes)+1, image_id=i, category_id=int(c), bbox=[b[0], b[1], b[2]-b[0], b[3]-b[1]], area=float(t['areas'][k]), iscrowd=int(t['crowd'][k]))
            if 'masks' in t: o['segmentation'] = shape(t['masks'][k])
            if 'points' in t: o |= dict(keypoints=np.ravel(t['points'][k]).tolist(), num_keypoints=int((np.asarray(t['points'][k])[:,2] > 0).sum()))
            notes.append(o)
    for i,p in enumerate(preds, 1):
        for k,(b,c,s) in enumerate(zip(p['boxes'], p['labels'], p['scores'])):
            o = dict(image_id=i, category_id=int(c), score=float(s))
            if kind == 'boxes': o['bbox'] = [b[0], b[1], b[2]-b[0], b[3]-b[1]]
            if kind == 'masks': o['segmentation'] = shape(p['masks'][k])
            if kind == 'points': o['keypoints'] = np.ravel(p['points'][k]).tolist()
            res.append(o)
    gt = COCO()
    gt.dataset = dict(images=[dict(id=i, height=h, width=w) for i in range(1, len(targets)+1)], annotations=notes,
        categories=[dict(id=int(c), name=str(c)) for c in sorted({c for t in targets for c in t['labels']})])
    gt.createIndex()
    e = COCOeval(gt, gt.loadRes(res), dict(boxes='bbox', masks='segm', points='keypoints')[kind])
    e.evaluate()
    e.accumulate()
    e.summarize()
    return e.stats

def ours(targets, preds, kind):
    s = average_precision(preds, targets, kind, sizes=True, engine='own')
    return [s.mAP, s.mAP50, s.mAP75, *(s.mean(area=o) for o in s.areas[1:])]

def same(a, b): # theirs has -1 where we have nan
    return np.allclose(np.nan_to_num(np.asarray(a, float), nan=-1), np.asarray(b)[:len(a)], atol=1e-4)

def scene(rng, n_pictures=12, n_classes=3, crowd=True):
    "Random boxes as the truth, and the same boxes shaken, with some lost and some invented."
    targets,preds = [],[]
    for _ in range(n_pictures):
        n = rng.randint(0, 9)
        lo = rng.rand(n, 2)*120
        boxes = np.concatenate([lo, lo+2+rng.rand(n, 2)**2*78], 1).round(2)
        labels = rng.randint(1, n_classes+1, n)
        targets.append(dict(boxes=boxes, labels=labels, crowd=(rng.rand(n) < .15*crowd), areas=(boxes[:,2:]-boxes[:,:2]).prod(1)*(.5+.5*rng.rand(n))))
        twice = np.repeat(np.arange(n), rng.randint(0, 4, n))
        new = boxes[twice]+rng.randn(len(twice), 4)*rng.choice([.5, 3, 12], (len(twice), 1))
        new = np.concatenate([new, boxes[:2]*.9])
        new = np.concatenate([np.minimum(new[:,:2], new[:,2:]), np.maximum(new[:,:2], new[:,2:])+1], 1)
        lab = np.concatenate([np.where(rng.rand(len(twice)) < .85, labels[twice], rng.randint(1, n_classes+1, len(twice))), labels[:2]])
        preds.append(dict(boxes=new, labels=lab, scores=rng.rand(len(new)).round(2))) # equal scores occur
    return targets,preds

@pytest.mark.parametrize('seed', range(6))
def test_boxes_as_pycocotools(seed):
    targets,preds = scene(np.random.RandomState(seed))
    assert same(ours(targets, preds, 'boxes'), theirs(targets, preds, 'boxes'))

def filled(boxes, size=200):
    y,x = np.mgrid[:size, :size]
    return [((x+.5-(b[0]+b[2])/2)**2/max(1, (b[2]-b[0])/2)**2 + (y+.5-(b[1]+b[3])/2)**2/max(1, (b[3]-b[1])/2)**2) <= 1 for b in boxes]

@pytest.mark.parametrize('seed', range(3))
def test_masks_as_pycocotools(seed):
    targets,preds = scene(np.random.RandomState(seed), 6)
    for o in (*targets, *preds): o['masks'] = filled(o['boxes'])
    for t in targets: t['areas'] = [m.sum() for m in t['masks']]
    assert same(ours(targets, preds, 'masks'), theirs(targets, preds, 'masks'))

@pytest.mark.parametrize('seed', range(3))
def test_points_as_pycocotools(seed):
    rng = np.random.RandomState(seed)
    targets,preds = scene(rng, n_classes=1, crowd=False)
    def points(b, shake):
        p = b[:2]+rng.rand(17, 2)*(b[2:]-b[:2])
        return np.concatenate([p+rng.randn(17, 2)*shake, rng.randint(0, 3, (17, 1))], 1).round(3)
    for t,p in zip(targets, preds):
        t['points'] = [points(b, 0)*(rng.rand() < .85) for b in t['boxes']]
        p['points'] = [(t['points'][rng.randint(len(t['points']))]+rng.randn(17, 3)*[2, 2, 0] if len(t['points']) else points(b, 1)) for b in p['boxes']]
        for o in p['points']: o[:,2] = 1
    for p in preds:
        xy = np.asarray(p['points']).reshape(-1, 17, 3)[...,:2]
        p['areas'] = (xy.max(1)-xy.min(1)).prod(-1) if len(xy) else []
    assert same(ours(targets, preds, 'points'), theirs(targets, preds, 'points'))

@pytest.mark.parametrize('engine', ['faster_coco_eval', 'pycocotools'])
@pytest.mark.parametrize('kind', ['boxes', 'masks', 'points'])
def test_other_engines_say_the_same(kind, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed (extra dev)')
    rng = np.random.RandomState(5)
    targets,preds = scene(rng, 8, crowd=kind != 'points')
    for o in (*targets, *preds):
        if kind == 'masks': o['masks'] = filled(o['boxes'])
        if kind == 'points': o['points'] = [np.concatenate([b[:2]+np.linspace(0, 1, 17)[:,None]*(b[2:]-b[:2])+rng.randn(17, 2), np.full((17, 1), 2)], 1) for b in o['boxes']]
        if kind == 'masks' and 'areas' in o: o['areas'] = [m.sum() for m in o['masks']]
    for p in preds:
        if kind == 'points': p['areas'] = [np.ptp(np.asarray(o)[:,:2], 0).prod() for o in p['points']]
    a,b = (average_precision(preds, targets, kind, sizes=True, engine=o) for o in ('own', engine))
    assert a.mAP > 0
    assert np.allclose(a.precision, b.precision, atol=1e-4) and np.allclose(a.recall, b.recall, atol=1e-4)

def test_real_boxes_and_masks(mirror):
    "The real annotations of COCO, shaken, with crowds."
    rng,targets,preds = np.random.RandomState(0),[],[]
    rs = [r for r in read_coco(get_data('coco', mirror=mirror)).valid][:40]
    number = {o:i for i,o in enumerate(sorted({l for r in rs for l in r.labels}), 1)}
    for r in rs:
        boxes,labels = np.asarray(r.boxes).reshape(-1, 4),np.asarray([number[o] for o in r.labels], int)
        targets.append(dict(boxes=boxes, labels=labels, crowd=np.asarray(r.crowd, bool), areas=(boxes[:,2:]-boxes[:,:2]).prod(1)))
        keep = rng.rand(len(boxes)) < .8
        preds.append(dict(boxes=boxes[keep]+rng.randn(keep.sum(), 4)*2, labels=labels[keep], scores=rng.rand(keep.sum())))
    assert same(ours(targets, preds, 'boxes'), theirs(targets, preds, 'boxes'))

def test_runs_are_those_of_pycocotools():
    coco_program()
    from pycocotools import mask as M
    rng = np.random.RandomState(0)
    for _ in range(5):
        m = rng.rand(37, 53) < rng.rand()
        assert M.encode(np.asfortranarray(m.astype(np.uint8)))['counts'].decode() == encode_runs(m)['counts']
        assert np.array_equal(decode_runs(encode_runs(m)), m)

def test_by_hand():
    t = [dict(boxes=[[0, 0, 10, 10]], labels=['a']), dict(boxes=[], labels=[])]
    assert average_precision([dict(boxes=[[0, 0, 10, 10]], labels=['a'], scores=[.9]), dict(boxes=[], labels=[], scores=[])], t).mAP == 1
    worse = average_precision([dict(boxes=[[0, 0, 10, 10]], labels=['a'], scores=[.5]), dict(boxes=[[0, 0, 5, 5]], labels=['a'], scores=[.9])], t)
    assert worse.mAP == pytest.approx(.5) and worse.per_class == {'a':pytest.approx(.5)}
    none = average_precision([dict(boxes=[], labels=[], scores=[])]*2, t)
    assert none.mAP == 0 and np.isnan(average_precision([dict(boxes=[], labels=[], scores=[])], t[1:]).mAP)
    with pytest.raises(DataError, match='1 pictures, and the truth of 2'): average_precision(t[:1], t)

def test_overlaps():
    assert box_iou([[0, 0, 2, 2]], [[1, 1, 3, 3], [0, 0, 4, 4]], [False, True]) == pytest.approx(np.array([[1/7, 1]]))
    a = np.zeros((2, 4, 4), bool)
    a[0,:2],a[1,:,:2] = True,True
    assert mask_iou(a, a) == pytest.approx(np.array([[1, 1/3], [1/3, 1]])) and mask_iou([], a).shape == (0, 2)
    p = np.ones((1, 17, 3))
    assert oks(p, p, [100])[0,0] == 1 and oks(p+[1, 0, 0], p, [100], OKS_SIGMAS*100)[0,0] > .99
    with pytest.raises(DataError, match='3 sigmas for 17'): oks(p, p, [1], [1, 2, 3])

def test_pck():
    true = np.array([[[0, 0, 1], [10, 10, 1], [20, 20, 0]]])
    far = point_distances([[[0, 1], [10, 14], [0, 0]]], true, 20)
    assert far[0,:2].tolist() == [.05, .2] and np.isnan(far[0,2]) and share_near(far) == .5 and share_near(far, .2) == 1
    assert pck([[[0, 1], [10, 14], [0, 0]]], true, 20) == .5 and pck([[[0, 1], [10, 14], [0, 0]]], true, 20, at=.2) == 1
    unknown = np.where(true[...,2:] > 0, true[...,:2], np.nan)
    assert np.array_equal(point_distances([[[0, 1], [10, 14], [0, 0]]], unknown, [20]), far, equal_nan=True)
    lost = point_distances([[[0, 0], [np.nan]*2, [np.nan]*2]], true, 20)
    assert lost[0,:2].tolist() == [0, np.inf] and np.isnan(lost[0,2]) and share_near(lost) == .5
    assert np.isnan(share_near(np.full((2, 3), np.nan))) and np.isnan(share_near([]))
