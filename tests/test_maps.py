'Maps of every scale: right in shape, place and gradient for each family, and nothing is left behind.'
import copy, gc, pickle, weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import pytest, torch, torch.nn.functional as F
from torch import nn
from learnkit.core import DataError, NotFound
from learnkit.models.maps import DenseBody, dense
from learnkit.models.zoo import body

FOUR,FIVE = [4,8,16,32],[2,4,8,16,32]
SCALES = dict(tiny=[2,4,8,16], small=[2,4,8,16], lenet5=[1,2,4], vgg11=[1,*FIVE], squeezenet1_1=[2,4,8,16], levit_128s=[*FIVE,64],
    vit_b_32=[32], vit_tiny_patch16_224=[16])
SCALES |= dict.fromkeys('alexnet convnext_tiny swin_t convnext_atto swin_s3_tiny_224'.split(), FOUR)
SCALES |= dict.fromkeys('''googlenet resnet18 mobilenet_v2 mobilenet_v3_small efficientnet_b0 mnasnet0_5 regnet_y_400mf densenet121 shufflenet_v2_x0_5
    inception_v3 resnet10t mobilenetv3_small_050 efficientnet_lite0 mambaout_femto'''.split(), FIVE)
UNPADDED = dict(alexnet=1, squeezenet1_1=1, lenet5=7, inception_v3=4) # places that they may lack

plain = partial(dense, pretrained=False)

pytestmark = pytest.mark.usefixtures('one_thread')

def hooks(net): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in net.modules())

