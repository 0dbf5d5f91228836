"""Odd, broken and hostile input in 71 rows, drawn with Pillow or put together from bytes: nothing is downloaded and nothing built is kept.

`python tests/corpus/build.py FOLDER` writes every row into a folder of its number; row numbers behind it write those alone. Files that stand
for themselves (rows 1 to 50) are entries of `PICTURES`; what needs a folder, a table, masks or boxes is written by the functions in `ROWS`."""
import io, json, os, struct, sys, zipfile, zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable
import numpy as np
from PIL import Image, ImageCms, ImageDraw

W,H = 90,60

ROWS = { # number: (what it is, what is expected); OK: used rightly, Q: set aside with a reason, E: one clear error before training
    1:('normal JPEG', 'OK'), 2:('baseline JPEG cut in the middle', 'Q'), 3:('JPEG without its end marker', 'OK and a note'), 4:('empty file', 'Q'),
    5:('HTML page named .jpg', 'Q'), 6:('progressive JPEG cut in the middle', 'Q'), 7:('JPEG named .png', 'OK and a note'), 8:('PNG named .jpg', 'OK and a note'),
    9:('WebP named .jpg', 'OK and a note'), 10:('grey JPEG', 'OK'), 11:('CMYK JPEG', 'OK'), 12:('EXIF orientation 1 to 8', 'OK'),
    13:('broken EXIF block', 'OK and a note'), 14:('bytes flipped inside JPEG data', 'OK or Q'), 15:('transparent RGBA PNG', 'OK'),
    16:('grey PNG with alpha', 'OK'), 17:('palette PNG', 'OK'), 18:('palette PNG with transparent entries', 'OK'), 19:('1-bit PNG', 'OK'),
    20:('16-bit grey PNG', 'OK'), 21:('16-bit RGB PNG', 'OK'), 22:('float TIFF, 0 to 1 and 0 to 255', 'OK and a note'), 23:('int32 TIFF', 'OK and a note'),
    24:('animated GIF', 'OK and a note'), 25:('animated WebP', 'OK and a note'), 26:('animated PNG', 'OK and a note'), 27:('TIFF of several pages', 'OK and a note'),
    28:('BMP', 'OK'), 29:('icon', 'Q'), 30:('JPEG 2000', 'Q'), 31:('AVIF', 'OK'), 32:('HEIC', 'Q'), 33:('SVG', 'Q'), 34:('EPS named .jpg', 'Q'),
    35:('1 by 1 pixel', 'OK and a note'), 36:('strips of 1 by 5000 and 3000 by 2', 'OK and a note'), 37:('PNG bomb of 400 megapixels', 'Q'),
    38:('144 megapixels', 'Q'), 39:('PNG with damaged data', 'Q'), 40:('PNG cut in the middle', 'Q'), 41:('PNG with a bomb of text', 'Q'),
    42:('AppleDouble file named .jpg', 'Q or skipped'), 43:('JPEG with bytes behind its end', 'OK'), 44:('corrupt ICC profile', 'OK'), 45:('LAB TIFF', 'OK'),
    47:('accents, CJK and emoji in names', 'OK'), 48:('% # ? in names', 'OK'), 49:('.webp is collected', 'OK'), 50:('upper-case suffix', 'OK'),
    51:('pipe named .jpg', 'skipped'), 52:('folder named .jpg, broken link, loop of links', 'skipped'), 53:('unreadable file', 'Q'),
    54:('one picture in two classes and in both parts', 'warning with pairs'), 55:('empty class folder', 'note'), 56:('a single class', 'E'),
    57:('class of one picture, class in valid only', 'E'), 58:('fewer than 5 pictures', 'E or one valid a class'), 59:('table with wrong rows', 'all listed'),
    60:('odd class names', 'OK'), 61:('mask of 0 and 255', 'E'), 62:('palette and RGB masks', 'OK, E for RGB'), 63:('JPEG mask', 'E'),
    64:('masks of another size, missing, void, 16 bit', 'each named'), 65:('wrong boxes', 'clipped, Q or E'), 66:('no boxes; unknown class', 'OK; E'),
    67:('odd captions', 'Q or cut'), 68:('predict on all types', 'equal, E otherwise'), 69:('predict on grey, RGBA, 16 bit', 'as the file'),
    70:('wrong path of a data set', 'E'), 71:('__MACOSX, .ipynb_checkpoints, Thumbs.db', 'skipped'), 72:('very many files, long path', 'progress')}

