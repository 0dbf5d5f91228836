"Archives that mean harm, beyond those of test_sources.py. `make(folder)` writes one."
import bz2, gzip, lzma, os, random, struct, tarfile, zipfile, zlib
from attacks import Shelf

attack = Shelf()

def member(name, kind=tarfile.REGTYPE, size=0, link=''):
    o = tarfile.TarInfo(name)
    o.type, o.size, o.linkname = kind, size, link
    return o

def tar(path, members, opener=open, form=tarfile.GNU_FORMAT):
    "A tar of (TarInfo, bytes) pairs, headers exactly as they are given."
    with opener(path, 'wb') as f:
        for info, data in members: f.write(info.tobuf(form)+data+bytes(-len(data) % 512))
        f.write(bytes(1024))
    return path

def file(name, data=b'x'): return member(name, size=len(data)), data

def noise(n): return random.Random(n).randbytes(n)

@attack('S9', 'a file through a link to a folder outside', said='link')
def through_a_link(folder): return tar(folder/'a.tar', [file('a/1.jpg'), (member('a/l', tarfile.SYMTYPE, link='/'), b''), file('a/l/out')])

@attack('S9', 'a link through a chain of long names (CVE-2025-4517)', said='link|outside')
def long_chain(folder):
    ms, at = [], ''
    for i in 'abcdefghijklmnop':
        d = at+'d'*200
        ms += [(member(d, tarfile.DIRTYPE), b''), (member(f'{at}{i}', tarfile.SYMTYPE, link='d'*200), b'')]
        at = d+'/'
    return tar(folder/'a.tar', [*ms, (member('/'.join('abcdefghijklmnop')+'/l', tarfile.SYMTYPE, link='../'*16), b''), file('flag/out')])

@attack('S9', 'a hard link to a secret', said='link')
def hard_link(folder):
    (folder.parent/'secret').write_text('secret')
    return tar(folder/'a.tar', [file('a/1.jpg'), (member('a/2.jpg', tarfile.LNKTYPE, link='../../secret'), b'')])

@attack('S9', 'the names . and ..', said='outside|damaged|no files', names=['a/1.jpg', './..', '..'])
@attack('S9', 'dots that only look like dots', fine=True, names=['a/1.jpg', '\u2025/out', '\uff0e\uff0e/out', '%2e%2e/out', '..\u200b/out'])
@attack('S9', 'devices of Windows and streams', fine=True, names=['a/1.jpg', 'a/CON', 'a/NUL.jpg', 'a/1.jpg:stream'])
@attack('S9', 'names that differ only in capitals', fine=True, names=['a/1.jpg', 'a/1.JPG', 'A/1.jpg'])
@attack('S9', 'the drive of Windows', said='outside', names=['a/1.jpg', 'c:/windows/out'])
@attack('S9', 'a share of Windows', said='outside', names=['a/1.jpg', '\\\\host\\share\\out'])
@attack('S9', 'parents between slashes of both kinds', said='outside', names=['a/1.jpg', 'a\\../..\\../out'])
@attack('S9', 'letters that escape a terminal', fine=True, names=['a/1.jpg', 'a/\x1b]0;owned\x07.jpg', 'a/-rf.jpg', 'a/$(touch canary).jpg'])
@attack('S9', 'a folder 3,000 deep', said='', names=['a/1.jpg', 'd/'*3000+'x'], form=tarfile.PAX_FORMAT)
def names_of(folder, names, form=tarfile.GNU_FORMAT): return tar(folder/'a.tar', [file(o) for o in names], form=form)

@attack('S9', 'a name of 20 MB in 20 kB', said='larger than it says')
def long_name(folder):
    big = 20_000_000
    return tar(folder/'a.tgz', [file('a/1.jpg'), (member('././@LongLink', tarfile.GNUTYPE_LONGNAME, size=big), b'a'*big), file('b')], gzip.open)

def pax(key, n): return (b'%d %s=' % (n, key)).ljust(n-1, b'A')+b'\n'

