'Every segmenter: any size, gradients, skips that count, the published nets of VGG16, whole nets and their weights, export.'
import copy, pickle
from concurrent.futures import ThreadPoolExecutor
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.core import TensorImage
from learnkit.core import DataError, NotFound, OfflineError
from learnkit.models.maps import dense
from learnkit.models.segment import FCN, SEGMENTERS, Segmenter, SegNet, UNet, add_segmenter, atrous, segmenter, whole_segmenters
from learnkit.models.zoo import body
from learnkit.train.learner import three_groups

pytestmark = pytest.mark.usefixtures('one_thread')

KINDS = 'unet','fcn','fcn16','fcn32','segnet','deeplab','lraspp'

def make(kind, n_out=3, arch=None, **kw):
    torch.manual_seed(0)
    return segmenter(kind, n_out, arch, pretrained=False, **kw)

def shaken(net):
    'Layers that begin at zero would hide what reaches them.'
    with torch.no_grad():
        for p in net.parameters(): p += .05*torch.randn_like(p)
    return net

@pytest.fixture
def quick(monkeypatch):
    'No time for random numbers in large layers.'
    for cls in (nn.Linear,nn.modules.conv._ConvNd): monkeypatch.setattr(cls, 'reset_parameters', lambda self: [p.data.fill_(.001) for p in self.parameters()])
    monkeypatch.setattr(nn.init, 'kaiming_normal_', lambda t, **kw: t.data.normal_(0, .02))
    monkeypatch.setattr(nn.init, 'normal_', lambda t, *args, **kw: t.data.fill_(.001))

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [(8,8), (33,47), (150,200), (97,64)])
def test_any_size(kind, size):
    net = make(kind)
    for b,train in ((1,True), (2,True), (1,False)):
        y = net.train(train)(torch.rand(b, 3, *size))
        assert y.shape == (b,3,*size) and y.dtype == torch.float32 and y.isfinite().all() and type(y) is torch.Tensor

@pytest.mark.parametrize('kind', KINDS)
def test_everything_learns(kind):
    net = shaken(make(kind)).train()
    net(torch.rand(2, 3, 64, 80)).square().mean().backward()
    for k,p in net.named_parameters(): assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), k
    groups = three_groups(net)
    ids = [id(p) for g in groups for p in g]
    assert all(groups) and len(ids) == len({*ids}) and {*ids} == {id(p) for p in net.parameters()}
    assert net.rates[0] > 0 and net.rates[1] >= 1 and net.decoder == ('fcn8' if kind == 'fcn' else kind)

@pytest.mark.parametrize('kind', KINDS)
def test_types(kind):
    net = shaken(make(kind))
    x = torch.rand(2, 3, 40, 56)
    with torch.autocast('cpu', torch.bfloat16): y = net.train()(TensorImage(x))
    assert y.dtype == torch.float32 and type(y) is torch.Tensor
    y.mean().backward()
    with torch.no_grad():
        y = net.eval()(x)
        assert torch.allclose(net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), y, atol=1e-3*y.abs().max())

@pytest.mark.parametrize('kind', ['unet','fcn','segnet','deeplab','lraspp'])
def test_export(kind):
    net,x = shaken(make(kind)).eval(),torch.rand(2, 3, 45, 67)
    program = torch.export.export(net, (x,)).module()
    with torch.no_grad(): assert torch.allclose(program(x), net(x), atol=1e-5) and torch.allclose(program(1-x), net(1-x), atol=1e-5)

def test_the_picture_is_padded_with_its_own_edge():
    net = shaken(make('unet')).eval()
    x = torch.rand(1, 3, 40, 70)
    wide = x[...,torch.arange(48).clamp(max=39),:][...,torch.arange(80).clamp(max=69)]
    with torch.no_grad(): assert torch.equal(net(x), net(wide)[...,:40,:70])

def test_grey_and_many_colours():
    for n_in in (1,4): assert make('unet', n_in=n_in, full=True)(torch.rand(2, n_in, 50, 60)).shape == (2,3,50,60)

