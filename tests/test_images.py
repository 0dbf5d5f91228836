"Odd, broken and hostile pictures through the one door, and the listing of folders (rows 1-53 of the corpus of bad input)."
import io, os, pickle, sys, tracemalloc
from pathlib import Path
import numpy as np, pytest
from corpus.build import FLIPPED, GREY16, H, J, P, PICTURES, W, kinds, packed, rgba, scene
from PIL import Image
from learnkit.core import DataError, NotFound
from learnkit.data.images import check_image, check_images, image_files, natural_key, open_image, to_8bit
from learnkit.settings import settings

pytestmark = pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore::PIL.Image.DecompressionBombWarning')

GOOD = {k:o for k,o in PICTURES.items() if o.ok}
BAD = {k:o for k,o in PICTURES.items() if not o.ok}

def put(tmp_path, name, data):
    (tmp_path/name).write_bytes(data)
    return tmp_path/name

@pytest.mark.parametrize('i', GOOD)
def test_opens_rightly(i, tmp_path):
    name,data = GOOD[i].name,GOOD[i].data
    p = put(tmp_path, name, data)
    im = open_image(p)
    assert (im.mode, type(im), im.info, len(im.getexif())) == ('RGB', Image.Image, {}, 0) and GOOD[i].ok(im)
    assert np.array_equal(im, open_image(data)) and np.array_equal(im, open_image(io.BytesIO(data)))
    assert check_image(p) is None and check_image(p, full=True) is None
    assert image_files(tmp_path) == [p]

@pytest.mark.parametrize('i', BAD)
def test_refuses_with_reason(i, tmp_path, recwarn):
    name,data,words = BAD[i].name,BAD[i].data,BAD[i].words
    p = put(tmp_path, name, data)
    with pytest.raises(DataError) as e: open_image(p)
    assert words in str(e.value) and str(e.value).startswith(str(p)) and '\n' not in str(e.value)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    with pytest.raises(DataError): open_image(data)
    for full in (False, True):
        prob = check_image(p, full)
        assert prob.path == p and words in prob.reason and str(prob) == f'{p} {prob.reason}'
    assert image_files(tmp_path, others=True) == [p] and p.read_bytes() == data

@pytest.mark.corpus(14)
def test_flipped_bytes_never_escape(tmp_path):
    for o in FLIPPED.values():
        p = put(tmp_path, o.name, o.data)
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
    for i in ('37-a.png', '38-a.png', '41-a.png'):
        with pytest.raises(DataError): open_image(BAD[i].data)
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

@pytest.mark.corpus(68)
def test_all_sources_give_the_same(tmp_path):
    p = put(tmp_path, 'a.png', P)
    a = np.array(scene())
    for name,x in {**kinds(p), 'short floats':(a/255).astype(np.float16).astype(np.float32)}.items(): assert np.array_equal(open_image(x), scene()), name

def test_tensors_need_no_torch(tmp_path):
    torch = pytest.importorskip('torch')
    t = torch.tensor(np.array(scene())).permute(2, 0, 1)
    for x in (t, t/255, (t/255).double(), t.long(), t.permute(1, 2, 0), (t/255).requires_grad_(), t/127.5-1): assert np.array_equal(open_image(x), scene())
    assert open_image((t/255).bfloat16()).size == open_image((t/255).half()).size == (W, H)
    assert open_image(t[:1]).size == open_image(t[0]).size == (W, H)

@pytest.mark.corpus(69)
def test_grey_alpha_and_deep_arrays():
    a = np.array(scene())
    assert np.array_equal(open_image(a[..., 0]), open_image(a[..., :1])) and open_image(a[..., 0]).mode == 'RGB'
    assert open_image(np.array(rgba())).getpixel((W-1, 0)) == (255, 255, 255)
    assert open_image(GREY16).getextrema()[0] == (0, 255)
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

@pytest.mark.corpus(24)
def test_no_handle_stays_open(tmp_path):
    if not Path('/proc/self/fd').exists(): pytest.skip('needs /proc')
    files = [put(tmp_path, k, o.data) for k,o in PICTURES.items()]
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

def test_scaling():
    assert to_8bit(np.array([0, 70000])).tolist() == [0, 255] and to_8bit(np.array([0, 255], np.int16)).tolist() == [0, 255]
    assert to_8bit(np.array([0, 1.004])).tolist() == [0, 255] and to_8bit(np.array([-.001, 1.])).tolist() == [0, 255]
    assert to_8bit(np.array([7., np.inf, -np.inf])).tolist() == [7, 0, 0] and to_8bit(np.array([-5, -5])).tolist() == [0, 0]
    assert to_8bit(np.array([0, 4096], np.uint16)).tolist() == [0, 16]