@dataclass(frozen=True)
class Odd:
    "A picture file: its `row`, `name` and `data`, a test `ok` of the picture or `None` where it is refused, and `words` of the note or the reason."
    row: int
    name: str
    data: bytes
    ok: Callable = None
    words: str = ''

# Tools

def scene(w=W, h=H):
    "A smooth colour picture whose corners all differ."
    y,x = np.mgrid[0:h, 0:w]
    return Image.fromarray(np.stack([255*x/max(w-1, 1), 255*y/max(h-1, 1), np.full((h, w), 60)], -1).astype(np.uint8))

def packed(im, fmt, **kw):
    f = io.BytesIO()
    im.save(f, fmt, **kw)
    return f.getvalue()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def png(w, h, depth=8, colour=0, extra=b'', rows=b''):
    "A PNG file put together by hand, so that its header may lie."
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0))+extra+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

def oriented(fmt, n, **kw):
    "The scene, turned so that a reader has to turn it back as EXIF orientation `n` says."
    e = Image.Exif()
    e[0x0112] = n
    back = {2:0, 3:3, 4:1, 5:5, 6:2, 7:6, 8:4} # the transpositions that undo the eight
    return packed(scene() if n == 1 else scene().transpose(Image.Transpose(back[n])), fmt, exif=e, **kw)

def damaged(data, at, n, seed=0):
    "`data` with `n` bytes behind place `at` replaced by others."
    b,rng = bytearray(data),np.random.default_rng(seed)
    for i in rng.integers(at, len(b)-2, n): b[i] = int(rng.integers(256))
    return bytes(b)

def near(im, ref=None, tol=12): return np.abs(np.asarray(im, float)-np.asarray(ref or scene(), float)).mean() < tol
def grey(): return scene().convert('L').convert('RGB')

