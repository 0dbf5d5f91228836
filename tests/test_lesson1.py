"Lesson 1 of the fast.ai course runs as it is written, after nothing but the one import of learnkit."
import io
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import pytest, torch
from PIL import Image
from conftest import serving
from learnkit.core import OfflineError
from learnkit.data.doodles import write_doodles
from learnkit.data.gather import ENGINES
from learnkit.data.images import image_files, open_image
from learnkit.data.sources import get_data

LESSON = '''
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
len(failed)
dls = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files,
    splitter=RandomSplitter(valid_pct=0.2, seed=42), get_y=parent_label,
    item_tfms=[Resize(192, method='squish')]).dataloaders(path)
dls.show_batch(max_n=6)
learn = cnn_learner(dls, resnet18, metrics=error_rate)
learn.fine_tune(3)
uploader = widgets.FileUpload()
is_cat,_,probs = learn.predict(PILImage.create(uploader.data[0]))
'''
MADE,ASKED = LESSON[:LESSON.index('is_cat')],LESSON[LESSON.index('is_cat'):]
EACH = 12

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture
def site(tmp_path):
    "A folder, and the address under which a server of this machine shows it."
    (tmp_path/'site').mkdir()
    with serving(ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path/'site'))) as server:
        yield tmp_path/'site', f'http://127.0.0.1:{server.server_port}'

def noise(fmt):
    "A picture as bytes."
    out = io.BytesIO()
    Image.effect_noise((300, 200), 80).convert('RGB').save(out, fmt)
    return out.getvalue()

def serve(pictures, site, monkeypatch, n=EACH):
    "Let the search engine find `n` of `pictures` a class, one that is cut off, one that does not decode, and an address where there is nothing."
    folder,url = site
    def put(kind):
        files = [o for o in image_files(pictures) if o.parent.name.lower().startswith(kind)][:n]
        for i,o in enumerate(files): (folder/f'{kind}{i}{o.suffix}').write_bytes(o.read_bytes())
        jpg,png = noise('jpeg'),noise('png')
        (folder/f'{kind}_cut.jpg').write_bytes(jpg[:len(jpg)//2])
        (folder/f'{kind}_bad.png').write_bytes(png[:9000]+bytes(2000)+png[11000:])
        return [f'{url}/{kind}{i}{o.suffix}' for i,o in enumerate(files)] + [f'{url}/{kind}_{o}' for o in ('cut.jpg', 'bad.png', 'gone.jpg')]
    found = {o:put(o) for o in ('cat', 'dog')}
    monkeypatch.setitem(ENGINES, 'ddgs', lambda term, n: found[term.split()[0]])

@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty working folder, offline, with a mirror that has no weights yet; gives the folder for weights."
    for k,v in dict(LEARNKIT_OFFLINE='true', LEARNKIT_MIRROR=tmp_path/'mirror', TORCH_HOME=tmp_path/'torch').items(): monkeypatch.setenv(k, str(v))
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    (tmp_path/'mirror'/'weights').mkdir(parents=True)
    return tmp_path/'mirror'/'weights'

@pytest.fixture(params=['photographs', 'drawings'])
def pictures(request, tmp_path):
    "A folder of cats and dogs."
    if request.param == 'photographs': return get_data('cats_vs_dogs', mirror=request.getfixturevalue('mirror'))
    return write_doodles(tmp_path/'drawn', n=2*EACH+10, size=96, seed=5)

def phone(picture):
    "`picture` as a phone writes it: sideways, with a note on how to turn it."
    out,exif = io.BytesIO(),Image.Exif()
    exif[0x0112] = 6
    open_image(picture).resize((640, 480)).transpose(Image.Transpose.ROTATE_90).save(out, 'jpeg', exif=exif, quality=95)
    return out.getvalue()

def upload(uploader, name, content):
    "What a browser sends to the widget when someone picks a file."
    entry = dict(name=name, type='image/jpeg', size=len(content), content=memoryview(content), last_modified=1_700_000_000_000)
    uploader.set_state(dict(value=[entry]))

def named(src):
    "The names that `from learnkit.all import *` brings."
    exec('from learnkit.all import *', src)
    return src

def test_lesson1(pictures, site, place, monkeypatch, capsys):
    pytest.importorskip('ipywidgets', reason='the lesson uploads a picture in Jupyter')
    from safetensors.torch import save_file
    from torchvision.models import resnet18
    torch.manual_seed(1)
    save_file(resnet18().state_dict(), place/'resnet18.safetensors')
    serve(pictures, site, monkeypatch)
    ns = named({})
    ns['set_seed'](3)
    exec(MADE, ns)
    picture = image_files(pictures)[0]
    upload(ns['uploader'], 'IMG_0001.jpg', phone(picture))
    exec(ASKED, ns)
    learn,dls = ns['learn'],ns['dls']
    assert capsys.readouterr().out.count(f'{EACH+1} saved, 2 failed (1 not a picture, 1 not found)') == 2
    assert len(ns['failed']) == 2 and not any(o.exists() for o in ns['failed'])
    kept = image_files(ns['path'])
    assert len(kept) == 2*EACH == len(dls.train_ds)+len(dls.valid_ds) and [*dls.vocab] == ['cat', 'dog']
    assert all(max(open_image(o).size) <= 400 for o in kept)
    assert learn.pretrained and learn.arch == 'resnet18' and [len(o['values']) for o in learn.history] == [1, 3]
    assert 0 <= learn.results['error_rate'] <= 1
    assert ns['is_cat'] in ('cat', 'dog') and len(ns['probs']) == 2 and abs(float(ns['probs'].sum())-1) < 1e-4
    assert ns['is_cat'] == dls.vocab[int(ns['probs'].argmax())]
    upright = learn.predict(open_image(picture).resize((640, 480)))
    assert torch.allclose(upright[2], ns['probs'], atol=.05), 'a photograph of a phone is turned upright'

def test_without_weights_the_remedy_is_named_before_any_training(site, place, monkeypatch, tmp_path):
    pytest.importorskip('ipywidgets', reason='the lesson uploads a picture in Jupyter')
    serve(write_doodles(tmp_path/'drawn', n=20, size=48, seed=5), site, monkeypatch, n=6)
    ns = named({})
    with pytest.raises(OfflineError) as e: exec(MADE, ns)
    said = str(e.value)
    assert 'learn' not in ns and 'resnet18' in said and str(place) in said and 'pretrained=False' in said and 'offline' in said and '\n' not in said
    assert not [o for o in tmp_path.rglob('*.part*')] and not (tmp_path/'torch').exists() and not (tmp_path/'work'/'models').exists()
