"""Every row of odd, broken and hostile input, from the folder to the answer of a learner that was exported.

Stages: scan (the reader), train (one epoch with the odd files among drawings), validate, predict, export and predict again. What is left out:

    rows                what                      stages left out, and why
    1 to 50, 51, 52, 71 files and folders         none; one data set holds them all, so that it is trained once
    53                  unreadable file           predict by the loaded learner: it opens files by the same function
    56, 57, 61, 63, 70  one error before training all after the scan: there is nothing to train; 61 goes on with the remedy that the error offers
    58, 62, 66          some cases are errors     all after the scan for those; the others go through all stages
    67                  captions                  all after the scan: there is no task for captions yet
    68, 69              what predict takes        scan, train: these are no files of a data set
    72                  very many files           the epoch sees 100 of the 20,000, and the long path

The corpus itself is made by `corpus/build.py`. No row may take 10 seconds, which the fixture `in_time` sees to."""
import os, signal, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest
import learnkit.all as lk
from corpus.build import FLIPPED, NO_KINDS, PICTURES, SETS, arrays, classes, kinds, put, scene
from learnkit.core import DataError, LearnkitError
from learnkit.data.images import check_image, image_files, image_notes, open_image
from learnkit.data.masks import class_numbers, read_masks
from learnkit.use.bundle import load_learner
from PIL import Image

pytestmark = pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore::PIL.Image.DecompressionBombWarning')
corpus = pytest.mark.corpus

@contextmanager
def limit(seconds):
    "Raise `TimeoutError` in the block after `seconds`, even where it waits for a file."
    def late(*args): raise TimeoutError(f'this took more than {seconds} s')
    if not hasattr(signal, 'setitimer'): return (yield)
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

@pytest.fixture(autouse=True)
def in_time(request):
    with limit(100 if request.node.get_closest_marker('slow') else 10): yield

@pytest.fixture
def made(tmp_path):
    "A function: the folder of a row, written."
    def make(row):
        SETS[row](tmp_path/'data')
        return tmp_path/'data'
    return make

def leaves(v): return [o for x in (v.values() if isinstance(v, dict) else v) for o in leaves(x)] if isinstance(v, (dict, list, tuple)) else [v]

def alike(a, b):
    "Do two predictions say the same, to a millionth?"
    a,b = leaves(a.to_dict()),leaves(b.to_dict())
    return len(a) == len(b) and all(abs(x-y) < 1e-6 if isinstance(x, float) else x == y for x,y in zip(a, b))

def whole_way(task, records, folder, photo=None, **kw):
    "A learner of `task` trained for an epoch on `records`, validated, exported and loaded; both answer alike about `photo`."
    lk.set_seed(3)
    with lk.settings.using(progress=False):
        learn = getattr(lk, f'{task}_learner')(getattr(lk, f'{task}_dls')(records, **(dict(size=32, bs=8) | kw)), pretrained=False, path=folder, precision='fp32')
        learn.fit_one_cycle(1)
        assert np.isfinite([float(o) for o in learn.validate() if o is not None][0])
        learn.again = load_learner(learn.export('m.learnkit'))
    assert alike(learn.predict(photo or records[0].image), learn.again.predict(photo or records[0].image))
    return learn

def told(rs): return [str(o) for o in rs.problems]

# Files: one data set with all of them

@pytest.fixture(scope='module')
def world(tmp_path_factory, one_thread):
    "A data set in which each picture of the corpus lies among drawings, its records, and a learner trained on them, in memory and from its bundle."
    top = classes(tmp_path_factory.mktemp('world')/'data', {'valid/disc':4, 'valid/square':4}, size=40)
    for row in (51, 52, 71): SETS[row](top/'train')
    files = {k:put(top/'train'/'square', o, k) for k,o in {**PICTURES, **FLIPPED}.items()}
    with limit(100):
        rs = lk.read_folder(top, check='full')
        learn = whole_way('classification', rs, top.parent, files['1-a.jpg'], bs=16)
        odd = [r for r in rs if r.image.name in files]
        dl = learn.dls.test_dl(odd, with_labels=True)
        assert np.isfinite(learn.validate(dl=dl)[0])
        preds = dict(zip([r.image for r in odd], learn.get_preds(dl=dl)[0]))
    return SimpleNamespace(top=top, files=files, records={r.image:r for r in rs}, problems={o.path:o.reason for o in rs.problems}, learn=learn, preds=preds)

