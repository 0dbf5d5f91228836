"Boxes, shapes and points go from records through variation and a network back into pixels of the file."
import json, math, numpy as np
import pytest, torch
from PIL import Image
import learnkit.all as lk

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "Forty drawn scenes with everything known about their animals."
    return lk.read_coco(lk.write_doodle_scenes(tmp_path_factory.mktemp('scenes')/'s', n=40, size=96, seed=3))

def spots(n=24, size=(120, 80), seed=0):
    "Pictures (PIL) with one to three bright squares on grey, as records."
    rng,res = np.random.default_rng(seed),[]
    for i in range(n):
        a,boxes = np.full((size[1], size[0], 3), 90, np.uint8),[]
        for k in range(rng.integers(1, 3)):
            s = int(rng.integers(16, 30))
            x,y = int(k*size[0]//2 + rng.integers(0, size[0]//2-s)),int(rng.integers(0, size[1]-s))
            a[y:y+s,x:x+s] = (250, 40, 40)
            boxes.append([x, y, x+s, y+s])
        res.append(lk.Record(Image.fromarray(a), boxes=boxes, labels=['spot']*len(boxes)))
    return lk.Records(res)

class Knows(torch.nn.Module):
    "A network that gives `boxes` (N, 4) from -1 to 1 for every picture."
    def __init__(self, boxes):
        super().__init__()
        self.boxes,self.weight = torch.tensor(boxes),torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        n = len(self.boxes)
        return self.boxes.expand(len(x), n, 4), torch.ones(len(x), n).long(), torch.full((len(x), n), .9)

def overlap(a, b): return lk.box_iou(np.array([a], float), np.array([b], float))[0,0]

@pytest.mark.parametrize('method', ['squish', 'pad'])
def test_boxes_come_back_in_pixels_of_the_file(method, tmp_path):
    "Whatever the shape of a picture and the note of its camera, a box lies where the object is."
    a = np.full((60, 140, 3), 200, np.uint8)
    a[10:40,20:90] = 0
    notes = Image.Exif()
    notes[0x0112] = 6 # shown after a quarter turn
    Image.fromarray(a).rotate(90, expand=True).save(tmp_path/'turned.jpg', exif=notes, quality=95)
    assert lk.open_image(tmp_path/'turned.jpg').size == (140, 60)
    r = lk.Record(tmp_path/'turned.jpg', boxes=[[20, 10, 90, 40]], labels=['block'])
    dls = lk.detection_dls([r]*4, vocab=['block'], size=64, bs=2, method=method, augment=0, valid=.5)
    x,boxes,labels = dls.valid.one_batch()
    px = (boxes[0,0]+1)*32
    inside = x[0].mean(0)[int(px[1])+2:int(px[3])-1,int(px[0])+2:int(px[2])-1]
    assert labels.tolist() == [[1], [1]] and inside.max() < x[0].mean(0).max() and inside.std() < .1
    learn = lk.detection_learner(dls, precision='fp32', normalize=False)
    learn.model = Knows(boxes[0].tolist())
    p = learn.predict(tmp_path/'turned.jpg')
    assert np.allclose(p.boxes, [[20, 10, 90, 40]], atol=1.5) and p.labels == ['block']
    assert p.to_coco(7)[0]['bbox'] == pytest.approx([p.boxes[0][0], p.boxes[0][1], p.boxes[0][2]-p.boxes[0][0], p.boxes[0][3]-p.boxes[0][1]])
    assert p._repr_png_()[:4] == b'\x89PNG'

def test_targets_move_with_the_picture():
    "In varied pictures, the boxes are round the squares and the shapes are on them."
    rs = spots(32)
    for r in rs: r.masks = [[[x0, y0, x1-1, y0, x1-1, y1-1, x0, y1-1]] for x0,y0,x1,y1 in r.boxes]
    lk.set_seed(3)
    dls = lk.instance_dls(rs, size=96, bs=25, valid=.2, augment=lk.augment_tfms(1., rotate=0, warp=0, light=0, zoom=1.4, shrink=.6))
    x,boxes,labels,masks = (o.as_subclass(torch.Tensor) for o in dls.train.one_batch())
    red,n = x[:,0]-x[:,1] > .4,0
    for i in range(len(x)):
        assert ((masks[i] > 0) != red[i]).float().mean() < .06
        for k in range(len(labels[i])):
            if labels[i,k] <= 0: continue
            x0,y0,x1,y1 = ((boxes[i,k]+1)*48).tolist()
            ys,xs = np.nonzero(np.asarray(masks[i] == k+1))
            assert overlap([xs.min(), ys.min(), xs.max()+1, ys.max()+1], [x0, y0, x1, y1]) > .6
            n += 1
    assert n > 20

def test_what_has_left_the_picture_is_not_asked_for():
    m = torch.eye(3)[None].repeat(2, 1, 1)
    m[0,0,2] = 1.5 # the new picture shows what is to the right
    boxes,points = torch.tensor([[[-1., -1, 0, 0], [.4, -1, 1, 1]]]*2),torch.tensor([[[-1., 0], [.7, 0]]]*2)
    ys = [lk.TensorBBox(boxes), lk.TensorMultiCategory(torch.tensor([[1, 2]]*2)), lk.TensorPoint(points)]
    from learnkit.data.augment import _inside, _moved
    b,l,p = _inside([_moved(y, None, m) for y in ys])
    assert l.tolist() == [[0, 2], [1, 2]] and b[0,1].tolist() == pytest.approx([-1, -1, -.5, 1])
    assert p[0,0].isnan().all() and p[0,1].tolist() == pytest.approx([-.8, 0]) and not p[1].isnan().any()

def test_points_trade_names_in_a_mirror():
    tfm = lk.TrainingOnly(lk.aug_transforms(do_flip=True, max_rotate=0, max_zoom=1, max_lighting=0, max_warp=0), pairs=[1, 0, 2])
    x = lk.TensorImage(torch.rand(16, 3, 8, 8))
    points = lk.TensorPoint(torch.tensor([[[-.5, .2], [.6, .2], [.1, .9]]]*16))
    lk.set_seed(0)
    y,p = tfm((x, points), split_idx=0)
    turned = torch.tensor([torch.allclose(a.flip(-1), b, atol=1e-4) for a,b in zip(x, y)])
    assert 0 < turned.sum() < 16
    assert torch.allclose(p[~turned], points[~turned], atol=1e-5)
    assert torch.allclose(p[turned], torch.tensor([[-.6, .2], [.5, .2], [-.1, .9]]).expand(int(turned.sum()), 3, 2), atol=1e-5)

def test_pictures_without_objects_and_crowds(scenes):
    "Background is learned from, a crowd is no object and no mistake."
    rs = spots(12)
    rs[0].boxes,rs[0].labels = [],[]
    rs[1].crowd = [True]*len(rs[1].boxes)
    dls = lk.detection_dls(rs, size=64, bs=8, valid=lambda r: r in (rs[1], rs[2]))
    labels = dls.valid.one_batch()[2]
    assert (labels[0] <= 0).all() and (labels[0] < 0).any()
    learn = lk.detection_learner(dls, precision='fp32')
    learn.fit_one_cycle(1)
    assert all(math.isfinite(v) for v in learn.recorder.values[0][:2])
    truth = lk.true_facts([o[0] for o in dls.valid.one_batch()[1:]], (64, 64), dls.vocab)
    assert truth['crowd'] == [True]*len(rs[1].boxes)
    found = dict(truth, scores=[.9]*len(truth['boxes']))
    none = lk.average_precision([found], [truth])
    assert math.isnan(none.mAP) or none.mAP == 0

def test_what_is_sure_enough_to_be_shown(tmp_path):
    "The loss object's bound decides what `predict` says; average precision and `get_preds` keep what is below it."
    learn = lk.detection_learner(lk.detection_dls(spots(8), size=64, bs=4), path=tmp_path, precision='fp32')
    class Half(Knows):
        def forward(self, x, *targets):
            boxes,labels,scores = super().forward(x)
            scores = scores*torch.tensor([1., .4])
            return ((boxes, labels, scores), dict(none=self.weight.sum())) if targets else (boxes, labels, scores)
    learn.model,picture = Half([[-.5, -.5, 0, 0], [.1, .1, .6, .6]]),learn.dls.valid_ds.items[0].image
    assert learn.predict(picture).scores == pytest.approx([.9, .36])
    learn.loss_func.thresh = .5
    for p in learn.predict(picture),*learn.predict([picture, picture]): assert p.scores == pytest.approx([.9]) and len(p.boxes) == len(p.labels) == 1
    (boxes,labels,scores),_ = learn.get_preds()
    assert scores[0].tolist() == pytest.approx([.9, .36]) and (labels == 1).all()
    sizes = [(64, 64)]*len(boxes)
    assert [len(o['scores']) for o in learn.task.decode((boxes, labels, scores), learn.dls, sizes, thresh=0.)] == [2]*len(boxes)
    assert learn.interpret().facts[0]['scores'] == pytest.approx([.9])
    assert lk.ObjectLoss.thresh == .25 and lk.detection_learner(learn.dls, precision='fp32').loss_func.thresh == .25

def test_learning_spots_and_everything_after(tmp_path):
    "A small detector learns bright squares, and says so in the same words after a journey through a bundle."
    lk.set_seed(1)
    rs = spots(64)
    dls = lk.detection_dls(rs, size=96, bs=8)
    learn = lk.detection_learner(dls, path=tmp_path, precision='fp32')
    learn.fine_tune(5, 8e-3)
    assert learn.results['mAP50'] > .8, learn.results
    files = []
    for i,r in enumerate(spots(3, seed=9)):
        r.image.save(tmp_path/f'{i}.png')
        files.append((tmp_path/f'{i}.png', r.boxes))
    many = learn.predict([f for f,_ in files])
    best = [max(overlap(b, t) for b in p.boxes) for p,(_,boxes) in zip(many, files) for t in boxes if p.boxes]
    assert len(best) >= 3 and np.median(best) > .6
    again = lk.load_learner(learn.export('m.learnkit')).predict([f for f,_ in files])
    assert [p.to_dict() for p in many] == [p.to_dict() for p in again]
    (boxes,labels,scores),_ = learn.tta()
    assert boxes.shape[:2] == scores.shape and (scores[:,:-1] >= scores[:,1:]).all() and (labels >= 0).all()
    assert json.loads(json.dumps(many[0].to_dict())).keys() == {'boxes', 'labels', 'scores'}

def test_pictures_without_targets_make_batches_too(scenes):
    dls = lk.detection_dls(scenes, size=64, bs=8)
    learn = lk.detection_learner(dls, precision='fp32')
    files = [r.image for r in scenes[:5]]
    (boxes,labels,scores),targs = learn.get_preds(dl=dls.test_dl(files))
    known = learn.get_preds(dl=dls.test_dl(scenes[:5], with_labels=True))
    assert boxes.shape == (5, 100, 4) and labels.shape == scores.shape == (5, 100) and targs is None
    assert torch.equal(boxes, known[0][0]) and len(known[1]) == 2
    assert [len(o) for o in lk.instance_dls(scenes, size=64, bs=8).test_dl(files)] == [1]

def test_bad_targets_are_told():
    rs = spots(8)
    with pytest.raises(lk.DataError, match='has no masks of objects'): lk.instance_dls(rs)
    with pytest.raises(lk.DataError, match='have no objects'): lk.detection_dls([lk.Record(r.image, boxes=[], labels=[]) for r in rs])
    with pytest.raises(lk.NotFound, match='method for boxes'): lk.detection_dls(rs, method='crop')
    with pytest.raises(lk.DataError, match="The class 'spot' is not among dot"): lk.detection_dls(rs, vocab=['dot'])
    dls = lk.detection_dls(rs, size=64, bs=4)
    with pytest.raises(lk.NotFound, match="Did you mean 'retinanet'"): lk.detection_learner(dls, 'retinanett')
    with pytest.raises(TypeError, match='Did you mean body'): lk.detection_learner(dls, bodi='resnet18')

def test_what_a_network_learns_from_is_checked():
    rs = spots(8)
    dls = lk.detection_dls(rs, size=64, bs=4)
    with pytest.raises(lk.DataError, match='maskrcnn learns from boxes and masks'): lk.detection_learner(dls, 'maskrcnn')
    for r in rs: r.masks = [[[0, 0, 9, 0, 9, 9]] for _ in r.boxes]
    with pytest.raises(lk.DataError, match='yolo learns from boxes and nothing else'): lk.instance_learner(lk.instance_dls(rs, size=64, bs=4), 'yolo')

def test_a_whole_detector_of_torchvision(tmp_path, monkeypatch):
    "Its own body, its own normalisation, three groups; a bundle holds it, and its weights are looked for by their name."
    monkeypatch.setenv('LEARNKIT_OFFLINE', 'true')
    dls = lk.detection_dls(spots(8), size=96, bs=4)
    name = 'ssdlite320_mobilenet_v3_large'
    with pytest.raises(lk.OfflineError, match=name): lk.detection_learner(dls, name)
    learn = lk.detection_learner(dls, name, pretrained=False, path=tmp_path, precision='fp32')
    assert learn.arch == name and not any(isinstance(o, lk.Normalize) for o in learn.dls.valid.after_batch.fs)
    groups = learn.splitter(learn.model)
    assert len(groups) == 3 and sum(map(len, groups)) == len(list(learn.model.parameters()))
    learn.fit_one_cycle(1)
    pic = spots(1)[0].image
    a,b = learn.predict(pic),lk.load_learner(learn.export('whole.learnkit')).predict(pic)
    assert a.to_dict() == b.to_dict()

def test_lr_find_freeze_and_fast(tmp_path):
    "The verbs of training leave a detector as they would leave a classifier."
    learn = lk.detection_learner(lk.detection_dls(spots(24), size=64, bs=8), path=tmp_path, precision='fp32')
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.lr_find(num_it=4, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    learn.freeze()
    learn.fit_one_cycle(1, 1e-3)
    body = {k for k,_ in learn.model.named_parameters() if k.startswith('body') and _.ndim > 1}
    now = learn.model.state_dict()
    assert all(torch.equal(now[k], before[k]) for k in body) and not all(torch.equal(now[k], before[k]) for k in now)
    learn.fine_tune(1, fast=True)
    assert math.isfinite(learn.results['valid_loss'])

def test_padded_pictures_are_drawn_as_the_network_saw_them():
    rs = spots(8)
    learn = lk.detection_learner(lk.detection_dls(rs, size=64, bs=4, method='pad'), precision='fp32')
    interp = learn.interpret()
    learn.model = Knows([[0., 0, .1, .1]])
    x,(boxes,names) = interp._seen(0),interp.truth[0]
    assert x.shape[-2:] == (64, 64) and set(names) <= {'spot', None}
    for b,n in zip((boxes+1)*32, names):
        if n: assert x[0,int(b[1])+2:int(b[3])-1,int(b[0])+2:int(b[2])-1].float().mean() > 200
    assert interp.top_losses(2).target.str.contains('spot').all()
    interp.plot_top_losses(2), interp.plot_errors(), interp.plot_precision_recall(), interp.report()

def test_a_folder_is_read_by_what_lies_in_it(scenes, tmp_path):
    path = scenes[0].file.parent.parent
    assert len(lk.read_objects(path)) == 40 and len(lk.detection_dls(path, size=64, bs=8).train_ds) == 32
    with pytest.raises(lk.NotFound, match='no annotations of objects'): lk.read_objects(tmp_path)