def rgba():
    "Blue on the left; the right half is red and quite transparent."
    im = Image.new('RGBA', (W, H), (255, 0, 0, 0))
    im.paste((0, 0, 255, 255), (0, 0, W//2, H))
    return im

def many(im, n): return len(im.getcolors()) == n and im.getextrema()[0] == (0, 255)
def whole(im): return im.size == (W, H)

J,P = packed(scene(), 'JPEG', quality=92),packed(scene(), 'PNG')
GREY16 = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (8, 1))

# Files that stand for themselves, family by family

def plain():
    "JPEG and the other ordinary formats, under their own and under wrong names."
    yield Odd(1, 'a.jpg', J, near)
    yield Odd(3, 'a.jpg', J[:-2], near, 'does not end')
    yield Odd(7, 'a.png', J, near, 'JPEG file named .png')
    yield Odd(8, 'a.jpg', P, near, 'PNG file named .jpg')
    yield Odd(9, 'a.jpg', packed(scene(), 'WEBP', quality=95), near, 'WEBP file named .jpg')
    yield Odd(28, 'a.bmp', packed(scene(), 'BMP'), near)
    yield Odd(31, 'a.avif', packed(scene(), 'AVIF', quality=90), near)
    yield Odd(43, 'a.jpg', J+b'PK\3\4 and more'*50, near, 'does not end')
    yield Odd(47, '\u00e9 \u732b \U0001f431.jpg', J, near)
    yield Odd(48, '100% #1?.jpg', J, near)
    yield Odd(49, 'a.webp', packed(scene(), 'WEBP', quality=95), near)
    yield Odd(50, 'A.JPEG', J, near)

def coloured():
    "Colour spaces, palettes and transparency."
    lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
    yield Odd(10, 'a.jpg', packed(scene().convert('L'), 'JPEG', quality=95), lambda im: near(im, grey()))
    yield Odd(11, 'a.jpg', packed(scene().convert('CMYK'), 'JPEG', quality=95), lambda im: near(im, tol=20))
    yield Odd(11, 'b.jpg', packed(scene().convert('CMYK'), 'JPEG', icc_profile=b'broken'*20, quality=95), lambda im: near(im, tol=20))
    yield Odd(15, 'a.png', packed(rgba(), 'PNG'), lambda im: im.getpixel((W-1, 0)) == (255, 255, 255) and im.getpixel((0, 0)) == (0, 0, 255), 'laid on white')
    yield Odd(16, 'a.png', packed(rgba().convert('LA'), 'PNG'), lambda im: im.getpixel((W-1, 0)) == (255, 255, 255) and im.getpixel((0, 0))[0] < 60, 'laid on white')
    yield Odd(17, 'a.png', packed(scene().quantize(64), 'PNG'), lambda im: near(im, tol=20))
    yield Odd(18, 'a.png', packed(scene().quantize(64), 'PNG', transparency=bytes([0]*64)), lambda im: im.getextrema() == ((255, 255),)*3, 'laid on white')
    yield Odd(19, 'a.png', packed(scene().convert('1'), 'PNG'), lambda im: {c for _,c in im.getcolors()} == {(0,)*3, (255,)*3})
    yield Odd(44, 'a.jpg', packed(scene(), 'JPEG', icc_profile=b'broken'*20, quality=92), near)
    yield Odd(45, 'a.tif', packed(ImageCms.applyTransform(scene(), lab), 'TIFF'), lambda im: near(im, tol=25))

def turned():
    "EXIF: the eight orientations in four formats, and a block that can't be read."
    for n in range(1, 9):
        for fmt,name,kw in (('JPEG', 'jpg', dict(quality=95)), ('PNG', 'png', {}), ('WEBP', 'webp', dict(quality=95)), ('TIFF', 'tif', {})):
            yield Odd(12, f'{n}.{name}', oriented(fmt, n, **kw), near, 'is turned upright' if n > 1 else '')
    yield Odd(13, 'a.jpg', packed(scene(), 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff garbage', quality=92), near, 'EXIF')

def deep():
    "More than 8 bits a channel."
    g,scaled = np.asarray(scene().convert('L'), np.float32),'more than 8 bits'
    yield Odd(20, 'a.png', packed(Image.fromarray(GREY16), 'PNG'), lambda im: many(im, 256), scaled)
    yield Odd(21, 'a.png', png(8, 8, 16, 2, rows=(b'\0'+struct.pack('>24H', *[65535, 0, 0, 0, 32768, 0]*4))*8),
        lambda im: im.getpixel((0, 0)) == (255, 0, 0) and im.getpixel((1, 0))[1] in (127, 128))
    yield Odd(22, 'a.tif', packed(Image.fromarray(g/255), 'TIFF'), lambda im: near(im, grey(), 2), scaled)
    yield Odd(22, 'b.tif', packed(Image.fromarray(g), 'TIFF'), lambda im: near(im, grey(), 2), scaled)
    yield Odd(23, 'a.tif', packed(Image.fromarray(GREY16.astype(np.int32)), 'TIFF'), lambda im: many(im, 256), scaled)

def moving():
    "Several frames or pages, of which the first counts."
    for row,name,fmt,kw,tol in ((24, 'a.gif', 'GIF', {}, 20), (25, 'a.webp', 'WEBP', dict(quality=95), 12), (26, 'a.png', 'PNG', {}, 12), (27, 'a.tiff', 'TIFF', {}, 12)):
        data = packed(scene(), fmt, save_all=True, append_images=[Image.new('RGB', (W, H))], **kw)
        yield Odd(row, name, data, lambda im, tol=tol: near(im, tol=tol), '2 frames')

def shapes():
    "Sizes that few expect."
    yield Odd(35, 'a.png', packed(Image.new('RGB', (1, 1), 'red'), 'PNG'), lambda im: im.size == (1, 1) and im.getpixel((0, 0)) == (255, 0, 0), 'tiny')
    yield Odd(36, 'a.png', packed(scene(1, 5000), 'PNG'), lambda im: im.size == (1, 5000), 'strip')
    yield Odd(36, 'b.png', packed(scene(3000, 2), 'PNG'), lambda im: im.size == (3000, 2), 'strip')

def foreign():
    "Formats that are not opened, and what is no picture."
    yield Odd(4, 'a.jpg', b'', words='is empty')
    yield Odd(5, 'a.jpg', b'<!DOCTYPE html>\n<html><body>404</body></html>', words='HTML page')
    yield Odd(5, 'b.jpg', 'just a note, caf\u00e9'.encode(), words='is text')
    yield Odd(5, 'c.jpg', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', words='git lfs pull')
    yield Odd(29, 'a.ico', packed(scene(), 'ICO'), words='icon')
    yield Odd(30, 'a.jp2', packed(scene(), 'JPEG2000'), words='JPEG 2000')
    yield Odd(32, 'a.heic', b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'+b'\0'*400, words='pillow-heif')
    yield Odd(33, 'a.svg', b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', words='SVG')
    yield Odd(34, 'a.jpg', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n', words='PostScript')
    yield Odd(42, 'x.jpg', b'\0\5\x16\7\0\2\0\0Mac OS X        '+b'\0'*90, words='macOS')

def broken():
    "Files cut off or damaged."
    yield Odd(2, 'a.jpg', J[:len(J)//2], words='cut off')
    yield Odd(2, 'b.jpg', J[:20], words='header is broken')
    yield Odd(6, 'a.jpg', packed(scene(400, 300), 'JPEG', progressive=True)[:2000], words='cut off')
    yield Odd(39, 'a.png', damaged(P, 60, 40), words='damaged')
    yield Odd(40, 'a.png', P[:len(P)//2], words='cut off')
    yield Odd(40, 'b.webp', packed(scene(), 'WEBP')[:-30], words='cut off')

def bombs():
    "Small files that ask for a lot of memory."
    yield Odd(37, 'a.png', png(20000, 20000), words='has 400 megapixels, more than the 64 allowed; set max_megapixels')
    yield Odd(38, 'a.png', png(12000, 12000, 1, rows=bytes(12000*1501)), words='has 144 megapixels')
    yield Odd(41, 'a.png', png(4, 4, extra=chunk(b'zTXt', b'c\0\0'+zlib.compress(b'0'*80_000_000, 9)), rows=b'\0\0\0\0\0'*4), words='damaged')

FAMILIES = plain, coloured, turned, deep, moving, shapes, foreign, broken, bombs
PICTURES = {f'{o.row}-{o.name}':o for f in FAMILIES for o in f()}
FLIPPED = {f'14-{seed}.jpg':Odd(14, f'{seed}.jpg', damaged(J, 20, 20, seed), whole) for seed in range(30)} # some open and some are refused

def put(folder, odd, name=None):
    "Write the picture `odd` into `folder`, and return its path."
    p = Path(folder)/(name or odd.name)
    p.parent.mkdir(parents=True, exist_ok=True)
    p.write_bytes(odd.data)
    return p

# Folders and tables

def drawing(n, size=32):
    "A small picture that differs from all others: a disc for an even `n`, a square for an odd one."
    rng = np.random.default_rng(n)
    im = Image.fromarray(rng.integers(0, 90, (size, size, 3), dtype=np.uint8))
    draw,a,b = ImageDraw.Draw(im),size//4,size-size//4
    (draw.rectangle if n%2 else draw.ellipse)([a, a, b, b], fill=tuple(int(o) for o in rng.integers(150, 255, 3)))
    return im

def classes(top, spec, size=32):
    "Drawings below `top`: `spec` maps a folder to their number; returns `top`."
    for i,(name,n) in enumerate(spec.items()):
        (top/name).mkdir(parents=True, exist_ok=True)
        for k in range(n): drawing(2*(100*i+k)+i%2, size).save(top/name/f'{k}.png')
    return top

def pipe(top): # row 51
    classes(top, dict(disc=6, square=6))
    if hasattr(os, 'mkfifo') and not (top/'disc'/'x.jpg').exists(): os.mkfifo(top/'disc'/'x.jpg')

def places(top): # row 52
    classes(top, dict(disc=6, square=6))
    (top/'disc'/'folder.jpg').mkdir(exist_ok=True)
    for name,to in (('gone.jpg', 'nowhere'), ('self.jpg', 'self.jpg'), ('up', '..')): (top/'disc'/name).symlink_to(to)

def locked(top): # row 53
    classes(top, dict(disc=6, square=6))
    put(top/'disc', PICTURES['1-a.jpg'], 'locked.jpg').chmod(0)

def leak(top): # row 54
    classes(top, {'train/disc':6, 'train/square':6, 'valid/disc':2, 'valid/square':2})
    for a,b in (('train/disc/0.png', 'train/square/twin.png'), ('train/disc/1.png', 'valid/disc/twin.png')): (top/b).write_bytes((top/a).read_bytes())

def void(top): classes(top, dict(disc=6, square=6, empty=0)) # row 55
def single(top): classes(top, dict(disc=6)) # row 56

def lonely(top): # row 57
    classes(top/'one', dict(disc=4, square=4, star=1))
    classes(top/'valid_only', {'train/disc':3, 'train/square':3, 'valid/disc':1, 'valid/star':2})

def few(top): # row 58
    classes(top/'four', dict(disc=2, square=2))
    classes(top/'three', dict(disc=2, square=1))

def table(top): # row 59
    classes(top, dict(p=12))
    rows = [f'p/{i}.png,{"square" if i%2 else "disc"}' for i in range(10)]
    wrong = ['p/0.png,disc', 'p/1.png,disc', 'p/none.png,disc', 'p/10.png,nan', 'p/10.png,']
    (top/'labels.csv').write_text('\n'.join(['fname,label', *rows, *wrong]))

def odd_names(top): classes(top, {'10':3, '2':3, 'Cat':3, 'cat':3, 'red fox':3, '\u732b \U0001f431':3}) # row 60

def junk(top): # row 71
    classes(top, dict(disc=6, square=6))
    files = ['__MACOSX/disc/._0.png', 'disc/._1.png', 'disc/.ipynb_checkpoints/0-checkpoint.png', 'disc/Thumbs.db', '.DS_Store', 'square/desktop.ini']
    for o in files:
        (top/o).parent.mkdir(parents=True, exist_ok=True)
        (top/o).write_bytes(drawing_bytes(7) if 'checkpoint' in o else PICTURES['42-x.jpg'].data)

def drawing_bytes(n): return packed(drawing(n), 'PNG')

def crowd(top, n=20_000): # row 72
    "Small files, `n` in all, in folders of 1000, no two of them alike, and one with a path of more than 260 characters."
    for i,name in enumerate(('disc', 'square')):
        data = drawing_bytes(i)
        for k in range(n//2):
            p = top/name/str(k//1000)/f'{k}.png'
            if k%1000 == 0: p.parent.mkdir(parents=True)
            p.write_bytes(data+f'{i} {k:6}'.encode())
    classes(top/'disc', {'/'.join(('far'*20, 'and'*20, 'away'*20, 'x'*80)):1})

def wrong_paths(top): # row 70
    (top/'empty').mkdir(parents=True)
    (top/'file.txt').write_text('words')
    with zipfile.ZipFile(top/'pets.zip', 'w') as z: z.writestr('pets/disc/0.png', drawing_bytes(0))

# Masks

def bands(*values, size=32): return np.repeat(np.array(values), -(-size//len(values)))[None, :size].repeat(size, 0)

def masks(top, makes, codes='sky\nsea\n', suffix='.png'):
    "Drawings in `images`, what `makes` (functions without argument that give a Pillow picture) make in `labels`, and the list of classes."
    for o in ('images', 'labels'): (top/o).mkdir(parents=True, exist_ok=True)
    (top/'codes.txt').write_text(codes)
    for i,make in enumerate(makes):
        drawing(i).save(top/'images'/f'{i}.png')
        make().save(top/'labels'/f'{i}{suffix}')
    return top

def indices(*values): return lambda: Image.fromarray(bands(*values).astype(np.uint8))
def tinted(*colours): return lambda: Image.fromarray(np.uint8(colours)[bands(*range(len(colours)))])

def palette(*values):
    "A mask with a palette in which number 1 is a colour whose grey is 38."
    def make():
        im = indices(*values)()
        im.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0]+[0]*759)
        return im
    return make

def black_white(top): masks(top, [indices(0, 255)]*8) # row 61

def mask_modes(top): # row 62
    masks(top/'palette', [palette(0, 1)]*8)
    masks(top/'rgb', [tinted((0, 0, 0), (128, 0, 0))]*8)

def jpeg_masks(top): masks(top, [indices(0, 255, 0, 255)]*8, suffix='.jpg') # row 63

def odd_masks(top): # row 64
    masks(top, [indices(0, 1)]*12)
    Image.new('L', (20, 30)).save(top/'labels'/'0.png')
    (top/'labels'/'1.png').unlink()
    palette(255)().save(top/'labels'/'2.png')
    Image.fromarray(bands(0, 1).astype(np.uint16)).save(top/'labels'/'3.png')

# Boxes and sentences

def coco(top, notes, n=10):
    "A COCO file over `n` drawings, each with a box of class 1, and with `notes` besides; picture 0 has those alone."
    classes(top, dict(images=n), size=64)
    all_notes = [dict(image_id=i, category_id=1, bbox=[16, 16, 32, 32]) for i in range(1, n)]+notes
    page = dict(images=[dict(id=i, file_name=f'{i}.png', width=64, height=64) for i in range(n)], categories=[dict(id=1, name='shape'), dict(id=2, name='spot')],
        annotations=[dict(o, id=i) for i,o in enumerate(all_notes, 1)])
    (top/'boxes.json').write_text(json.dumps(page))

def boxes(top): # row 65
    wrong = [[50, 50, 40, 40], [90, 4, 5, 5], [4, 4, 0, 9], [9, 9, -4, 5], [4, float('nan'), 5, 5]]
    coco(top, [dict(image_id=i, category_id=2, bbox=b) for i,b in enumerate(wrong, 2)])
    cells = ['16,16,48,48', '50,50,90,90', '90,4,95,9', '4,4,4,9', '9,9,5,14', '4,nan,9,9', '40,40,20,20']
    rows = [f'images/{i}.png,shape,{o}' for i,o in enumerate(cells)]
    page = json.loads((top/'boxes.json').read_text())
    notes = [dict(o, bbox=[16, 16, 48, 60]) for o in page['annotations'][:9]]
    (top/'corners.json').write_text(json.dumps(dict(page, annotations=notes))) # right and bottom for width and height
    (top/'sizes.csv').write_text('\n'.join(['fname,label,x0,y0,x1,y1', *(f'images/{i}.png,shape,{9*i//2},10,20,20' for i in range(10))])) # and the reverse
    (top/'boxes.csv').write_text('\n'.join(['fname,label,x0,y0,x1,y1', *rows, *(f'images/{i}.png,shape,8,8,40,40' for i in range(7, 10))]))

def unlabelled(top): # row 66
    coco(top/'background', [])
    coco(top/'unknown', [dict(image_id=0, category_id=9, bbox=[4, 4, 9, 9])])
    coco(top/'yolo', [])
    (top/'yolo'/'labels').mkdir()
    for i in range(10): (top/'yolo'/'labels'/f'{i}.txt').write_text('0 .5 .5 .5 .5\n' + '7 .5 .5 .2 .2\n'*(i == 3))
    (top/'yolo'/'data.yaml').write_text('names: [shape]\ntrain: images\n')

def captions(top): # row 67
    classes(top, dict(p=4))
    rows = ['p/0.png,a disc', 'p/1.png,', f'p/2.png,{"very "*2000}long', 'p/3.png,a disc \U0001f431']
    (top/'captions.csv').write_text('\n'.join(['fname,caption', *rows]), encoding='utf8')
    (top/'latin.csv').write_text('fname,caption\np/0.png,caf\u00e9\n', encoding='latin-1')

# Pictures that are no files

def kinds(path): # row 68
    "The PNG at `path` in every form that is documented, by name."
    data,a = path.read_bytes(),np.array(Image.open(path))
    return {'str':str(path), 'Path':path, 'bytes':data, 'bytearray':bytearray(data), 'memoryview':memoryview(data), 'open file':io.BytesIO(data),
        'Pillow':Image.open(path), 'array':a, 'floats':a/255, 'channels first':np.moveaxis(a, -1, 0), 'int64':a.astype(np.int64),
        'upload':dict(name='a.png', content=memoryview(data)), 'old upload':{'a.png':dict(metadata={}, content=data)}}

NO_KINDS = {'nothing':None, 'number':7, 'web address':'https://example.org/cat.jpg', 'missing file':'no/cat.jpg', 'empty bytes':b'', 'text file':io.StringIO('words'),
    'batch':np.zeros((2, 3, 8, 8)), 'not finite':np.full((4, 4), np.nan), 'numbers in a list':[1, 2]}

def arrays(): # row 69
    "Arrays that are not RGB of 8 bits; Pillow can write each as a PNG."
    return dict(grey=np.array(scene().convert('L')), rgba=np.array(rgba()), deep=GREY16, bits=np.tile(np.arange(16) % 3 == 0, (12, 1)))

def types(top): # row 68
    top.mkdir(parents=True, exist_ok=True)
    scene().save(top/'photo.png')

def array_files(top): # row 69
    top.mkdir(parents=True, exist_ok=True)
    for name,a in arrays().items(): Image.fromarray(a).save(top/f'{name}.png')

SETS = {51:pipe, 52:places, 53:locked, 54:leak, 55:void, 56:single, 57:lonely, 58:few, 59:table, 60:odd_names, 61:black_white, 62:mask_modes, 63:jpeg_masks,
    64:odd_masks, 65:boxes, 66:unlabelled, 67:captions, 68:types, 69:array_files, 70:wrong_paths, 71:junk, 72:crowd}

def build(folder, rows=None):
    "Write `rows` (None: all) into folders of their numbers below `folder`; returns the folders by number."
    res = {}
    for row in rows or ROWS:
        top = res[row] = Path(folder)/f'{row:02}'
        top.mkdir(parents=True)
        if row in SETS: SETS[row](top)
        else:
            for o in {**PICTURES, **FLIPPED}.values():
                if o.row == row: put(top, o)
    return res

if __name__ == '__main__':
    if len(sys.argv) < 2 or not all(o.isdigit() and int(o) in ROWS for o in sys.argv[2:]): sys.exit(f'{__doc__.splitlines()[2]}\nRows: {min(ROWS)} to {max(ROWS)}, but 46.')
    for row,place in build(sys.argv[1], [int(o) for o in sys.argv[2:]] or None).items(): print(f'{row:2}  {ROWS[row][0]:50}  {ROWS[row][1]:22}  {place}')
