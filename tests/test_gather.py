"Searching, downloading, checking and resizing pictures, against a local server that behaves like the web."
import io, json, subprocess, sys, threading, types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
import numpy as np, pytest
from conftest import serving
from PIL import Image
from learnkit.core import DataError, MissingExtra, NotFound, OfflineError
from learnkit.data import gather
from learnkit.data.gather import (ENGINES, ddgs, download_images, openverse, resize_images, search_images, search_images_ddg, verify_images,
    wikimedia)
from learnkit.data.images import image_files
from learnkit.settings import settings


class Web(BaseHTTPRequestHandler):
    "Answers each path by `server.routes[path](query, times asked before)` -> bytes, status, or a pair of bytes and headers."
    def log_message(self, *args): pass

    def do_GET(self):
        s, u = self.server, urlsplit(self.path)
        with s.lock:
            before = sum(urlsplit(o).path == u.path for o in s.asked)
            s.asked.append(self.path)
        route = s.routes.get(u.path)
        res = route({k: v[0] for k, v in parse_qs(u.query).items()}, before) if route else 404
        if isinstance(res, dict): res = json.dumps(res).encode()
        if isinstance(res, int): return self.send_error(res)
        body, headers = res if isinstance(res, tuple) else (res, {})
        self.send_response(200)
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def web():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Web)
    s.routes, s.asked, s.lock, s.url = {}, [], threading.Lock(), f'http://127.0.0.1:{s.server_port}'
    with serving(s): yield s


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "No waiting, the engines as they were afterwards, and nothing from the internet."
    monkeypatch.setattr('time.sleep', lambda s: None)
    before = dict(ENGINES)
    with settings.using(offline=True, progress=False): yield
    ENGINES.clear()
    ENGINES.update(before)


def picture(color='red', size=(64, 48), fmt='jpeg', mode='RGB', **kw):
    b = io.BytesIO()
    Image.new(mode, size, color).save(b, fmt, **kw)
    return b.getvalue()


def noise(size=(64, 48), turn=None):
    "A JPEG of noise with a red corner at the top left of what is meant to be seen."
    a = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    a[:16, :16] = 255, 0, 0
    im, exif, b = Image.fromarray(a), Image.Exif(), io.BytesIO()
    if turn: im, exif[0x0112] = im.transpose(Image.Transpose.ROTATE_90), turn
    im.save(b, 'jpeg', exif=exif, quality=95)
    return b.getvalue()


# Engines

def pages(*lists, fail=None):
    "A service like Openverse with these pages of addresses."
    def route(q, before):
        page = int(q['page'])
        if page == fail: return 401
        return dict(page_count=len(lists), results=[dict(url=o) for o in lists[page-1]])
    return route


def test_openverse_collects_pages(web):
    web.routes['/s'] = pages(['http://a/1', 'http://a/2'], ['http://a/2', 'http://a/3'], ['http://a/4'])
    assert openverse('grey cat', endpoint=f'{web.url}/s') == [f'http://a/{i}' for i in (1, 2, 3, 4)]
    q = parse_qs(urlsplit(web.asked[0]).query)
    assert q['q'] == ['grey cat'] and q['license_type'] == ['commercial,modification'] and int(q['page_size'][0]) <= 20
    assert openverse('cat', 3, endpoint=f'{web.url}/s') == ['http://a/1', 'http://a/2', 'http://a/3']
    assert len(web.asked) == 5


def test_openverse_keeps_what_it_has(web):
    web.routes['/s'] = pages(['http://a/1'], ['http://a/2'], fail=2)
    assert openverse('cat', endpoint=f'{web.url}/s') == ['http://a/1']
    web.routes['/s'] = pages(['http://a/1'], fail=1)
    with pytest.raises(OfflineError, match='401'): openverse('cat', endpoint=f'{web.url}/s')


def test_engines_try_again(web):
    web.routes['/s'] = lambda q, before: dict(page_count=1, results=[dict(url='http://a/1')]) if before == 2 else 503
    assert openverse('cat', endpoint=f'{web.url}/s') == ['http://a/1']


