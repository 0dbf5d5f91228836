'Every detector of torchvision under one contract: forms, empty pictures, losses in evaluation, whole nets and their weights.'
import copy, pickle
import pytest, torch
from torch import nn
from fastai.torch_core import TensorImage
from fastai.vision.core import TensorBBox
from learnkit.core import DataError, NotFound, OfflineError
from learnkit.models.detect import Pyramid, detector, fixed_size, objects_of, whole_detectors
from learnkit.models.maps import dense

KINDS = 'fasterrcnn','maskrcnn','keypointrcnn','retinanet','fcos','ssd','ssdlite'
PARTS = dict(maskrcnn=(28,28), keypointrcnn=(5,3))
PARAMS = dict(keypointrcnn=dict(n_points=5))

pytestmark = pytest.mark.usefixtures('one_thread')

def make(kind, body='small', **kw):
    torch.manual_seed(0)
    return detector(kind, 3, body, pretrained=False, width=32, **(PARAMS.get(kind, {}) | kw))

def batch(kind, h=96, w=128):
    "Two pictures: one with two objects, one without any."
    torch.manual_seed(1)
    x,boxes,labels = torch.randn(2, 3, h, w),torch.zeros(2, 2, 4),torch.tensor([[1,3], [0,0]])
    boxes[0] = torch.tensor([[-.8,-.7,.1,.3], [0,-.2,.9,.8]])
    masks,points = torch.zeros(2, h, w).long(),torch.zeros(2, 2, 5, 3)
    masks[0,h//6:h//2,w//8:w//2],masks[0,h//2:,w//2:] = 1,2
    points[0] = torch.tensor([[-.5,-.2,2.], [.5,.5,1.]])[:,None]
    return [x, boxes, labels, *dict(maskrcnn=[masks], keypointrcnn=[points]).get(kind, [])]

def same(a, b): return len(a) == len(b) and all(map(torch.equal, a, b))

def state(net): return {k:v.clone() for k,v in net.state_dict().items()}

@pytest.mark.parametrize('kind', KINDS)
def test_contract(kind):
    net,args = make(kind),batch(kind)
    assert net.arch == kind and net.body.body.arch == 'small' and net.most == 100 and not net.pretrained
    losses = net.train()(*args)
    assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() for v in losses.values()) and {'classes','boxes'} <= set(losses)
    sum(losses.values()).backward()
    early,late,head = net.groups()
    assert len(early)+len(late)+len(head) == len(list(net.parameters()))
    assert sum(p.grad is not None and bool(p.grad.any()) for p in early+late) > len(early+late)*.9
    assert all(p.grad is not None for p in head)

    before = state(net.eval())
    with torch.no_grad(): alone,(found,one),(_,two) = net(args[0]),net(*args),net(*args)
    assert same(alone, found) and one == two and set(one) == set(losses)
    after = state(net)
    assert all(torch.equal(before[k], after[k]) for k in before) and not any(m.training for m in net.modules())
    boxes,labels,scores,*parts = found
    assert boxes.shape == (2,100,4) and labels.shape == scores.shape == (2,100)
    assert (boxes.dtype,labels.dtype,scores.dtype) == (torch.float32,torch.int64,torch.float32)
    assert [o.shape for o in parts] == ([(2,100,*PARTS[kind])] if kind in PARTS else [])
    assert boxes.abs().max() <= 1 and 0 <= scores.min() and scores.max() <= 1 and labels.max() <= 3
    assert torch.equal(labels > 0, scores > 0) and (scores.diff() <= 0).all() and not boxes[labels == 0].any()
    assert (boxes[labels > 0][:,2:] > boxes[labels > 0][:,:2]).all()

@pytest.mark.parametrize('kind', KINDS)
def test_no_object_at_all(kind):
    net,args = make(kind),batch(kind)
    args[2] = torch.zeros_like(args[2])
    losses = net.train()(*args)
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values()) and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad(): _,losses = net.eval()(*args)
    assert all(v.isfinite() for v in losses.values())

@pytest.mark.parametrize('kind', KINDS)
def test_sixteen_bits_and_subclasses(kind):
    net,args = make(kind),batch(kind)
    args[:2] = TensorImage(args[0]),TensorBBox(args[1])
    with torch.autocast('cpu', torch.bfloat16): losses = net.train()(*args)
    sum(losses.values()).backward()
    assert all(v.dtype == torch.float32 and v.isfinite() and type(v) is torch.Tensor for v in losses.values())
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad(): found,losses = net.eval()(*args)
    assert found[0].dtype == found[2].dtype == torch.float32 and all(type(o) is torch.Tensor for o in found)

