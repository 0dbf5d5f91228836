'The zoo: every family gives a map of features, trains a step, and takes weights only if they are its own.'
import copy, hashlib, http.server, json, pickle, subprocess, sys, threading
from dataclasses import replace
from functools import partial
import pytest, torch, torch.nn.functional as F, torchvision
from safetensors.torch import save_file
from torch import nn
from learnkit.core import DataError, NotFound, OfflineError
from learnkit.models.tiny import BUILTIN, LeNet5, SmallNet, TinyNet, n_params
from learnkit.models.weights import read_weights, weights_file, weights_here
from learnkit.models.facts import facts, models_list
from learnkit.models.zoo import Body, body, to_grid
from learnkit.settings import settings

OURS = 'tiny small lenet5'.split()
TORCHVISION = '''alexnet vgg11 googlenet resnet18 mobilenet_v2 mobilenet_v3_small efficientnet_b0 mnasnet0_5 convnext_tiny vit_b_32 swin_t
    regnet_y_400mf densenet121 squeezenet1_1 shufflenet_v2_x0_5 inception_v3 maxvit_t'''.split()
TIMM = '''resnet10t mobilenetv3_small_050 efficientnet_lite0 convnext_atto vit_tiny_patch16_224 swin_s3_tiny_224 mambaout_femto
    convit_tiny levit_128s dla46_c vit_small_patch16_rope_mixed_224'''.split()

plain = partial(body, pretrained=False)

pytestmark = pytest.mark.usefixtures('one_thread')

def group_names(b):
    "The names of the early and of the late parameters of `b`."
    names = {id(p):k.removeprefix('net.') for k,p in b.named_parameters()}
    return [[names[id(p)] for p in g] for g in b.groups()]

@pytest.mark.parametrize('arch', OURS+TORCHVISION+TIMM)
def test_map_groups_and_one_step(arch):
    torch.manual_seed(0)
    b = plain(arch)
    early,late = b.groups()
    assert early and late and [id(p) for p in early+late] == [id(p) for p in b.parameters()]
    assert (b.arch,b.pretrained,b.licence != '') == (arch,False,True) and len(b.mean) == len(b.std) == 3
    b.eval()
    with torch.no_grad(): assert b(torch.rand(2, 3, 96, 128)).shape[:2] == (2,b.features)
    net = nn.Sequential(b.train(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b.features, 2))
    opt = torch.optim.SGD(net.parameters(), lr=0.01)
    x = torch.rand(2, 3, 96, 96)
    before = [p.detach().clone() for p in b.parameters()]
    loss = F.cross_entropy(net(x), torch.tensor([0,1]))
    loss.backward()
    opt.step()
    assert all(p.grad is not None for p in b.parameters())
    assert loss.isfinite() and b(x).ndim == 4
    moved = [not torch.equal(o, p) for o,p in zip(before, b.parameters())]
    assert any(moved[:b.split]) and any(moved[b.split:]) and all(p.isfinite().all() for p in b.parameters())

def test_every_torchvision_family_is_here():
    families = {f.__module__.rpartition('.')[2] for f in (getattr(torchvision.models, o) for o in models_list()['torchvision'])}
    assert families == {getattr(torchvision.models, o).__module__.rpartition('.')[2] for o in TORCHVISION}

def test_resnet_is_split_where_fastai_splits_it():
    early,late = group_names(plain('resnet18'))
    assert {o.split('.')[0] for o in early} == {'conv1','bn1','layer1','layer2'} and {o.split('.')[0] for o in late} == {'layer3','layer4'}
    assert group_names(plain('timm/resnet18'))[1][0].endswith('layer3.0.conv1.weight')

@pytest.mark.parametrize('arch,first', [('efficientnet_b0', 'features.4.0.'), ('mobilenet_v2', 'features.7.'), ('squeezenet1_1', 'features.9.'),
    ('densenet121', 'features.denseblock3.'), ('googlenet', 'inception4a.'), ('convnext_atto', 'net.stages.2.'), ('tiny', 'stage3.')])
def test_late_begins_at_a_block(arch, first):
    b = plain(arch)
    early,late = group_names(b)
    assert late[0].startswith(first) and not any(o.startswith(first) for o in early)

def test_transformers_are_cut_in_the_middle(): assert group_names(plain('vit_tiny_patch16_224'))[1][0].startswith('net.blocks.6.')