@pytest.mark.parametrize('answer', [b'<html>down</html>', b''])
def test_no_json(web, answer):
    web.routes['/s'] = lambda q, before: answer
    for f in (openverse, wikimedia):
        with pytest.raises(OfflineError, match='no list of pictures'): f('cat', endpoint=f'{web.url}/s')


def page(index, name, mime='image/jpeg', thumb=True):
    info = dict(url=f'http://w/{name}', mime=mime) | (dict(thumburl=f'http://w/960/{name}') if thumb else {})
    return dict(index=index, imageinfo=[info])


def test_wikimedia(web):
    def route(q, before):
        if 'gsroffset' in q: return dict(query=dict(pages=[page(3, 'c.png', 'image/png', thumb=False)]))
        return {'continue': dict(gsroffset=50), 'query': dict(pages=[page(2, 'b.jpg'), page(1, 'a.jpg'), page(4, 'x.svg', 'image/svg+xml')])}
    web.routes['/api'] = route
    assert wikimedia('cat', endpoint=f'{web.url}/api') == ['http://w/960/a.jpg', 'http://w/960/b.jpg', 'http://w/c.png']
    web.routes['/api'] = lambda q, before: dict(error=dict(info='too fast'))
    with pytest.raises(OfflineError, match='too fast'): wikimedia('cat', endpoint=f'{web.url}/api')
    web.routes['/api'] = lambda q, before: dict(batchcomplete=True)
    assert wikimedia('cat', endpoint=f'{web.url}/api') == []


def fake_ddgs(monkeypatch, images):
    monkeypatch.setitem(sys.modules, 'ddgs', types.SimpleNamespace(DDGS=lambda: types.SimpleNamespace(images=images)))


def test_ddgs(monkeypatch):
    with pytest.raises(OfflineError, match='offline is set'): ddgs('cat')
    settings.set(offline=False)
    fake_ddgs(monkeypatch, lambda term, max_results: [dict(image=f'http://d/{i}') for i in range(max_results)])
    assert ddgs('cat', 2) == ['http://d/0', 'http://d/1']
    def fail(said):
        def images(term, max_results): raise RuntimeError(said)
        return images
    fake_ddgs(monkeypatch, fail('No results found.'))
    assert ddgs('cat') == []
    fake_ddgs(monkeypatch, fail('403 Ratelimit'))
    with pytest.raises(OfflineError, match='403 Ratelimit'): ddgs('cat')
    monkeypatch.setitem(sys.modules, 'ddgs', None)
    with pytest.raises(MissingExtra, match=r'learnkit\[search\]'): search_images('cat', engine='ddgs')


def test_search_falls_back_and_says_so(capsys):
    ENGINES.clear()
    def down(term, n): raise OfflineError('down.')
    ENGINES.update(one=down, two=lambda term, n: [], three=lambda term, n: [f'https://t/{i}' for i in range(9)]+['data:image/png;base64,x'])
    assert search_images('cat', 5) == [f'https://t/{i}' for i in range(5)]
    assert capsys.readouterr().out == "5 pictures of 'cat' found by three; one gave none\n"
    with pytest.raises(OfflineError, match='down'): search_images('cat', engine='one')
    with pytest.raises(NotFound, match='Try other words'): search_images('cat', engine='two')
    with pytest.raises(NotFound, match="Did you mean 'three'"): search_images('cat', engine='thre')
    del ENGINES['three']
    with pytest.raises(OfflineError, match='doodles') as e: search_images('cat')
    assert '\n' not in str(e.value)


def test_search_images_ddg_prefers_ddgs(monkeypatch, capsys):
    settings.set(offline=False)
    ENGINES.clear()
    ENGINES.update(openverse=lambda term, n: ['https://o/1'], ddgs=ddgs)
    fake_ddgs(monkeypatch, lambda term, max_results: [dict(image='https://d/1')])
    assert search_images_ddg('cat') == ['https://d/1']
    monkeypatch.setitem(sys.modules, 'ddgs', None)
    assert search_images_ddg('cat') == ['https://o/1']
    assert capsys.readouterr().out == "1 pictures of 'cat' found by ddgs\n1 pictures of 'cat' found by openverse\n"


