"The loader: threads give what fastai gives, pictures are opened once and never stale, worker processes live on."
import os, threading
import numpy as np
import pytest, torch
import learnkit.all as lk
from fastai.data.block import DataBlock as FastaiBlock
from fastai.data.transforms import IndexSplitter
from fastai.vision.augment import RandomResizedCrop, Resize
from fastai.vision.data import MaskBlock
from fastcore.all import L
from PIL import Image
from learnkit.data.blocks import CategoryBlock, ImageBlock, opener
from learnkit.data.images import open_image
from learnkit.data.loaders import ThreadDL
from learnkit.data.opening import Kept, kept_size, open_fitted

@pytest.fixture
def photos(tmp_path):
    "Twelve JPEGs of different sizes, as records."
    rng,res = np.random.default_rng(0),[]
    for i in range(12):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize((90+5*i, 80), Image.BICUBIC).save(tmp_path/f'{i}.jpg')
        res.append(lk.Record(tmp_path/f'{i}.jpg', label='ab'[i % 2]))
    return L(res)

def loaders(block, photos, tfm, **kw):
    "Loaders of `photos` by the class of block `block`, after the seed 3."
    lk.set_seed(3)
    b = block(blocks=(ImageBlock, CategoryBlock), splitter=IndexSplitter([9, 10, 11]), item_tfms=tfm)
    return b.dataloaders(photos, bs=4, num_workers=0, device=torch.device('cpu'), **kw)

@pytest.mark.parametrize('tfm', [Resize(32), RandomResizedCrop(32, min_scale=.4)], ids=lambda o: type(o).__name__)
def test_the_same_batches_as_fastai(photos, tfm):
    "Same seed: same order, same crops, same numbers, in every epoch; validation too."
    both = [loaders(FastaiBlock, photos, tfm), loaders(lk.DataBlock, photos, tfm, decode_cache=0)]
    assert type(both[1].train) is ThreadDL
    both[1].train.fit = None
    if type(tfm) is not Resize: both[1].valid.fit = None
    for part in (0, 1):
        got = []
        for dls in both:
            lk.set_seed(5)
            got.append([b for _ in range(2) for b in dls[part]])
        for (xa,ya),(xb,yb) in zip(*got, strict=True): assert torch.equal(xa, xb) and torch.equal(ya, yb) and type(xa) is type(xb)

def test_kept_pictures_differ_little(photos):
    "A picture that was scaled before its crop is the picture that was cropped before it was scaled, up to part of a pixel."
    got = []
    for fit in ('auto', None):
        dl = loaders(lk.DataBlock, photos, Resize(32)).train
        dl.fit = fit
        lk.set_seed(5)
        dl.rng.seed(5)
        got.append(torch.cat([x for x,_ in dl]))
    assert 0 < (got[0]-got[1]).abs().mean() < .03

def test_a_picture_is_opened_once(photos, monkeypatch):
    seen = []
    monkeypatch.setattr('learnkit.data.opening.open_image', lambda fn, *args, **kw: (seen.append(fn), open_image(fn, *args, **kw))[1])
    dls = loaders(lk.DataBlock, photos, Resize(32))
    for _ in range(3): list(dls.train), list(dls.valid)
    assert len(seen) == len({*seen}) >= 11
    for _ in range(2): list(dls.test_dl(list(photos)))
    assert len(seen) <= 12+9, 'the middle of the training pictures is opened once more, and is then there, too'

def test_a_changed_file_is_opened_again(tmp_path):
    kept,f = Kept(),tmp_path/'a.png'
    for i,colour in enumerate(['red', 'blue']):
        Image.new('RGB', (20, 20), colour).save(f)
        os.utime(f, ns=(i*10**9, i*10**9))
        assert kept.open(f).getpixel((3, 3)) == Image.new('RGB', (1, 1), colour).getpixel((0, 0))

def test_full_memory_goes_to_disk(tmp_path, capsys):
    files = [tmp_path/f'{i}.png' for i in range(6)]
    for i,f in enumerate(files): Image.new('RGB', (30, 20+i), (i, 0, 9)).save(f)
    kept = Kept(mb=.004)
    with lk.settings.using(progress=True):
        for _ in range(2): assert [kept.open(f).getpixel((0, 0)) for f in files] == [(i, 0, 9) for i in range(6)]
    assert kept.end > 0 and len(kept) == 6 and 'temporary file' in capsys.readouterr().out
    assert kept.open(files[5], 'L').mode == 'L', 'another mode is another picture'
    kept.disk = kept.end
    assert kept.open(files[0], fit=(8, 8, 'crop', Image.BILINEAR)).size == (12, 8), 'where nothing more fits, pictures are just opened'
    assert Kept(0).open(files[0]).size == (30, 20) and len(Kept(0)) == 0

def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path):
    f,exif = tmp_path/'a.jpg',Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (1000, 600)).save(f, exif=exif)
    assert open_image(f).size == (600, 1000)
    assert open_image(f, at_least=(60, 60)).size == (150, 250), 'a quarter: twice as large as needed'
    assert open_image(f, at_least=(160, 160)).size == (600, 1000), 'less than four times too large'
    assert open_fitted(f, fit=kept_size([Resize(60)])).size == (60, 100)

def test_targets_with_a_place_keep_the_size(tmp_path):
    "A mask does not know that its picture was scaled."
    for i in range(4): Image.new('RGB', (80, 60)).save(tmp_path/f'{i}.png'), Image.new('L', (80, 60)).save(tmp_path/f'm{i}.png')
    block = lk.DataBlock(blocks=(ImageBlock, MaskBlock), get_y=lambda o: o.with_name('m'+o.name), splitter=IndexSplitter([3]), item_tfms=Resize(32))
    dls = block.dataloaders(L(tmp_path/f'{i}.png' for i in range(4)), bs=2, device=torch.device('cpu'))
    x,y = dls.one_batch()
    assert x.shape[-2:] == y.shape[-2:] == (32, 32)
    assert dls.train.fit is None

def test_workers_live_on_and_keep_the_order(photos):
    "Two processes make the batches that threads make, and are the same two in the second epoch."
    threads,workers = [loaders(lk.DataBlock, photos, Resize(32, 'squish')) for _ in range(2)]
    dl = workers.train.new(num_workers=2)
    orders = []
    for o in (threads.train, dl):
        o.rng.seed(7)
        orders.append([[x.float().mean((1, 2, 3)).tolist() for x,_ in o] for _ in range(2)])
    assert orders[0] == orders[1] and orders[0][0] != orders[0][1]
    pids = [p.pid for p,*_ in dl._crew.crew]
    next(iter(dl))
    list(dl)
    assert [p.pid for p,*_ in dl._crew.crew] == pids

def test_a_pass_that_breaks_off_leaves_nothing(photos):
    dl = loaders(lk.DataBlock, photos, Resize(32)).train
    for _ in dl: break
    assert not [o for o in threading.enumerate() if o.name.startswith('learnkit-open')]
    assert opener.get() is open_image
    x = dl.one_batch()[0]
    assert x.shape == (4, 3, 32, 32)

def test_errors_name_the_file(photos):
    "Of pictures that were asked for one by one; those of the data set are replaced (test_quarantine.py)."
    dls = loaders(lk.DataBlock, photos, Resize(32))
    photos[0].image.write_bytes(b'no picture')
    with pytest.raises(lk.DataError, match='0.jpg is text'): list(dls.test_dl(photos[:2]))
