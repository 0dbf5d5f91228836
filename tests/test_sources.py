"Fetching and unpacking under faults: a server that cuts, lies and redirects, and archives that mean harm."
import gzip, hashlib, io, os, random, subprocess, sys, tarfile, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from conftest import serving
from learnkit.archives import extract
from learnkit.core import DataError, NotFound, OfflineError
from learnkit.data.sources import add_source, datasets, get_data, mirror_data, write_classes
from learnkit.settings import settings
from learnkit.web import Unfinished, fetch, file_hash, open_url, retry

BODY = random.Random(42).randbytes(1_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    "Serves what `routes` says: path -> function of the handler and how often the path was asked before."
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.routes, self.asked, self.sent, self.lock = {}, [], {}, threading.Lock()
        self.url = f'http://127.0.0.1:{self.server_port}'

    def add(self, path, route):
        self.routes[path] = route
        return self.url+path

    def handle_error(self, request, address): pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        with s.lock:
            before = sum(o == self.path for o, _ in s.asked)
            s.asked.append((self.path, self.headers.get('Range')))
        if self.path not in s.routes: self.send_error(404)
        else: s.routes[self.path](self, before)

    def give(self, body, status=200, upto=None, length=None, **headers):
        "Send `body`, but close after `upto` bytes, and announce `length`."
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), v)
        if length != 'none': self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        part = body[:upto]
        self.server.sent[self.path] = self.server.sent.get(self.path, 0)+len(part)
        try: self.wfile.write(part)
        except OSError: pass

    def ranged(self, body, upto=None, tag='"v1"', **kw):
        "Send `body` or the part of it that `Range` asks for, as good servers do."
        ask, seen = self.headers.get('Range'), self.headers.get('If-Range', tag)
        if not ask or seen != tag: return self.give(body, upto=upto, ETag=tag, **kw)
        start = int(ask[6:].rstrip('-'))
        if start >= len(body): return self.send_error(416)
        self.give(body[start:], 206, upto=upto, ETag=tag, Content_Range=f'bytes {start}-{len(body)-1}/{len(body)}', **kw)


@pytest.fixture
def server():
    with serving(Server()) as s: yield s


@pytest.fixture(autouse=True)
def home(tmp_path):
    with settings.using(cache_path=tmp_path/'cache', mirror='', offline=False, progress=False): yield tmp_path


def files(folder): return sorted(o.relative_to(folder).as_posix() for o in Path(folder).rglob('*') if o.is_file())


def tar(path, members, mode='w'):
    "A tar at `path` of (name or TarInfo, bytes) pairs."
    with tarfile.open(path, mode) as t:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg(): info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


def pictures(n=5): return [(f'cats/{i}.jpg', random.Random(i).randbytes(2000)) for i in range(n)]


def shares(what):
    "Parameters for a download that is cut at a share of its bytes, each counted as a fault."
    marks = {o: pytest.mark.fault('F11', f'download {what} at {o} %') for o in (10, 50, 99)}
    return pytest.mark.parametrize('share', [pytest.param(k, marks=v) for k, v in marks.items()])


# Fetch: the connection breaks

@shares('cut once')
def test_cut_once_goes_on_where_it_stopped(server, home, share):
    n = len(BODY)*share//100
    url = server.add('/a.bin', lambda h, before: h.ranged(BODY, upto=None if before else n, length=None if before else len(BODY)))
    assert file_hash(fetch(url, home/'a.bin', pause=0)) == SHA
    assert server.asked == [('/a.bin', None), ('/a.bin', f'bytes={n}-')]
    assert server.sent['/a.bin'] == len(BODY)
    assert files(home) == ['a.bin']


@shares('cut again and again')
def test_cut_for_good_leaves_nothing_under_the_final_name(server, home, share):
    n = len(BODY)*share//100
    url = server.add('/a.bin', lambda h, before: h.give(BODY, upto=n, ETag='"v1"'))
    with pytest.raises(OfflineError, match='broke off after .* of 1,000,000 bytes'): fetch(url, home/'a.bin', tries=2, pause=0)
    assert files(home) == ['a.bin.part', 'a.bin.part.json']