def test_offline_search_is_one_sentence_each():
    for f in (search_images, search_images_ddg):
        with pytest.raises(OfflineError, match='offline is set'): f('cat')


# Download

@pytest.fixture
def shop(web):
    "Addresses of pictures and of what else one meets."
    r = web.routes
    r['/img'] = lambda q, before: picture(q['c'])
    r['/late.jpg'] = lambda q, before: picture('green') if before else 500
    r['/cut.jpg'] = lambda q, before: (picture('blue')[:400], {'Content-Length': '900'})
    r['/end.jpg'] = lambda q, before: noise()[:900]
    r['/page.jpg'] = lambda q, before: b'<!DOCTYPE html><html>Sorry</html>'
    r['/empty.jpg'] = lambda q, before: b''
    r['/huge.jpg'] = lambda q, before: bytes(3_000_000)
    r['/shut.jpg'] = lambda q, before: 403
    r['/b%C3%A4r.jpg'] = lambda q, before: picture('brown')
    r['/really.jpg'] = lambda q, before: picture('white', fmt='png')
    r['/really.php'] = lambda q, before: picture('white', fmt='webp')
    return web


@pytest.mark.fault('F11', 'pictures at addresses with a query')
def test_query_strings_are_kept(shop, tmp_path, capsys):
    got = download_images(tmp_path/'x', urls=[f'{shop.url}/img?c=red', f'{shop.url}/img?c=blue'])
    assert [Image.open(o).getpixel((5, 5))[0] > 200 for o in got] == [True, False]
    assert capsys.readouterr().out == '2 saved, 0 failed\n' and got.problems == []


@pytest.mark.fault('F11', 'pictures that cannot be fetched')
def test_every_failure_is_named(shop, tmp_path, capsys):
    names = 'img?c=red gone.jpg cut.jpg end.jpg page.jpg empty.jpg huge.jpg shut.jpg late.jpg'.split()
    bad = ['data:image/png;base64,xx', 'not an address', 'http://[bad/x.jpg']
    with settings.using(offline=False): got = download_images(tmp_path/'x', urls=[f'{shop.url}/{o}' for o in names]+bad, max_bytes=2e6)
    assert capsys.readouterr().out == '2 saved, 10 failed (4 not a picture, 4 not found, 1 not reached, 1 refused)\n'
    why = {str(o.path).removeprefix(shop.url): o.reason for o in got.problems}
    assert len(got) == 2 and len(why) == 10
    for k, v in {'/gone.jpg': '404', '/cut.jpg': 'broke off', '/end.jpg': 'cut off', '/page.jpg': 'HTML', '/empty.jpg': 'empty', '/huge.jpg': '2 MB',
        '/shut.jpg': '403', 'not an address': 'not a web address'}.items(): assert v in why[k], (k, why[k])
    assert sorted(tmp_path.joinpath('x').iterdir()) == sorted(got)


def test_content_gives_the_suffix(shop, tmp_path):
    got = download_images(tmp_path, urls=[f'{shop.url}/{o}' for o in ('really.jpg', 'really.php', 'bär.jpg')])
    assert [o.suffix for o in got] == ['.png', '.webp', '.jpg']


def test_again_asks_nothing_and_two_searches_share_a_folder(shop, tmp_path):
    urls = [f'{shop.url}/img?c={o}' for o in ('red', 'blue', 'red')]
    a = download_images(tmp_path, urls=urls)
    assert len(a) == 2 and len(shop.asked) == 2
    assert download_images(tmp_path, urls=urls) == a and len(shop.asked) == 2
    download_images(tmp_path, urls=[f'{shop.url}/img?c=green'])
    assert len(image_files(tmp_path)) == 3


def test_own_names(shop, tmp_path):
    shop.routes['/a/cat.jpg'] = shop.routes['/b/cat.jpg'] = lambda q, before: picture()
    got = download_images(tmp_path, urls=[f'{shop.url}/{o}' for o in ('a/cat.jpg', 'b/cat.jpg?w=1', 'img?c=red')], preserve_filename=True)
    assert [o.name for o in got] == ['cat.jpg', 'cat_1.jpg', 'img.jpg']