@pytest.mark.parametrize('kind', ('fasterrcnn','fcos','ssdlite'))
def test_any_size_any_body_and_colour(kind):
    for body,n_in,hw in (('tiny',3,(75,101)), ('resnet18',1,(96,96)), ('vit_tiny_patch16_224',3,(96,64))):
        net,args = make(kind, body, n_in=n_in),batch(kind, *hw)
        args[0] = args[0][:,:n_in]
        sum(net.train()(*args).values()).backward()
        with torch.no_grad(): assert net.eval()(args[0])[0].shape == (2,100,4)

def test_options():
    assert make('fcos', most=7).most == 7
    with torch.no_grad(): assert make('fcos', most=7, min_score=0.).eval()(batch('fcos')[0])[1].shape == (2,7)
    assert make('ssd', finest=4).net.backbone.reductions == [4,8,16,32,64,128]
    for kind in ('fasterrcnn','ssd'):
        with pytest.raises(TypeError): make(kind, widht=3)
        with pytest.raises(TypeError): make(kind, n_points=3)

def test_dice_are_left_alone():
    net,args = make('fasterrcnn').eval(),batch('fasterrcnn')
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad(): net(*args)
    assert torch.equal(torch.rand(3), want)

def test_a_copy_is_the_same(tmp_path):
    net,x = make('maskrcnn').eval(),batch('maskrcnn')[0]
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad(): assert same(net(x), twin(x))
    from safetensors.torch import load_model, save_model
    save_model(net, tmp_path/'net.safetensors')
    twin = make('maskrcnn', min_score=.05).eval()
    nn.init.zeros_(twin.net.rpn.head.cls_logits.weight)
    load_model(twin, tmp_path/'net.safetensors')
    with torch.no_grad(): assert same(net(x), twin(x))

def test_boxes_of_the_scenes_are_learned():
    'One step after the other on one picture brings the loss down.'
    for kind in ('fasterrcnn','ssdlite'):
        net,args = make(kind).train(),batch(kind)
        opt,seen = torch.optim.Adam(net.parameters(), 2e-3),[]
        for _ in range(8):
            seen.append(sum(net(*args).values()))
            opt.zero_grad()
            seen[-1].backward()
            opt.step()
        assert seen[-1] < seen[0]*.7

def test_objects_there_and_back():
    boxes = torch.tensor([[[-1,-1,0,1.], [.5,.5,.5001,1], [-2,-.5,.5,.5]], [[float('nan')]*4, [.2,.2,.1,.1], [0,0,1,1]]])
    labels,masks,points = torch.tensor([[2,1,1], [1,1,0]]),torch.zeros(2, 40, 80),torch.zeros(2, 3, 2, 3)
    masks[0,:,:40],masks[0,10:20,40:] = 1,3
    points[0,2] = torch.tensor([[-1.,-1,2], [1,1,1]])
    one,two = objects_of(boxes, labels, 40, 80, masks, points)
    assert one['boxes'].tolist() == [[0,0,40,40], [0,10,60,30]] and one['labels'].tolist() == [2,1]
    assert one['masks'].sum((1, 2)).tolist() == [1600,400] and one['keypoints'][1].tolist() == [[0,0,2], [80,40,1]]
    assert len(two['boxes']) == 0 and two['boxes'].shape == (0,4) and two['masks'].shape == (0,40,80) and two['keypoints'].shape == (0,2,3)

    found = [dict(boxes=o['boxes'], labels=o['labels'], scores=torch.linspace(.2, .9, len(o['labels'])), points=o['keypoints']) for o in (one, two)]
    b,l,s,p = fixed_size(found, 40, 80, most=4)
    assert torch.equal(b[0,:2], torch.tensor([[-1,-.5,.5,.5], [-1,-1,0,1]])) and l.tolist() == [[1,2,0,0], [0]*4]
    assert s[0,0] == s.max() and torch.equal(p[0,0], points[0,2]) and p.shape == (2,4,2,3)