def goes_through(w, p):
    "The picture at `p` is trained on, validated, and gets the same answer from both learners."
    assert p in w.records and p not in w.problems and check_image(p) is None
    assert any(r.image == p for r in w.learn.dls.train_ds.items)
    a,b = w.learn.predict(p),w.learn.again.predict(p)
    assert alike(a, b) and all(abs(x-y) < 1e-5 for x,y in zip(w.preds[p].tolist(), a.probs.values()))

def is_set_aside(w, p, words):
    "The picture at `p` has been set aside with a reason, which predicting gives too, and its file is as it was."
    assert words in w.problems[p] and p not in w.records and not any(r.image == p for r in w.learn.dls.items)
    for learn in (w.learn, w.learn.again):
        with pytest.raises(DataError) as e: learn.predict(p)
        assert str(e.value).startswith(str(p)) and words in str(e.value)

def cases(keep): return [pytest.param(k, marks=corpus(o.row), id=k) for k,o in PICTURES.items() if keep(o)]

@pytest.mark.parametrize('key', cases(lambda o: o.ok))
def test_is_used_rightly(world, key):
    o,p = PICTURES[key],world.files[key]
    assert o.ok(open_image(p)) and p.read_bytes() == o.data
    goes_through(world, p)

@pytest.mark.parametrize('key', cases(lambda o: o.ok))
def test_notes(world, key):
    notes = image_notes(world.files[key])
    assert any(PICTURES[key].words in o for o in notes) if PICTURES[key].words else notes == []

@pytest.mark.parametrize('key', cases(lambda o: not o.ok))
def test_is_set_aside(world, key):
    o,p = PICTURES[key],world.files[key]
    is_set_aside(world, p, o.words)
    assert p.read_bytes() == o.data

@corpus(14)
def test_flipped_bytes_are_used_or_set_aside(world):
    n = 0
    for k in FLIPPED:
        p = world.files[k]
        if p in world.records: goes_through(world, p)
        else: is_set_aside(world, p, world.problems[p])
        n += p in world.records
    assert 0 < n < len(FLIPPED), 'both kinds occur'

@pytest.mark.parametrize('name,words', [pytest.param('x.jpg', 'is not a plain file', marks=corpus(51)), pytest.param('folder.jpg', 'is a folder', marks=corpus(52)),
    pytest.param('gone.jpg', 'is a link to a file that does not exist', marks=corpus(52)), pytest.param('self.jpg', 'can not be opened', marks=corpus(52)),
    pytest.param('._1.png', 'macOS', marks=corpus(71)), pytest.param('Thumbs.db', 'macOS', marks=corpus(71))])
def test_is_skipped(world, name, words):
    p = world.top/'train'/'disc'/name
    assert p not in world.records and p not in world.problems
    for learn in (world.learn, world.learn.again):
        with pytest.raises(LearnkitError, match=words): learn.predict(p)

@corpus(52)
def test_each_file_is_found_once(world):
    found = image_files(world.top, others=True)
    assert len({os.path.realpath(o) for o in found}) == len(found) and not any('up' in o.relative_to(world.top).parts for o in found)

@corpus(71)
def test_junk_is_no_picture(world):
    found = [*world.records, *world.problems]
    assert not [o for o in found if {'__MACOSX', '.ipynb_checkpoints', 'Thumbs.db', '.DS_Store', 'desktop.ini'} & {*o.relative_to(world.top).parts}]

def test_all_is_accounted_for(world):
    "What was scanned was either used or set aside, and nothing else was set aside."
    assert {*world.records} | {*world.problems} == {*image_files(world.top, others=True)} and {*world.problems} <= {*world.files.values()}

@pytest.fixture
def for_all():
    "A temporary folder that every user may enter; those of pytest are for one user alone."
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        yield Path(d)

@contextmanager
def nobody():
    "Be a user who may not read everything within the block."
    if os.geteuid(): return (yield)
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