@attack('S9', '40 common headers of 7 MB each in 2 MB', said='larger than it says', slow=True)
def global_headers(folder):
    def ms():
        for i in range(40):
            data = pax(b'k%d' % i, 7_000_000)
            yield member('g', tarfile.XGLTYPE, size=len(data)), data
            yield file(f'a/{i}.jpg')
    return tar(folder/'a.tgz', ms(), lambda p, m: gzip.open(p, m, 1))

@attack('S9', '2,000 headers in a row', said='damaged')
def many_headers(folder):
    data = pax(b'comment', 30)
    return tar(folder/'a.tar', [(member('x', tarfile.XHDTYPE, size=len(data)), data)]*2000+[file('a/1.jpg')])

@attack('S9', 'a size below nought', said='size', size=-1)
@attack('S9', 'a member of 8 EB', said='cut off|damaged|larger', size=(8 << 60)-1)
def lying_size(folder, size):
    info = member('a/2.jpg')
    info.size = size
    return tar(folder/'a.tar', [file('a/1.jpg'), (info, b'')])

@attack('S9', '12,000 empty files in 100 kB', said='members', slow=True)
def many_members(folder):
    head = bytearray(member('a/0000000').tobuf())
    with gzip.open(folder/'a.tgz', 'wb', 9) as f:
        for i in range(12_000):
            head[2:9] = b'%07d' % i
            head[148:156] = b' '*8
            head[148:156] = b'%06o\0 ' % sum(head)
            f.write(head)
        f.write(bytes(1024))
    return folder/'a.tgz'

@attack('S9', 'a bomb of gzip', said='unpacks to more', slow=True, opener=lambda p, m: gzip.open(p, m, 6))
@attack('S9', 'a bomb of bzip2', said='unpacks to more', slow=True, opener=bz2.open)
@attack('S9', 'a bomb of xz', said='unpacks to more', slow=True, opener=lambda p, m: lzma.open(p, m, preset=0))
def packed_zeros(folder, opener):
    def ms(): yield member('a/0.bin', size=130_000_000), bytes(130_000_000)
    return tar(folder/'a.tar', ms(), opener)

@attack('S9', 'a gzip in a gzip', said='archive')
def gz_in_gz(folder):
    tar(folder/'a.tar', [file('a/1.jpg')], gzip.open)
    (folder/'b.tar').write_bytes(gzip.compress((folder/'a.tar').read_bytes()))
    return folder/'b.tar'

