"""Defects of fastai that learnkit mends: each is shown with plain fastai, in a process of its own, and then with learnkit.

A test that fails because plain fastai has become right is good news: then the mending can go."""
import json, subprocess, sys, warnings
import pytest, torch
from PIL import Image

PLAIN = '''
import json, sys, warnings, pickle
warnings.simplefilter('ignore')
from fastai.vision.all import *
import torchvision
from torchvision.models import _api
from PIL import ImageOps
folder, out = Path(sys.argv[1]), {}
def random_weights(url, *args, **kwargs): return state
_api.load_state_dict_from_url = random_weights
dls = ImageDataLoaders.from_folder(folder, item_tfms=Resize(32), bs=8, num_workers=0)

state = torchvision.models.mobilenet_v3_small().state_dict()
learn = vision_learner(dls, torchvision.models.mobilenet_v3_small, weights='DEFAULT', opt_func=SGD)
out['normalize'] = any(isinstance(o, Normalize) for o in dls.after_batch.fs)
out['groups'] = len(learn.splitter(learn.model))

for arch in ('googlenet', 'vit_b_16'):
    try: vision_learner(dls, getattr(torchvision.models, arch), pretrained=False); out[arch] = 'made'
    except Exception as e: out[arch] = type(e).__name__
out['upright'] = list(PILImage.create(folder.parent/'phone.jpg').size)
resize_images(folder.parent/'phones', max_size=20, dest=folder.parent/'small')
with Image.open(folder.parent/'small'/'phone.jpg') as im: out['resized'] = list(ImageOps.exif_transpose(im).size)

learn = Learner(dls, nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), path=folder.parent).to_bf16()
seen = []
learn.model.register_forward_hook(lambda *a: seen.append(torch.is_autocast_enabled('cpu')))
with learn.no_bar(), learn.no_logging(): learn.fit(1)
out['bf16'] = any(seen)
learn.save('m')
with warnings.catch_warnings(record=True) as ws:
    warnings.simplefilter('always')
    learn.load('m')
out['deprecated'] = any('np.core' in str(w.message) or 'numpy.core' in str(w.message) for w in ws)
try: learn.predict([folder.parent/'phone.jpg']*2); out['list'] = 'predicted'
except BaseException as e: out['list'] = type(e).__name__

class Evil:
    def __reduce__(self): return (exec, ('open(%r, "w").close()' % str(folder.parent/'canary'),))
torch.save(Evil(), folder.parent/'evil.pkl')
try: load_learner(folder.parent/'evil.pkl')
except BaseException: pass
out['ran_code'] = (folder.parent/'canary').exists()
print(json.dumps(out))
'''

def phone(path):
    "A photograph 60 × 40 that a phone held upright: lying, with the note to turn it."
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(exist_ok=True)
    Image.new('RGB', (60, 40), 'orange').save(path, exif=exif)
    return path

@pytest.fixture(scope='module')
def place(drawings, tmp_path_factory):
    "A folder with drawings, and photographs of a phone."
    place = tmp_path_factory.mktemp('plain')
    (place/'doodles').symlink_to(drawings)
    phone(place/'phone.jpg')
    phone(place/'phones'/'phone.jpg')
    return place

@pytest.fixture(scope='module')
def plain(place):
    "What plain fastai does."
    res = subprocess.run([sys.executable, '-c', PLAIN, str(place/'doodles')], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-3000:]
    return json.loads(res.stdout.strip().splitlines()[-1])

@pytest.fixture
def dls(drawings):
    import learnkit.all as lk
    return lk.classification_dls(drawings, size=64, bs=8)

def test_row_1_every_body_is_normalized_and_has_three_groups(plain, dls):
    import learnkit.all as lk
    assert not plain['normalize'] and plain['groups'] == 2
    for arch in ('mobilenet_v3_small', 'efficientnet_b0', 'vgg11', 'convnext_tiny', 'regnet_y_400mf'):
        learn = lk.vision_learner(dls, getattr(lk.models, arch), pretrained=False)
        norm = [o for o in learn.dls.after_batch.fs if isinstance(o, lk.Normalize)]
        assert len(norm) == 1 and torch.allclose(norm[0].mean.flatten().cpu(), torch.tensor([.485, .456, .406]))
        assert len(learn.splitter(learn.model)) == 3

def test_row_1_another_body_does_not_change_the_first_learner(dls):
    import learnkit.all as lk
    a = lk.vision_learner(dls, 'resnet18', pretrained=False)
    b = lk.vision_learner(dls, 'vit_tiny_patch16_224', pretrained=False)
    def mean(o): return lk.first(f for f in o.dls.valid.after_batch.fs if isinstance(f, lk.Normalize)).mean.flatten().tolist()
    assert mean(a) != mean(b) and mean(b) == pytest.approx([.5]*3)

@pytest.mark.parametrize('arch', ['googlenet', 'vit_b_16'])
def test_row_2_bodies_that_fastai_cannot_cut(plain, dls, arch):
    import learnkit.all as lk
    assert plain[arch] != 'made'
    learn = lk.vision_learner(dls, getattr(lk.models, arch), pretrained=False)
    assert learn.model(dls.one_batch()[0][:2]).shape == (2, 2)

def test_row_9_photographs_stay_upright(plain, place, tmp_path):
    import learnkit.all as lk
    assert plain['upright'] == [60, 40] and plain['resized'] == [20, 13]
    assert lk.PILImage.create(place/'phone.jpg').size == (40, 60)
    lk.resize_images(place/'phones', max_size=20, dest=tmp_path)
    assert lk.open_image(tmp_path/'phone.jpg').size == (13, 20)

def test_row_10_bf16_acts_on_a_processor(plain, dls):
    import learnkit.all as lk
    assert not plain['bf16']
    learn,seen = lk.vision_learner(dls, None, precision='fp32').to_bf16(),[]
    learn.model.register_forward_hook(lambda *a: seen.append(torch.is_autocast_enabled('cpu')))
    learn.fit(1)
    assert all(seen) and not torch.is_autocast_enabled('cpu')

def test_row_12_no_pickle_runs(plain, place, tmp_path):
    import learnkit.all as lk
    assert plain['ran_code']
    (place/'canary').unlink(missing_ok=True)
    with pytest.raises(lk.UntrustedFile): lk.load_learner(place/'evil.pkl')
    assert not (place/'canary').exists()

def test_row_14_predict_builds_no_loader_and_takes_lists(plain, dls, place, monkeypatch):
    import learnkit.all as lk
    assert plain['list'] != 'predicted'
    learn = lk.vision_learner(dls)
    def forbidden(*args, **kwargs): raise AssertionError('predict made a data loader')
    monkeypatch.setattr(lk.DataLoader, '__init__', forbidden)
    assert len(learn.predict([place/'phone.jpg']*3)) == 3

def test_row_15_load_uses_nothing_deprecated(plain, dls, tmp_path):
    import learnkit.all as lk
    learn = lk.vision_learner(dls, 'resnet18', pretrained=False, path=tmp_path)
    learn.fit(1)
    learn.save('m')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.load('m')
        lk.vision_learner(dls, 'resnet18', pretrained=False)
