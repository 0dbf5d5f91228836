"Hostile files of every kind: none runs code, writes outside its folder, takes over 1 GB of memory, or hangs."
import os, re, sys
from contextlib import suppress
import numpy as np, pytest, torch
if sys.platform != 'linux': pytest.skip('what a file does is seen through /proc', allow_module_level=True)
from fastcore.foundation import L
from safetensors.torch import load_file
from attacks import archives, bundles, canary, notes, pictures, weights
from attacks.watch import watched
import learnkit.all as lk
from learnkit.archives import extract
from learnkit.core import LearnkitError
from learnkit.data.images import check_image, image_files, image_notes, image_size, open_image
from learnkit.data.masks import class_numbers
from learnkit.data.objects import shape_mask
from learnkit.models.weights import read_torch, read_weights
from learnkit.use.bundle import read_bundle

def attacks(shelf):
    "A parameter for each attack of `shelf`, counted as an artefact."
    def one(o): return pytest.param(o, id=o.what.replace('/', '|'), marks=[pytest.mark.hostile(o.id, o.what), *[pytest.mark.slow]*o.slow])
    return pytest.mark.parametrize('attack', [*map(one, shelf)])

@pytest.fixture
def box(tmp_path):
    "The only folder that may be written to; the canary and a secret are beside it."
    (tmp_path/'box').mkdir()
    return tmp_path/'box'

def everything(folder): return {o.relative_to(folder).as_posix() for o in folder.rglob('*')}

def withstood(attack, box, read, *args, inside=None):
    "Let `read` have what `attack` makes of `args`: it has to raise an error of ours, or may be `fine`, and nothing else may happen, but for files `inside` a folder, the cache."
    path = attack.make(box, *args)
    before,value = everything(box.parent),None
    with watched(inside or box.parent/'cache'):
        try: value = read(path)
        except LearnkitError as e: text = str(e).replace(str(path), '')
        else: text = None
    assert text is not None or attack.fine, f'was read: {value!r:.200}'
    assert {o for o in everything(box.parent)-before if not o.startswith('cache')} == set() and not canary(box).exists()
    assert not attack.said or text is None or re.search(attack.said, text), text
    return value

# Bundles

@pytest.fixture(scope='module')
def real_bundle(drawings, tmp_path_factory, one_thread):
    "The page and the weights of a bundle as it should be."
    dls = lk.classification_dls(drawings, size=32, bs=16)
    path = lk.classification_learner(dls, 'lenet5', path=tmp_path_factory.mktemp('bundle'), precision='fp32').export('real.learnkit')
    return read_bundle(path), load_file(path)

@attacks(bundles.attack)
def test_bundle(attack, box, real_bundle):
    "The page alone, too, may only be read or refused."
    withstood(attack, box, lk.load_learner, *real_bundle)
    for path in box.iterdir():
        with watched(box.parent/'cache'), suppress(LearnkitError): read_bundle(path)
    assert not canary(box).exists()

@pytest.mark.parametrize('name', ['model.learnkit', 'model.pkl', 'model.pth'])
def test_command_line_refuses_a_pickle(box, real_bundle, capsys, name):
    from learnkit.cli import main
    path = bundles.torch_file(box, *real_bundle, call=os.mkdir, name=name)
    with watched(box.parent/'cache'): assert main(['predict', str(path), 'photo.jpg'])
    assert 'pickle' in capsys.readouterr().err and not canary(box).exists()

@pytest.mark.parametrize('n', [640, 1152, 1408, 19280])
def test_bundle_that_begins_as_a_pickle_is_read(box, real_bundle, n):
    "The first bytes of a bundle are the length of its header: 1152 are those of a pickle."
    page, tensors = real_bundle
    def length(k):
        path = bundles.write(box, page | dict(note='x'*k), tensors)
        return int.from_bytes(path.read_bytes()[:8], 'little'), path
    k = (n-length(0)[0]) % 65536
    path = next(p for m, p in map(length, range(max(0, k-16), k+16, 4)) if m % 65536 == n)
    assert lk.load_learner(path).page['task'] == 'classification'

# Weights

@attacks(weights.attack)
def test_weights(attack, box): withstood(attack, box, read_weights)

@pytest.fixture(scope='module')
def learn(drawings, tmp_path_factory): return lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'lenet5', precision='fp32')

SAVED = [o for o in weights.attack if 'safetensors' not in o.what and o.said != 'no tensors' and 'one tensor' not in o.what]

@pytest.mark.parametrize('attack', SAVED, ids=[o.what for o in SAVED])
def test_saved_learner(attack, box, learn):
    "`load` reads what `save` wrote by the same rules."
    learn.path, learn.model_dir = box, '.'
    withstood(attack, box, lambda path: learn.load(path.stem), inside=box)

@pytest.mark.parametrize('zipped', [True, False])
def test_plain_numbers_of_numpy_are_read(tmp_path, zipped):
    "What `learn.save` writes is more than tensors: numbers of numpy of each kind, in fastcore's lists."
    kinds = 'f8 f4 i8 u1 b1 >f8'.split()
    state = dict(opt=L(dict(lr=np.dtype(k).type(1), w=torch.ones(2)) for k in kinds))
    torch.save(state, tmp_path/'a.pth', _use_new_zipfile_serialization=zipped)
    assert [o['lr'].item() for o in read_torch(tmp_path/'a.pth')['opt']] == [1.]*6

# Archives

@attacks(archives.attack)
def test_archive(attack, box):
    withstood(attack, box, lambda path: extract(path, box.parent/'cache'/'data'))
    assert {o.name for o in (box.parent/'cache').glob('*')} <= {'data'} and not (box.parent/'out').exists()

# Pictures

def looked_at(path):
    "All that is asked of a picture; raises the error of the first question that has one."
    if path.is_dir(): return [check_image(o, full=True) for o in image_files(path)]
    errors = []
    for f in (open_image, image_size, image_notes, check_image):
        try: f(path)
        except LearnkitError as e: errors.append(e)
    if errors: raise errors[0]

@attacks(pictures.attack)
def test_picture(attack, box): withstood(attack, box, looked_at)

# Annotations

def read_and_drawn(path):
    "What the reader for `path` gives, with all its shapes drawn."
    if (path/'codes.txt').is_file(): return [(len(class_numbers(o)), o.split) for o in lk.read_masks(path)]
    if path.name == 'table.csv': return lk.read_csv(path, label='label')._repr_markdown_()
    rs = lk.read_folder(path) if path.is_dir() and any(o.is_dir() for o in path.iterdir()) else lk.read_objects(path)
    for r in rs:
        for o in r.masks or []: o is None or shape_mask(o, r.size)
    return rs._repr_markdown_()

@attacks(notes.attack)
def test_notes(attack, box):
    value = withstood(attack, box, read_and_drawn)
    assert '<img' not in str(value) and '<script' not in str(value)
