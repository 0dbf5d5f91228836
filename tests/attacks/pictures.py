"Pictures that mean harm. `make(folder)` writes one."
import random, struct, zlib
from io import BytesIO
from PIL import Image
from attacks import Shelf, canary

attack = Shelf()

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def png(path, w, h, depth=8, colour=2, interlace=0, before=b'', rows=None, packed=None):
    "A PNG of w by h whatever its data hold; `before`: chunks in front of them."
    data = packed if packed is not None else zlib.compress(rows or b'', 9)
    head = struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, interlace)
    path.write_bytes(b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', head)+before+chunk(b'IDAT', data)+chunk(b'IEND', b''))
    return path

def zeros(n):
    "`n` zero bytes, packed by zlib without having them all in memory."
    c = zlib.compressobj(9)
    parts = [c.compress(bytes(min(1 << 20, n-i))) for i in range(0, n, 1 << 20)]
    return b''.join(parts)+c.flush()

def small(fmt, size=(32, 32), **kw):
    b = BytesIO()
    Image.new('RGB', size, 'red').save(b, fmt, **kw)
    return b.getvalue()

def put(folder, name, data):
    (folder/name).write_bytes(data)
    return folder/name

# Many pixels in few bytes

@attack('S10', 'a PNG of 400 megapixels', said='megapixels', w=20_000, h=20_000)
@attack('S10', 'a PNG of 1 by 2^31', said='megapixels', w=1, h=(1 << 31)-1)
@attack('S10', 'a PNG of 2^31 by 2^31', said='megapixels', w=(1 << 31)-1, h=(1 << 31)-1)
@attack('S10', 'a grey PNG of 16 bits and 100 megapixels', said='megapixels', w=10_000, h=10_000, depth=16, colour=0)
def png_bomb(folder, w, h, depth=8, colour=2): return png(folder/'a.png', w, h, depth, colour, packed=zeros(1 << 20))

@attack('S10', 'a PNG of 63 megapixels, half transparent, in 250 kB', fine=True, slow=True, colour=6, n=4)
@attack('S10', 'a grey PNG of 63 megapixels and 16 bits in 120 kB', fine=True, slow=True, colour=0, n=2, depth=16)
@attack('S10', 'a PNG of 63 megapixels with a palette in 60 kB', fine=True, slow=True, colour=3, n=1)
def just_allowed(folder, colour, n, depth=8):
    before = chunk(b'PLTE', bytes(range(30)))+chunk(b'tRNS', b'\0\x80\xff') if colour == 3 else b''
    return png(folder/'a.png', 7900, 7900, depth, colour, before=before, packed=zeros(7900*(7900*n+1)))

@attack('S10', 'a TIFF of 63 megapixels of 32-bit numbers in 250 kB', fine=True, slow=True, mode='F')
@attack('S10', 'a TIFF of 63 megapixels of whole numbers in 250 kB', fine=True, slow=True, mode='I')
@attack('S10', 'a TIFF of 63 megapixels in four inks', fine=True, slow=True, mode='CMYK')
def tiff_just_allowed(folder, mode):
    Image.new(mode, (7900, 7900)).save(folder/'a.tif', compression='tiff_adobe_deflate')
    return folder/'a.tif'

@attack('S10', 'a turned JPEG of 63 megapixels in 1 MB', fine=True, slow=True)
def turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (7900, 7900)).save(folder/'a.jpg', exif=exif, quality=1)
    return folder/'a.jpg'

@attack('S10', 'a JPEG of 63 megapixels that lacks its end', fine=True, slow=True, cut=2)
@attack('S10', 'a JPEG of 63 megapixels that lacks its half', said='cut off', slow=True, cut=400_000)
def cut_off(folder, cut):
    Image.new('RGB', (7900, 7900)).save(b := BytesIO(), 'JPEG', quality=1)
    return put(folder, 'a.jpg', b.getvalue()[:-cut])

@attack('S10', 'a GIF of 65,535 by 65,535', said='megapixels')
def gif_canvas(folder):
    b = bytearray(small('GIF'))
    b[6:10] = b'\xff\xff\xff\xff'
    return put(folder, 'a.gif', bytes(b))

@attack('S10', 'a WebP canvas of 16 million by 16 million', said='megapixels|damaged|not a picture')
def webp_canvas(folder):
    vp8x = b'VP8X'+struct.pack('<I', 10)+b'\x10\0\0\0'+b'\xff'*6
    body = b'WEBP'+vp8x+small('WEBP')[12:]
    return put(folder, 'a.webp', b'RIFF'+struct.pack('<I', len(body))+body)

@attack('S10', 'an AVIF that says it has 4 thousand million pixels', said='megapixels|damaged|cut off')
def avif_canvas(folder):
    b = small('AVIF')
    i = b.index(b'ispe')+8
    return put(folder, 'a.avif', b[:i]+struct.pack('>II', 65_535, 65_535)+b[i+8:])