def test_maps_of_a_pyramid():
    maps = Pyramid(dense('small', False), 16)
    assert maps.reductions == [8,16,32,64]
    assert [tuple(o.shape) for o in maps(torch.zeros(2, 3, 64, 128)).values()] == [(2,16,64//r,128//r) for r in maps.reductions]

def test_clear_errors():
    with pytest.raises(NotFound, match='fasterrcnn'): detector('fastrcnn', 2)
    with pytest.raises(DataError, match='classes'): detector('ssd', 0)
    with pytest.raises(DataError, match='own body'): detector('fcos_resnet50_fpn', 2, body='tiny')
    with pytest.raises(DataError, match='boxes and labels'): make('ssd').train()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(DataError, match='masks'): make('maskrcnn').train()(*batch('ssd'))
    with pytest.raises(TypeError, match='n_points'): detector('ssdlite320_mobilenet_v3_large', 2, pretrained=False, n_points=3)

WHOLE = 'ssdlite320_mobilenet_v3_large','fasterrcnn_mobilenet_v3_large_320_fpn'

@pytest.mark.parametrize('name', WHOLE)
def test_whole_net(name):
    assert name in whole_detectors()
    net,args = detector(name, 3, pretrained=False),batch(name)
    assert net.body is None and net.arch == name and not net.pretrained and (net.mean,net.std) == ([0.]*3,[1.]*3)
    groups = net.groups()
    assert len(groups) == 3 and all(groups) and {id(p) for g in groups for p in g} == {id(p) for p in net.parameters()}
    sum(net.train()(*args).values()).backward()
    assert all(p.requires_grad for p in net.parameters()) and all(any(p.grad.any() for p in g) for g in groups)
    with torch.no_grad(): alone,(found,_) = net.eval()(args[0]),net(*args)
    assert same(alone, found) and alone[0].shape == (2,100,4)

    if name.startswith('faster'): net.net.roi_heads.box_predictor.cls_score.weight.data *= 50
    x = torch.rand(2, 3, 320, 320)
    with torch.no_grad(): theirs,(boxes,labels,scores) = net.net(list(x)),net(x)
    for t,b,l,s in zip(theirs, boxes, labels, scores):
        n = len(t['scores'])
        assert 0 < n == (s > 0).sum() and torch.equal(l[:n], t['labels']) and torch.allclose(s[:n], t['scores'], atol=1e-5)
        assert torch.allclose((b[:n]+1)*160, t['boxes'], atol=1e-2)

@pytest.mark.parametrize('name', WHOLE)
def test_weights_of_a_whole_net(name, tmp_path, monkeypatch):
    'They are found on the mirror; what fits is taken over, and only layers for classes are new.'
    from safetensors.torch import save_file
    from torchvision.models import get_model
    monkeypatch.setenv('LEARNKIT_MIRROR', str(tmp_path))
    torch.manual_seed(3)
    theirs = get_model(name, weights=None, weights_backbone=None)
    frozen = name.startswith('fasterrcnn')
    tensors = {k:v for k,v in theirs.state_dict().items() if not (frozen and 'num_batches' in k)}
    (tmp_path/'weights').mkdir()
    save_file(tensors, tmp_path/'weights'/f'{name}.safetensors')

    net,own = detector(name, 90),detector(name, 3)
    assert net.pretrained and all(torch.equal(v, theirs.state_dict()[k]) for k,v in net.net.state_dict().items())
    assert frozen != any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    state = {k:v for k,v in own.net.state_dict().items() if v.shape == tensors[k].shape}
    assert all(torch.equal(v, tensors[k]) for k,v in state.items()) and len(tensors)-30 < len(state) < len(tensors)
    assert all(p.requires_grad for p in own.parameters())

def test_weights_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setenv('LEARNKIT_MIRROR', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('learnkit.models.weights._from_publisher', lambda *args: (_ for _ in ()).throw(OfflineError('No network.')))
    with pytest.raises(OfflineError, match='Remedies'): detector('fcos_resnet50_fpn', 2)
    (tmp_path/'weights').mkdir()
    torch.save(dict(a=torch.zeros(1)), tmp_path/'weights'/'x.pth')
    (tmp_path/'weights'/'x.pth').rename(tmp_path/'weights'/'ssdlite320_mobilenet_v3_large.safetensors')
    with pytest.raises(DataError): detector('ssdlite320_mobilenet_v3_large', 2)