@pytest.mark.fault('F11', 'download given up, and called again')
def test_a_later_call_goes_on(server, home):
    url = server.add('/a.bin', lambda h, before: h.send_error(500) if before == 1 else h.ranged(BODY, upto=None if before else 400_000))
    with pytest.raises(OfflineError, match='call again'): fetch(url, home/'a.bin', tries=1, pause=0)
    assert fetch(url, home/'a.bin').read_bytes() == BODY
    assert server.asked[-1] == ('/a.bin', 'bytes=400000-')


def test_tries_that_gain_bytes_do_not_count(server, home):
    url = server.add('/a.bin', lambda h, before: h.ranged(BODY, upto=100_000))
    assert fetch(url, home/'a.bin', tries=2, pause=0).read_bytes() == BODY
    assert len(server.asked) == 10


def test_range_ignored(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY, upto=None if before else 500_000, ETag='"v1"'))
    assert fetch(url, home/'a.bin', pause=0).read_bytes() == BODY


@pytest.mark.fault('F11', 'file changed between two parts of a download')
def test_file_changed_between_the_parts(server, home):
    new = BODY[::-1]
    url = server.add('/a.bin', lambda h, before: h.ranged(new, tag='"v2"') if before else h.ranged(BODY, upto=500_000))
    assert fetch(url, home/'a.bin', pause=0).read_bytes() == new


def test_file_changed_and_server_ignores_if_range(server, home):
    def route(h, before):
        if not before: return h.ranged(BODY, upto=500_000)
        del h.headers['If-Range']
        h.ranged(BODY[::-1], tag='"v2"')
    assert fetch(server.add('/a.bin', route), home/'a.bin', pause=0).read_bytes() == BODY[::-1]


@pytest.mark.fault('F11', 'server sends another part than asked for')
def test_another_part_than_asked_for(server, home):
    def route(h, before):
        if before == 0: return h.ranged(BODY, upto=500_000)
        if before == 1: return h.give(BODY[7:], 206, ETag='"v1"', Content_Range=f'bytes 7-{len(BODY)-1}/{len(BODY)}')
        h.ranged(BODY)
    assert fetch(server.add('/a.bin', route), home/'a.bin', pause=0).read_bytes() == BODY


def test_file_became_shorter(server, home):
    url = server.add('/a.bin', lambda h, before: h.ranged(BODY[:1000]) if before else h.ranged(BODY, upto=500_000))
    sha = hashlib.sha256(BODY[:1000]).hexdigest()
    assert len(fetch(url, home/'a.bin', sha256=sha, pause=0).read_bytes()) == 1000


@pytest.mark.fault('F11', 'a part with wrong bytes lies there')
def test_stale_part_with_wrong_bytes_is_thrown_away(server, home):
    url = server.add('/a.bin', lambda h, before: h.ranged(BODY))
    (home/'a.bin.part').write_bytes(bytes(1000))
    (home/'a.bin.part.json').write_text(f'{{"url": "{url}", "tag": "\\"v1\\"", "total": 1000000}}')
    assert fetch(url, home/'a.bin', sha256=SHA, pause=0).read_bytes() == BODY


def test_without_tag_and_hash_a_part_is_not_trusted(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY, upto=None if before else 500_000))
    assert fetch(url, home/'a.bin', pause=0).read_bytes() == BODY
    assert [o for _, o in server.asked] == [None, None]


def test_no_length_at_all(server, home):
    assert fetch(server.add('/a.bin', lambda h, before: h.give(BODY, length='none')), home/'a.bin', sha256=SHA).stat().st_size == len(BODY)


# Fetch: the server lies

@pytest.mark.fault('F11', 'download with a wrong hash')
def test_wrong_hash_keeps_nothing(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY))
    with pytest.raises(DataError, match='its sha256 is'): fetch(url, home/'a.bin', sha256='0'*64)
    assert files(home) == []


@pytest.mark.fault('F11', 'wrong hash over an old file')
def test_wrong_hash_does_not_destroy_the_old_file(server, home):
    (home/'a.bin').write_bytes(b'old')
    with pytest.raises(DataError): fetch(server.add('/a.bin', lambda h, before: h.give(BODY)), home/'a.bin', sha256='0'*64, force=True)
    assert (home/'a.bin').read_bytes() == b'old'