@pytest.mark.parametrize('kind', KINDS)
def test_copies_are_equal(kind):
    net,x = shaken(make(kind, arch='mobilenet_v3_small')).eval(),torch.rand(1, 3, 40, 50)
    again = make(kind, arch='mobilenet_v3_small').eval()
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        for twin in (copy.deepcopy(net),pickle.loads(pickle.dumps(net)),again): assert torch.equal(twin(x), net(x))

def test_threads_do_not_meet():
    net = shaken(make('unet')).eval()
    xs = [torch.rand(1, 3, 32+8*i, 48) for i in range(6)]
    def f(x):
        with torch.no_grad(): return net(x)
    with ThreadPoolExecutor(3) as ex: assert all(torch.equal(a, f(x)) for x,a in zip(xs, ex.map(f, xs)))

def test_a_class_is_learned():
    torch.manual_seed(1)
    for kind in ('unet','fcn','segnet','lraspp'):
        net = segmenter(kind, 2).train()
        x = torch.rand(2, 3, 64, 64)
        y = torch.zeros(2, 64, 64, dtype=torch.long)
        y[:,16:48,8:40] = 1
        x[:,0] += 2.*y
        opt = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(12):
            loss = F.cross_entropy(net(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        assert (net(x).argmax(1) == y).float().mean() > .9, kind

SKIPS = dict(tiny=3, small=3, vgg16_bn=5, efficientnet_b0=4, mobilenet_v3_small=4, convnext_atto=3, resnet18=4, resnet18d=4, mobilenetv4_conv_small=4,
    swin_t=3, densenet121=4, squeezenet1_1=3, inception_v3=4, alexnet=3, lenet5=2, levit_128s=5)

@pytest.mark.parametrize('arch', SKIPS)
def test_a_skip_for_every_scale(arch, quick):
    'Each map counts: the answer changes with it, and the gradient arrives there.'
    net = UNet(dense(arch, pretrained=False), 2, 8).eval()
    assert len(net.skips) == SKIPS[arch] == len(net.body.features)-1 and net.skips == net.body.names[:-1]
    torch.manual_seed(0)
    x = torch.rand(1, 3, net.least, net.least)
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.weight.data.normal_(0, m.weight[0].numel()**-.5)
    maps = [torch.rand_like(m).requires_grad_() for m in net.body(x)]
    y = net.paint(maps, x)
    assert all(g.any() for g in torch.autograd.grad(y.square().sum(), maps))
    with torch.no_grad():
        for i in range(len(maps)): assert not torch.allclose(net.paint([torch.rand_like(m) if i == j else m for j,m in enumerate(maps)], x), y)
    assert net.train()(torch.rand(1, 3, 33, 47)).shape == (1,2,33,47)

@pytest.mark.parametrize('kind', ['fcn','segnet','deeplab','lraspp'])
@pytest.mark.parametrize('arch', ['mobilenet_v3_small','lenet5','inception_v3','swin_t'])
def test_other_bodies(kind, arch, quick):
    net = make(kind, 2, arch)
    for train in (True,False): assert net.train(train)(torch.rand(1, 3, 33, 47)).isfinite().all()
    net(torch.rand(2, 3, 40, 40)).mean().backward()
    assert all(p.grad is not None for p in net.parameters())

def test_a_body_of_one_size():
    class Fixed(nn.Sequential):
        def forward(self, x):
            if x.shape[-2:] != (224,224): raise ValueError('only 224')
            return super().forward(x)
    net = make('unet', 2, Fixed(*(nn.Conv2d(a, b, 3, 2, 1) for a,b in ((3,8), (8,8), (8,16)))))
    assert net.body.body.step is None and len(net.skips) == 2 and net(torch.rand(2, 3, 50, 70)).shape == (2,2,50,70)

def test_one_map_only():
    for kind in ('unet','segnet','lraspp'):
        with pytest.raises(DataError, match='one map only.*fcn or deeplab'): make(kind, 2, 'vit_tiny_patch16_224')
    for kind in ('fcn','deeplab'): assert make(kind, 2, 'vit_tiny_patch16_224')(torch.rand(1, 3, 40, 50)).shape == (1,2,40,50)

def test_full_size():
    net = shaken(make('unet', full=True)).eval()
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        maps = net.body(x)
        y = net.paint(maps, x)
        assert y.shape[-2:] == x.shape[-2:] and not torch.allclose(net.paint(maps, 1-x), y)
        assert make('unet').paint(maps, x).shape[-2:] == (24,32)

def test_fcn_uses_maps_down_to_its_name():
    assert [make(k).skips for k in ('fcn32','fcn16','fcn8')] == [[],[],['stage2']]
    assert [make(k, arch='resnet18').skips for k in ('fcn32','fcn16','fcn8')] == [[],['layer3'],['layer2','layer3']]
    assert not make('fcn')(torch.rand(1, 3, 40, 40)).any()
    net = make('fcn', hidden=16)
    assert [m.kernel_size for m in net.hidden if isinstance(m, nn.Conv2d)] == [(7,7),(1,1)]

def test_fcn_doubles_like_bilinear():
    net = make('fcn', 4)
    x = torch.rand(1, 4, 5, 7)
    assert torch.allclose(net.up[0](x)[...,1:-1,1:-1], F.interpolate(x, scale_factor=2, mode='bilinear')[...,1:-1,1:-1], atol=1e-6)

def test_fcn_of_vgg16_is_the_published_one(quick):
    'Scores of pool3, pool4 and fc7, as many parameters as FCN-8s of the paper has, and pooled maps that are the own ones.'
    net = FCN(dense('vgg16', pretrained=False), 21).eval()
    assert net.skips == ['features.15','features.22'] and [s.in_channels for s in net.score] == [256,512,4096]
    vgg = 14_714_688 + (512*49+1)*4096 + (4096+1)*4096
    assert sum(p.numel() for p in net.parameters()) == vgg + (256+512+4096+3)*21 + 2*21*21*16
    x,seen = torch.rand(1, 3, 64, 64),[]
    hooks = [s.register_forward_pre_hook(lambda m, inp: seen.append(inp[0])) for s in net.score[:2]]
    with torch.no_grad():
        net(x)
        own = [net.body.body.net.features[:i](x) for i in (24,17)]
    for h in hooks: h.remove()
    assert all(torch.equal(a, b) for a,b in zip(seen, own, strict=True))

def test_fcn_takes_the_hidden_layers_of_vgg(quick, monkeypatch):
    import learnkit.models.segment as seg
    from torchvision.models import vgg11
    net = vgg11(init_weights=False)
    net.classifier[0].weight.data[:4].normal_()
    net.classifier[3].weight.data[:4].normal_()
    monkeypatch.setattr(seg, 'network', lambda arch, pretrained, n_in: (net,seg.facts(arch),True))
    fcn = segmenter('fcn', 2, 'vgg11')
    assert fcn.body.body.pretrained and torch.equal(fcn.hidden[0].weight.flatten(1)[:4], net.classifier[0].weight[:4])
    assert torch.equal(fcn.hidden[3].weight.flatten(1)[:4], net.classifier[3].weight[:4])
    small = segmenter('fcn', 2, 'vgg11', hidden=8)
    assert small.hidden[0].out_channels == 8 and isinstance(segmenter('fcn', 2, 'vgg11', hidden=0).hidden, nn.Identity)

def test_segnet_of_vgg16_is_the_published_one(quick):
    'Thirteen convolutions on the way back, and the places that the five poolings of the net itself find.'
    net = SegNet(dense('vgg16_bn', pretrained=False), 11).train()
    convs = [m for m in net.fill.modules() if isinstance(m, nn.Conv2d)]
    assert [sum(isinstance(m, nn.Conv2d) for m in f.modules()) for f in net.fill] == [2,2,3,3,3] and len(convs) == 13
    assert [(m.in_channels,m.out_channels) for f in reversed(net.fill) for m in f.modules() if isinstance(m, nn.Conv2d)] == \
        [(512,512)]*5 + [(512,256)] + [(256,256)]*2 + [(256,128), (128,128), (128,64), (64,64), (64,11)]
    features,own,used = net.body.body.net.features,[],[]
    for m in features:
        if isinstance(m, nn.MaxPool2d): m.register_forward_pre_hook(lambda m, inp: own.append(F.max_pool2d(inp[0], 2, 2, return_indices=True)[1]))
    unpool,F.max_unpool2d = F.max_unpool2d,lambda y, places, *args, **kw: used.append(places) or unpool(y, places, *args, **kw)
    try: net(torch.rand(1, 3, 64, 96))
    finally: F.max_unpool2d = unpool
    assert len(own) == len(used) == 5 and all(torch.equal(a, b) for a,b in zip(own, reversed(used), strict=True))

def test_segnet_hears_only_places():
    net = shaken(make('segnet')).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = net.body(x)
        y = net.paint(maps, x)
        assert torch.equal(net.paint([3*m+1 for m in maps[:-1]]+maps[-1:], x), y)
        for i in range(len(maps)-1): assert not torch.allclose(net.paint([m.flip(-1) if i == j else m for j,m in enumerate(maps)], x), y)
    assert not any(m.requires_grad for m in maps)

def test_holes_keep_what_was_learned():
    from torchvision.models import resnet50
    torch.manual_seed(0)
    theirs = resnet50(replace_stride_with_dilation=(False,False,True)).eval()
    plain = resnet50()
    plain.load_state_dict(theirs.state_dict())
    net,x = atrous(dense(plain)).eval(),torch.rand(1, 3, 64, 96)
    assert net.reductions == [2,4,8,16] and net.body.features == 2048
    with torch.no_grad(): assert torch.allclose(net(x)[-1], nn.Sequential(*[*theirs.children()][:-2])(x), atol=1e-4)

@pytest.mark.parametrize('arch,coarsest', dict(tiny=16, vgg11=16, efficientnet_b0=16, mobilenetv4_conv_small=16, resnet18d=16, densenet121=16,
    convnext_atto=32, swin_t=32, levit_128s=64, lenet5=4).items())
def test_which_bodies_take_holes(arch, coarsest, quick):
    torch.manual_seed(0)
    net = dense(arch, pretrained=False).eval()
    was = {k:(m.stride,m.padding,m.dilation) for k,m in net.named_modules() if isinstance(m, nn.Conv2d)}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(): y = net(x)[-1]
    new = atrous(net)
    assert new.reductions[-1] == coarsest and all(not m._forward_hooks and not m._forward_pre_hooks for m in new.modules())
    if net is new:
        assert was == {k:(m.stride,m.padding,m.dilation) for k,m in net.named_modules() if isinstance(m, nn.Conv2d)}
        with torch.no_grad(): assert torch.equal(net(x)[-1], y)

def test_wrong_arguments():
    with pytest.raises(NotFound, match='unet'): segmenter('unett', 2)
    with pytest.raises(NotFound, match='resnet18'): segmenter('unet', 2, 'resnet81')
    with pytest.raises(DataError, match='nothing to tell'): segmenter('unet', 0)
    with pytest.raises(DataError, match='own body'): segmenter('fcn_resnet50', 2, body='tiny')
    with pytest.raises(DataError, match='RGB'): segmenter('fcn_resnet50', 2, n_in=1)
    for kind in (*KINDS,'lraspp_mobilenet_v3_large'):
        with pytest.raises(TypeError): segmenter(kind, 2, pretrained=False, widht=3)

def test_your_own_decoder():
    class Hypercolumns(Segmenter):
        def __init__(self, body, n_out):
            super().__init__(body, 'columns', range(len(body.features)-1))
            self.score = nn.Conv2d(sum(body.features), n_out, 1)
        def paint(self, maps, x): return self.score(torch.cat([F.interpolate(m, maps[0].shape[-2:]) for m in maps], 1))
    try:
        add_segmenter('columns')(lambda n_out, body=None, pretrained=True, n_in=3: Hypercolumns(dense(body, pretrained, n_in), n_out))
        assert segmenter('columns', 4, pretrained=False)(torch.rand(1, 3, 21, 35)).shape == (1,4,21,35)
    finally: SEGMENTERS.pop('columns', None)

def test_a_body_of_yours():
    b = body('resnet18', pretrained=False)
    assert segmenter('unet', 2, b).body.body is b

WHOLE = 'lraspp_mobilenet_v3_large','deeplabv3_mobilenet_v3_large'

@pytest.mark.parametrize('name', WHOLE)
def test_whole_net(name):
    assert name in whole_segmenters()
    net = make(name, 4)
    assert net.body is None and net.arch == net.decoder == name and not net.pretrained and (net.mean,net.std) == ([0.]*3,[1.]*3)
    groups = three_groups(net)
    assert len(groups) == 3 and all(groups) and {id(p) for g in groups for p in g} == {id(p) for p in net.parameters()}
    for b,size,train in ((1,(8,8),True), (1,(33,47),True), (2,(64,80),False)):
        y = net.train(train)(torch.rand(b, 3, *size))
        assert y.shape == (b,4,*size) and y.isfinite().all() and y.dtype == torch.float32
    net.train()(TensorImage(torch.rand(2, 3, 64, 64))).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in net.parameters())

    x = torch.rand(2, 3, 70, 90)
    mean,std = (torch.tensor(o)[:,None,None] for o in ((.485,.456,.406), (.229,.224,.225)))
    with torch.no_grad():
        y = net.eval()(x)
        assert torch.allclose(y, net.net((x-mean)/std)['out'], atol=1e-5)
        assert torch.allclose(torch.export.export(net, (x,)).module()(x), y, atol=1e-5)

@pytest.mark.parametrize('name', WHOLE)
def test_weights_of_a_whole_net(name, tmp_path, monkeypatch):
    'They are found on the mirror; what fits is taken over, and only the last layers are new.'
    from safetensors.torch import save_file
    from torchvision.models import get_model
    monkeypatch.setenv('LEARNKIT_MIRROR', str(tmp_path))
    torch.manual_seed(3)
    theirs = get_model(name, weights=None, weights_backbone=None, **dict(aux_loss=True) if name.startswith('deeplab') else {}).eval()
    tensors = theirs.state_dict()
    (tmp_path/'weights').mkdir()
    save_file(tensors, tmp_path/'weights'/f'{name}.safetensors')

    same,own = segmenter(name, 21).eval(),segmenter(name, 4)
    assert same.pretrained and not any('aux' in k for k in same.net.state_dict()) and not same.state_dict().keys() & {'_mean','_std'}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(same(x), theirs((x-same._mean)/same._std)['out'], atol=1e-5)
    new = {k for k,v in own.net.state_dict().items() if v.shape != tensors[k].shape}
    assert new and all(k.startswith('classifier') for k in new)
    assert all(torch.equal(v, tensors[k]) for k,v in own.net.state_dict().items() if k not in new)

def test_weights_out_of_reach(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    monkeypatch.setenv('LEARNKIT_MIRROR', str(tmp_path))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('learnkit.models.weights._from_publisher', lambda *args: (_ for _ in ()).throw(OfflineError('No network.')))
    with pytest.raises(OfflineError, match='Remedies'): segmenter('lraspp_mobilenet_v3_large', 2)
    (tmp_path/'weights').mkdir()
    save_file(dict(a=torch.zeros(1)), tmp_path/'weights'/'lraspp_mobilenet_v3_large.safetensors')
    with pytest.raises(DataError, match='does not hold the weights'): segmenter('lraspp_mobilenet_v3_large', 2)
