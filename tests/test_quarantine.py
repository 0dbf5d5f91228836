"Pictures that break while they are used: set aside with a reason, replaced by their like, counted; and what is none of a picture's fault."
import errno, os, shutil, stat, tempfile
from pathlib import Path
import numpy as np
import pytest, torch
import learnkit.all as lk
from fastai.callback.core import Callback
from fastai.data.transforms import IndexSplitter
from fastai.vision.augment import RandomResizedCrop, Resize
from fastai.vision.data import MaskBlock as FastaiMasks
from fastcore.all import L
from PIL import Image
from learnkit.data.blocks import ImageBlock

pytestmark = pytest.mark.usefixtures('one_thread')

# Pictures that tell their number, and ways to break them

def draw(path, i, suffix='.png'):
    "A picture whose red is twice its number `i`, and whose other colours are noise."
    a = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
    a[...,0] = 2*i
    Image.fromarray(a).save(path/f'{i}{suffix}')
    return path/f'{i}{suffix}'

def pictures(path, n=40, names='ab', **kw): return lk.Records([lk.Record(draw(path, i), label=names[i % len(names)], **kw) for i in range(n)])

def loaders(records, bs=8, **kw): return lk.classification_dls(records, size=32, bs=bs, method='squish', augment=[], device=torch.device('cpu'), **kw)

def numbers(dl): return [(x[:,0,0,0]*255/2).round().int().tolist() for x,*_ in dl]

def flat(xs): return [i for o in xs for i in o]

def cut(f): f.write_bytes(f.read_bytes()[:1200])
def empty(f): f.write_bytes(b'')
def page(f): f.write_text('<html><body>404</body></html>')
def noise(f): f.write_bytes(np.random.default_rng(0).bytes(900))
def gone(f): f.unlink()

def flipped(f):
    b = bytearray(f.read_bytes())
    for i in range(600, 640): b[i] ^= 255
    f.write_bytes(b)

def link(f):
    f.unlink()
    f.symlink_to(f.with_name('nowhere.png'))

def folder(f):
    f.unlink()
    f.mkdir()

def pipe(f):
    f.unlink()
    os.mkfifo(f)

damages = dict(cut=(cut, 'is cut off'), empty=(empty, 'is empty'), page=(page, 'is an HTML page'), noise=(noise, 'is not a picture'),
    gone=(gone, 'does not exist'), flipped=(flipped, 'is damaged'), link=(link, 'is a link'), folder=(folder, 'is a folder'), pipe=(pipe, 'is not a plain file'))

def state(f):
    "All that can be seen of the file `f` without opening what may block."
    try: st = os.lstat(f)
    except FileNotFoundError: return None
    return st.st_mode, st.st_mtime_ns, st.st_size, f.read_bytes() if stat.S_ISREG(st.st_mode) else None

def cases():
    for part in ('training', 'validation'):
        for k in damages:
            for n in (0, 2) if k in ('cut', 'gone', 'flipped') else (0,):
                f = 'F2' if k in ('gone', 'link', 'folder', 'pipe') else 'F1'
                words = f'{part} picture: {k}, opened by {"processes" if n else "threads"}'
                yield pytest.param(part, k, n, marks=pytest.mark.fault(f, words), id=f'{part}-{k}-{n}')

# One picture breaks after the first epoch

@pytest.mark.parametrize('part,damage,n', [*cases()])
def test_a_picture_breaks(tmp_path, part, damage, n):
    "The next epochs are as long as the first, another of its class stands in its place, and its file is as it was left."
    dls,(spoil,reason) = loaders(pictures(tmp_path), num_workers=n),damages[damage]
    dl = dls.train if part == 'training' else dls.valid
    first,r = numbers(dl),dl.dataset.items[3]
    i = int(r.image.stem)
    spoil(r.image)
    was,later = state(r.image),[numbers(dl) for _ in range(2)]
    assert [[*map(len, o)] for o in later] == [[*map(len, first)]]*2 and dls.train.fake_l.num_workers == n
    for o in later:
        assert {*flat(o)} == {*flat(first)}-{i} and len({j % 2 for j in flat(o)}) == 2
        assert sum(j % 2 == i % 2 for j in flat(o)) == sum(j % 2 == i % 2 for j in flat(first)), 'the classes keep their shares'
    twice = [[j for j in o if flat(k).count(j) > 1][0] for k in later for o in [flat(k)]]
    assert twice[0] == twice[1], 'the same one in each epoch'
    assert [p.path for p in dls.aside.problems] == [r.image] and dls.aside.problems[0].reason.startswith(reason)
    assert state(r.image) == was