@pytest.mark.fault('F11', 'download shorter than announced')
def test_length_too_long(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY, length=len(BODY)+5))
    with pytest.raises(OfflineError, match='broke off'): fetch(url, home/'a.bin', tries=2, pause=0)
    assert not (home/'a.bin').exists()


@pytest.mark.fault('F11', 'download longer than announced')
def test_length_too_short(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY, length=len(BODY)-5))
    with pytest.raises(DataError): fetch(url, home/'a.bin', sha256=SHA)
    assert files(home) == []


@pytest.mark.fault('F11', 'web page in place of a file')
def test_web_page_instead(server, home):
    url = server.add('/a.tar', lambda h, before: h.give(b'\n<!DOCTYPE html><html>Please log in</html>', Content_Type='text/html'))
    with pytest.raises(DataError, match='web page'): fetch(url, home/'a.tar')
    assert files(home) == []


@pytest.mark.fault('F11', '404')
def test_not_there(server, home):
    with pytest.raises(NotFound, match='404'): fetch(f'{server.url}/nothing', home/'a.bin')
    assert len(server.asked) == 1 and files(home) == []


@pytest.mark.fault('F11', '500, then the file')
def test_500_then_ok(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY) if before else h.send_error(500))
    assert fetch(url, home/'a.bin', pause=0).read_bytes() == BODY


def test_busy_says_when(server, home):
    url = server.add('/a.bin', lambda h, before: h.give(BODY) if before else h.give(b'', 503, Retry_After='0'))
    assert fetch(url, home/'a.bin', pause=1000).read_bytes() == BODY


def test_forbidden_is_not_tried_again(server, home):
    url = server.add('/a.bin', lambda h, before: h.send_error(403))
    with pytest.raises(OfflineError, match='403'): fetch(url, home/'a.bin')
    assert len(server.asked) == 1


def test_redirect_and_loop(server, home):
    server.add('/a.bin', lambda h, before: h.give(BODY))
    url = server.add('/moved', lambda h, before: h.give(b'', 302, Location='/a.bin'))
    assert fetch(url, home/'a.bin').read_bytes() == BODY
    url = server.add('/loop', lambda h, before: h.give(b'', 302, Location='/loop'))
    with pytest.raises(OfflineError, match='loop'): fetch(url, home/'b.bin')
    assert files(home) == ['a.bin']


@pytest.mark.parametrize('place', [pytest.param(o, marks=pytest.mark.hostile('S14', f'redirect to {o}')) for o in ('file:///etc/passwd', 'ftp://127.0.0.1/x')])
def test_redirect_to_something_else_than_the_web(server, home, place):
    url = server.add('/out', lambda h, before: h.give(b'', 302, Location=place))
    with pytest.raises((OfflineError, NotFound)): fetch(url, home/'a.bin')
    assert files(home) == []


@pytest.mark.hostile('S14', 'redirect to the internet while offline is set')
def test_redirect_to_the_internet_is_refused_offline(server, home):
    url = server.add('/out', lambda h, before: h.give(b'', 302, Location='https://example.org/a.bin'))
    with settings.using(offline=True), pytest.raises(OfflineError, match='offline is set'): fetch(url, home/'a.bin')


@pytest.mark.fault('F11', 'server out of reach')
def test_unreachable(server, home):
    server.server_close()
    with pytest.raises(OfflineError, match='could not be reached') as e: fetch(f'{server.url}/a.bin', home/'a.bin', tries=2, pause=0)
    assert '\n' not in str(e.value) and files(home) == []
    server.server_close = lambda: None


@pytest.mark.hostile('S14', 'plain http without a hash')
def test_plain_http_from_the_internet_needs_a_hash(home):
    with pytest.raises(DataError, match='not encrypted'): fetch('http://example.org/a.tar', home/'a.tar')


@pytest.mark.parametrize('url', ['example.org/a.tar', 'file:///etc/passwd', 'https://', '', '/tmp/a.tar'])
def test_not_an_address(url):
    with pytest.raises(NotFound, match='not a web address'): open_url(url)