def test_url_file_and_max_pics(shop, tmp_path):
    (tmp_path/'urls.txt').write_text('\n'.join(f'{shop.url}/img?c={o}' for o in ('red', 'blue', 'green'))+'\r\n\n')
    assert len(download_images(tmp_path/'x', tmp_path/'urls.txt', max_pics=2, n_workers=1)) == 2


def test_offline_download(tmp_path):
    with pytest.raises(OfflineError, match='2 pictures are not downloaded'): download_images(tmp_path/'x', urls=['https://a.org/1.jpg', 'http://b.org/2.jpg'])
    assert not (tmp_path/'x').exists()


# Verify

def test_verify_images(tmp_path):
    good = {'a.jpg': picture(), 'b.png': picture(fmt='png'), 'grey.png': picture(0, fmt='png', mode='L'), 'turned.jpg': noise(turn=6)}
    bad = {'cut.jpg': noise()[:2000], 'text.jpg': b'hello', 'page.png': b'<html>', 'empty.gif': b''}
    for k, v in (good | bad).items(): (tmp_path/k).write_bytes(v)
    failed = verify_images(image_files(tmp_path))
    assert {o.name for o in failed} == set(bad) and len(failed.problems) == 4
    failed.map(Path.unlink)
    assert {o.name for o in tmp_path.iterdir()} == set(good)
    assert len(verify_images([str(tmp_path/'a.jpg')])) == 0 and len(verify_images([])) == 0


# Resize

def red_corner(path):
    r, g, b = np.asarray(Image.open(path).convert('RGB')).astype(int)[1, 1]
    return r > 180 and g < 80 and b < 80


def everything(folder): return sorted(o.relative_to(folder).as_posix() for o in folder.rglob('*'))


@pytest.mark.parametrize('turn', [None, 6])
def test_resize_in_place_is_upright(tmp_path, turn):
    (tmp_path/'a.jpg').write_bytes(noise((200, 100), turn))
    assert resize_images(tmp_path, max_size=100, dest=tmp_path) == [tmp_path/'a.jpg']
    assert everything(tmp_path) == ['a.jpg']
    im = Image.open(tmp_path/'a.jpg')
    assert im.size == (100, 50) and im.getexif().get(0x0112, 1) == 1 and red_corner(tmp_path/'a.jpg')


def test_small_pictures_stay_as_they_are_unless_turned(tmp_path):
    for k, v in {'plain.jpg': noise(), 'turned.jpg': noise(turn=6)}.items(): (tmp_path/k).write_bytes(v)
    resize_images(tmp_path, max_size=100, dest=tmp_path/'new')
    assert (tmp_path/'new'/'plain.jpg').read_bytes() == noise()
    assert Image.open(tmp_path/'new'/'turned.jpg').size == (64, 48) and red_corner(tmp_path/'new'/'turned.jpg')
    assert (tmp_path/'turned.jpg').read_bytes() == noise(turn=6)


def test_resize_never_nests(tmp_path):
    (tmp_path/'sub').mkdir()
    for o in ('a.jpg', 'sub/b.jpg'): (tmp_path/o).write_bytes(noise())
    resize_images(tmp_path, max_size=32, dest=tmp_path)
    assert everything(tmp_path) == ['a.jpg', 'sub', 'sub/b.jpg'] and Image.open(tmp_path/'sub'/'b.jpg').size == (64, 48)
    for _ in range(2): resize_images(tmp_path, max_size=16, recurse=True, dest=tmp_path/'small')
    assert everything(tmp_path/'small') == ['a.jpg', 'sub', 'sub/b.jpg']
    resize_images(tmp_path/'sub', max_size=16, dest=tmp_path)
    assert Image.open(tmp_path/'b.jpg').size == (16, 12)