@attack('S10', 'a JPEG that says it has 65,500 by 65,500 pixels', said='megapixels')
def jpeg_lie(folder):
    b = bytearray(small('JPEG'))
    i = b.index(b'\xff\xc0')+5
    b[i:i+4] = struct.pack('>HH', 65_500, 65_500)
    return put(folder, 'a.jpg', bytes(b))

@attack('S10', 'a BMP of 2^31 rows', said='megapixels|damaged|cut off')
def bmp_lie(folder):
    b = bytearray(small('BMP'))
    b[22:26] = struct.pack('<I', (1 << 31)-1)
    return put(folder, 'a.bmp', bytes(b))

# Time and memory beside the pixels

@attack('S10', 'a text of 120 MB in a PNG', said='damaged', kind=b'zTXt', head=b'a\0\0')
@attack('S10', 'a text of 120 MB of another kind in a PNG', said='damaged', kind=b'iTXt', head=b'a\0\1\0\0\0')
@attack('S10', 'a colour profile of 120 MB in a PNG', fine=True, kind=b'iCCP', head=b'a\0\0')
def png_text(folder, kind, head): return png(folder/'a.png', 8, 8, before=chunk(kind, head+zeros(120_000_000)), rows=(b'\0'+b'\xff'*24)*8)

@attack('S10', '20,000 texts in a PNG', fine=True)
def many_texts(folder):
    one = b''.join(chunk(b'tEXt', b'k%d\0' % i+b'A'*90) for i in range(20_000))
    return png(folder/'a.png', 8, 8, before=one, rows=(b'\0'+b'\xff'*24)*8)

@attack('S10', 'an APNG with a million frames', fine=True)
def apng(folder): return png(folder/'a.png', 8, 8, before=chunk(b'acTL', struct.pack('>II', 1_000_000, 0)), rows=(b'\0'+b'\xff'*24)*8)

@attack('S10', 'a GIF with 100,000 frames', fine=True)
def gif_frames(folder):
    b = small('GIF', (1, 1))
    at = b.index(b',')
    return put(folder, 'a.gif', b[:at]+b[at:-1]*100_000+b';')

@attack('S10', 'a progressive JPEG of 60 megapixels with 4,000 passes in 4 MB', said='passes', slow=True)
def scans(folder):
    "Each pass says in a few bytes that nothing changes, and has the decoder walk over all blocks."
    Image.new('L', (7700, 7700)).save(b := BytesIO(), 'JPEG', progressive=True, quality=1)
    data = b.getvalue()
    last = data.rindex(b'\xff\xda')
    return put(folder, 'a.jpg', data[:last]+data[last:-2]*4000+data[-2:])

def tiff(entries, data=b'', next_at=0):
    "A TIFF with the (tag, type, count, value) `entries`, `data` behind them, and the place of the next page."
    res = b'II*\0\x08\0\0\0'+struct.pack('<H', len(entries))
    for tag, kind, n, v in entries: res += struct.pack('<HHII', tag, kind, n, v & 0xffffffff)
    return res+struct.pack('<I', next_at)+data

def plain_tiff(w=32, h=32, **more):
    "Entries of a plain grey TIFF; `more`: t258=(type, count, value)…"
    at = 8+2+12*(8+sum(int(k[1:]) not in (256, 257, 258, 259, 262, 273, 278, 279) for k in more))+4
    base = {256: (4, 1, w), 257: (4, 1, h), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, at), 278: (4, 1, h), 279: (4, 1, w*h)}
    return [(k, *v) for k, v in sorted((base | {int(k[1:]): v for k, v in more.items()}).items())]

@attack('S10', 'a TIFF with a tag of 4 GB', fine=True, t270=(2, 0xffffffff, 8))
@attack('S10', 'a TIFF with a table of 10^9 strips', fine=True, t273=(4, 1_000_000_000, 8))
@attack('S10', 'a TIFF with tiles of 2^31', fine=True, t322=(4, 1, (1 << 31)-1), t323=(4, 1, (1 << 31)-1))
@attack('S10', 'a TIFF with 65,535 numbers a pixel', fine=True, t277=(3, 1, 65_535))
@attack('S10', 'a TIFF with tiles of one pixel', fine=True, t322=(4, 1, 1), t323=(4, 1, 1))
@attack('S10', 'a TIFF whose size is below nought', fine=True, t257=(9, 1, -32))
@attack('S10', 'a TIFF with strips of 2^32 bytes', fine=True, t279=(4, 1, 0xffffffff))
def tiff_tags(folder, **tags): return put(folder, 'a.tif', tiff(plain_tiff(**tags), bytes(range(256))*8))

