"Odd, broken and hostile pictures through the one door, and the listing of folders (rows 1-53 of the corpus of bad input)."
import io, os, pickle, struct, sys, tracemalloc, zlib
from pathlib import Path
import numpy as np, pytest
from PIL import Image, ImageCms
from learnkit.core import DataError, NotFound
from learnkit.data.images import check_image, check_images, image_files, image_notes, natural_key, open_image, to_8bit
from learnkit.settings import settings

W,H = 90,60

pytestmark = pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore::PIL.Image.DecompressionBombWarning')

def scene(w=W, h=H):
    "A smooth colour picture whose corners all differ."
    y,x = np.mgrid[0:h, 0:w]
    a = np.stack([255*x/max(w-1, 1), 255*y/max(h-1, 1), np.full((h, w), 60)], -1).astype(np.uint8)
    return Image.fromarray(a)

def packed(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def png(w, h, depth=8, colour=0, extra=b'', rows=b''):
    "A PNG file put together by hand, so that its header may lie."
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0))+extra+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

def oriented(fmt, n, **kw):
    e = Image.Exif()
    e[0x0112] = n
    back = {2:0, 3:3, 4:1, 5:5, 6:2, 7:6, 8:4} # the transpositions that undo the eight
    im = scene() if n == 1 else scene().transpose(Image.Transpose(back[n]))
    return packed(im, fmt, exif=e, **kw)

def damaged(data, at, n, seed=0):
    b,rng = bytearray(data),np.random.default_rng(seed)
    for i in rng.integers(at, len(b)-2, n): b[i] = int(rng.integers(256))
    return bytes(b)

def near(im, ref=None, tol=12): return np.abs(np.asarray(im, float)-np.asarray(ref or scene(), float)).mean() < tol

