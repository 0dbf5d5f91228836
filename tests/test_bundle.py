"Bundles: complete or absent, equal in every form of picture, and never code."
import json, os, pickle, zipfile
import pytest, torch
from safetensors.torch import load_file, save_file
import learnkit.all as lk
from learnkit.core import DataError, LearnkitError, NotFound, UntrustedFile
from learnkit.use.bundle import read_bundle

@pytest.fixture(scope='module')
def learn(drawings, tmp_path_factory):
    dls = lk.classification_dls(drawings, size=32, bs=16)
    learn = lk.classification_learner(dls, path=tmp_path_factory.mktemp('bundle'), precision='fp32')
    with lk.settings.using(progress=False): learn.fit(1)
    return learn

@pytest.fixture
def bundle(learn, tmp_path): return learn.export(tmp_path/'m.learnkit')

def forged(bundle, change):
    "A copy of `bundle` whose page was put through `change`."
    page = change(read_bundle(bundle))
    path = bundle.with_name('forged.learnkit')
    save_file(load_file(bundle), path, metadata=dict(format='pt', learnkit=json.dumps(page)))
    return path

class Canary:
    "A pickle of this makes a file when it is read."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (os.mkdir, (self.path,))

@pytest.mark.parametrize('change', [
    lambda p: p | dict(arch='os.system'), lambda p: p | dict(arch='__import__'), lambda p: p | dict(arch=3), lambda p: p | dict(task='evil'),
    lambda p: p | dict(item=[['os.system', dict(cmd='true')]]), lambda p: p | dict(item=[['Resize', dict(size=[8, 8], func='x')]]),
    lambda p: p | dict(batch=[['Lambda', {}]]), lambda p: p | dict(model=dict(custom_head='evil')), lambda p: p | dict(vocab=[1, 2]),
    lambda p: p | dict(learnkit=99), lambda p: p | dict(n_out=7), lambda p: p | dict(picture='CMYK'), lambda p: [], lambda p: 'text',
    lambda p: p | dict(item='Resize'), lambda p: p | dict(item=[['Resize']])])
def test_forged_pages_are_refused(bundle, change):
    with pytest.raises(LearnkitError) as e: lk.load_learner(forged(bundle, change))
    assert len(str(e.value)) > 20

@pytest.mark.parametrize('kind', ['pickle', 'torch', 'zip', 'text', 'empty', 'cut'])
def test_other_files_are_refused_and_run_nothing(bundle, tmp_path, kind):
    canary,path = tmp_path/'canary',tmp_path/'bad.learnkit'
    if kind == 'pickle': path.write_bytes(pickle.dumps(Canary(canary)))
    if kind == 'torch': torch.save(Canary(canary), path)
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as z: z.writestr('data.pkl', pickle.dumps(Canary(canary)))
    if kind == 'text': path.write_text('<html>')
    if kind == 'empty': path.write_bytes(b'')
    if kind == 'cut': path.write_bytes(bundle.read_bytes()[:5000])
    with pytest.raises((DataError, UntrustedFile)): lk.load_learner(path)
    assert not canary.exists()

def test_pickle_needs_trust(learn, tmp_path):
    path = learn.export(tmp_path/'m.pkl')
    with pytest.raises(UntrustedFile, match='trust=True'): lk.load_learner(path)
    photo = learn.dls.valid_ds.items[0].image
    assert lk.load_learner(path, trust=True).predict(photo).label == learn.predict(photo).label

def test_missing_and_plain_safetensors(tmp_path):
    with pytest.raises(NotFound): lk.load_learner(tmp_path/'none.learnkit')
    save_file(dict(a=torch.zeros(2)), tmp_path/'plain.safetensors')
    with pytest.raises(DataError, match='without the page'): lk.load_learner(tmp_path/'plain.safetensors')

def test_failed_export_leaves_the_old_file_and_the_learner(learn, bundle, monkeypatch):
    before = bundle.read_bytes()
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('learnkit.use.bundle.save_file', full)
    with pytest.raises(OSError): learn.export(bundle)
    assert bundle.read_bytes() == before and [o.name for o in bundle.parent.iterdir()] == [bundle.name]
    assert len(learn.dls.train) and learn.predict(learn.dls.valid_ds.items[0].image)

def test_own_code_is_refused_with_the_remedy(drawings, tmp_path):
    def mine(x:lk.PILImage): return x
    dls = lk.classification_dls(drawings, item_tfms=[lk.Resize(32), lk.Transform(mine)], bs=16)
    learn = lk.classification_learner(dls, path=tmp_path)
    with pytest.raises(DataError, match='mine.*pkl'): learn.export('m.learnkit')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('tfms', [
    dict(method='squish'), dict(method='pad'), dict(size=(40, 24)), dict(item_tfms='RandomResizedCrop'), dict(item_tfms='presize')])
def test_pictures_are_prepared_the_same(drawings, tmp_path, tfms):
    if tfms.get('item_tfms') == 'RandomResizedCrop': tfms = dict(item_tfms=lk.RandomResizedCrop(32))
    if tfms.get('item_tfms') == 'presize': tfms = dict(item_tfms=lk.Resize(48), augment=lk.aug_transforms(size=32, min_scale=.75))
    dls = lk.classification_dls(drawings, **(dict(size=32, bs=16) | tfms))
    learn = lk.classification_learner(dls, path=tmp_path, precision='fp32')
    again = lk.load_learner(learn.export('m.learnkit'))
    for r in dls.valid_ds.items[:4]: assert abs(learn.predict(r.image).prob - again.predict(r.image).prob) < 1e-6

def test_lesson_style_blocks_and_grey_pictures(drawings, tmp_path):
    how = dict(get_items=lk.get_image_files, get_y=lk.parent_label, splitter=lk.RandomSplitter(seed=1), item_tfms=lk.Resize(32))
    block = lk.DataBlock(blocks=(lk.ImageBlock(cls=lk.PILImageBW), lk.CategoryBlock), **how)
    learn = lk.vision_learner(block.dataloaders(drawings/'train', bs=16), lk.resnet18, pretrained=False, path=tmp_path)
    assert learn.model[0].net.conv1.in_channels == 1
    again = lk.load_learner(learn.export('m.learnkit'))
    photo = learn.dls.valid_ds.items[0]
    assert abs(learn.predict(photo).prob - again.predict(photo).prob) < 1e-6