def test_bad_files_are_reported_and_left_alone(tmp_path, capsys):
    for k, v in {'a.jpg': noise(), 'cut.jpg': noise()[:2000], 'text.jpg': b'hello'}.items(): (tmp_path/k).write_bytes(v)
    got = resize_images(tmp_path, max_size=32, dest=tmp_path)
    assert got == [tmp_path/'a.jpg'] and [o.path.name for o in got.problems] == ['cut.jpg', 'text.jpg']
    assert (tmp_path/'cut.jpg').read_bytes() == noise()[:2000] and everything(tmp_path) == ['a.jpg', 'cut.jpg', 'text.jpg']
    assert capsys.readouterr().out.startswith('2 of 3 pictures could not be resized')


def test_channels_suffix_and_strips(tmp_path):
    src, out = tmp_path/'src', tmp_path/'out'
    src.mkdir()
    clear = Image.new('RGBA', (80, 40), (255, 0, 0, 0))
    clear.save(src/'clear.png')
    Image.new('L', (80, 40), 7).save(src/'grey.jpg')
    Image.new('RGB', (2000, 2), 'red').save(src/'strip.png')
    resize_images(src, max_size=40, dest=out)
    assert {o.name: (o2.mode, o2.size) for o in image_files(out) for o2 in [Image.open(o)]} == {
        'clear.png': ('RGB', (40, 20)), 'grey.jpg': ('RGB', (40, 20)), 'strip.png': ('RGB', (40, 1))}
    assert Image.open(out/'clear.png').getpixel((3, 3)) == (255, 255, 255)
    resize_images(src, dest=tmp_path/'g', n_channels=1, ext='.png')
    assert {Image.open(o).mode for o in image_files(tmp_path/'g')} == {'L'} and everything(tmp_path/'g') == ['clear.png', 'grey.png', 'strip.png']
    got = resize_images(src, dest=tmp_path/'a', n_channels=4)
    assert [o.path.name for o in got.problems] == ['grey.jpg'] and everything(tmp_path/'a') == ['clear.png', 'strip.png']


def test_resume_and_wrong_arguments(tmp_path):
    (tmp_path/'a.jpg').write_bytes(noise())
    (tmp_path/'new').mkdir()
    (tmp_path/'new'/'a.jpg').write_bytes(b'there already')
    resize_images(tmp_path, max_size=32, dest=tmp_path/'new', resume=True)
    assert (tmp_path/'new'/'a.jpg').read_bytes() == b'there already'
    resize_images(tmp_path, 0, max_size=32, dest=tmp_path/'new')
    assert Image.open(tmp_path/'new'/'a.jpg').size == (32, 24)
    with pytest.raises(TypeError): resize_images(tmp_path, maxsize=32)
    with pytest.raises(DataError, match='n_channels'): resize_images(tmp_path, n_channels=2)
    with pytest.raises(NotFound): resize_images(tmp_path/'none', dest=tmp_path/'x')


# The course's code

def test_lesson_one_gathers(web, tmp_path, monkeypatch):
    get_image_files = pytest.importorskip('fastai.vision.all').get_image_files
    monkeypatch.chdir(tmp_path)
    def route(q, before): return noise((600, 450), turn=6 if int(q['i']) % 2 else None) if int(q['i']) < 5 else noise()[:2000]
    web.routes['/pic'] = route
    ENGINES['ddgs'] = lambda term, n: [f'{web.url}/pic?i={i}&t={term.split()[0]}' for i in range(6)]+[f'{web.url}/gone']
    searches = 'cat', 'dog'
    path = Path('cat_or_not')
    for o in searches:
        dest = (path/o)
        dest.mkdir(exist_ok=True, parents=True)
        results = search_images_ddg(f'{o} photo')
        download_images(dest, urls=results[:200])
        resize_images(dest, max_size=400, dest=dest)
    failed = verify_images(get_image_files(path))
    failed.map(Path.unlink)
    files = get_image_files(path)
    assert len(files) == 10 and {o.parent.name for o in files} == {'cat', 'dog'}
    assert {Image.open(o).size for o in files} == {(400, 300)}


def test_names_and_light_import():
    assert {'search_images', 'search_images_ddg', 'download_images', 'verify_images', 'resize_images'} <= set(gather.__all__)
    code = "import sys, learnkit.data.gather; print([o for o in ('torch', 'fastai', 'ddgs', 'matplotlib') if o in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
