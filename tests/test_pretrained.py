'The weights in the package, the table of models, and trained networks used as they are.'
import gc, json, runpy, shutil
from pathlib import Path
import pandas as pd, pytest, torch
from safetensors import safe_open
from safetensors.torch import save_file
import learnkit.all as lk
from learnkit.core import DataError, NotFound, OfflineError
from learnkit.models import weights
from learnkit.models.tiny import TRAINED, n_params, tiny_classifier
from learnkit.settings import settings
from learnkit.web import file_hash

FILE,root = weights.PACKAGE/'tiny.safetensors',Path(__file__).parents[1]
OURS = TRAINED['tiny']

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture
def nothing_else(tmp_path, monkeypatch):
    "No mirror, empty caches, no network connection: only what the package holds."
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path/'hub'))
    with settings.using(mirror='', cache_path=tmp_path/'cache', offline=True, progress=False): yield tmp_path

# The weights in the package

def test_the_file_is_the_one_that_the_registry_knows():
    assert file_hash(FILE) == OURS['sha256'] and FILE.stat().st_size <= 3_500_000
    assert abs(FILE.stat().st_size/1e6-OURS['mb']) < 0.06
    with safe_open(FILE, 'pt') as f:
        kinds = {f.get_tensor(k).dtype for k in f.keys()}
        classes = json.loads(f.metadata()['classes'])
    assert kinds == {torch.float16, torch.int64} and len(classes) == len(set(classes)) == OURS['classes'] == 200
    assert n_params(tiny_classifier()) == OURS['params'] <= 1_600_000

def test_card_and_results_say_what_the_registry_says():
    card,results = (weights.PACKAGE/'tiny.md').read_text(),(root/'benchmarks'/'RESULTS.md').read_text()
    assert OURS['sha256'] in card and f"{OURS['params']:,}" in card and OURS['licence'].lower() in card.lower()
    assert f"{OURS['accuracy']:.1f} %" in card and f"{OURS['accuracy']:.1f} %" in results
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device('meta'), FlopCounterMode(display=False) as count, torch.no_grad(): tiny_classifier().eval()(torch.zeros(1, 3, OURS['size'], OURS['size']))
    assert count.get_total_flops()/2e9 == pytest.approx(OURS['gmac'], rel=0.03)

def test_the_accuracy_is_the_one_in_the_registry(mirror):
    share,n = runpy.run_path(root/'benchmarks'/'transfer.py')['tiny_imagenet'](mirror/'tiny-imagenet-200.zip')
    assert n == 4000 and 100*share == pytest.approx(OURS['accuracy'], abs=0.3)

def test_it_needs_nothing_else(nothing_else):
    b = lk.body()
    assert b.pretrained and (b.arch, b.size, b.licence) == ('tiny', OURS['size'], OURS['licence'])
    assert weights.weights_where(lk.facts()) == 'package' and not (nothing_else/'cache').exists()
    assert not lk.body(pretrained=False).pretrained and not lk.body('small').pretrained