def rgba():
    im = Image.new('RGBA', (W, H), (255, 0, 0, 0))
    im.paste((0, 0, 255, 255), (0, 0, W//2, H))
    return im

def palette(transparent=False):
    im = scene().quantize(64)
    if transparent: im.info['transparency'] = bytes([0]*64)
    return im

J,P = packed(scene(), 'JPEG', quality=92),packed(scene(), 'PNG')
grey16 = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (8, 1))

# id: (name, bytes, what the picture must satisfy)
GOOD = {
    1:('a.jpg', J, near), 3:('a.jpg', J[:-2], near), 7:('a.png', J, near), 8:('a.jpg', P, near),
    9:('a.jpg', packed(scene(), 'WEBP', quality=95), near),
    10:('a.jpg', packed(scene().convert('L'), 'JPEG', quality=95), lambda im: near(im, scene().convert('L').convert('RGB'))),
    11:('a.jpg', packed(scene().convert('CMYK'), 'JPEG', quality=95), lambda im: near(im, tol=20)),
    13:('a.jpg', packed(scene(), 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff garbage', quality=92), near),
    15:('a.png', packed(rgba(), 'PNG'), lambda im: im.getpixel((W-1, 0)) == (255, 255, 255) and im.getpixel((0, 0)) == (0, 0, 255)),
    16:('a.png', packed(rgba().convert('LA'), 'PNG'), lambda im: im.getpixel((W-1, 0)) == (255, 255, 255) and im.getpixel((0, 0))[0] < 60),
    17:('a.png', packed(palette(), 'PNG'), lambda im: near(im, tol=20)),
    18:('a.png', packed(palette(), 'PNG', transparency=bytes([0]*64)), lambda im: im.getextrema() == ((255, 255),)*3),
    19:('a.png', packed(scene().convert('1'), 'PNG'), lambda im: {c for _,c in im.getcolors()} == {(0,)*3, (255,)*3}),
    20:('a.png', packed(Image.fromarray(grey16), 'PNG'), lambda im: len(im.getcolors()) == 256 and im.getextrema()[0] == (0, 255)),
    21:('a.png', png(2, 1, 16, 2, rows=b'\0'+struct.pack('>6H', 65535, 0, 0, 0, 32768, 0)),
        lambda im: im.getpixel((0, 0)) == (255, 0, 0) and im.getpixel((1, 0))[1] in (127, 128)),
    22:('a.tif', packed(Image.fromarray(np.asarray(scene().convert('L'), np.float32)/255), 'TIFF'), lambda im: near(im, scene().convert('L').convert('RGB'), 2)),
    122:('a.tif', packed(Image.fromarray(np.asarray(scene().convert('L'), np.float32)), 'TIFF'), lambda im: near(im, scene().convert('L').convert('RGB'), 2)),
    23:('a.tif', packed(Image.fromarray(grey16.astype(np.int32)), 'TIFF'), lambda im: len(im.getcolors()) == 256 and im.getextrema()[0] == (0, 255)),
    24:('a.gif', packed(scene(), 'GIF', save_all=True, append_images=[Image.new('RGB', (W, H))]), lambda im: near(im, tol=20)),
    25:('a.webp', packed(scene(), 'WEBP', save_all=True, append_images=[Image.new('RGB', (W, H))], quality=95), near),
    26:('a.png', packed(scene(), 'PNG', save_all=True, append_images=[Image.new('RGB', (W, H))]), near),
    27:('a.tiff', packed(scene(), 'TIFF', save_all=True, append_images=[Image.new('RGB', (W, H))]), near),
    28:('a.bmp', packed(scene(), 'BMP'), near), 31:('a.avif', packed(scene(), 'AVIF', quality=90), near),
    35:('a.png', packed(Image.new('RGB', (1, 1), 'red'), 'PNG'), lambda im: im.size == (1, 1)),
    36:('a.png', packed(scene(1, 5000), 'PNG'), lambda im: im.size == (1, 5000)), 46:('a.png', packed(scene(3000, 2), 'PNG'), lambda im: im.size == (3000, 2)),
    43:('a.jpg', J+b'PK\3\4 and more'*50, near), 44:('a.jpg', packed(scene(), 'JPEG', icc_profile=b'broken'*20, quality=92), near),
    45:('a.tif', packed(ImageCms.applyTransform(scene(), ImageCms.buildTransform(
        ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')), 'TIFF'), lambda im: near(im, tol=25)),
    47:('\u00e9 \u732b \U0001f431.jpg', J, near), 48:('100% #1?.jpg', J, near), 50:('A.JPEG', J, near),
    111:('a.jpg', packed(scene().convert('CMYK'), 'JPEG', icc_profile=b'broken'*20, quality=95), lambda im: near(im, tol=20))}

HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'+b'\0'*400
BAD = { # id: (name, bytes, words of the reason)
    2:('a.jpg', J[:len(J)//2], 'cut off'), 4:('a.jpg', b'', 'is empty'), 5:('a.jpg', b'<!DOCTYPE html>\n<html><body>404</body></html>', 'HTML page'),
    6:('a.jpg', packed(scene(400, 300), 'JPEG', progressive=True)[:2000], 'cut off'), 105:('a.jpg', 'just a note, caf\u00e9'.encode(), 'is text'),
    29:('a.ico', packed(scene(), 'ICO'), 'icon'), 30:('a.jp2', packed(scene(), 'JPEG2000'), 'JPEG 2000'), 32:('a.heic', HEIC, 'pillow-heif'),
    33:('a.svg', b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', 'SVG'),
    34:('a.jpg', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n', 'PostScript'),
    37:('a.png', png(20000, 20000), 'has 400 megapixels, more than the 64 allowed; set max_megapixels'), 38:('a.png', png(12000, 12000), 'has 144 megapixels'),
    39:('a.png', damaged(P, 60, 40), 'damaged'), 40:('a.png', P[:len(P)//2], 'cut off'),
    41:('a.png', png(4, 4, extra=chunk(b'zTXt', b'c\0\0'+zlib.compress(b'0'*80_000_000, 9)), rows=b'\0\0\0\0\0'*4), 'damaged'),
    42:('x.jpg', b'\0\5\x16\7\0\2\0\0Mac OS X        '+b'\0'*90, 'macOS'), 142:('x.jpg', J[:20], 'header is broken'),
    143:('x.jpg', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'), 144:('x.webp', packed(scene(), 'WEBP')[:-30], 'cut off')}

def put(tmp_path, name, data):
    (tmp_path/name).write_bytes(data)
    return tmp_path/name

@pytest.mark.parametrize('i', GOOD)
def test_opens_rightly(i, tmp_path):
    name,data,ok = GOOD[i]
    p = put(tmp_path, name, data)
    im = open_image(p)
    assert (im.mode, type(im), im.info) == ('RGB', Image.Image, {}) and ok(im)
    assert np.array_equal(im, open_image(data)) and np.array_equal(im, open_image(io.BytesIO(data)))
    assert check_image(p) is None and check_image(p, full=True) is None
    assert image_files(tmp_path) == [p]

@pytest.mark.parametrize('i', BAD)
def test_refuses_with_reason(i, tmp_path, recwarn):
    name,data,words = BAD[i]
    p = put(tmp_path, name, data)
    with pytest.raises(DataError) as e: open_image(p)
    assert words in str(e.value) and str(e.value).startswith(str(p)) and '\n' not in str(e.value)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    with pytest.raises(DataError): open_image(data)
    for full in (False, True):
        prob = check_image(p, full)
        assert prob.path == p and words in prob.reason and str(prob) == f'{p} {prob.reason}'
    assert image_files(tmp_path, others=True) == [p] and p.read_bytes() == data

@pytest.mark.parametrize('n', range(1, 9))
@pytest.mark.parametrize('fmt,kw', [('JPEG', dict(quality=95)), ('PNG', {}), ('WEBP', dict(quality=95)), ('TIFF', {})])
def test_upright(fmt, kw, n): # row 12
    im = open_image(oriented(fmt, n, **kw))
    assert im.size == (W, H) and near(im) and not im.getexif()

def test_flipped_bytes_never_escape(tmp_path): # row 14
    for seed in range(30):
        p = put(tmp_path, 'a.jpg', damaged(J, 20, 20, seed))
        try: assert open_image(p).mode == 'RGB'
        except DataError as e: assert str(p) in str(e)

def test_every_cut_is_a_sentence(tmp_path):
    "However much of a file is missing, the error is learnkit's own, and the quick check finds the same as the slow one."
    for fmt in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF'):
        data = packed(scene(), fmt)
        for share in (.02, .1, .5, .9, .99):
            p = put(tmp_path, 'a.x', data[:max(1, int(len(data)*share))])
            try: open_image(p)
            except DataError: assert check_image(p) is not None
            else: assert check_image(p) is None

def test_bombs_use_no_memory():
    tracemalloc.start()
    for i in (37, 38, 41):
        with pytest.raises(DataError): open_image(BAD[i][1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6

def test_size_cap_is_a_setting():
    data = packed(Image.new('1', (1500, 1000)), 'PNG')
    assert open_image(data).size == (1500, 1000)
    with settings.using(max_megapixels=1.2), pytest.raises(DataError, match='1.5 megapixels, more than the 1.2 allowed'): open_image(data)
    with settings.using(max_megapixels=1.2), pytest.raises(DataError): open_image(np.zeros((1500, 1000), np.uint8))

def test_limit_of_pillow_follows_the_setting(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500_000)
    data = packed(Image.new('1', (1500, 1000)), 'PNG')
    assert open_image(data).size == (1500, 1000)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500_000)
    with settings.using(max_megapixels=0.4), pytest.raises(DataError, match='megapixels'): open_image(data)

@pytest.mark.parametrize('conv', [
    str, Path, lambda p: p.read_bytes(), lambda p: bytearray(p.read_bytes()), lambda p: memoryview(p.read_bytes()), lambda p: io.BytesIO(p.read_bytes()),
    Image.open, lambda p: np.array(Image.open(p)), lambda p: np.array(Image.open(p))/255, lambda p: np.moveaxis(np.array(Image.open(p)), -1, 0),
    lambda p: (np.array(Image.open(p))/255).astype(np.float16).astype(np.float32), lambda p: np.array(Image.open(p)).astype(np.int64),
    lambda p: dict(name='a.png', content=memoryview(p.read_bytes())), lambda p: {'a.png':dict(metadata={}, content=p.read_bytes())}])
def test_all_sources_give_the_same(conv, tmp_path): # row 68
    p = put(tmp_path, 'a.png', P)
    assert np.array_equal(open_image(conv(p)), scene())

def test_tensors_need_no_torch(tmp_path):
    torch = pytest.importorskip('torch')
    t = torch.tensor(np.array(scene())).permute(2, 0, 1)
    for x in (t, t/255, (t/255).double(), t.long(), t.permute(1, 2, 0), (t/255).requires_grad_(), t/127.5-1): assert np.array_equal(open_image(x), scene())
    assert open_image((t/255).bfloat16()).size == open_image((t/255).half()).size == (W, H)
    assert open_image(t[:1]).size == open_image(t[0]).size == (W, H)

def test_grey_alpha_and_deep_arrays(): # row 69
    a = np.array(scene())
    assert np.array_equal(open_image(a[..., 0]), open_image(a[..., :1])) and open_image(a[..., 0]).mode == 'RGB'
    assert open_image(np.array(rgba())).getpixel((W-1, 0)) == (255, 255, 255)
    assert open_image(grey16).getextrema()[0] == (0, 255)
    assert open_image(np.array(rgba()), 'RGBA').getpixel((W-1, 0)) == (255, 0, 0, 0) and open_image(a, 'L').mode == 'L'
    assert open_image(np.eye(8, dtype=bool)).getextrema()[0] == (0, 255)

@pytest.mark.parametrize('x,words', [
    (None, 'give a path'), (7, 'give a path'), ([1, 2], 'give a path'), (np.zeros((2, 3, 8, 8)), r'x\[0\]'), (np.zeros((5, 5, 2)), r'shape \(5, 5, 2\)'),
    (np.zeros((0, 5)), 'not a picture'), (np.array(['a']), 'not a picture'), (np.full((4, 4), np.nan), 'finite'), (b'', 'is empty'),
    (io.StringIO('text'), 'opened as text'), ('https://example.org/cat.jpg', 'web address'), ({}, 'give a path'), ('a\0b.jpg', 'null')])
def test_other_things_are_refused(x, words):
    with pytest.raises(DataError, match=words): open_image(x)

def test_own_picture_is_left_alone():
    im = scene()
    im.info['note'] = 1
    res = open_image(im)
    res.putpixel((0, 0), (9, 9, 9))
    assert im.getpixel((0, 0)) != (9, 9, 9) and im.info == {'note':1}
    lazy = Image.open(io.BytesIO(J[:len(J)//2]))
    with pytest.raises(DataError, match='cut off'): open_image(lazy)

def test_no_handle_stays_open(tmp_path): # row 24
    if not Path('/proc/self/fd').exists(): pytest.skip('needs /proc')
    files = [put(tmp_path, f'{i}{n}', d) for i,(n,d,_) in {**GOOD, **BAD}.items()]
    before = len(os.listdir('/proc/self/fd'))
    for p in files:
        try: open_image(p)
        except DataError: pass
    check_images(files)
    assert len(os.listdir('/proc/self/fd')) <= before

def test_missing_folder_pipe_link(tmp_path): # rows 51, 52
    with pytest.raises(NotFound, match='does not exist'): open_image(tmp_path/'no.jpg')
    with pytest.raises(FileNotFoundError): open_image(tmp_path/'no'/'no.jpg')
    (tmp_path/'d.jpg').mkdir()
    with pytest.raises(DataError, match='is a folder'): open_image(tmp_path/'d.jpg')
    if not hasattr(os, 'mkfifo'): pytest.skip('needs pipes')
    os.mkfifo(tmp_path/'f.jpg')
    with pytest.raises(DataError, match='not a plain file'): open_image(tmp_path/'f.jpg')
    (tmp_path/'l.jpg').symlink_to(tmp_path/'gone')
    assert 'link' in check_image(tmp_path/'l.jpg').reason
    assert image_files(tmp_path) == []

def test_unreadable(tmp_path, monkeypatch): # row 53
    p = put(tmp_path, 'a.jpg', J)
    p.chmod(0)
    def refuse(*args): raise PermissionError(13, 'Permission denied')
    if os.access(p, os.R_OK): monkeypatch.setattr('learnkit.data.images.open', refuse, raising=False) # a user who may read everything
    assert 'permission' in check_image(p).reason

def test_listing(tmp_path): # rows 47-52, 71
    for o in ('b10.webp', 'B9.AVIF', 'sub/x.jpg', '.hidden.jpg', '._x.jpg', '__MACOSX/y.jpg', '.ipynb_checkpoints/z.png', 'Thumbs.db', 'notes.txt', 'p.heic'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).touch()
    (tmp_path/'sub'/'up').symlink_to(tmp_path)
    (tmp_path/'self').symlink_to(tmp_path/'self')
    (tmp_path/'twin').symlink_to(tmp_path/'sub')
    names = lambda **kw: [p.relative_to(tmp_path).as_posix() for p in image_files(tmp_path, **kw)]
    assert names() == ['B9.AVIF', 'b10.webp', 'sub/x.jpg']
    assert names(recurse=False) == ['B9.AVIF', 'b10.webp'] and 'p.heic' in names(others=True)
    for bad,kind in ((tmp_path/'none', NotFound), (tmp_path/'notes.txt', DataError)):
        with pytest.raises(kind): image_files(bad)

def test_names_that_are_not_unicode(tmp_path):
    if sys.platform != 'linux': pytest.skip('needs names of any bytes')
    p = os.path.join(os.fsencode(tmp_path), b'caf\xe9.jpg')
    with open(p, 'wb') as f: f.write(b'')
    prob, = check_images(image_files(tmp_path))
    str(prob).encode('utf8')
    with pytest.raises(DataError) as e: open_image(prob.path)
    str(e.value).encode('utf8')

def test_checks_many_in_order(tmp_path):
    files = [put(tmp_path, f'{i}.jpg', b'' if i%7 == 0 else J) for i in range(100)]
    assert [o.path for o in check_images(files, progress=True)] == files[::7]
    files[3].unlink()
    assert check_images(files[3:4])[0].reason == 'does not exist'

def test_natural_order(): assert sorted(['10', '2', 'b', 'A', 'a', '1x', '\u00b2', '9'*30], key=natural_key)[:2] == ['1x', '2']

@pytest.mark.parametrize('i,words', [(3, 'end'), (7, 'JPEG file named .png'), (20, '8 bits'), (24, '2 frames'), (15, 'white'), (35, 'tiny'), (36, 'strip'), (1, None), (28, None)])
def test_notes(i, words, tmp_path):
    notes = image_notes(put(tmp_path, *GOOD[i][:2]))
    assert any(words in o for o in notes) if words else notes == []

def test_scaling():
    assert to_8bit(np.array([0, 70000])).tolist() == [0, 255] and to_8bit(np.array([0, 255], np.int16)).tolist() == [0, 255]
    assert to_8bit(np.array([0, 1.004])).tolist() == [0, 255] and to_8bit(np.array([-.001, 1.])).tolist() == [0, 255]
    assert to_8bit(np.array([7., np.inf, -np.inf])).tolist() == [7, 0, 0] and to_8bit(np.array([-5, -5])).tolist() == [0, 0]
    assert to_8bit(np.array([0, 4096], np.uint16)).tolist() == [0, 16]
