"Masks: each pixel's class from any file that holds it, and every mistake named with the file, the numbers found and the argument that mends it."
import json, pickle, re, shutil, struct, zlib
import numpy as np, pytest
from learnkit.core import DataError, NotFound
from learnkit.data.doodles import PART_CODES, write_doodle_scenes, write_doodles
from learnkit.data.formats import read_coco
from learnkit.data.masks import IGNORE, class_numbers, read_masks
from learnkit.data.records import Record
from PIL import Image

W,H = 20,12

@pytest.fixture
def top(tmp_path):
    for o in ('images', 'labels'): (tmp_path/o).mkdir()
    return tmp_path

def ids(*values, size=(W, H)):
    "A mask (H, W) with bands of `values`."
    return np.repeat(np.array(values), -(-size[0]//len(values)))[None, :size[0]].repeat(size[1], 0)

def fill(top, masks, mode='L', suffix='.png', folder='labels', **kw):
    "A picture for each of `masks`, and the mask saved in `mode`."
    for i,m in enumerate(masks):
        Image.fromarray(np.random.RandomState(i).randint(0, 255, (H, W, 3), np.uint8)).save(top/'images'/f'p{i}.png')
        im = m if isinstance(m, Image.Image) else Image.fromarray(np.asarray(m, np.uint16 if mode == 'I;16' else np.uint8))
        if mode == 'P': im.putpalette([v for k in range(256) for v in (k*53%256, k*97%256, k)])
        if mode == '1': im = im.point(lambda v: 255*v, mode='1')
        im.save(top/folder/f'p{i}{suffix}', **kw)
    return top

def told(rs): return [str(o) for o in rs.problems]

def refused(*args, **kwargs):
    with pytest.raises(DataError) as e: read_masks(*args, **kwargs)
    return str(e.value)

def offered(text):
    "The arguments that an error offers, ready to be given: the longest text from the first one on that is Python."
    text = text[re.search(r'(mask_map|ignore|codes)=(?=[\[{])', text).start():]
    for m in reversed([*re.finditer(r'[\]}]', text)]):
        try: return eval(f'dict({text[:m.end()]})')
        except SyntaxError: pass

ab,abc = ['sky', 'sea'],['sky', 'sea', 'sand']

# What is read

def test_numbers_become_classes(top):
    fill(top, [ids(0, 1), ids(1, 2), ids(2)])
    (top/'codes.txt').write_text('sky\nsea\n\nsand\n')
    (top/'valid.txt').write_text('p2.png\n')
    rs = read_masks(top)
    assert rs.about == dict(classes=abc) and not rs.problems and rs.counts == dict(sand=2, sea=2, sky=1)
    assert [r.labels for r in rs] == [['sky', 'sea'], ['sea', 'sand'], ['sand']] and {r.mask_map for r in rs} == {None} and {r.size for r in rs} == {(W, H)}
    assert [r.split for r in rs] == ['train', 'train', 'valid'] and rs[0].boxes is None and rs[0].mask == top/'labels'/'p0.png'
    a = class_numbers(rs[1], abc)
    assert a.dtype == np.uint8 and np.array_equal(a, ids(1, 2))

@pytest.mark.parametrize('mode', ['L', 'P', '1', 'I;16', 'RGB', 'RGBA', 'LA', 'I'])
def test_every_kind_of_picture_keeps_its_numbers(top, mode):
    m = ids(0, 1)
    im = Image.fromarray(m.astype(np.int32)) if mode == 'I' else Image.fromarray(m.astype(np.uint8)).convert(mode) if mode in ('RGB', 'RGBA', 'LA') else m
    fill(top, [im], mode, '.tif' if mode == 'I' else '.png')
    rs = read_masks(top, codes=ab)
    assert Image.open(rs[0].mask).mode == mode and np.array_equal(class_numbers(rs[0]), m) and rs[0].labels == ab

@pytest.mark.parametrize('suffix,kw', [('.gif', {}), ('.bmp', {}), ('.tif', {}), ('.webp', dict(lossless=True))])
def test_every_format_that_keeps_numbers(top, suffix, kw):
    rs = read_masks(fill(top, [ids(0, 1)], suffix=suffix, **kw), codes=ab)
    assert np.array_equal(class_numbers(rs[0]), ids(0, 1))

def test_large_numbers_of_16_bits(top):
    fill(top, [ids(7, 1000, 26001)], 'I;16')
    rs = read_masks(top, codes={7:'road', 1000:'sky', 26001:'car'})
    assert np.array_equal(class_numbers(rs[0]), ids(0, 1, 2)) and rs[0].mask_map == {7:0, 1000:1, 26001:2}
    assert '26001' in refused(top, codes=ab)
    with pytest.raises(DataError, match='p0.png has numbers up to 26001'): class_numbers(Record(rs[0].image, mask=rs[0].mask))

@pytest.mark.parametrize('bits', [2, 4])
def test_numbers_of_few_bits(top, bits):
    "Pillow spreads the numbers of a grey PNG of 2 or 4 bits over 0 to 255; they are read as they stand in the file."
    def chunk(k, data): return struct.pack('>I', len(data))+k+data+struct.pack('>I', zlib.crc32(k+data))
    m,n = ids(0, 1, 2, 3),8//bits
    rows = [b'\0'+bytes(sum(int(v) << bits*(n-1-i) for i,v in enumerate(row[x:x+n])) for x in range(0, W, n)) for row in m]
    fill(top, [m])
    (top/'labels'/'p0.png').write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', W, H, bits, 0, 0, 0, 0))+chunk(b'IDAT', zlib.compress(b''.join(rows)))+chunk(b'IEND', b''))
    assert np.array_equal(class_numbers(read_masks(top, codes=[*abc, 'tree'])[0]), m)

def test_lists_of_codes(top):
    fill(top, [ids(0, 5, 9)])
    for text in ('0\tsky\n5\tsea\n9\tdry sand\n', '0 sky\r\n5  sea\r\n\r\n9 dry sand', '\ufeff0 sky\n5 sea\n9 dry sand'):
        (top/'c.txt').write_bytes(text.encode())
        rs = read_masks(top, codes='c.txt')
        assert rs.about['classes'] == ['sky', 'sea', 'dry sand'] and rs[0].mask_map == {0:0, 5:1, 9:2} and np.array_equal(class_numbers(rs[0]), ids(0, 1, 2))
        assert read_masks(top, codes=top/'c.txt').about == read_masks(top, codes={0:'sky', 5:'sea', 9:'dry sand'}).about == rs.about
    (top/'c.txt').write_text('2 euros\nsky\n5 euros\n')
    assert '3 codes (2 euros, sky, 5 euros)' in refused(top, codes='c.txt')

@pytest.mark.parametrize('codes,words', [([], 'names no class'), (['a', 'a'], "the name 'a' twice"), ('0 a\n0 b', "the number 0 twice"), ({'a':0}, "not 'a': 0"), ([3], 'not 0: 3'),
    ({-1:'a'}, 'not -1'), ('\xff', 'not UTF-8'), ([f'c{i}' for i in range(256)], '256 classes, and a mask holds 255'), (['void'], 'All classes are ignored')])
def test_codes_that_are_wrong(top, codes, words):
    fill(top, [ids(0)])
    if isinstance(codes, str): (top/'codes.txt').write_bytes(codes.encode('latin1'))
    assert words in refused(top, **({} if isinstance(codes, str) else dict(codes=codes)))

def test_255_classes_are_allowed(top):
    rs = read_masks(fill(top, [ids(0, 254)]), codes=[f'c{i}' for i in range(255)])
    assert rs[0].labels == ['c0', 'c254']
    assert len(rs.problems) == 1 and '253 classes that no mask shows: c1, c2' in told(rs)[0] and told(rs)[0].endswith('c10, …')

def test_codes_that_no_mask_shows(top):
    rs = read_masks(fill(top, [ids(0, 2)]), codes=abc)
    assert len(rs) == 1 and [o for o in told(rs) if 'has 1 class that no mask shows: sea' in o]

# What counts for nothing

@pytest.mark.parametrize('name', ['Unlabelled', 'unlabeled', 'VOID', 'Ignore', 'ignored', "don't care", 'Not labelled'])
def test_names_that_count_for_nothing(top, name):
    fill(top, [ids(0, 1, 2)])
    rs = read_masks(top, codes=['sky', name, 'sea'])
    assert rs.about['classes'] == ab and rs[0].mask_map == {0:0, 1:IGNORE, 2:1} and rs[0].labels == ab
    assert np.array_equal(class_numbers(rs[0]), ids(0, IGNORE, 1))
    rs = read_masks(top, codes=['sky', name, 'sea'], ignore=())
    assert rs.about['classes'] == ['sky', name, 'sea'] and rs[0].mask_map is None

@pytest.mark.parametrize('name', ['unknown', 'other', 'background', 'avoid', 'nothing'])
def test_names_that_may_be_classes(top, name): assert read_masks(fill(top, [ids(0, 1)]), codes=['sky', name]).about['classes'] == ['sky', name]

@pytest.mark.parametrize('ignore', ['sea', ['sea'], 1, [1], (1,), np.array([1]), {1}])
def test_ignore_takes_names_and_numbers(top, ignore):
    rs = read_masks(fill(top, [ids(0, 1, 2)]), codes=abc, ignore=ignore)
    assert rs.about['classes'] == ['sky', 'sand'] and np.array_equal(class_numbers(rs[0]), ids(0, IGNORE, 1))

def test_ignore_that_is_wrong(top):
    fill(top, [ids(0, 1)])
    with pytest.raises(NotFound, match="no class 'see'. Did you mean 'sea'"): read_masks(top, codes=ab, ignore='see')
    assert '-3 is no number' in refused(top, codes=ab, ignore=[-3])

def test_255_of_palettes_is_void(top):
    fill(top, [ids(0, 1, 255)], 'P')
    rs = read_masks(top, codes=ab)
    assert rs[0].labels == ab and not rs.problems and np.array_equal(class_numbers(rs[0], ab), ids(0, 1, 255))
    assert 'ignore=[255]' in refused(top, codes=ab, ignore=())
    assert read_masks(top, codes=ab, ignore=255)[0].labels == ab
    rs = read_masks(top, codes={0:'sky', 1:'sea', 255:'sand'})
    assert rs[0].labels == abc and np.array_equal(class_numbers(rs[0]), ids(0, 1, 2)), 'unless it has a name'

def test_nothing_but_void(top):
    rs = read_masks(fill(top, [ids(0, 1), ids(255)], 'P'), codes=ab)
    assert [r.image.name for r in rs] == ['p0.png'] and any('p1.png has only pixels that count for nothing' in o for o in told(rs))
    assert 'p0.png has only pixels that count for nothing' in refused(fill(top, [ids(255)], 'P'), codes=ab).splitlines()[1]

# Numbers that are no class

@pytest.mark.corpus(61)
@pytest.mark.parametrize('values,codes,offer,result', [
    ([0, 255], ab, dict(mask_map={0:0, 255:1}), [0, 1]), ([0, 128, 255], abc, dict(mask_map={0:0, 128:1, 255:2}), [0, 1, 2]),
    ([1, 2, 3], abc, dict(mask_map={1:0, 2:1, 3:2}), [0, 1, 2]), ([1, 3], abc, dict(mask_map={1:0, 2:1, 3:2}), [0, 2]),
    ([0, 1, 2, 17], abc, dict(ignore=[17]), [0, 1, 2, 255]), ([0, 1, 255], abc, dict(ignore=[255]), [0, 1, 255]),
    ([0, 1, 2, 250, 255], abc, dict(ignore=[250, 255]), [0, 1, 2, 255, 255]),
    ([0, 1, 2], ab, dict(codes=['background', 'sky', 'sea']), [0, 1, 2]), ([0, 255], ['cat'], dict(codes=['background', 'cat'], mask_map={0:0, 255:1}), [0, 1])])
def test_the_offer_mends_the_masks(top, values, codes, offer, result):
    fill(top, [ids(*values)]*2)
    text = refused(top, codes=codes)
    assert '2 of 2 masks' in text and 'such as p0.png' in text and f'{len(codes)} code' in text and str(max({*values}-{*range(len(codes))})) in text
    assert offered(text) == offer, text
    assert np.array_equal(class_numbers(read_masks(top, **{'codes':codes, **offer})[0]), ids(*result))

def test_many_classes_that_count_from_1(top):
    names = [f'c{i}' for i in range(150)]
    fill(top, [ids(1, 7, 150)])
    text = refused(top, codes=names)
    assert 'mask_map={i+1: i for i in range(150)}' in text
    assert np.array_equal(class_numbers(read_masks(top, codes=names, mask_map={i+1:i for i in range(150)})[0]), ids(0, 6, 149))
    assert "codes=['background', 'c0', 'c1', …]" in refused(fill(top, [ids(0, 7, 150)]), codes=names)

def test_smoothed_masks(top):
    text = refused(fill(top, [ids(*range(0, 20))]), codes=ab)
    assert 'resized or smoothed' in text and '2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …' in text

def test_one_wrong_mask_is_enough(top):
    text = refused(fill(top, [ids(0, 1)]*20+[ids(0, 9)]), codes=ab)
    assert '1 of 21 masks' in text and 'has numbers that are no class, such as p20.png: 9' in text

def test_mask_map(top):
    fill(top, [ids(10, 20, 30)])
    rs = read_masks(top, codes=ab, mask_map={10:0, 20:1, 30:IGNORE})
    assert rs[0].mask_map == {10:0, 20:1, 30:IGNORE} and rs[0].labels == ab and np.array_equal(class_numbers(rs[0]), ids(0, 1, 255))
    assert np.array_equal(class_numbers(read_masks(top, codes=ab, mask_map={10:0, 20:1}, ignore=30)[0]), ids(0, 1, 255))
    text = refused(top, codes=ab, mask_map={10:0, 20:1})
    assert 'p0.png: 30' in text and offered(text) == dict(ignore=[30])
    assert np.array_equal(class_numbers(read_masks(top, codes=['sky', 'void', 'sea'], mask_map={10:0, 20:1, 30:2})[0]), ids(0, 255, 1)), 'its numbers are those of the codes'
    rs = read_masks(top, codes=ab, mask_map={k:i for i,k in enumerate(np.uint8([10, 20]))}, ignore=np.uint8([30]))
    assert {type(k) for k in rs[0].mask_map} == {int}

@pytest.mark.parametrize('mask_map,words', [({10:2}, 'makes 10 the class 2'), ({10:'sky'}, "the class 'sky'"), ({'10':0}, "'10' is no number"), ({(1, 2):0}, 'is no number'),
    ({(1, 2, 300):0}, 'no colour'), ({-1:0}, '-1 is no number')])
def test_mask_maps_that_are_wrong(top, mask_map, words): assert words in refused(fill(top, [ids(0, 1)]), codes=ab, mask_map=mask_map)

def half(a): return a > 127

def test_functions_as_mask_map(top):
    fill(top, [ids(0, 255)])
    rs = read_masks(top, codes=ab, mask_map=half)
    assert np.array_equal(class_numbers(rs[0]), ids(0, 1)) and rs[0].labels == ab and rs[0].mask_map is half
    rs = read_masks(top, codes=['void', *ab], mask_map=lambda a: 1+half(a))
    assert np.array_equal(class_numbers(rs[0]), ids(0, 1)) and rs.about['classes'] == ab
    rs = pickle.loads(pickle.dumps(list(read_masks(top, codes=['sea', 'void'], mask_map=half))))
    assert np.array_equal(class_numbers(rs[0]), ids(0, 255))
    assert 'mask_map makes 7' in refused(top, codes=ab, mask_map=lambda a: np.full_like(a, 7))
    for f,words in ((lambda a: a[0], 'shape (20,)'), (lambda a: a/255, 'float64'), (lambda a: a.astype(int)+9, 'numbers from 9 to 264')): assert words in refused(top, codes=ab, mask_map=f)

# Colours

red,green = (128, 0, 0),(0, 128, 0)
def coloured(*colours): return Image.fromarray(np.uint8(colours)[ids(*range(len(colours)))])

def test_masks_in_colours(top):
    fill(top, [coloured((0, 0, 0), red), coloured(green, red), coloured((0, 0, 0))])
    text = refused(top, codes=abc)
    assert '2 of 3 masks' in text and 'are pictures in colours, such as p0.png' in text and 'the colours of VOC' in text
    assert offered(text) == dict(mask_map={(0, 0, 0):0, green:2, red:1})
    rs = read_masks(top, codes=abc, **offered(text))
    assert [r.labels for r in rs] == [['sky', 'sea'], ['sea', 'sand'], ['sky']] and np.array_equal(class_numbers(rs[1]), ids(2, 1))
    assert 'mask_map does not name it: add what each means, or say ignore=[(0, 128, 0)]' in refused(top, codes=abc, mask_map={(0, 0, 0):0, red:1})
    rs = read_masks(top, codes=ab, mask_map={(0, 0, 0):0, red:1}, ignore=[green])
    assert np.array_equal(class_numbers(rs[1]), ids(255, 1))

def test_colours_that_nobody_knows(top):
    text = refused(fill(top, [coloured((10, 20, 30), (200, 100, 0), (0, 0, 7))]), codes=ab)
    assert 'put the right number' in text and offered(text) == dict(mask_map={(0, 0, 7):0, (10, 20, 30):1, (200, 100, 0):255})
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (H, W, 3), np.uint8))
    assert re.search('They have 2[34][0-9] colours .* seem to be no masks', refused(fill(top, [noise]), codes=ab))