def test_functions_and_networks_as_arch():
    for fn,arch,source in ((torchvision.models.resnet18, 'resnet18', 'torchvision'), (LeNet5, 'lenet5', 'learnkit'), (TinyNet, 'tiny', 'learnkit')):
        b = body(fn, pretrained=False)
        assert (b.arch,b.source) == (arch,source)
    import timm
    b = body(timm.models.resnet.resnet10t, pretrained=False)
    assert (b.arch,b.source) == ('resnet10t','timm')
    assert facts(timm.models.resnet.resnet18).arch == 'timm/resnet18' and facts('timm/resnet18').source == 'timm'
    def mine(n_in=3): return nn.Sequential(nn.Conv2d(n_in, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    b = body(mine, n_in=2)
    assert (b.arch,b.source,b.features,b.pretrained,b.cut) == ('mine','function',8,False,'before 2') and b(torch.rand(1, 2, 30, 30)).shape == (1,8,28,28)
    b = body(SmallNet())
    assert b.features == 128 and body(b) is b

def test_the_default_is_the_built_in_body():
    b = body()
    assert (b.arch,b.source,b.pretrained,b.features) == ('tiny','learnkit',True,256) and n_params(b) <= 1_600_000

def test_what_gives_no_map_is_refused():
    with pytest.raises(DataError, match='not a map'): body(lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())))
    with pytest.raises(DataError, match='not a network'): body(lambda: 3)
    with pytest.raises(DataError, match='map of features'): plain('crossvit_tiny_240')
    with pytest.raises(DataError, match='could not be tried'): body(lambda: nn.Linear(7, 2))

@pytest.mark.parametrize('arch,near', [('resent18', 'resnet18'), ('tinny', 'tiny'), ('vit_tiny_patch16_223', 'vit_tiny_patch16_224'),
    ('torchvision/convnext_atto', 'convnext'), ('resnet18.a1_in1', 'resnet18.a1_in1k'), ('hf-hub:timm/resnet18', 'resnet18')])
def test_unknown_names(arch, near):
    with pytest.raises(NotFound, match=near): body(arch)
    with pytest.raises(NotFound, match=near): facts(arch)

@pytest.mark.parametrize('arch', ['tiny', 'resnet18', 'convnext_atto'])
def test_a_misspelt_argument_is_refused(arch):
    with pytest.raises(TypeError, match='no_such'): plain(arch, no_such=1)

def test_facts():
    assert facts('resnet18').mean == (0.485,0.456,0.406) and facts('inception_v3').mean == (0.5,)*3
    assert facts('vit_h_14').licence == 'cc-by-nc-4.0' and facts('resnet50.imagenet1k_v1').files[-1] == 'resnet50-0676ba61.pth'
    assert facts('resnet50').url != facts('resnet50.imagenet1k_v1').url
    f = facts('mobilenetv3_small_050')
    assert f.source == 'timm' and f.licence == 'apache-2.0' and f.hub

def test_other_numbers_of_colours():
    torch.manual_seed(0)
    rgb,g = plain('resnet18').eval(),torch.rand(2, 1, 64, 64)
    grey = copy.deepcopy(rgb.net)
    grey = body(grey, n_in=1).eval()
    with torch.no_grad(): torch.testing.assert_close(grey(g), rgb(g.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)
    assert len(grey.mean) == 1 and len(plain('resnet10t', n_in=4).std) == 4
    for o in ('resnet10t','vit_tiny_patch16_224','vit_b_32','lenet5','squeezenet1_1'): assert plain(o, n_in=5)(torch.rand(2, 5, 64, 64)).ndim == 4

def test_vision_transformer_is_torchvisions_own_at_its_size():
    torch.manual_seed(0)
    vit = torchvision.models.vit_b_32().eval()
    nn.init.normal_(vit.class_token)
    b,x = body(vit).eval(),torch.rand(1, 3, 224, 224)
    tokens = torch.cat([vit.class_token, vit._process_input(x)], 1)
    with torch.no_grad(): torch.testing.assert_close(b(x).flatten(2).transpose(1, 2), vit.encoder(tokens)[:,1:])
    with torch.no_grad(): assert b(x[...,:100,:200]).shape == (1,768,3,6)

def test_to_grid_keeps_places():
    x = torch.rand(2, 5, 3, 4)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(to_grid(tokens, 3/4), x) and torch.equal(to_grid(x.permute(0, 2, 3, 1), features=5), x)
    assert torch.equal(to_grid(torch.cat([tokens[:,:1], tokens], 1), 3/4), x)

def test_networks_of_one_size_get_scaled_pictures():
    b = plain('convit_tiny')
    assert (b.step,b.size) == (None,224) and '224 px' in b.cut and b(torch.rand(1, 3, 96, 64)).shape[-2:] == (14,14)
    b = plain('convit_tiny', img_size=96)
    assert (b.size,b.step) == (96,None) and b(torch.rand(1, 3, 64, 128)).shape[-2:] == (6,6) and b(torch.rand(1, 3, 96, 96)).shape[-2:] == (6,6)
    assert plain('dla46_c').step == 32 and plain('dla46_c')(torch.rand(1, 3, 70, 90)).shape[-2:] == (3,3)

@pytest.mark.parametrize('arch', ['alexnet','vgg11','inception_v3','resnet18','tiny','lenet5','vit_tiny_patch16_224','convit_tiny'])
def test_small_pictures_are_enlarged(arch):
    b = plain(arch).eval()
    with torch.no_grad(): assert b(torch.rand(2, 3, 28, 28)).shape[:2] == (2,b.features) and b(torch.rand(1, 3, 20, 40)).ndim == 4
    assert arch not in ('resnet18','tiny','lenet5') or b.fit(28, 28) == (28,28)

def test_copies_half_precision_and_channels_last():
    for o in ('tiny','vit_tiny_patch16_224'):
        b,x = plain(o).eval().to(memory_format=torch.channels_last),torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
        with torch.no_grad(): assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(b)))(x), b(x))
        with torch.autocast('cpu', torch.bfloat16): assert b(x).isfinite().all()