@corpus(53)
@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='needs the rights of Unix')
def test_unreadable(tmp_path, for_all):
    SETS[53](top := for_all/'data')
    locked = top/'disc'/'locked.jpg'
    (top/'square'/'more').mkdir()
    (top/'square'/'more').chmod(0)
    with nobody(), pytest.warns(UserWarning, match='more may not be read'): rs = lk.read_folder(top)
    assert [(o.path, o.reason) for o in rs.problems] == [(locked, 'may not be read (permission denied)')] and len(rs) == 12
    learn = whole_way('classification', rs, tmp_path)
    with nobody(), pytest.raises(DataError, match='permission denied'): learn.predict(locked)

# Memory, other programs

RISE = '''
import sys
from learnkit.data.images import check_image, image_notes, open_image
def peak(): return next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('VmHWM'))
before = peak()
for f in (open_image, image_notes, lambda p: check_image(p, True)):
    try: f(sys.argv[1])
    except ValueError: pass
print(peak()-before)
'''

@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs /proc')
@pytest.mark.parametrize('key', cases(lambda o: o.row in (37, 38, 41)))
def test_bombs_take_no_memory(key, tmp_path):
    res = subprocess.run([sys.executable, '-c', RISE, str(put(tmp_path, PICTURES[key]))], capture_output=True, text=True)
    assert int(res.stdout) < 50_000, f'kB; {res.stderr}'

@corpus(34)
def test_no_program_is_started(tmp_path, monkeypatch):
    "Ghostscript would be called for an EPS file: one that leaves a mark is never run."
    gs = tmp_path/'bin'/'gs'
    gs.parent.mkdir()
    gs.write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    gs.chmod(0o755)
    monkeypatch.setenv('PATH', f'{gs.parent}{os.pathsep}{os.environ["PATH"]}')
    for name in ('a.jpg', 'a.eps'):
        with pytest.raises(DataError, match='PostScript'): open_image(put(tmp_path, PICTURES['34-a.jpg'], name))
    assert not (tmp_path/'ran').exists()

# Folders and tables

@corpus(54)
def test_leak(made, tmp_path):
    rs = lk.read_folder(made(54))
    assert len(rs) == 18 and len(told(rs)) == 2, 'told, and used all the same'
    for w in ('square/twin.png is the same file as', 'valid/disc/twin.png is the same file as', 'there label is disc, here square', 'there split is train, here valid'):
        assert any(w in o for o in told(rs)), w
    assert len(whole_way('classification', rs, tmp_path).dls.problems) == 2

@corpus(55)
def test_empty_class(made, tmp_path):
    rs = lk.read_folder(made(55))
    assert told(rs) == [f'{tmp_path}/data/empty is a class folder without pictures']
    assert whole_way('classification', rs, tmp_path).dls.vocab == ['disc', 'square']

@pytest.mark.parametrize('row,part,words', [pytest.param(56, '', "needs two classes, and .*data has only 'disc'", marks=corpus(56)),
    pytest.param(57, 'one', 'Only one picture of star', marks=corpus(57)), pytest.param(57, 'valid_only', "Class 'star' .* only in the validation part", marks=corpus(57)),
    pytest.param(58, 'three', 'Only one picture of square', marks=corpus(58))])
def test_is_refused_before_training(made, row, part, words):
    with pytest.raises(DataError, match=words): lk.classification_dls(made(row)/part)

@corpus(58)
def test_four_pictures(made, tmp_path):
    learn = whole_way('classification', lk.read_folder(made(58)/'four'), tmp_path)
    assert sorted(r.label for r in learn.dls.valid_ds.items) == ['disc', 'square'] and 'error_rate' in learn.results

@corpus(59)
def test_wrong_rows(made, tmp_path):
    rs = lk.read_csv(made(59)/'labels.csv')
    assert [(o.row, o.reason) for o in rs.problems[:5]] == [(12, 'names 0.png again, as row 2'), (13, 'names 1.png again, and differs from row 3'),
        (14, 'names p/none.png, which does not exist'), (15, 'has no label'), (16, 'has no label')]
    assert len(rs) == 10 and len(rs.problems) == 6 and 'holds 2 pictures that no row of labels.csv names' in told(rs)[5]
    assert len(whole_way('classification', rs, tmp_path).dls.problems) == 6