def test_a_few_masks_in_colours(top):
    rs = read_masks(fill(top, [ids(0, 1)]*19+[coloured(red, green)]), codes=ab)
    assert len(rs) == 19 and any('p19.png is a picture in colours ((0, 128, 0), (128, 0, 0)), unlike' in o for o in told(rs))

def test_palettes_by_their_colours(top):
    "A map of colours holds for pictures with a palette and grey ones too."
    im = Image.fromarray(np.uint8(ids(3, 4)))
    im.putpalette([*range(9), *red, *green])
    fill(top, [im, coloured(green, red), ids(5, 6)])
    rs = read_masks(top, codes=ab, mask_map={red:0, green:1, 5:0, 6:1})
    assert [class_numbers(r)[0, [0, -1]].tolist() for r in rs] == [[0, 1], [1, 0], [0, 1]] and not rs.problems

def test_transparent_masks(top):
    a = np.dstack([*[ids(0, 1)]*3, ids(255, 0)]).astype(np.uint8)
    assert 'p0.png is partly transparent' in refused(fill(top, [Image.fromarray(a)]), codes=ab)
    assert np.array_equal(class_numbers(read_masks(top, codes=ab, mask_map=lambda a: a[..., 3] == 0)[0]), ids(0, 1))

# Files that can't be used