def test_import_is_light():
    code = "import sys, learnkit.models.zoo; print([o for o in ('timm','torchvision','fastai','huggingface_hub') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

# Weights

@pytest.fixture
def mirror(tmp_path, monkeypatch):
    "A mirror's weights folder; the caches of learnkit and torch are empty, and nothing may be fetched."
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    (tmp_path/'mirror'/'weights').mkdir(parents=True)
    with settings.using(mirror=tmp_path/'mirror', cache_path=tmp_path/'cache', offline=True, progress=False): yield tmp_path/'mirror'/'weights'

def random_weights(arch, **kw):
    "The state of a new network `arch` of torchvision with its head."
    return torchvision.models.get_model(arch, weights=None, **kw).state_dict()

def with_hash(folder, name, sd):
    "Save `sd` as a file of torch, with its hash in the name."
    tmp = folder/'tmp'
    torch.save(sd, tmp)
    return tmp.rename(folder/f'{name}-{hashlib.sha256(tmp.read_bytes()).hexdigest()[:8]}.pth')

@pytest.mark.parametrize('arch', ['resnet18', 'mnasnet0_5', 'mobilenet_v3_small'])
def test_weights_from_the_mirror(mirror, arch):
    sd = random_weights(arch)
    save_file(sd, mirror/f'{arch}.safetensors')
    b = body(arch)
    own = b.net.state_dict()
    assert b.pretrained and own and all(torch.equal(v, sd[k]) for k,v in own.items())
    grey = body(arch, n_in=1)
    first = next(m for m in grey.modules() if isinstance(m, nn.Conv2d)).weight
    torch.testing.assert_close(first, next(v for v in sd.values() if v.ndim == 4).sum(1, keepdim=True))

def test_weights_of_inception_with_its_helpers(mirror):
    sd = random_weights('googlenet', init_weights=False)
    save_file(sd, mirror/'googlenet.safetensors')
    b = body('googlenet')
    assert b.pretrained and not any('aux' in k for k in b.net.state_dict())

def test_weights_of_timm_from_the_mirror(mirror):
    import timm
    for name in ('mobilenetv3_small_050','vit_tiny_patch16_224'):
        sd = timm.create_model(name).state_dict()
        save_file(sd, mirror/f'{name}.safetensors')
        b = body(name)
        assert b.pretrained and all(torch.equal(v, sd[k]) for k,v in b.net.net.state_dict().items())
        assert not b.net.net.pretrained_cfg.get('state_dict')

@pytest.mark.parametrize('theirs', ['resnet26t','convnext_atto','resnet18'])
def test_weights_of_timm_that_are_wrong(mirror, theirs):
    import timm
    save_file(timm.create_model(theirs).state_dict(), mirror/'resnet10t.safetensors')
    with pytest.raises(DataError, match='does not hold the weights of resnet10t'): body('resnet10t')