@corpus(60)
def test_odd_class_names(made, tmp_path):
    top = made(60)
    if len([*top.iterdir()]) < 6: pytest.skip('names of files differ in more than capitals here')
    rs = lk.read_folder(top)
    names = ['2', '10', 'Cat', 'cat', 'red fox', '\u732b \U0001f431']
    assert rs.classes == names and ', '.join(f'{o} 3' for o in names) in repr(rs) and any('differ only in capitals: Cat, cat' in o for o in told(rs))
    learn = whole_way('classification', rs, tmp_path)
    for o in (learn, learn.again): assert [*o.dls.vocab] == names == [*o.predict(rs[0].image).probs]

# Masks

def mask_learner(rs, tmp_path): return whole_way('segmentation', rs, tmp_path, bs=4)

@corpus(61)
def test_black_and_white_masks(made, tmp_path):
    top = made(61)
    with pytest.raises(DataError, match=r'8 of 8 masks in .*labels have numbers that are no class, such as 0.png: 255.*mask_map={0: 0, 255: 1}'): lk.segmentation_dls(top)
    assert mask_learner(read_masks(top, mask_map={0:0, 255:1}), tmp_path).dls.vocab == ['sky', 'sea']

@corpus(62)
def test_palettes_and_colours(made, tmp_path):
    top = made(62)
    rs = read_masks(top/'palette')
    assert np.unique(class_numbers(rs[0])).tolist() == [0, 1] and not rs.problems
    mask_learner(rs, tmp_path/'a')
    with pytest.raises(DataError, match=r'8 of 8 masks .* are pictures in colours.*mask_map={\(0, 0, 0\): 0, \(128, 0, 0\): 1}'): lk.segmentation_dls(top/'rgb')
    mask_learner(read_masks(top/'rgb', mask_map={(0, 0, 0):0, (128, 0, 0):1}), tmp_path/'b')

@corpus(63)
def test_jpeg_masks(made):
    with pytest.raises(DataError, match='(?s)None of the 8 masks.*0.jpg is a lossy mask: JPEG smears'): lk.segmentation_dls(made(63))

@corpus(64)
def test_odd_masks(made, tmp_path):
    rs = read_masks(made(64))
    for w in ('0.png is 20 by 30 pixels, and its picture 32 by 32', '1.png has no mask of its name', '2.png has only pixels that count for nothing'):
        assert any(w in o for o in told(rs)), w
    assert [r.image.name for r in rs] == [f'{i}.png' for i in range(3, 12)] and len(rs.problems) == 3
    assert Image.open(rs[0].mask).mode == 'I;16' and np.unique(class_numbers(rs[0])).tolist() == [0, 1]
    mask_learner(rs, tmp_path)

# Boxes and sentences

@corpus(65)
def test_wrong_boxes(made, tmp_path):
    top = made(65)
    rs = lk.read_coco(top/'boxes.json')
    words = 'annotation 10 (2.png) is clipped', '11 (3.png) has a box outside', '12 (4.png) has a box without', '13 (5.png) has a box with swapped', '14 (6.png) has a number that is none'
    assert len(rs) == 10 and len(rs.problems) == 5
    for o,w in zip(told(rs), words): assert str(top/'boxes.json') in o and w in o
    rs = lk.read_csv(top/'boxes.csv', boxes=['x0', 'y0', 'x1', 'y1'])
    words = 'is clipped', 'outside the picture', 'without area', 'swapped edges', "no number in y0, but 'nan'", 'swapped edges'
    assert len(rs) == 10 and len(rs.problems) == 6
    for i,(o,w) in enumerate(zip(told(rs), words), 3): assert f'boxes.csv, row {i},' in o and w in o
    learn = whole_way('detection', rs, tmp_path, bs=4)
    assert len(learn.dls.problems) == 6

@corpus(65)
def test_boxes_of_another_kind(made):
    top = made(65)
    with pytest.raises(DataError, match=r'5 of 10 boxes in .*sizes.csv have swapped edges; .*sizes.csv, row 7, \(5.png\), for instance.*width and height'):
        lk.read_csv(top/'sizes.csv', boxes=['x0', 'y0', 'x1', 'y1'])
    rs = lk.read_coco(top/'corners.json')
    assert told(rs)[-1].endswith('corners.json has 9 of 9 boxes that reach beyond their picture: are right and bottom taken for width and height?')