@pytest.mark.parametrize('suffix,kw', [('.jpg', dict(quality=60)), ('.webp', dict(quality=40)), ('.tif', dict(compression='jpeg'))])
def test_lossy_masks(top, suffix, kw):
    fill(top, [ids(0, 200, 0, 255)], suffix=suffix, **kw)
    text = refused(top, codes=ab)
    assert 'is a lossy mask' in text and 'different values' in text and 'PNG' in text
    cut = re.search(r'mask_map=(lambda a: .* > 127)', text)[1]
    a = class_numbers(read_masks(top, codes=ab, mask_map=eval(cut))[0])
    assert {*np.unique(a)} == {0, 1} and (a[:, [2, 7, 12, 17]] == [0, 1, 0, 1]).all()

def test_masks_that_are_wrong(top):
    fill(top, [ids(0, 1)]*7)
    d = top/'labels'
    (d/'p0.png').write_text('words')
    (d/'p1.png').unlink()
    Image.new('L', (5, 9)).save(d/'p2.png')
    data = (d/'p3.png').read_bytes()
    (d/'p3.png').write_bytes(data[:len(data)//2])
    Image.fromarray(np.zeros((H, W), np.float32)).save(d/'p4.tif')
    (d/'p4.png').unlink()
    (top/'images'/'p5.png').write_text('no picture')
    rs = read_masks(top, codes=ab)
    assert [r.image.name for r in rs] == ['p6.png'] and len(rs.problems) == 6
    for w in ('p0.png is text', 'p1.png has no mask of its name in labels', 'p2.png is 5 by 9 pixels, and its picture 20 by 12; both are left out', 'p3.png is ', 'p4.tif is no mask: its mode is F',
        'images/p5.png is text'): assert any(w in o for o in told(rs)), w
    rs = read_masks(top, codes=ab, check=False)
    for r,w in zip(rs[:4], ('p0.png is text', 'p2.png', 'p3.png is', 'p4.tif is no mask')):
        if 'p2' in w: assert class_numbers(r).shape == (9, 5)
        else:
            with pytest.raises(DataError, match=f'labels/{w}'): class_numbers(r)
    for o in ('p2.png', 'p6.png'): (d/o).unlink()
    lines = refused(top, codes=ab).splitlines()
    assert lines[0].startswith('None of the 4 masks in') and len(lines) == 5 and lines[-1].startswith('… and')

def test_unchecked_masks(top):
    rs = read_masks(fill(top, [ids(0, 9)]), codes=ab, check=False)
    assert rs[0].labels is None and rs[0].mask_map is None
    with pytest.raises(DataError, match='p0.png has a pixel of class 9, and there are 2 classes'): class_numbers(rs[0], ab)
    (top/'labels'/'p0.png').unlink()
    with pytest.raises(NotFound, match='p0.png does not exist'): class_numbers(rs[0])
    with pytest.raises(DataError, match='p0.png has no mask'): class_numbers(Record(top/'images'/'p0.png'))

@pytest.mark.corpus(12)
def test_turned_photographs(top):
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in 'ab': Image.new('RGB', (W, H)).save(top/'images'/f'{k}.jpg', exif=exif)
    Image.fromarray(np.uint8(ids(0, 1))).save(top/'labels'/'a.png')
    Image.fromarray(np.uint8(ids(0, 1).T)).save(top/'labels'/'b.png')
    rs = read_masks(top, codes=ab)
    assert [r.image.name for r in rs] == ['b.jpg'] and rs[0].size == (H, W) and any('a.png is 20 by 12 pixels, and its picture 12 by 20' in o and 'EXIF' in o for o in told(rs))

# Which mask belongs to which picture

def test_names_of_masks(top):
    fill(top, [ids(0, 1)]*4)
    d = top/'labels'
    for a,b in (('p0', 'p0_mask'), ('p1', 'p1-a_b'), ('p2', 'p2_x')): (d/f'{a}.png').rename(d/f'{b}.png')
    shutil.copy(d/'p2_x.png', d/'p2_y.png')
    rs = read_masks(top, codes=ab)
    assert [r.mask.name for r in rs] == ['p0_mask.png', 'p1-a_b.png', 'p3.png'] and any('p2.png has several masks: p2_x.png, p2_y.png; say which' in o for o in told(rs))
    shutil.copy(d/'p0_mask.png', d/'p0.png')
    assert read_masks(top, codes=ab)[0].mask.name == 'p0.png', 'the same name goes before a longer one'

def test_folders_divide(top):
    for o in ('images', 'labels'):
        for part in ('train', 'val', 'test'): (top/o/part).mkdir()
        fill(top, [ids(0, 1)]*2)
        for part in ('train', 'val', 'test'):
            for i in range(2): shutil.copy(top/o/f'p{i}.png', top/o/part/f'p{i}{"_m"*(o == "labels")}.png')
    for o in top.glob('*/*.png'): o.unlink()
    rs = read_masks(top, codes=ab)
    assert [(r.split, r.image.parent.name, r.mask.parent.name) for r in rs] == [('train', )+('train',)*2]*2+[('valid', 'val', 'val')]*2 and any('test is left out' in o for o in told(rs))
    (top/'labels'/'train'/'p1_m.png').unlink()
    rs = read_masks(top, codes=ab)
    assert len(rs) == 3 and any('train/p1.png has no mask' in o for o in told(rs)), 'never the mask of another part'

def test_functions_find_files(top):
    fill(top, [ids(0, 1)]*3)
    for o in (top/'labels').iterdir(): o.rename(top/'images'/f'{o.stem}_mask.png')
    assert 'two functions' in refused(top, masks='images', codes=ab)
    kw = dict(codes=ab, images=lambda p: [o for o in sorted((p/'images').iterdir()) if 'mask' not in o.stem], masks=lambda f: f.with_name(f'{f.stem}_mask.png'))
    rs = read_masks(top, valid=lambda f: f.stem == 'p1', **kw)
    assert [(r.image.stem, r.mask.stem, r.split) for r in rs] == [('p0', 'p0_mask', 'train'), ('p1', 'p1_mask', 'valid'), ('p2', 'p2_mask', 'train')]
    (top/'images'/'p2_mask.png').unlink()
    assert any(f'p2.png has no mask: there is no {top/"images"/"p2_mask.png"}' in o for o in told(read_masks(top, **kw)))
    assert 'images= finds no pictures' in refused(top, codes=ab, images=lambda p: [])

def test_tables(top):
    fill(top, [ids(0, 1)]*5)
    rows = ['images/p0.png,labels/p0.png,False', 'images/p1.png,labels/p1.png,True', 'images/p2.png,labels/lost.png,False', 'images/p3.png,,False', 'images/p0.png,labels/p1.png,False',
        'images/lost.png,labels/p4.png,False']
    (top/'t.csv').write_text('\n'.join(['image,mask,is_valid', *rows]))
    rs = read_masks(top/'t.csv', codes=ab)
    assert [(r.image.name, r.mask.name, r.split, r.row) for r in rs] == [('p0.png', 'p0.png', 'train', 2), ('p1.png', 'p1.png', 'valid', 3)]
    for n,w in ((4, 'names the mask labels/lost.png, which does not exist'), (5, 'names no mask'), (6, 'names p0.png again, after row 2'), (7, 'lost.png, which does not exist')):
        assert any(w in o and f'row {n},' in o for o in told(rs)), (w, told(rs))
    (top/'t.csv').write_text('\n'.join(['pic,truth', *(f'p{i}.png,p{i}.png' for i in range(2))]))
    with pytest.raises(NotFound, match="no t.csv column 'mask'. There are: pic, truth"): read_masks(top/'t.csv', codes=ab)
    assert 'No row of' in refused(top/'t.csv', 'pic', 'truth', codes=ab)
    (top/'t.csv').write_text('\n'.join(['fname', *(f'images/p{i}.png' for i in range(4))]))
    rs = read_masks(top/'t.csv', masks=lambda f: f'labels/{f.name}', codes=ab, valid=.25)
    assert len(rs) == 4 and [r.split for r in rs].count('valid') == 1

def test_places_that_are_wrong(top):
    assert f'{top/"images"} holds no pictures' in refused(top, codes=ab)
    fill(top, [ids(0, 1)]*3)
    with pytest.raises(NotFound, match='no list of classes'): read_masks(top)
    with pytest.raises(NotFound, match='no folder'): read_masks(top, masks='nowhere', codes=ab)
    with pytest.raises(NotFound, match='no list of validation'): read_masks(top, codes=ab, valid='lost.txt')
    with pytest.raises(TypeError, match='Did you mean codes'): read_masks(top, code=ab)
    assert [r.split for r in read_masks(top, codes=ab, valid=.34)].count('valid') == 1
    for o in (top/'labels').iterdir(): o.rename(o.with_stem('x'+o.stem))
    assert 'has a mask' in refused(top, codes=ab) and 'p0.png has no mask of its name in labels' in refused(top, codes=ab)

# Masks of instances

def test_instance_masks(top):
    m = np.zeros((H, W), np.uint8)
    m[2:4, 3:9],m[6:7] = 1,3
    fill(top, [m, m, m*0, m])
    Image.fromarray(m[:4]).save(top/'labels'/'p1.png')
    (top/'labels'/'p3.png').unlink()
    (top/'valid.txt').write_text('p2.png\n')
    rs = read_masks(top, label='thing')
    assert [(r.boxes, r.masks, r.split) for r in rs] == [([[3, 2, 9, 4], [0, 6, 20, 7]], [1, 3], 'train'), ([], [], 'valid')] and rs.about == dict(classes=['thing'])
    assert any('p1.png is 20 by 12 pixels, and its boxes are for 20 by 4' in o for o in told(rs)) and any('p3.png has no mask' in o for o in told(rs))
    assert np.array_equal(class_numbers(rs[0], ['background', 'thing']), (m > 0).astype(np.uint8)) and not class_numbers(rs[1], ['background', 'thing']).any()
    coloured(red, green).save(top/'labels'/'p1.png')
    (top/'labels'/'p2.png').write_text('words')
    rs = read_masks(top, label='thing')
    assert any('p1.png is a picture in colours' in o for o in told(rs)) and any('p2.png is text' in o for o in told(rs))
    assert 'leave mask_map= and ignore= out' in refused(top, label='thing', ignore=[3])

# Masks from objects

def drawn(top, **kw): return Record(top/'p.png', size=(W, H), **kw)
square = [[2, 2, 8, 2, 8, 8, 2, 8]]

def test_small_objects_lie_on_large_ones(top):
    vocab,whole = ['background', 'cup', 'table'],[[0, 0, W, 0, W, H, 0, H]]
    for order in ([0, 1], [1, 0]):
        r = drawn(top, masks=[[square, whole][o] for o in order], labels=[['cup', 'table'][o] for o in order])
        a = class_numbers(r, vocab)
        assert a.dtype == np.uint8 and a.shape == (H, W) and (a[3:8, 3:8] == 1).all() and (a[:, 10:] == 2).all() and (a == 0).sum() == 0
    a = class_numbers(drawn(top, masks=[whole, square], labels=['cup']*2, crowd=[True, False]), vocab)
    assert (a[:, 10:] == IGNORE).all() and (a[3:8, 3:8] == 1).all(), 'a crowd counts for nothing, but who is counted in it does'
    a = class_numbers(drawn(top, masks=[square, whole], labels=['cup']*2, crowd=[True, False]), vocab)
    assert (a == 1).all()
    assert not class_numbers(drawn(top, masks=[], labels=[]), vocab).any()

@pytest.mark.parametrize('mask,label,words', [(square, 'dog', "has a 'dog', which is not among the classes background, cat"), (None, 'cat', 'without a shape'),
    (dict(size=[H, W], counts=[5]), 'cat', r'object 0 \(cat\) can not be drawn. These runs hold 5'), (dict(size=[2, 2], counts=[4]), 'cat', r'object 0 \(cat\) 2 by 2')])
def test_shapes_that_can_not_be_drawn(top, mask, label, words):
    with pytest.raises(DataError, match=words) as e: class_numbers(drawn(top, masks=[mask], labels=[label]), ['background', 'cat'])
    assert 'p.png' in str(e.value)

def test_coco_as_semantic(tmp_path):
    top = write_doodle_scenes(tmp_path/'scenes', n=4, size=64)
    rs,objects = read_coco(top, what='semantic'),read_coco(top)
    vocab = rs.about['classes']
    assert vocab[0] == 'background' and vocab[1:] == [o for o in objects.about['classes'] if o in objects.counts] and all(r.boxes is None for r in rs)
    for r in rs: assert np.array_equal(class_numbers(r, vocab) > 0, np.asarray(Image.open(top/'masks'/f'{r.image.stem}.png')) > 0)
    with pytest.raises(NotFound, match="There is no what= 'masks'. There are: objects, semantic"): read_coco(top, what='masks')

def test_coco_shapes_that_are_missing(top):
    fill(top, [ids(0)]*3)
    def note(i, image, category, **kw): return dict(id=i, image_id=image, category_id=category, bbox=[2, 2, 6, 6], **kw)
    notes = [note(1, 0, 5, segmentation=square), note(2, 0, 6), note(3, 1, 5, segmentation=dict(size=[W, H], counts=[W*H]))]
    page = dict(images=[dict(id=i, file_name=f'p{i}.png', width=W, height=H) for i in range(3)], annotations=notes,
        categories=[dict(id=k, name=v) for k,v in ((4, 'ant'), (5, 'bee'), (6, 'cow'))])
    (top/'a.json').write_text(json.dumps(page))
    rs = read_coco(top/'a.json', what='semantic')
    assert [r.labels for r in rs] == [['bee'], [], []] and rs.about == dict(classes=['background', 'bee']), 'a picture without objects is background'
    assert [class_numbers(r, rs.about['classes']).any() for r in rs] == [True, False, False]
    for w in ('p0.png has an object (cow) without a segmentation', 'p1.png has an object (bee) without a segmentation of its size'): assert any(w in o for o in told(rs))
    (top/'a.json').write_text(json.dumps(dict(page, annotations=notes[1:2])))
    with pytest.raises(DataError, match='No object in .*a.json has a segmentation'): read_coco(top/'a.json', what='semantic')
    with pytest.raises(DataError, match='without a shape'): class_numbers(drawn(top, masks=[None], labels=['bee']), ['background', 'bee'])

# Drawings and real data sets

def test_parts_of_drawings(tmp_path):
    rs = read_masks(write_doodles(tmp_path/'d', n=10, size=64), images='.', masks='parts')
    assert len(rs) == 10 and (len(rs.train), len(rs.valid)) == (8, 2) and rs.about['classes'] == list(PART_CODES)
    assert all(r.image.stem == r.mask.stem for r in rs) and not [o for o in told(rs) if 'no mask shows' not in o]

def test_pedestrians(real):
    rs = read_masks(real('PennFudanPed'), images='PNGImages', masks='PedMasks', label='pedestrian')
    assert len(rs) == 130 and sum(len(r.boxes) for r in rs) == 313 and not rs.problems

def test_real_masks(real):
    rs = read_masks(real('camvid'))
    assert len(rs) == 468 and (len(rs.train), len(rs.valid)) == (367, 101) and len(rs.about['classes']) == 11 and not rs.problems
    assert rs[0].mask_map == {**{i:i for i in range(11)}, 11:IGNORE} and all(r.mask_map is rs[0].mask_map for r in rs) and rs.counts['Road'] == 468
    assert {*np.unique(class_numbers(rs[0], rs.about['classes']))} <= {*range(11), IGNORE}

def test_real_codes_with_gaps(real):
    rs = read_masks(real('coco'), masks='semantic', codes='semantic_codes.txt', valid='val.txt')
    assert len(rs) == 162 and len(rs.about['classes']) == 129 and 'unlabeled' not in rs.about['classes'] and max(rs[0].mask_map) == 200
    assert any('2 classes that no mask shows' in o for o in told(rs)) and class_numbers(rs[0], rs.about['classes']).max() <= IGNORE

def test_real_shapes(real):
    rs = read_coco(real('coco'), what='semantic')
    assert len(rs) == 465 and len(rs.about['classes']) == 81
    crowd = next(r for r in rs if any(r.crowd))
    assert (class_numbers(crowd, rs.about['classes']) == IGNORE).any()

def test_real_palettes(real):
    top = real('coco_voc20')
    names = (top/'labels.txt').read_text().split()
    kw = dict(images='JPEGImages', masks='SegmentationClass', valid='ImageSets/Segmentation/val.txt')
    assert "codes=['background', 'aeroplane', 'bicycle', …]" in refused(top, codes='labels.txt', **kw)
    rs = read_masks(top, codes=['background', *names], **kw)
    assert len(rs) == 371 and (len(rs.train), len(rs.valid)) == (295, 76) and not rs.problems and rs.counts['background'] == 371
    a = [class_numbers(r, rs.about['classes']) for r in rs[:30]]
    assert any((o == IGNORE).any() for o in a) and {*np.unique(np.concatenate([o.ravel() for o in a]))} <= {*range(21), IGNORE}