def test_a_built_in_body_takes_weights_from_the_mirror(mirror):
    assert not body('small').pretrained
    sd = SmallNet().state_dict()
    save_file(sd, mirror/'small.safetensors')
    b = body('small')
    assert b.pretrained and all(torch.equal(v, sd[k]) for k,v in b.net.state_dict().items())

def test_weights_that_are_wrong(mirror):
    save_file(random_weights('resnet34'), mirror/'resnet18.safetensors')
    with pytest.raises(DataError, match='does not hold the weights of resnet18'): body('resnet18')
    save_file(random_weights('resnet18'), mirror/'resnet18.safetensors')
    whole = (mirror/'resnet18.safetensors').read_bytes()
    (mirror/'resnet18.safetensors').write_bytes(whole[:len(whole)//2])
    with pytest.raises(DataError, match='could not be read'): body('resnet18')
    (mirror/'resnet18.safetensors').rename(mirror/'resnet18-f37072fd.pth')
    with pytest.raises(DataError, match='cut off or altered'): body('resnet18')

def test_a_pickle_with_code_is_not_read(mirror, tmp_path):
    class Evil:
        def __reduce__(self): return (tmp_path/'ran').touch,()
    path = mirror/'evil.pth'
    torch.save(dict(a=Evil()), path)
    with pytest.raises(DataError, match='could not be read'): read_weights(path)
    assert not (tmp_path/'ran').exists()

def test_offline_says_what_to_do(mirror):
    with pytest.raises(OfflineError, match='resnet18-f37072fd.pth into .*mirror.weights.*pretrained=False.*arch=None'): body('resnet18')
    info = replace(facts('convnext_atto'), hub='nobody/none')
    with pytest.raises(OfflineError, match='model.safetensors of https://huggingface.co/nobody/none as convnext_atto'): weights_file(info)
    with pytest.raises(NotFound, match='no trained weights'): weights_file(replace(info, hub=None, url=None))
    assert weights_here(info) is None and list(mirror.iterdir()) == []

@pytest.fixture
def server(tmp_path):
    "A web server of this machine over the folder `www`: its address and the folder."
    www = tmp_path/'www'
    www.mkdir()
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=www)) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{s.server_address[1]}',www
        s.shutdown()

def test_weights_from_a_mirror_on_the_web(mirror, server):
    url,www = server
    (www/'weights').mkdir()
    save_file(random_weights('squeezenet1_1'), www/'weights'/'squeezenet1_1.safetensors')
    with settings.using(mirror=url):
        assert body('squeezenet1_1').pretrained
        (www/'weights'/'squeezenet1_1.safetensors').unlink()
        assert body('squeezenet1_1').pretrained
        with pytest.raises(OfflineError): body('resnet18')

def test_weights_from_their_publisher(mirror, server, tmp_path):
    url,www = server
    path = with_hash(www, 'net', dict(a=torch.ones(3)))
    info = replace(facts('resnet18'), files=('net.safetensors',path.name), url=f'{url}/{path.name}')
    assert torch.equal(read_weights(weights_file(info))['a'], torch.ones(3))
    lie = path.rename(www/'net-00000000.pth')
    with pytest.raises(DataError, match='Nothing was kept'): weights_file(replace(info, files=(lie.name,), url=f'{url}/{lie.name}'))
    assert [o.name for o in (tmp_path/'cache'/'weights').iterdir()] == [path.name]

@pytest.mark.parametrize('right', [True, False])
def test_weights_from_the_hub(mirror, server, monkeypatch, tmp_path, right):
    url,www = server
    monkeypatch.setenv('HF_ENDPOINT', url)
    (www/'api/models/nobody/none/tree').mkdir(parents=True)
    (www/'nobody/none/resolve/main').mkdir(parents=True)
    path = www/'nobody/none/resolve/main/model.safetensors'
    save_file(dict(a=torch.ones(3)), path)
    oid = hashlib.sha256(path.read_bytes()).hexdigest() if right else '0'*64
    (www/'api/models/nobody/none/tree/main').write_text(json.dumps([dict(path='README.md'), dict(path='model.safetensors', lfs=dict(oid=oid))]))
    info = replace(facts('convnext_atto'), hub='nobody/none')
    if right: assert weights_file(info).name == 'convnext_atto.d2_in1k.safetensors' and weights_here(info)
    else:
        with pytest.raises(DataError): weights_file(info)
        assert weights_here(info) is None

def test_built_in_names(): assert list(BUILTIN) == OURS and isinstance(body('small'), Body)