@pytest.mark.parametrize('arch', SCALES)
def test_every_family(arch, monkeypatch):
    torch.manual_seed(0)
    if arch in ('alexnet','vgg11'): monkeypatch.setattr(nn.Linear, 'reset_parameters', lambda self: None) # no time for heads that are cut off
    net,x = plain(arch, **dict(init_weights=False) if arch == 'vgg11' else {}).eval(),torch.rand(1, 3, 64, 96)
    maps = net(x)
    assert net.reductions == SCALES[arch] and len(maps) == len(net.names) == len(net.features) and net.names[-1] == 'body'
    hw = net.body.fit(64, 96)
    for m,f,r in zip(maps, net.features, net.reductions, strict=True):
        assert m.shape[:2] == (1,f) and m.isfinite().all()
        for o,n in zip(m.shape[2:], hw): assert 0 <= -(-n//r)-o <= UNPADDED.get(arch, 0)
    assert torch.equal(maps[-1], net.body(x)) and hooks(net) == 0
    ps,counts = list(net.parameters()),[]
    assert [id(p) for p in ps] == [id(p) for p in net.body.parameters()] == [id(p) for g in net.groups() for p in g]
    for m in maps:
        grads = torch.autograd.grad(m.square().mean(), ps, retain_graph=True, allow_unused=True)
        counts.append(sum(g is not None for g in grads))
        assert grads[0] is None or grads[0].isfinite().all()
        assert any(g is not None and g.abs().max() > 0 for g in grads)
    assert counts == sorted(counts) and counts[-1] == len(ps)

@pytest.mark.parametrize('arch', ['tiny','densenet121','swin_s3_tiny_224'])
def test_copies_are_equal(arch):
    net,x = plain(arch).eval(),torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = net(x)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert all(torch.equal(a, b) for a,b in zip(maps, twin(x), strict=True)) and twin.reductions == net.reductions

@pytest.mark.parametrize('arch', ['resnet10t','convnext_atto','mambaout_femto','levit_128s'])
def test_the_maps_are_timms_own(arch):
    import timm
    net,theirs = plain(arch).eval(),timm.create_model(arch, features_only=True).eval()
    own = {k.replace('.', '_'):v for k,v in net.body.net.net.state_dict().items()}
    theirs.load_state_dict({k:own[k.removeprefix('model.').replace('.', '_')] for k in theirs.state_dict()})
    n,x = len(theirs.feature_info.channels()),torch.rand(1, 3, *net.body.fit(70, 90))
    assert net.features[-n:] == theirs.feature_info.channels() and net.reductions[-n:] == theirs.feature_info.reduction()
    with torch.no_grad(): pairs = zip(net(x)[-n:], theirs(x), strict=True)
    for a,b in pairs: torch.testing.assert_close(a, b.permute(0, 3, 1, 2) if a.shape != b.shape else b)

@pytest.mark.parametrize('arch', ['resnet18','swin_t','maxvit_t'])
def test_places_are_those_of_the_picture(arch):
    torch.manual_seed(0)
    net = plain(arch).eval()
    h,w = net.body.fit(96, 160)
    x = torch.rand(1, 3, h, w)
    changed = x.clone()
    y,z = int(h*0.7),int(w*0.2)
    changed[...,y-6:y+6,z-6:z+6] += 1
    with torch.no_grad(): pairs = list(zip(net(x), net(changed)))
    assert [a.shape[1:] for a,_ in pairs] == [(f,h//r,w//r) for f,r in zip(net.features, net.reductions)] and len(pairs) == (4 if arch == 'swin_t' else 5)
    for a,b in pairs[:-1]:
        d = (a-b).abs().sum(1)[0]
        i = d.argmax().item()
        for at,n,whole,want in zip((i//d.shape[1], i % d.shape[1]), d.shape, (h,w), (y,z)): assert abs((at+0.5)/n*whole-want) < 1.5*whole/n+8

@pytest.mark.parametrize('patch', [7,14,16])
def test_a_body_of_one_scale(patch):
    net = plain(nn.Sequential(nn.Conv2d(3, 8, patch, patch), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))
    assert (net.names,net.features,net.reductions) == (['body'],[8],[patch])

def test_learns_in_training_mode():
    torch.manual_seed(0)
    for arch in ('tiny','mobilenet_v3_small'):
        net = plain(arch)
        assert net.training
        maps = net(torch.rand(2, 3, 64, 64))
        sum(m.square().mean() for m in maps).backward()
        assert all(p.grad is not None for p in net.parameters())

def test_looking_leaves_no_trace():
    b = body('resnet18', pretrained=False)
    b.net.bn1.eval()
    before = {k:v.clone() for k,v in b.state_dict().items()}
    net = DenseBody(b)
    assert net.body is b and b.training and not b.net.bn1.training and b.net.layer1.training
    assert all(torch.equal(v, before[k]) for k,v in b.state_dict().items()) and hooks(net) == 0

def test_nothing_is_kept():
    net,x = plain('tiny').eval(),torch.rand(1, 3, 64, 64)
    maps = net(x)
    refs = [weakref.ref(m) for m in maps]
    del maps
    gc.collect()
    assert [r() for r in refs] == [None]*4 and hooks(net) == 0
    with pytest.raises(RuntimeError): net(x[:,:2])
    assert hooks(net) == 0

def test_threads_hear_their_own_call():
    net = plain('tiny').eval()
    xs = [torch.rand(1, 3, 64, 64) for _ in range(12)]
    def work(x):
        with torch.no_grad(): return net(x)
    want = [work(x) for x in xs]
    with ThreadPoolExecutor(4) as pool: got = list(pool.map(work, xs))
    assert all(torch.equal(a, b) for o,p in zip(want, got) for a,b in zip(o, p, strict=True)) and hooks(net) == 0

def test_half_precision_channels_last_and_grey():
    net,x = plain('tiny', n_in=1).eval().to(memory_format=torch.channels_last),torch.rand(2, 1, 64, 64).to(memory_format=torch.channels_last)
    with torch.no_grad(): maps = net(x)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    with torch.autocast('cpu', torch.bfloat16): assert all(m.isfinite().all() for m in net(x))
    half = DenseBody(net.body.bfloat16())
    assert all(m.dtype == torch.bfloat16 for m in half(x.bfloat16())) and half.reductions == net.reductions

def test_any_size():
    net = plain('tiny').eval()
    for h,w in ((20,20), (65,33), (28,120)):
        maps = net(torch.rand(1, 3, h, w))
        hw = net.body.fit(h, w)
        assert [m.shape[2:] for m in maps] == [tuple(-(-o//r) for o in hw) for r in net.reductions]

def test_networks_of_one_size():
    net = plain('convit_tiny', img_size=64).eval()
    assert net.reductions == [16] and net(torch.rand(1, 3, 50, 70))[0].shape[2:] == (4,4)
    assert plain('convit_tiny', img_size=96).reductions == [16]

def test_networks_that_take_no_wide_pictures():
    net = plain('mvitv2_tiny').eval()
    assert net.reductions == FOUR and [m.shape[1:] for m in net(torch.rand(1, 3, 64, 96))] == [(f,64//r,96//r) for f,r in zip(net.features, FOUR)]

def test_tokens_out_of_order_are_not_read(): assert plain('hiera_tiny_224').names == ['body']

class Halve(nn.Module):
    "Works in place on what it gets, then halves it."
    def __init__(self, n, act):
        super().__init__()
        self.act,self.conv = act,nn.Conv2d(n, 2*n, 3, 2, 1)

    def forward(self, x): return self.conv(self.act(x))

def test_a_layer_called_often_and_in_place():
    torch.manual_seed(0)
    act = nn.ReLU(inplace=True)
    mine = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), act, nn.Conv2d(4, 4, 1), Halve(4, act), act, nn.BatchNorm2d(8), Halve(8, act))
    net,x = plain(mine).eval(),torch.rand(2, 3, 32, 48)
    assert net.reductions == [2,4,8] and net.features == [4,8,16]
    a,b,c = net(x)
    want = F.relu(mine[2](F.relu(mine[0](x))))
    torch.testing.assert_close(a, want)
    torch.testing.assert_close(b, F.relu(mine[5](F.relu(mine[3].conv(want)))))
    w = mine[0].weight
    torch.testing.assert_close(torch.autograd.grad(a.square().sum(), w, retain_graph=True), torch.autograd.grad(want.square().sum(), w))
    assert torch.equal(c, mine(x))

class Repeat(nn.Module):
    "One block for all scales, with a stray layer that looks at the fine picture once more."
    def __init__(self):
        super().__init__()
        self.stem,self.block,self.pool,self.stray = nn.Conv2d(3, 8, 3, 2, 1),nn.Conv2d(8, 8, 3, padding=1),nn.MaxPool2d(2),nn.Conv2d(3, 8, 1, 4)
        self.on = True

    def forward(self, x):
        y = self.stem(x)
        if self.on: y = self.block(y)
        z = self.block(self.pool(y))
        self.block(y)
        return self.block(self.pool(z + self.stray(x)))

def test_calls_are_counted():
    net,x = plain(Repeat()).eval(),torch.rand(1, 3, 64, 64)
    assert net.names == ['block','stray','body'] and net.reductions == [2,4,8]
    m = net.body.net
    assert torch.equal(net(x)[0], m.block(m.stem(x)))

def test_what_is_refused():
    with pytest.raises(DataError, match='use dense'): DenseBody(nn.Conv2d(3, 4, 1))
    with pytest.raises(DataError, match='no map'): dense(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1))))
    with pytest.raises(NotFound, match='resnet18'): dense('resent18')
    with pytest.raises(TypeError, match='no_such'): plain('tiny', no_such=1)

class Skips(nn.Module):
    "Leaves its second layer out when told to."
    def __init__(self):
        super().__init__()
        self.a,self.b,self.c,self.on = nn.Conv2d(3, 4, 3, 2, 1),nn.Conv2d(4, 4, 1),nn.Conv2d(4, 8, 3, 2, 1),True

    def forward(self, x): return self.c(self.b(self.a(x)) if self.on else self.a(x))

def test_a_layer_that_is_no_longer_called():
    net = plain(Skips())
    assert net.names == ['b','body']
    net.body.net.on = False
    with pytest.raises(DataError, match='b of .* was not called'): net(torch.rand(1, 3, 32, 32))
    assert hooks(net) == 0