@corpus(66)
def test_background_and_unknown_classes(made, tmp_path):
    top = made(66)
    rs = lk.read_coco(top/'background'/'boxes.json')
    assert rs[0].boxes == [] and not rs.problems
    whole_way('detection', rs, tmp_path, bs=4)
    with pytest.raises(DataError, match=r'boxes.json.*annotation 10 \(0.png\) has the unknown category 9.*1 shape, 2 spot'): lk.read_coco(top/'unknown'/'boxes.json')
    with pytest.raises(DataError, match=r'3.txt, row 2, has the unknown class 7.*0 shape'): lk.read_yolo(top/'yolo')

@corpus(67)
def test_captions(made, tmp_path):
    "No captioner learns yet, so only the reader is shown: the empty one is set aside, the long one cut, what is not UTF-8 refused."
    top = made(67)
    rs = lk.read_captions(top/'captions.csv')
    assert [len(r.captions[0]) for r in rs] == [6, 1000, 8] and rs[-1].captions == ['a disc \U0001f431']
    assert [(p.row, p.reason) for p in rs.problems] == [(3, 'has no caption'), (4, 'has a caption of 10,004 letters, which is cut to 1,000')]
    with pytest.raises(DataError, match=r'latin.csv is not UTF-8 text \(byte 25\)'): lk.read_captions(top/'latin.csv')

def test_captions_of_real_photographs(real):
    rs = lk.read_captions(real('flickr8k')/'captions.txt')
    assert len(rs) > 100 and {len(r.captions) for r in rs} == {5} and not rs.problems

# What predict takes

@corpus(68)
def test_all_types(world, tmp_path):
    (photo := tmp_path/'photo.png').write_bytes(PICTURES['8-a.jpg'].data)
    a = np.array(scene())
    for learn in (world.learn, world.learn.again):
        want = learn.predict(photo)
        for name,x in kinds(photo).items(): assert alike(learn.predict(x), want), name
        for x in (lk.tensor(a), lk.tensor(a).permute(2, 0, 1), lk.tensor(a).permute(2, 0, 1)/255): assert alike(learn.predict(x), want)
        for many in ([photo, a], lk.L(photo, a), (o for o in (photo, a))): assert [alike(o, want) for o in learn.predict(many)] == [True, True]
        assert learn.predict([]) == []
        for name,x in NO_KINDS.items():
            with pytest.raises(LearnkitError) as e: learn.predict(x)
            assert len(str(e.value)) > 20, name

@corpus(69)
def test_arrays_are_as_their_files(world, tmp_path):
    for name,a in arrays().items():
        Image.fromarray(a).save(tmp_path/f'{name}.png')
        for learn in (world.learn, world.learn.again): assert alike(learn.predict(a), learn.predict(tmp_path/f'{name}.png')), name

# Wrong places, very many files

@corpus(70)
@pytest.mark.parametrize('make', ['classification_dls', 'segmentation_dls', 'detection_dls', 'read_csv', 'read_coco', 'read_voc', 'read_yolo', 'read_points', 'read_masks'])
def test_wrong_places(made, make):
    top = made(70)
    for name in ('missing', 'empty', 'file.txt', 'pets.zip', 'missing.csv'):
        with pytest.raises(LearnkitError) as e: getattr(lk, make)(top/name)
        assert str(top/name) in str(e.value), (name, str(e.value))

@corpus(72)
@pytest.mark.slow
def test_very_many_files(made, tmp_path, capsys, one_thread):
    top = made(72)
    with lk.settings.using(progress=True): rs = lk.read_folder(top)
    assert len(rs) == 20_001 and not rs.problems and rs.counts == dict(disc=10_001, square=10_000)
    assert '100.00%' in capsys.readouterr().out, 'a bar with the time was shown'
    far = max((r.image for r in rs), key=lambda p: len(str(p)))
    assert len(str(far)) > 260
    learn = whole_way('classification', [*rs[::200], *(r for r in rs if r.image == far)], tmp_path, far)
    assert any(r.image == far for r in learn.dls.items)