def test_other_colours_see_the_same(nothing_else):
    rgb,grey,x = lk.body().eval(),lk.body(n_in=1).eval(),torch.rand(2, 1, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(grey(x), rgb(x.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)
    assert grey.pretrained and lk.body(n_in=4)(torch.rand(2, 4, 64, 64)).shape[1] == 256

@pytest.fixture
def package(nothing_else, monkeypatch):
    "A copy of the package's weights that may be spoiled."
    folder = nothing_else/'models'
    folder.mkdir()
    shutil.copy(FILE, folder)
    monkeypatch.setattr(weights, 'PACKAGE', folder)
    return folder/FILE.name

def cut(path): path.write_bytes(path.read_bytes()[:100_000])
def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
def other(path): lk.torch.save(torch.nn.Linear(3, 2).state_dict(), path)

@pytest.mark.parametrize('spoil', [cut, flip, other])
def test_spoiled_weights_are_refused(package, spoil):
    spoil(package)
    before = package.read_bytes()
    with pytest.raises(DataError, match='tiny.safetensors is cut off or altered.*Install learnkit again'): lk.body()
    assert package.read_bytes() == before and lk.body(pretrained=False)

def test_missing_weights_are_said_to_be_missing(package):
    package.unlink()
    with pytest.raises(NotFound, match='tiny.safetensors is missing.*Install learnkit again'): lk.body()

def test_weights_of_another_shape(nothing_else):
    with pytest.raises(DataError, match='does not hold the weights of tiny'): lk.body(widths=(16,32,64,128))

# The table

def test_table_of_models(nothing_else):
    df = lk.models()
    assert isinstance(df, pd.DataFrame) and len(df) > 1500 and df.arch.is_unique and set(df.source) == {'learnkit','torchvision','timm'}
    assert df.licence.notna().all() and (df.params.notna()).mean() > 0.97 and (df.gmac.notna()).mean() > 0.95
    assert df.accuracy.notna().sum() > 900 and (df.accuracy.notna() == df.measure.notna()).all()
    own = df[df.source == 'learnkit'].set_index('arch')
    assert list(own[own.weights == 'package'].index) == ['tiny'] and own.weights['small'] == 'none'
    assert df[df.source == 'torchvision'].weights.str.fullmatch(r'download \d+ MB').all()

def test_filters_of_the_table():
    df = lk.models('classification', licence='commercial', max_params=5e6, sort='params')
    assert len(df) > 50 and df.params.max() <= 5e6 and df.params.is_monotonic_increasing and set(df.commercial) == {'yes'}
    assert not set(df.licence) - {'apache-2.0','mit','bsd-3-clause','cc-by-4.0'} and set(df.task) == {'classification'}
    nc = lk.models(licence='*nc*')
    assert len(nc) > 50 and set(nc.commercial) == {'no'} and 'vit_h_14' in set(nc.arch)
    best = lk.models('classification', source='torchvision')
    assert best.accuracy.is_monotonic_decreasing
    assert set(lk.models(pattern='fasterrcnn*').task) == {'detection'} and set(lk.models(pattern='maskrcnn*').task) == {'instance'}
    for kw in (dict(task='detecton'), dict(sort='acuracy'), dict(source='tim')):
        with pytest.raises(NotFound, match='Did you mean'): lk.models(**kw)
    with pytest.raises(TypeError): lk.models(licens='mit')

def test_the_table_of_timm_fits_timm():
    import timm
    table = pd.read_csv(weights.PACKAGE/'timm.csv', index_col='arch')
    names = timm.list_models(pretrained=True)
    assert len(set(names) & set(table.index)) > 0.9*len(names)
    for o in ('resnet10t.c3_in1k', 'mobilenetv3_small_050.lamb_in1k', 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'):
        assert sum(p.numel() for p in timm.create_model(o).parameters()) == table.params[o]
    assert table.gmac['resnet18.a1_in1k'] == pytest.approx(1.82, abs=0.02) and 60 < table.top1['resnet10t.c3_in1k'] < 75

def test_every_row_can_be_asked_for():
    df = lk.models('classification')
    for o in df.arch[::97]: assert lk.facts(o).arch == o and lk.describe(o).licence

def test_weights_in_the_mirror_count_as_here(nothing_else):
    (nothing_else/'m'/'weights').mkdir(parents=True)
    (nothing_else/'m'/'weights'/'resnet18.safetensors').write_bytes(b'')
    with settings.using(mirror=nothing_else/'m'):
        df = lk.models(here=True)
        assert dict(zip(df.arch, df.weights))['resnet18'] == 'mirror' and 'package' in set(df.weights)
    assert lk.models.resnet18 is lk.resnet18 and lk.models.ResNet50_Weights.IMAGENET1K_V1

def test_describe():
    d = lk.describe('resnet50')
    assert (d.source, d.licence, d.commercial, d.params, d.classes) == ('torchvision','bsd-3-clause','yes',25557032,1000)
    assert lk.describe().weights == 'package' and lk.describe('vit_h_14').commercial == 'no'
    with pytest.raises(NotFound, match="Did you mean 'resnet50'"): lk.describe('resnet5O')

# Whole networks

def test_class_names():
    for o,n in ((None, 200), ('resnet18', 1000), ('vit_b_16', 1000), ('convnext_atto', 1000), ('resnetv2_50x1_bit.goog_in21k', 21843)):
        names = lk.class_names(o)
        assert len(names) == len(set(names)) == n, o
    assert lk.class_names('resnet18')[207] == lk.class_names('convnext_atto')[207] == 'golden retriever'
    for o in ('small', 'convnext_tiny.dinov3_lvd1689m', torch.nn.Identity()):
        with pytest.raises(NotFound, match='no trained classes'): lk.class_names(o)

def test_classify_one_many_and_a_folder(nothing_else, tmp_path):
    what_is = lk.classify_with()
    pics = [lk.draw_doodle(i).image for i in range(3)]
    for i,o in enumerate(pics): o.save(tmp_path/f'{i}.png')
    one,many = what_is(pics[0]),what_is(pics)
    assert one.label == many[0].label and one.prob == pytest.approx(many[0].prob, abs=1e-5) and len(one.probs) == 200
    assert list(one.probs.values()) == sorted(one.probs.values(), reverse=True) and sum(one.probs.values()) == pytest.approx(1, abs=1e-4)
    label,index,probs = one
    assert what_is.vocab[int(index)] == label and probs.argmax() == index and json.loads(json.dumps(one.to_dict()))['label'] == label
    records = [lk.Record(tmp_path/f'{i}.png') for i in range(3)]
    for o in (tmp_path, records, [str(tmp_path/f'{i}.png') for i in range(3)], [(tmp_path/f'{i}.png').read_bytes() for i in range(3)]):
        assert [p.label for p in lk.classify_with(None, o)] == [p.label for p in many]
    assert what_is.top(pics).shape == (3,5) and len(what_is.show(pics)) == 3
    with pytest.raises(DataError, match='is text'):
        (tmp_path/'no.jpg').write_text('hello')
        what_is(tmp_path/'no.jpg')

def test_classify_with_other_libraries(nothing_else):
    (nothing_else/'m'/'weights').mkdir(parents=True)
    import timm, torchvision
    nets = dict(resnet18=torchvision.models.resnet18(), googlenet=torchvision.models.googlenet(init_weights=False), resnet10t=timm.create_model('resnet10t'),
        vit_tiny_patch16_224=timm.create_model('vit_tiny_patch16_224'))
    for k,v in nets.items(): save_file(v.state_dict(), nothing_else/'m'/'weights'/f'{k}.safetensors')
    picture = lk.draw_doodle(1).image
    with settings.using(mirror=nothing_else/'m'):
        for k,v in nets.items():
            what_is = lk.classify_with(k)
            x = what_is.ready(picture)[None]
            if k == 'googlenet': v.transform_input = True
            with torch.no_grad(): torch.testing.assert_close(what_is.model(x), v.eval()(x))
            assert len(what_is(picture).probs) == 1000
    with pytest.raises(OfflineError, match='resnet34.*Remedies'): lk.classify_with('resnet34')
    with pytest.raises(DataError, match='fasterrcnn_resnet50_fpn was trained for detection'): lk.classify_with('fasterrcnn_resnet50_fpn')
    with pytest.raises(DataError, match='nothing yet'): lk.classify_with('small')
    with pytest.raises(DataError, match='whole network for detection'): lk.body('fasterrcnn_resnet50_fpn', pretrained=False)

# Features

def test_features_of_an_architecture(nothing_else, drawings):
    files = lk.image_files(drawings)[:12]
    x = lk.features(None, files, bs=5)
    assert x.shape == (12,256) and torch.allclose(x, lk.features(lk.body(), files), atol=1e-4) and not x.requires_grad
    assert torch.allclose(x[:1], lk.features(None, lk.open_image(files[0])), atol=1e-4)
    assert lk.features(None, []).shape[0] == 0 and lk.features(lk.body('small'), files, size=48).shape == (12,128)
    b = lk.body().train()
    lk.features(b, files[:2])
    assert b.training

def test_features_of_a_learner(drawings):
    learn = lk.classification_learner(lk.classification_dls(drawings, size=64, bs=16), precision='fp32')
    records = learn.dls.valid_ds.items[:6]
    x = learn.dls.test_dl(records).one_batch()[0]
    learn.model.eval()
    with torch.no_grad(): want = learn.model[0](x).mean((2, 3))
    assert torch.allclose(lk.features(learn, lk.L(records)), want.as_subclass(torch.Tensor), atol=1e-4)

def test_features_are_kept_until_something_changes(nothing_else, drawings, tmp_path):
    files = [shutil.copy(o, tmp_path) for o in lk.image_files(drawings)[:3]]
    def kept(): return len([*(nothing_else/'cache'/'features').iterdir()])
    b = lk.body('small')
    x = lk.features(b, files, cache=True)
    assert torch.equal(x, lk.features(b, files, cache=True)) and kept() == 1
    lk.features(b, files, size=32, cache=True)
    lk.features(b, files[:2], cache=True)
    assert kept() == 3
    with torch.no_grad(): next(b.parameters()).add_(1)
    assert not torch.equal(x, lk.features(b, files, cache=True)) and kept() == 4
    lk.draw_doodle(5).image.save(files[0])
    lk.features(b, files, cache=True)
    assert kept() == 5
    with pytest.raises(DataError, match='needs pictures that are files'): lk.features(b, [lk.draw_doodle(1).image], cache=True)

def test_features_of_a_learner_are_kept(drawings, monkeypatch):
    "Found again by another learner like it; one that prepares pictures in another way has features of its own."
    files,made = lk.image_files(drawings)[:3],[]
    def learner(size):
        lk.set_seed(3)
        return lk.classification_learner(lk.classification_dls(drawings, size=size, bs=16), precision='fp32')
    inputs = lk.TaskLearner._inputs
    monkeypatch.setattr(lk.TaskLearner, '_inputs', lambda self, items: made.append(items) or inputs(self, items))
    a = lk.features(learner(64), files, cache=True)
    assert torch.equal(a, lk.features(learner(64), files, cache=True)) and len(made) == 3
    assert not torch.equal(a, lk.features(learner(48), files, cache=True)) and len(made) == 6

# Every architecture by every use

NAMES = '''tiny small lenet5 alexnet vgg11 googlenet resnet18 mobilenet_v2 mobilenet_v3_small efficientnet_b0 mnasnet0_5 convnext_tiny vit_b_32
    resnet10t mobilenetv3_small_050 convnext_atto vit_tiny_patch16_224'''.split()

@pytest.fixture
def give_back():
    "A learner is a ring of references, which Python finds when it looks for rings; large ones should not wait for that."
    yield
    gc.collect()

@pytest.mark.parametrize('arch', NAMES)
def test_matrix(arch, drawings, tmp_path, give_back):
    lk.set_seed(0)
    rs = lk.Records(lk.read_folder(drawings)[::5])
    dls = lk.classification_dls(rs, size=64, bs=4)
    learn = lk.classification_learner(dls, arch, pretrained=arch == 'tiny', precision='fp32', path=tmp_path)
    body = learn.model[0]
    norm = next(o for o in dls.after_batch.fs if isinstance(o, lk.Normalize))
    assert norm.mean.flatten().tolist() == pytest.approx(body.mean) and norm.std.flatten().tolist() == pytest.approx(body.std)
    assert len(learn.splitter(learn.model)) == 3 and all(map(len, learn.splitter(learn.model)))
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=lk.ShortEpochCallback(0.3))
    assert any(not torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))
    files = [r.image for r in rs[:3]]
    assert lk.features(learn, files).shape == (3,body.features)
    maps = lk.dense(body)(torch.rand(1, 3, 64, 64))
    assert maps[-1].shape[1] == body.features and all(o.ndim == 4 for o in maps)
    again = lk.load_learner(learn.export('m.learnkit')).predict(files)
    for a,b in zip(learn.predict(files), again): assert a.label == b.label and a.probs == pytest.approx(b.probs, abs=1e-5)