@attack('S9', 'an xz that asks for 1.5 GB of memory', said='[Mm]emory')
def xz_memory(folder, top=1_000_000):
    "Noise that keeps the ratio down, then zeros (with 1.3 GB of them, `lzma.open` takes 1.3 GB); the size of the dictionary is written into the header by hand."
    def ms():
        yield file('a/noise.bin', noise(top//200))
        for i in range(13): yield member(f'a/{i}.bin', size=top//13), bytes(top//13)
    path = tar(folder/'a.tar', ms(), lambda p, m: lzma.open(p, m, filters=[dict(id=lzma.FILTER_LZMA2, preset=0)]))
    b = bytearray(path.read_bytes())
    n = (b[12]+1)*4 # of the first block's header, which lies behind the 12 bytes of the stream's
    at = b.index(b'\x21\x01', 12)
    b[at+2] = 37 # 1.5 GB
    b[12+n-4:12+n] = struct.pack('<I', zlib.crc32(bytes(b[12:12+n-4])))
    path.write_bytes(bytes(b))
    return path

# Zips

def zipped(path, *members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', kind, compresslevel=9) as z:
        for name, data in members: z.writestr(name, data)
    return path

@attack('S9', 'a zip of zeros', said='unpacks to more', kind=zipfile.ZIP_DEFLATED)
@attack('S9', 'a zip of zeros in bzip2', said='unpacks to more', slow=True, kind=zipfile.ZIP_BZIP2)
@attack('S9', 'a zip of zeros in LZMA', said='LZMA', kind=zipfile.ZIP_LZMA, n=1000)
def zip_of_zeros(folder, kind, n=130_000_000): return zipped(folder/'a.zip', ('a/1.jpg', b'x'), ('a/0.bin', bytes(n)), kind=kind)

@attack('S9', 'zips in zips, like 42.zip', fine=True)
def zips_in_zips(folder):
    inner = zipped(folder/'i.zip', ('0.bin', bytes(50_000_000))).read_bytes()
    for _ in range(3): inner = zipped(folder/'i.zip', *((f'{i}.zip', inner) for i in range(16))).read_bytes()
    (folder/'i.zip').unlink()
    return zipped(folder/'a.zip', *((f'a/{i}.zip', inner) for i in range(4)))

def central(name, at, packed, size, crc=0, method=0, attr=0):
    return struct.pack('<4s6H3I5H2I', b'PK\1\2', 20, 20, 0, method, 0, 0, crc, packed, size, len(name), 0, 0, 0, 0, attr, at)+name

def local(name, packed, size, crc=0, method=0): return struct.pack('<4s5H3I2H', b'PK\3\4', 20, 0, method, 0, 0, crc, packed, size, len(name), 0)+name

def zip_of(path, body, entries):
    "A zip with any `body` and any list of `entries`."
    n = min(len(entries), 65535)
    path.write_bytes(body+b''.join(entries)+struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, n, n, sum(map(len, entries)), len(body), 0))
    return path

@attack('S9', 'a thousand members that share their bytes', said='damaged|unpacks to more')
def overlapping(folder):
    raw = bytes(2_000_000)
    c = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = c.compress(raw)+c.flush()
    crc = zlib.crc32(raw)
    body = local(b'0', len(packed), len(raw), crc, 8)+packed
    return zip_of(folder/'a.zip', body, [central(b'%d' % i, 0, len(packed), len(raw), crc, 8) for i in range(1000)])

@attack('S9', 'a million entries', said='longer than they are', slow=True)
def many_entries(folder): return zip_of(folder/'a.zip', local(b'0'*8, 0, 0), [central(b'%08d' % i, 0, 0, 0) for i in range(1_000_000)])

@attack('S9', 'a member that is smaller than it says', said='', size=4_000_000_000)
@attack('S9', 'a member that is larger than it says', said='', size=10)
def zip_lies(folder, size):
    raw = bytes(50_000_000)
    c = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = c.compress(raw)+c.flush()
    return zip_of(folder/'a.zip', local(b'0', len(packed), size, 0, 8)+packed, [central(b'0', 0, len(packed), size, 0, 8)])

@attack('S9', 'a name that is another in the list and in the file', said='damaged')
def two_names(folder): return zip_of(folder/'a.zip', local(b'../out', 1, 1, zlib.crc32(b'x'))+b'x', [central(b'a/1.jp', 0, 1, 1, zlib.crc32(b'x'))])

@attack('S9', 'a file that a link in the same zip leads away', said='link')
def zip_link(folder):
    body = local(b'a/l', 1, 1, zlib.crc32(b'/'))+b'/'
    return zip_of(folder/'a.zip', body, [central(b'a/l', 0, 1, 1, zlib.crc32(b'/'), attr=0o120777 << 16)])

@attack('S9', 'a zip and a tar in one', said='')
def zip_and_tar(folder):
    tar(folder/'a.tar', [file('../out')])
    with zipfile.ZipFile(folder/'a.tar', 'a') as z: z.writestr('a/1.jpg', b'x')
    return folder/'a.tar'

@attack('S9', 'a pipe in place of an archive', said='no archive')
def pipe(folder):
    os.mkfifo(folder/'a.tar')
    return folder/'a.tar'

@attack('S9', 'a link to an endless device in place of an archive', said='no archive')
def endless(folder):
    (folder/'a.tar').symlink_to('/dev/zero')
    return folder/'a.tar'