@pytest.mark.fault('F11', 'eight downloads of one file at once')
def test_eight_at_once_fetch_once(server, home):
    url = server.add('/a.bin', lambda h, before: h.ranged(BODY))
    ts = [threading.Thread(target=fetch, args=(url, home/'a.bin')) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert (home/'a.bin').read_bytes() == BODY and files(home) == ['a.bin']
    assert len(server.asked) == 1


def test_into_a_folder_by_its_own_name(server, home):
    url = server.add('/sub/my%20cats.tar?x=1', lambda h, before: h.give(BODY))
    assert fetch(url, home).name == 'my cats.tar'


def test_retry_gives_up_and_lets_other_errors_pass():
    seen = []
    def f():
        seen.append(1)
        raise Unfinished('no')
    with pytest.raises(Unfinished): retry(f, tries=3, pause=0)
    assert len(seen) == 3
    with pytest.raises(ZeroDivisionError): retry(lambda: 1/0)


# Extract: archives that mean harm

def info(name, kind, link='', size=0):
    o = tarfile.TarInfo(name)
    o.type, o.linkname, o.size = kind, link, size
    return o


def hostile_tar(*members): return lambda p: tar(p, [('cats/a.jpg', b'a'), *members])


def hostile_zip(name, data=b'b', attr=0, flag=0):
    def make(p):
        with zipfile.ZipFile(p, 'w') as z:
            z.writestr('cats/a.jpg', b'a')
            o = zipfile.ZipInfo(name)
            o.external_attr = attr << 16
            z.writestr(o, data)
        if flag: p.write_bytes(p.read_bytes().replace(b'PK\1\2\x14\3\x14\0\0\0', b'PK\1\2\x14\3\x14\0\1\0'))
    return make


def cut(n, mode='w'):
    "A tar that lacks its last `n` bytes."
    return lambda p: tar(p, pictures(), mode).write_bytes(p.read_bytes()[:-n])


def cut_between(p):
    "A tar that ends after its second member: 512 of head and 2048 of data each."
    tar(p, pictures()).write_bytes(p.read_bytes()[:2*(512+2048)])


def gz_bomb(p): tar(p, [('cats/a.bin', bytes(110_000_000))], 'w:gz')


def gz_header_bomb(p):
    "A few kB whose first header says that a name of 50 MB follows."
    with gzip.open(p, 'wb') as f: f.write(info('x', tarfile.XHDTYPE, size=50_000_000).tobuf(tarfile.USTAR_FORMAT)+bytes(50_000_000))


def sparse(p):
    "A GNU sparse file of 8 TB in 1 kB."
    b = bytearray(info('cats/hole.bin', tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    b[483:495] = b'%011o\0' % (8 << 37)
    b[148:156] = b' '*8
    b[148:156] = b'%06o\0 ' % sum(b)
    p.write_bytes(bytes(b)+bytes(1024))


HOSTILE = dict(
    parent=hostile_tar(('../out.txt', b'x')), deep_parent=hostile_tar(('cats/../../out.txt', b'x')), absolute=hostile_tar(('/tmp/learnkit-out.txt', b'x')),
    backslash=hostile_tar(('..\\out.txt', b'x')), drive=hostile_tar(('C:\\out.txt', b'x')), long_name=hostile_tar(('cats/'+'x'*300, b'x')),
    symlink_out=hostile_tar((info('cats/l', tarfile.SYMTYPE, '../..'), b''), ('cats/l/out.txt', b'x')),
    symlink_in=hostile_tar((info('cats/l', tarfile.SYMTYPE, 'a.jpg'), b'')), hardlink=hostile_tar((info('cats/l', tarfile.LNKTYPE, '../secret'), b'')),
    device=hostile_tar((info('cats/null', tarfile.CHRTYPE), b'')), block=hostile_tar((info('cats/sda', tarfile.BLKTYPE), b'')),
    fifo=hostile_tar((info('cats/pipe', tarfile.FIFOTYPE), b'')), twice=hostile_tar(('cats/a.jpg', b'b')), file_as_folder=hostile_tar(('cats/a.jpg/b', b'b')),
    sparse=sparse, gz_bomb=gz_bomb, gz_header_bomb=gz_header_bomb, cut_inside=cut(11_000), cut_gz=cut(100, 'w:gz'), cut_between=cut_between,
    zip_parent=hostile_zip('../out.txt'), zip_absolute=hostile_zip('/tmp/learnkit-out.txt'), zip_symlink=hostile_zip('cats/l', b'../..', 0o120777),
    zip_device=hostile_zip('cats/l', b'', 0o020666), zip_encrypted=hostile_zip('cats/b', flag=1),
    zip_cut=lambda p: (hostile_zip('cats/b')(p), p.write_bytes(p.read_bytes()[:-30])),
    empty=lambda p: p.write_bytes(b''), text=lambda p: p.write_text('hello\n'*1000), page=lambda p: p.write_text('<html>404</html>'),
    no_files=lambda p: tar(p, [(info('cats', tarfile.DIRTYPE), b'')]))


def counted(kind):
    "The mark of a kind of archive: those that are only damaged are faults."
    damaged = kind in ('cut_inside', 'cut_gz', 'cut_between', 'zip_cut', 'empty', 'text', 'page', 'no_files')
    return pytest.mark.fault('F12', f'archive: {kind}') if damaged else pytest.mark.hostile('S9', f'archive: {kind}')


@pytest.mark.parametrize('kind', [pytest.param(o, marks=counted(o)) for o in HOSTILE])
def test_hostile_archive_writes_nothing(tmp_path, kind):
    box = tmp_path/'box'
    box.mkdir()
    (tmp_path/'secret').write_text('secret')
    HOSTILE[kind](box/'evil.tar')
    with pytest.raises(DataError) as e: extract(box/'evil.tar', box/'cats')
    assert 'evil.tar' in str(e.value) and '\n' not in str(e.value)
    assert files(tmp_path) == ['box/evil.tar', 'secret']
    assert [o.name for o in box.iterdir()] == ['evil.tar']
    assert not Path('/tmp/learnkit-out.txt').exists()


@pytest.mark.parametrize('caps,said', [(dict(max_files=3), 'more than 3 members'), (dict(max_bytes=5000), 'unpacks to more than')])
def test_caps(tmp_path, caps, said):
    tar(tmp_path/'a.tar', pictures())
    with pytest.raises(DataError, match=said): extract(tmp_path/'a.tar', tmp_path/'a', **caps)
    assert files(tmp_path) == ['a.tar']


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_tars_of_every_kind(tmp_path, mode):
    tar(tmp_path/'a.data', pictures(), mode)
    assert files(extract(tmp_path/'a.data', tmp_path/'a')) == [f'{i}.jpg' for i in range(5)]


def test_zip_and_what_macos_adds(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for k, v in [*pictures(), ('__MACOSX/._0.jpg', b'x'), ('cats/.DS_Store', b'x'), ('cats/._1.jpg', b'x')]: z.writestr(k, v)
    assert files(extract(tmp_path/'a.zip', tmp_path/'a')) == [f'{i}.jpg' for i in range(5)]


def test_tar_whose_first_name_begins_like_a_zip(tmp_path):
    tar(tmp_path/'a.tar', [('PKLot/a.jpg', b'a')])
    assert files(extract(tmp_path/'a.tar', tmp_path/'a')) == ['a.jpg']


def test_several_tops_and_old_folders(tmp_path):
    tar(tmp_path/'a.tar', [('cats/1.jpg', b'1'), ('dogs/1.jpg', b'1')])
    assert files(extract(tmp_path/'a.tar', tmp_path/'a')) == ['cats/1.jpg', 'dogs/1.jpg']
    with pytest.raises(DataError, match='force=True'): extract(tmp_path/'a.tar', tmp_path/'a')
    (tmp_path/'a'/'old').write_text('old')
    assert files(extract(tmp_path/'a.tar', tmp_path/'a', force=True)) == ['cats/1.jpg', 'dogs/1.jpg']
    assert sorted(o.name for o in tmp_path.iterdir()) == ['a', 'a.tar']


# Data sets by name

@pytest.fixture
def shelf(tmp_path):
    d = tmp_path/'shelf'
    d.mkdir()
    tar(d/'cats.tar', pictures(20))
    with zipfile.ZipFile(d/'dogs.zip', 'w') as z:
        for k, v in pictures(3): z.writestr(k, v)
    return d


def serve(server, shelf):
    for o in shelf.iterdir(): server.add(f'/{o.name}', lambda h, before, o=o: h.ranged(o.read_bytes()))


def test_mirror_folder_then_cache(shelf):
    p = get_data('cats', mirror=shelf)
    assert p == settings.cache_path/'data'/'cats' and len(files(p)) == 20
    assert get_data('cats', offline=True) == p
    assert len(files(get_data('dogs', mirror=shelf))) == 3


def test_mirror_address(server, shelf):
    serve(server, shelf)
    assert len(files(get_data('cats', mirror=server.url+'/'))) == 20
    assert len(files(get_data('dogs', mirror=server.url))) == 3
    assert files(settings.cache_path/'downloads') == []
    assert [o['source'] for o in datasets() if o['name'] == 'cats'] == ['cache']


@pytest.mark.parametrize('kind', ['folder', 'address'])
def test_mirror_with_a_wrong_sum(server, shelf, kind):
    (shelf/'cats.tar.sha256').write_text('0'*64+'  cats.tar\n')
    serve(server, shelf)
    with pytest.raises(DataError, match='not the file it should be'): get_data('cats', mirror=shelf if kind == 'folder' else server.url)
    assert not (settings.cache_path/'data'/'cats').exists()


@pytest.mark.fault('F11', 'mirror gives web pages')
def test_mirror_that_gives_pages(server):
    for kind in ('tar', 'zip'): server.add(f'/cats.{kind}', lambda h, before: h.give(b'<html>log in</html>'))
    with pytest.raises(DataError, match='web page'): get_data('cats', mirror=server.url)
    assert files(settings.cache_path) == []


@pytest.mark.fault('F11', 'mirror gives noise')
def test_mirror_that_gives_rubbish(server):
    server.add('/cats.tar', lambda h, before: h.give(BODY))
    with pytest.raises(DataError, match='no archive'): get_data('cats', mirror=server.url)
    assert files(settings.cache_path) == []


def test_unreachable_mirrors(server, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda s: None)
    server.server_close()
    for place in (server.url, '/no/such/folder'):
        with pytest.raises(OfflineError) as e: get_data('cats_vs_dogs', mirror=place)
        assert '\n' not in str(e.value) and files(settings.cache_path) == []
    server.server_close = lambda: None


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(NotFound, match="Did you mean 'cats_vs_dogs'"): get_data('cat_vs_dogs')
    with pytest.raises(OfflineError, match='mirror'): get_data('cats_vs_dogs')
    with pytest.raises(OfflineError, match='offline is set'): get_data('pets', offline=True)
    for bad in ('../etc', '/no/such', './x', '', '.hidden', tmp_path/'none'):
        with pytest.raises(NotFound): get_data(bad)
    assert files(tmp_path) == []


def test_own_folder_comes_back(tmp_path, monkeypatch, shelf):
    assert get_data(shelf) == shelf and get_data(str(shelf)) == shelf
    (tmp_path/'mine').mkdir()
    (tmp_path/'cats').mkdir()
    monkeypatch.chdir(tmp_path)
    assert get_data('mine') == Path('mine')
    assert len(files(get_data('cats', mirror=shelf))) == 20
    assert get_data('./cats', mirror=shelf) == Path('cats')


def test_registered_address(server, shelf):
    serve(server, shelf)
    add_source('course_cats', url=f'{server.url}/cats.tar', sha256=file_hash(shelf/'cats.tar'), tasks=['classification'])
    assert len(files(get_data('course_cats', offline=True))) == 20
    for bad in (dict(), dict(url='https://x.org/a.tar'), dict(url='https://x.org/a.tar', sha256='12'), dict(url='a', make=print)):
        with pytest.raises(DataError): add_source('bad', **bad)
    with pytest.raises(DataError, match='no name'): add_source('../bad', make=print)


@pytest.mark.fault('F12', 'Ctrl-C while a data set is made')
def test_made_data_is_whole_or_absent():
    def half(folder):
        folder.mkdir()
        (folder/'a.txt').write_text('a')
        raise KeyboardInterrupt
    add_source('half', make=half)
    with pytest.raises(KeyboardInterrupt): get_data('half')
    assert files(settings.cache_path) == []


def test_drawn_sets_are_built_in(monkeypatch):
    from learnkit.data import doodles
    names = 'doodle_hands', 'doodle_scenes', 'doodles'
    assert [o['name'] for o in datasets() if o['source'] == 'built-in' and o['name'].startswith('doodle')] == list(names)
    for o in names:
        write = getattr(doodles, f'write_{o}')
        monkeypatch.setattr(doodles, f'write_{o}', lambda folder, write=write: write(folder, n=6))
        assert get_data(o, offline=True) == settings.cache_path/'data'/o
    p = get_data('doodle_hands', offline=True)
    assert files(p) == [f'{o}/{o}_{i:04d}.png' for i, o in ((1, 'paper'), (4, 'paper'), (0, 'rock'), (3, 'rock'), (2, 'scissors'), (5, 'scissors'))]
    (settings.cache_path/'data'/'.doodle_hands.json').write_text('{"stamp": "drawn by another version"}')
    (p/'rock'/'rock_0000.png').unlink()
    assert len(files(get_data('doodle_hands'))) == 6


KILL = """
import os, signal, sys
from learnkit.data.sources import get_data
event, end, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
def hook(e, args):
    global n
    if e != event or not str(args[0]).endswith(end): return
    n -= 1
    if n == 0: os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
get_data('cats')
"""

POINTS = {'before the first file': ('open', '.jpg', 1), 'after six files': ('open', '.jpg', 7), 'before the last file': ('open', '.jpg', 20),
    'before the first rename': ('os.rename', '', 1), 'before the second rename': ('os.rename', '', 2)}


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGKILL')
@pytest.mark.parametrize('point', [pytest.param(o, marks=pytest.mark.fault('F12', f'kill -9 while unpacking, {o}')) for o in POINTS])
def test_killed_while_unpacking(shelf, point):
    env = os.environ | dict(LEARNKIT_MIRROR=str(shelf), LEARNKIT_CACHE_PATH=str(settings.cache_path))
    assert subprocess.run([sys.executable, '-c', KILL, *map(str, POINTS[point])], env=env).returncode == -9
    data = settings.cache_path/'data'
    assert not (data/'cats').exists()
    assert len(files(get_data('cats', mirror=shelf))) == 20
    assert sorted(o.name for o in data.iterdir()) == ['.cats.json', 'cats']


def test_mirror_data_goes_round(shelf, tmp_path):
    a, = mirror_data(get_data('cats', mirror=shelf), tmp_path/'new')
    b, = mirror_data(['cats'], tmp_path/'again')
    assert a.read_bytes() == b.read_bytes() and a.name == 'cats.tar'
    p = get_data('cats', mirror=tmp_path/'new', force=True)
    assert len(files(p)) == 20 and (p/'3.jpg').read_bytes() == dict(pictures(20))['cats/3.jpg']


def test_import_brings_no_torch():
    code = "import sys, learnkit.data.sources; print([o for o in ('torch', 'fastai', 'numpy', 'PIL') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'


# torchvision's sets, with its addresses turned to the local server

def md5(b): return hashlib.md5(b).hexdigest()


def packed(members, mode='w:gz'):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode=mode) as t:
        for k, v in members.items():
            o = tarfile.TarInfo(k)
            o.size = len(v)
            t.addfile(o, io.BytesIO(v))
    return b.getvalue()


def jpeg(i):
    from PIL import Image
    b = io.BytesIO()
    Image.new('RGB', (8, 8), (i*20, 0, 0)).save(b, 'jpeg')
    return b.getvalue()


@pytest.fixture
def fashion(server, monkeypatch):
    tv = pytest.importorskip('torchvision')
    def idx(n, shape, val):
        head = bytes([0, 0, 8, len(shape)+1])+b''.join(o.to_bytes(4, 'big') for o in (n, *shape))
        return gzip.compress(head+b''.join(bytes([val(i)])*(28*28 if shape else 1) for i in range(n)), mtime=0)
    blobs = {}
    for part, n in (('train', 20), ('t10k', 10)):
        blobs[f'{part}-images-idx3-ubyte.gz'] = idx(n, (28, 28), lambda i: i)
        blobs[f'{part}-labels-idx1-ubyte.gz'] = idx(n, (), lambda i: i%10)
    cls = tv.datasets.FashionMNIST
    monkeypatch.setattr(cls, 'mirrors', [server.url+'/'])
    monkeypatch.setattr(cls, 'resources', [(k, md5(v)) for k, v in blobs.items()])
    return blobs


def test_torchvision_blobs_become_class_folders(server, fashion):
    for k, v in fashion.items(): server.add(f'/{k}', lambda h, before, v=v: h.ranged(v, upto=30 if before == 1 else None))
    p = get_data('fashion_mnist')
    assert len(files(p)) == 30 and len(list((p/'train').iterdir())) == 10
    assert files(p/'valid'/'T-shirt_top') == ['000000.png']
    assert files(settings.cache_path/'downloads') == []


def test_torchvision_wrong_sum(server, fashion):
    for k in fashion: server.add(f'/{k}', lambda h, before: h.give(b'x'*1000))
    with pytest.raises(DataError, match='FashionMNIST'): get_data('fashion_mnist')
    assert files(settings.cache_path) == []


def test_torchvision_unreachable(server, fashion, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda s: None)
    server.server_close()
    with pytest.raises((OfflineError, DataError), match='FashionMNIST'): get_data('fashion_mnist')
    assert not (settings.cache_path/'data'/'fashion_mnist').exists()
    server.server_close = lambda: None


def test_torchvision_pets_keep_their_layout(server, monkeypatch):
    tv = pytest.importorskip('torchvision')
    rows = [f'{o}_{i} {y} 1 1' for y, o in enumerate(('Abyssinian', 'beagle'), 1) for i in range(3)]
    images = packed({f'images/{o.split()[0]}.jpg': jpeg(i) for i, o in enumerate(rows)})
    notes = packed({f'annotations/{o}.txt': '\n'.join(rows).encode() for o in ('trainval', 'test')})
    monkeypatch.setattr(tv.datasets.OxfordIIITPet, '_RESOURCES', [(f'{server.url}/{k}', md5(v)) for k, v in (('images.tar.gz', images), ('annotations.tar.gz', notes))])
    server.add('/images.tar.gz', lambda h, before: h.ranged(images))
    server.add('/annotations.tar.gz', lambda h, before: h.ranged(notes))
    assert [o.name for o in sorted(get_data('pets').iterdir())] == ['annotations', 'images']
    assert len(files(get_data('pets')/'images')) == 6


def test_torchvision_flowers_are_moved_into_classes(server, monkeypatch):
    tv, io_ = pytest.importorskip('torchvision'), pytest.importorskip('scipy.io')
    def mat(**kw):
        b = io.BytesIO()
        io_.savemat(b, kw)
        return b.getvalue()
    blobs = {'102flowers.tgz': packed({f'jpg/image_{i:05d}.jpg': jpeg(i) for i in range(1, 7)}),
        'imagelabels.mat': mat(labels=[1, 2, 1, 2, 1, 2]), 'setid.mat': mat(trnid=[1, 2], valid=[3, 4], tstid=[5, 6])}
    names = dict(zip(('image', 'label', 'setid'), blobs))
    monkeypatch.setattr(tv.datasets.Flowers102, '_download_url_prefix', server.url+'/')
    monkeypatch.setattr(tv.datasets.Flowers102, '_file_dict', {k: (v, md5(blobs[v])) for k, v in names.items()})
    for k, v in blobs.items(): server.add(f'/{k}', lambda h, before, v=v: h.ranged(v))
    p = get_data('flowers102')
    assert len(files(p)) == 6 and [o.name for o in sorted(p.iterdir())] == ['test', 'train', 'valid']
    assert (p/'train'/'pink primrose'/'image_00001.jpg').read_bytes() == jpeg(1)


def test_write_classes_names(tmp_path):
    from PIL import Image
    class Odd(list):
        classes = ['a/b', ('tench', 'Tinca tinca'), '2 - two']
    write_classes(Odd((Image.new('L', (4, 4)), i%4) for i in range(4)), tmp_path)
    assert files(tmp_path) == ['2/000002.png', '3/000003.png', 'a_b/000000.png', 'tench/000001.png']


# The real archives, where there are any

@pytest.mark.parametrize('name,n', [('pets_sample', 16), ('cats_vs_dogs', 1250), ('mnist_png', 3600)])
def test_real_archives(mirror, name, n): assert len(files(get_data(name, mirror=mirror))) == n