@attack('S10', 'a TIFF whose pages run in a ring', fine=True)
def tiff_ring(folder): return put(folder, 'a.tif', tiff(plain_tiff(), bytes(1024), next_at=8))

@attack('S10', 'EXIF whose directories run in a ring', fine=True)
def exif_ring(folder):
    ring = b'Exif\0\0II*\0\x08\0\0\0'+struct.pack('<HHHIIHHIII', 2, 0x8769, 4, 1, 8, 0x8825, 4, 1, 8, 8)
    return put(folder, 'a.jpg', small('JPEG', exif=ring))

@attack('S10', 'EXIF with 65,535 entries of 4 GB', fine=True)
def exif_large(folder):
    body = b'Exif\0\0II*\0\x08\0\0\0'+struct.pack('<H', 5000)+struct.pack('<HHII', 0x010e, 2, 0xffffffff, 8)*5000
    return put(folder, 'a.jpg', small('JPEG', exif=body))

@attack('S10', 'an MPO of 65,535 pictures', fine=True)
def mpo(folder):
    body = b'MPF\0II*\0\x08\0\0\0'+struct.pack('<H', 3)+struct.pack('<HHI4s', 0xb000, 7, 4, b'0100')
    body += struct.pack('<HHII', 0xb001, 4, 1, 65_535)+struct.pack('<HHIII', 0xb002, 7, 16*65_535, 50, 0)+bytes(4000)
    b = small('JPEG')
    return put(folder, 'a.jpg', b[:2]+b'\xff\xe2'+struct.pack('>H', len(body)+2)+body+b[2:])

# Formats that are programs, or that Pillow gives to programs

@attack('S11', 'an EPS called .jpg', said='EPS', name='a.jpg', start=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
@attack('S11', 'an EPS with a picture of DOS in front', said='EPS', name='a.png', start=b'\xc5\xd0\xd3\xc6'+struct.pack('<IIIIII', 32, 99, 0, 0, 0, 0)+b'%!PS-Adobe')
@attack('S11', 'a PDF called .png', said='PDF', name='a.png', start=b'%PDF-1.7\n1 0 obj<</S/JavaScript/JS(app.launchURL)>>endobj\n')
@attack('S11', 'a Photoshop file', said='Photoshop', name='a.jpg', start=b'8BPS\0\1'+bytes(6)+b'\0\3\0\0\xff\xff\0\0\xff\xff\0\x08\0\3')
@attack('S10', 'a FITS file (CVE-2026-40192)', said='text|not a picture', name='a.jpg', start=b'SIMPLE  =                    T'+b' '*50)
@attack('S10', 'a GD file (CVE-2026-55380)', said='not a picture', name='a.jpg', start=b'\xff\xfe\xff\xff\xff\xff\1\0\0\0')
@attack('S10', 'a JPEG 2000 (CVE-2026-59204)', said='JPEG 2000', name='a.jpg', start=b'\0\0\0\x0cjP  \r\n\x87\n'+b'\xff'*40)
@attack('S11', 'an icon', said='ICO', name='a.jpg', start=b'\0\0\1\0\xff\xff'+b'\xff'*99)
@attack('S11', 'a WMF, which Windows draws', said='not a picture', name='a.jpg', start=b'\xd7\xcd\xc6\x9a'+bytes(40))
@attack('S11', 'a Fli film', said='not a picture', name='a.jpg', start=b'\xff\xff\xff\xff\x11\xaf'+b'\xff'*200)
@attack('S11', 'an XBM with code of C', said='text', name='a.jpg', start=b'#define a_width 99999\n#define a_height 99999\nstatic char a[] = {')
@attack('S11', 'a picture of ImageMagick that runs a command', said='text|not a picture', name='a.jpg', start=b'push graphic-context\nfill \'url(https://x"|touch canary")\'\n')
def other(folder, name, start): return put(folder, name, start+b'\ncanary\n'*9)

@attack('S11', 'an SVG with an outside entity', said='SVG')
def svg(folder):
    text = f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg onload="fetch(1)"><text>&x;</text><!-- {canary(folder)} --></svg>'
    return put(folder, 'a.svg.jpg', text.encode())

@attack('S12', 'script in the texts of a PNG', fine=True)
def script(folder): return png(folder/'a.png', 8, 8, before=chunk(b'tEXt', b'Title\0<script>alert(1)</script>'), rows=(b'\0'+b'\xff'*24)*8)

@attack('S11', 'a picture called as a command', fine=True)
def command(folder): return put(folder, '-rf $(touch canary);`touch canary`.png', small('PNG'))

@attack('S15', 'noise that begins as each format does', fine=True)
def noise(folder):
    rng = random.Random(1)
    starts = [small(o)[:40] for o in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF')]
    for i in range(140): put(folder, f'{i}.jpg', starts[i % 7]+rng.randbytes(2000))
    return folder