@pytest.mark.fault('F1', 'file that may not be read any more')
def test_a_picture_may_not_be_read():
    "Root may read everything, so root becomes nobody for a moment."
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    try:
        dls = loaders(pictures(place))
        f = dls.train.dataset.items[5].image
        f.chmod(0)
        me = os.geteuid()
        try:
            if me == 0: os.seteuid(65534)
            assert len(flat(numbers(dls.train))) == 32
        finally: os.seteuid(me)
        assert [(p.path, p.reason) for p in dls.aside.problems] == [(f, 'may not be read (permission denied)')]
    finally: shutil.rmtree(place)

@pytest.mark.fault('F1', 'file that is broken before the first batch')
def test_the_very_first_picture_is_broken(tmp_path):
    "fastai opens it to see what the transforms give, before there is a loader."
    rs = pictures(tmp_path)
    i = lk.split_records(rs)[0][0]
    cut(rs[i].image)
    dls = loaders(rs)
    assert len(flat(numbers(dls.train))) == 32 and i not in flat(numbers(dls.train)) and [p.path for p in dls.aside.problems] == [rs[i].image]
    dls.show_batch(max_n=2, unique=True)

# Training

@pytest.mark.fault('F1', 'three of a hundred pictures are broken, fit')
def test_three_percent_are_broken(tmp_path):
    rs = pictures(tmp_path, 100)
    dls = loaders(rs, bs=16)
    bad = [dls.train_ds.items[i].image for i in (0, 40)] + [dls.valid_ds.items[7].image]
    for f,k in zip(bad, ('cut', 'page', 'flipped')): damages[k][0](f)
    was = {f:state(f) for f in bad}
    learn = lk.classification_learner(dls, pretrained=False, precision='fp32', normalize=False, path=tmp_path)
    learn.fit_one_cycle(2, 1e-3)
    assert {p.path for p in dls.aside.problems} == {*bad} and all(p.reason for p in dls.aside.problems) and len(dls.aside) == 3
    assert {f:state(f) for f in bad} == was
    assert len(learn.recorder.losses) == 2*(80//16) and len(learn.recorder.values) == 2
    seen = {*flat(numbers(dls.train))} | {*flat(numbers(dls.valid))}
    assert len({*range(100)}-seen-{int(f.stem) for f in bad}) <= 80 % 16 and not seen & {int(f.stem) for f in bad}

class Tidy(Callback):
    "Delete `files` before the second epoch."
    def __init__(self, files): self.files = files
    def before_epoch(self):
        if self.epoch == 1: [f.unlink() for f in self.files]

@pytest.mark.fault('F2', 'two files are deleted in epoch 2 of 3, fit')
def test_files_vanish_while_training(tmp_path, capsys):
    dls = loaders(pictures(tmp_path))
    files = [dls.train_ds.items[3].image, dls.valid_ds.items[2].image]
    learn = lk.classification_learner(dls, pretrained=False, precision='fp32', path=tmp_path, cbs=Tidy(files))
    with lk.settings.using(progress=True): learn.fit(3)
    assert len(learn.recorder.values) == 3 and {p.path for p in dls.aside.problems} == {*files}
    told = [o for o in capsys.readouterr().out.splitlines() if 'take' in o]
    assert len(told) == 2 and all('does not exist. learn.problems' in o for o in told), 'one line for training, one for validation, once'
    preds,targs = learn.get_preds()
    assert len(preds) == len(dls.valid_ds) == 8
    kinds = [dls.vocab.o2i[r.label] for r in dls.valid_ds.items]
    assert targs.tolist() == kinds, 'row for row, also where another of the class has come in'

@pytest.mark.fault('F1', 'broken picture, fast=True')
def test_features_of_a_frozen_body(tmp_path):
    dls = loaders(pictures(tmp_path))
    gone(dls.train_ds.items[3].image)
    learn = lk.classification_learner(dls, precision='fp32', path=tmp_path)
    learn.fine_tune(1, fast=True)
    assert len(dls.aside) == 1 and len(learn.get_preds()[0]) == 8

# Too many

@pytest.mark.parametrize('n', [pytest.param(n, marks=pytest.mark.fault('F3', f'a quarter of all pictures is broken, {who}')) for n,who in (
    (0, 'threads'), (2, 'processes'))])
def test_more_than_a_fifth_stop_training(tmp_path, n):
    dls = loaders(pictures(tmp_path, 60, names='abc'), num_workers=n)
    for r in dls.train_ds.items[:15]: cut(r.image)
    with pytest.raises(lk.DataError, match='1[3-5] of 60 pictures could not be opened, more than 20%') as e:
        for _ in range(2): numbers(dls.train)
    lines = str(e.value).splitlines()
    assert sum('is cut off' in o for o in lines) == 10 and lines[-2].startswith('… and ') and 'learnkit data check DIR' in lines[-1] and '--fix NEW' in lines[-1]

@pytest.mark.parametrize('n', [pytest.param(n, marks=pytest.mark.fault('F3', f'no picture of a class is left, {who}')) for n,who in (
    (0, 'threads'), (2, 'processes'))])
def test_a_class_without_pictures(tmp_path, n):
    rs = pictures(tmp_path, 60)
    for r in rs[:5]: r.label = 'rare'
    dls = loaders(rs, num_workers=n)
    for r in dls.train_ds.items:
        if r.label == 'rare': empty(r.image)
    with pytest.raises(lk.DataError, match="None of the 4 training pictures of the class 'rare' can be opened") as e: numbers(dls.train)
    assert str(e.value).count('is empty') == 4

@pytest.mark.fault('F3', 'no validation picture of a class is left', lost='its share in the validation numbers')
def test_a_class_that_is_not_validated(tmp_path):
    rs = pictures(tmp_path, 60)
    for r in rs[:5]: r.label = 'rare'
    dls = loaders(rs)
    bad = [r for r in dls.valid_ds.items if r.label == 'rare']
    gone(bad[0].image)
    assert len(bad) == 1 and len(flat(numbers(dls.valid))) == len(dls.valid_ds) and int(bad[0].image.stem) not in flat(numbers(dls.valid))

@pytest.mark.fault('F3', 'all pictures of one batch are broken')
def test_a_whole_batch(tmp_path):
    dls = loaders(pictures(tmp_path, 60), bs=4)
    bad = dls.valid_ds.items[:4]
    for r in bad: cut(r.image)
    assert [*map(len, numbers(dls.valid))] == [4, 4, 4] and [p.path for p in dls.aside.problems][:1] == [bad[0].image] and len(dls.aside) == 4

@pytest.mark.fault('F2', 'the folder of all pictures is gone')
def test_the_drive_is_gone(tmp_path):
    dls = loaders(pictures(tmp_path))
    for f in tmp_path.glob('*.png'): f.unlink()
    with pytest.raises(lk.DataError, match='Is their drive there'): numbers(dls.train)

# Other targets

@pytest.mark.parametrize('damage', [pytest.param(o, marks=pytest.mark.fault('F1', f'mask: {o}')) for o in ('cut', 'gone', 'noise')])
def test_a_mask_breaks(tmp_path, damage):
    "The file that is named is the mask; picture and mask of another item come together."
    rs = pictures(tmp_path, 20)
    for i,r in enumerate(rs):
        r.mask,r.label = tmp_path/f'm{i}.png',None
        Image.fromarray(np.random.default_rng(i).integers(0, 2, (32, 32), np.uint8)).save(r.mask)
    dls = lk.segmentation_dls(rs, vocab=['no', 'yes'], size=32, bs=4, augment=[], device=torch.device('cpu'))
    r = dls.train_ds.items[2]
    if damage == 'cut': r.mask.write_bytes(r.mask.read_bytes()[:100])
    else: damages[damage][0](r.mask)
    for x,y in dls.train:
        for a,b in zip(x, y): assert b.tolist() == np.random.default_rng(int((a[0,0,0]*255/2).round())).integers(0, 2, (32, 32), np.uint8).tolist()
    assert [p.path for p in dls.aside.problems] == [r.mask] and dls.aside.problems[0].reason

@pytest.mark.parametrize('damage', [pytest.param(o, marks=pytest.mark.fault('F1', f'picture with boxes: {o}')) for o in ('cut', 'gone')])
def test_a_picture_with_boxes_breaks(tmp_path, damage):
    rs = lk.Records([lk.Record(draw(tmp_path, i), boxes=[[0, 0, 8+i, 8]], labels=['o'], row=i+2) for i in range(20)])
    dls = lk.detection_dls(rs, size=32, bs=4, augment=[], method='squish', device=torch.device('cpu'))
    r = dls.train_ds.items[2]
    damages[damage][0](r.image)
    for x,boxes,_ in dls.train:
        for a,b in zip(x, boxes): assert abs((float(b[0,2])+1)*16 - (8+int((a[0,0,0]*255/2).round()))) < .01
    assert [(p.path, p.row) for p in dls.aside.problems] == [(r.image, r.row)]

@pytest.mark.fault('F1', "mask of fastai's own MaskBlock")
def test_blocks_of_fastai(tmp_path):
    "Its errors are Pillow's, without a path."
    files = L(draw(tmp_path, i) for i in range(12))
    for i in range(12): Image.fromarray(np.random.default_rng(i).integers(0, 2, (32, 32), np.uint8)).save(tmp_path/f'm{i}.png')
    block = lk.DataBlock(blocks=(ImageBlock, FastaiMasks), get_y=lambda o: o.with_name('m'+o.name), splitter=IndexSplitter([9, 10, 11]), item_tfms=Resize(32))
    dls = block.dataloaders(files, bs=3, device=torch.device('cpu'))
    mask = tmp_path/'m4.png'
    mask.write_bytes(mask.read_bytes()[:100])
    assert len(flat(numbers(dls.train))) == 9 and [p.path for p in dls.aside.problems] == [files[4]] and 'truncated' in dls.aside.problems[0].reason

# What is not a picture's fault

def raising(e):
    def _raise(r): raise e
    return _raise

errors = [TypeError('f() takes 1 argument'), AttributeError('no such thing'), NameError('x'), KeyError('cat'), MemoryError(), OSError(errno.EMFILE, 'Too many open files')]

@pytest.mark.parametrize('e', errors, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('n', [0, 1])
def test_mistakes_of_programs_are_raised(tmp_path, e, n):
    dls = loaders(pictures(tmp_path, 20), bs=4, num_workers=n)
    dls.train.dataset.tls[0].tfms.fs.insert(0, lk.Transform(raising(e)))
    with pytest.raises(type(e)): numbers(dls.train)
    assert not len(dls.aside)

def test_other_loaders_have_other_lists(tmp_path):
    "`new` hands the list on with the data; a loader of other pictures raises the error."
    dls = loaders(pictures(tmp_path))
    f = dls.valid_ds.items[1].image
    gone(f)
    assert dls.valid.new(bs=2).aside is dls.aside is dls.train.aside
    assert len(flat(numbers(dls.valid.new(shuffle=True)))) == 8 and len(flat(numbers(dls.valid))) == 8 and len(dls.aside) == 1
    with pytest.raises(lk.NotFound, match=f'{f.name} does not exist'): numbers(dls.test_dl([f]))

# The same seed gives the same batches

@pytest.mark.parametrize('broken', [pytest.param(0), pytest.param(3, marks=pytest.mark.fault('F1', 'three broken files, one thread and four'))])
@pytest.mark.parametrize('tfm', [Resize(24), RandomResizedCrop(24, min_scale=.4)], ids=lambda o: type(o).__name__)
def test_threads_do_not_matter(tmp_path, tfm, broken):
    rs,got = pictures(tmp_path),[]
    for i,r in enumerate(rs[:broken]): [cut, empty, gone][i](r.image)
    for threads in (1, 4):
        lk.set_seed(3)
        dls = loaders(rs, item_tfms=tfm)
        for dl in dls: dl.threads = threads
        lk.set_seed(4)
        got.append([b for _ in range(3) for dl in dls for b in dl])
    assert len(got[0]) == 3*5 and len(dls.aside) == broken
    for (xa,ya),(xb,yb) in zip(*got, strict=True): assert torch.equal(xa, xb) and torch.equal(ya, yb)

# What the learner tells

@pytest.mark.fault('F1', 'the list is in learn.problems, beside what the reader refused')
def test_learn_problems_has_both(tmp_path):
    path = lk.write_doodles(tmp_path/'d', n=40, size=32)
    early,late = sorted((path/'train'/'cats').iterdir())[:2]
    early.write_bytes(b'')
    dls = lk.classification_dls(path, size=32, bs=8)
    learn = lk.classification_learner(dls, pretrained=False)
    late.unlink()
    assert [o.path for o in learn.problems] == [early]
    learn.fit(1)
    assert [o.path for o in learn.problems] == [early, late] and learn.problems[1].reason == 'does not exist'
