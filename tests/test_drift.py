"What was exported answers as it did before: for odd pictures, with other versions, other names, other clocks, another optimiser."
import io, json, math, os, subprocess, sys, time, unicodedata
import numpy as np, pytest, torch
from fastai.optimizer import SGD
from PIL import Image
from safetensors.torch import load_file, save_file
import learnkit.all as lk
from learnkit.cli import main
from learnkit.core import DataError, LearnkitError
from learnkit.use.bundle import read_bundle

pytestmark = pytest.mark.usefixtures('one_thread')
fault = pytest.mark.fault

# Thirty odd pictures

def photo(w=48, h=40, mode='RGB', seed=0):
    "A picture with large shapes and small ones."
    y,x = np.mgrid[:h,:w]
    a = np.stack([127+110*np.sin(x/(5+i)+seed)*np.cos(y/(7-i))+15*np.sin(x*y+i+seed) for i in range(3)], -1)
    return Image.fromarray(a.clip(0, 255).astype(np.uint8)).convert(mode)

def see_through(mode='RGBA'):
    im = photo().convert(mode)
    im.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))))
    return im

def turned(n, **kw):
    exif = Image.Exif()
    exif[0x0112] = n
    return photo(), 'jpg', dict(exif=exif, quality=90) | kw

def deep(dtype, most): return Image.fromarray((np.outer(np.arange(40), np.arange(48))/(39*47)*most).astype(dtype))

def odd_pictures(folder):
    "Thirty files that cameras, scanners, painting programs and mistakes make."
    clear,jpg,png = photo().convert('P'),'jpg','png'
    clear.info['transparency'] = 3
    todo = [(photo(), jpg, {}), (photo(mode='L'), jpg, {}), (photo(mode='L'), png, {}), (see_through(), png, {}), (see_through('LA'), png, {}),
        (photo(mode='P'), png, {}), (clear, png, dict(transparency=3)), (photo(mode='1'), png, {}), (photo(mode='CMYK'), jpg, {}), (deep(np.uint16, 65535), png, {}),
        (deep(np.float32, 1), 'tiff', {}), (deep(np.float32, 255), 'tiff', {}), (deep(np.int32, 70000), 'tiff', {}), *[turned(i) for i in (2, 3, 5, 6, 8)],
        (photo(1, 1), png, {}), (photo(2, 3), png, {}), (photo(400, 2), png, {}), (photo(2, 400), png, {}), (photo(33, 31), jpg, {}),
        (photo(500, 400), jpg, {}),
        (photo(), jpg, dict(progressive=True)), (photo(), 'webp', dict(quality=80)), (photo(), 'webp', dict(lossless=True)), (photo(), 'bmp', {}),
        (photo(mode='P'), 'gif', dict(save_all=True, append_images=[photo(mode='P', seed=2)])), (photo(mode='YCbCr'), jpg, dict(subsampling=2))]
    for i,(im,kind,kw) in enumerate(todo): im.save(folder/f'{i:02d}.{kind}', **kw)
    return sorted(folder.iterdir())

TASKS = dict(classification=lk.read_folder, multilabel=lambda d: lk.read_csv(d/'labels.csv', labels='attributes'), regression=lambda d: lk.read_csv(d/'labels.csv', value='age'),
    segmentation=lambda d: lk.read_masks(d, images='.', masks='parts'), keypoints=lambda d: lk.read_points(d/'points.csv'),
    detection=lambda d: lk.read_coco(d/'boxes.json'), instance=lambda d: lk.read_coco(d/'boxes.json'), pose=lambda d: lk.read_coco(d/'boxes.json'))

QUICK = {'classification', 'regression', 'keypoints'}

@pytest.mark.parametrize('task', [pytest.param(k, marks=[fault('F19', f'30 odd pictures through a bundle: {k}'), *[pytest.mark.slow]*(k not in QUICK)]) for k in TASKS])
def test_a_bundle_says_the_same(task, drawings, tmp_path):
    lk.set_seed(3)
    rs = TASKS[task](drawings)
    dls = getattr(lk, f'{task}_dls')(lk.Records(rs[:24], about=rs.about) if task in ('instance', 'pose') else rs, size=32, bs=8)
    learn = getattr(lk, f'{task}_learner')(dls, path=tmp_path, precision='fp32')
    if task not in ('instance', 'pose'): learn.fit(1, 1e-3)
    again,pictures = lk.load_learner(learn.export('m.learnkit')),odd_pictures(_folder(tmp_path/'odd'))
    assert len(pictures) == 30
    for o in pictures:
        a,b = learn.predict(o),again.predict(o)
        for x,y in zip(*(p[2] if isinstance(p[2], tuple) else (p[2],) for p in (a, b))): assert torch.allclose(x.float(), y.float(), atol=1e-6), o.name
    labels = [(learn.predict(o).to_dict(), again.predict(o).to_dict()) for o in pictures[:3]]
    assert all(a.keys() == b.keys() and a.get('label') == b.get('label') and a.get('labels') == b.get('labels') for a,b in labels)

def _folder(path):
    path.mkdir()
    return path

# Versions

PAGE = dict(learnkit=1, task='classification', arch='lenet5', model=dict(n_out=2, ps=.25, concat_pool=True), n_out=2, vocab=['cats', 'dogs'], about={},
    picture='RGB', item=[['Resize', dict(size=[32, 32], method='crop', pad_mode='zeros')], ['ToTensor', {}]],
    batch=[['IntToFloatTensor', {}], ['Normalize', dict(mean=[.485, .456, .406], std=[.229, .224, .225])]], pretrained=False, licence=None, precision='fp32',
    results=dict(train_loss=.5, valid_loss=.4, error_rate=.1), versions=dict(learnkit='0.1.0', fastai='2.8.12', torch='2.15.0', torchvision='0.29.2', timm='1.0.31'))
SHAPES = {'0.net.features.c1.weight':(6, 3, 5, 5), '0.net.features.c1.bias':(6,), '0.net.features.c3.weight':(16, 6, 5, 5), '0.net.features.c3.bias':(16,),
    '0.net.features.c5.weight':(120, 16, 5, 5), '0.net.features.c5.bias':(120,), '1.2.weight':(240,), '1.2.bias':(240,), '1.2.running_mean':(240,), '1.2.running_var':(240,),
    '1.4.weight':(512, 240), '1.6.weight':(512,), '1.6.bias':(512,), '1.6.running_mean':(512,), '1.6.running_var':(512,), '1.8.weight':(2, 512)}
SAID = [('cats', .60952), ('dogs', .50687), ('cats', .60313), ('dogs', .60913), ('dogs', .65216), ('cats', .50247)] # of six pictures

def wave(name, shape):
    "Weights that a formula gives, the same on every machine and in every version."
    n = math.prod(shape)
    if 'running_var' in name or name in ('1.2.weight', '1.6.weight'): return torch.ones(shape)
    if name.endswith(('bias', 'running_mean')): return torch.zeros(shape)
    return (torch.arange(1, n+1, dtype=torch.float64).pow(1.5).add(len(name)).sin()*2/math.sqrt(n/shape[0])).float().view(shape)

def written(path, page=PAGE, **more):
    "A bundle of the format 1, from words and numbers alone."
    tensors = {k:wave(k, s) for k,s in SHAPES.items()} | {k:torch.tensor(7) for k in ('1.2.num_batches_tracked', '1.6.num_batches_tracked')}
    save_file(tensors, path, metadata=dict(format='pt', learnkit=json.dumps(page | more)))
    return path

def says(path): return lk.load_learner(path).predict([photo(seed=i) for i in range(6)])

@fault('F20', 'a bundle of the format 1, written from words')
def test_the_first_format(tmp_path):
    "If this fails, bundles of learnkit 0.1 give other answers: raise FORMAT and read the old one as before."
    got = says(written(tmp_path/'m.learnkit'))
    assert [o.label for o in got] == [k for k,_ in SAID] and [o.prob for o in got] == pytest.approx([p for _,p in SAID], abs=1e-4)

@pytest.mark.parametrize('what,change', [pytest.param(w, c, marks=fault('F20', f'a bundle with {w}')) for w,c in {
    'older libraries':dict(versions=dict(learnkit='0.1.0', fastai='2.7.0', torch='2.10.0', torchvision='0.25.0', timm='0.9.0')),
    'newer libraries':dict(versions=dict(learnkit='9.0', fastai='3.0', torch='4.0', torchvision='1.0', timm='2.0', more='1')),
    'fields of tomorrow':dict(author='somebody', colours=dict(deep=[1, {}, None])), 'no results':dict(results={})}.items()])
def test_versions_that_say_the_same(what, change, tmp_path):
    assert [o.label for o in says(written(tmp_path/'m.learnkit', **change))] == [k for k,_ in SAID]

@pytest.mark.parametrize('field', [pytest.param(k, marks=fault('F20', f'a bundle without {k}')) for k in PAGE])
def test_missing_fields(field, tmp_path):
    "The same answers, or one sentence that names the field."
    page = {k:v for k,v in PAGE.items() if k != field}
    try: got = [o.label for o in says(written(tmp_path/'m.learnkit', page))]
    except LearnkitError as e: assert field in str(e) or field == 'learnkit' and 'format' in str(e) or field == 'vocab', e
    else: assert got == [k for k,_ in SAID]

@pytest.mark.parametrize('what,change,match', [pytest.param(w, c, m, marks=fault('F20', f'a bundle with {w}')) for w,c,m in [
    ('a newer format', dict(learnkit=2, versions=dict(learnkit='7.1')), 'format 2.*learnkit 7.1'), ('an architecture of tomorrow', dict(arch='lenet6'), 'lenet6.*lenet5'),
    ('a task of tomorrow', dict(task='clasification'), 'clasification.*classification'), ('a transform of tomorrow', dict(item=[['Resice', {}]]), 'Resice.*Resize'),
    ('an argument of tomorrow', dict(model=dict(n_out=2, warp=3)), 'warp'), ('another number of answers', dict(n_out=3, model=dict(n_out=3)), 'fit|answers'),
    ('names for other answers', dict(vocab=['a', 'b', 'c']), 'm.learnkit.*(3|names|classes|vocab)')]])
def test_what_cannot_be_read(what, change, match, tmp_path):
    with pytest.raises(LearnkitError, match=match): says(written(tmp_path/'m.learnkit', **change))

@pytest.mark.parametrize('what', [pytest.param(k, marks=fault('F20', f'a bundle with a tensor that is {k}')) for k in ('missing', 'more', 'of another shape')])
def test_other_tensors(what, tmp_path):
    path = written(tmp_path/'m.learnkit')
    t = load_file(path)
    if what == 'missing': del t['1.8.weight']
    if what == 'more': t['9.weight'] = torch.zeros(3)
    if what == 'of another shape': t['1.8.weight'] = torch.zeros(3, 512)
    save_file(t, path, metadata=dict(format='pt', learnkit=json.dumps(PAGE)))
    with pytest.raises(DataError, match='m.learnkit.*(9.weight|1.8.weight)'): lk.load_learner(path)

@fault('F20', 'the page of today has the fields that are written down here')
def test_the_page_is_the_one_above(drawings, tmp_path):
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'lenet5', path=tmp_path, precision='fp32')
    page = read_bundle(learn.export('m.learnkit'))
    assert page['learnkit'] == PAGE['learnkit'] and page.keys() == PAGE.keys(), 'the format has changed: raise FORMAT, and keep a test of the old one'
    assert {k:tuple(v.shape) for k,v in load_file(tmp_path/'m.learnkit').items() if v.ndim} == SHAPES

# An optimiser's state that does not fit

def small(data, path, arch='lenet5', **kw):
    lk.set_seed(1)
    return lk.classification_learner(lk.classification_dls(data, size=32, bs=16), arch, path=path, precision='fp32', **kw)

@pytest.mark.parametrize('what', [pytest.param(k, marks=fault('F24', f'optimiser state of {k}')) for k in ('another network', 'another optimiser', 'other groups', 'fewer parameters', 'no optimiser')])
def test_optimiser_state(what, drawings, tmp_path):
    "The state fits, or the sentence names what does not, and the learner is as it was."
    learn = small(drawings, tmp_path)
    learn.fit(1)
    path = learn.save('m')
    state = torch.load(path, weights_only=False)
    if what == 'another network': state['opt']['state'] = [{k:torch.zeros(3) if isinstance(v, torch.Tensor) else v for k,v in o.items()} for o in state['opt']['state']]
    if what == 'fewer parameters': state['opt']['state'] = state['opt']['state'][:3]
    if what == 'other groups': state['opt']['hypers'] = state['opt']['hypers'][:1]
    if what == 'no optimiser': state = state['model']
    torch.save(state, path)
    again = small(drawings, tmp_path, **(dict(opt_func=SGD) if what == 'another optimiser' else {}))
    again.create_opt()
    before = [o.clone() for o in again.model.state_dict().values()]
    if what == 'no optimiser': again.load('m')
    else:
        with pytest.raises(DataError, match=r'm\.pth.*optimiser.*with_opt=False'): again.load('m')
        assert all(map(torch.equal, before, again.model.state_dict().values()))
        again.fit(1)
        again.load('m', with_opt=False)
    assert all(map(torch.equal, learn.model.state_dict().values(), again.model.state_dict().values()))
    again.fit(1)

@fault('F24', 'weights of another network')
def test_other_weights(drawings, tmp_path):
    small(drawings, tmp_path).save('m')
    again = small(drawings, tmp_path, None)
    before = [o.clone() for o in again.model.state_dict().values()]
    with pytest.raises(DataError, match=r'm\.pth.*(0\.net|weights)'): again.load('m')
    assert all(map(torch.equal, before, again.model.state_dict().values()))

# Names, languages and clocks

NAMES = ['café', 'cafe\u0301', 'ÅNGSTRÖM', 'İstanbul', 'ıssız', 'straße', '猫', '🐈', 'a b', '100%', 'x#1', "o'clock", '-rf', 'Ünï']

def pictures(top, names, classes=('çats', 'dоgs')):
    "Pictures of two classes, four of each name."
    for i,c in enumerate(classes):
        (top/c).mkdir(parents=True)
        for j,n in enumerate(names): photo(36, 36, seed=i*50+j).save(top/c/(os.fsdecode(n) if isinstance(n, bytes) else f'{n} {j}.png'), format='PNG')
    return top

def script(code, top, **env):
    "Run `code` in a process with other words and letters."
    head = 'import sys, learnkit.all as lk\nfrom pathlib import Path\ntop = Path(sys.argv[1])\n'
    env = {k:v for k,v in os.environ.items() if not k.startswith('LC_')} | dict(OMP_NUM_THREADS='1') | env
    return subprocess.run([sys.executable, '-c', head+code, os.fsencode(top)], env=env, capture_output=True, timeout=120)

TRAIN = '''
rs = lk.read_folder(top)
learn = lk.classification_learner(lk.classification_dls(rs, size=32, bs=8), 'lenet5', path=top/'out', precision='fp32')
learn.fit(1)
p = lk.load_learner(learn.export('m.learnkit')).predict([o.image for o in rs])
print(len(rs), len(rs.problems), ascii([rs[0], p[0], sorted({o.label for o in p}|{*learn.dls.vocab})]))
'''
LOCALES = {'C':dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0'), 'ASCII output':dict(LC_ALL='C', PYTHONIOENCODING='ascii'), 'Turkish':dict(LC_ALL='tr_TR.UTF-8', LANG='tr_TR.UTF-8'),
    'Latin-1 output':dict(PYTHONIOENCODING='latin-1')}

@pytest.mark.slow
@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F22', f'locale: {k}')) for k in LOCALES])
def test_locales(kind, tmp_path):
    res = script(TRAIN, pictures(tmp_path/'d', NAMES), **LOCALES[kind])
    assert res.returncode == 0 and res.stdout.startswith(b'28 0 '), res.stderr.decode('utf8', 'replace')[-1500:]

@pytest.mark.slow
@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F22', f'command line in locale: {k}')) for k in LOCALES])
def test_command_line_in_locales(kind, tmp_path):
    "Names that the terminal can't show don't stop a run."
    top = pictures(tmp_path/'d', NAMES)
    (top/'çats'/'kaputt é.png').write_bytes(b'not a picture')
    code = 'from learnkit.cli import main\nsys.exit(main(["train", str(top), "--out", str(top.parent/"out"), "--epochs", "0", "--size", "32", "--arch", "lenet5"]))'
    res = script(code, top, **LOCALES[kind])
    assert res.returncode == 0 and b'kaputt' in res.stdout, res.stderr.decode('utf8', 'replace')[-1500:]
    assert len(lk.load_learner(tmp_path/'out'/'model.learnkit').dls.vocab) == 2

@fault('F22', 'names of files in one form, of the table in the other')
@pytest.mark.parametrize('forms', [('NFD', 'NFC'), ('NFC', 'NFD')])
def test_accents_in_two_forms(forms, tmp_path):
    "A Mac writes é as two letters, a table has it as one."
    names,rows = ['café', 'Ünï', 'naïve', 'Å', 'plain', 'ñu'],['fname,label']
    for i,n in enumerate(names):
        photo(seed=i).save(tmp_path/f'{unicodedata.normalize(forms[0], n)}.png')
        rows.append(f'{unicodedata.normalize(forms[1], n)}.png,{"ab"[i%2]}')
    (tmp_path/'t.csv').write_text('\n'.join(rows), encoding='utf8')
    rs = lk.read_csv(tmp_path/'t.csv')
    assert len(rs) == 6 and not rs.problems and len({o.label for o in rs}) == 2

@pytest.mark.skipif(sys.platform in ('darwin', 'win32'), reason='names of files are text there')
@fault('F22', 'names that are not UTF-8')
def test_names_that_are_no_text(tmp_path, capsys):
    "Scan, train, predict, say what is wrong with one: on a terminal and in a file."
    top = pictures(tmp_path/'d', [bytes([0xe9, 0xff, 48+i])+b'.png' for i in range(6)])
    with open(os.fsencode(top/'çats')+b'/br\xffken.png', 'wb') as f: f.write(b'not a picture')
    lk.settings.set(progress=True)
    try:
        rs = lk.read_folder(top)
        learn = lk.classification_learner(lk.classification_dls(rs, size=32, bs=4), 'lenet5', path=tmp_path, precision='fp32')
        learn.fit(1)
    finally: lk.settings.set(progress=None)
    assert len(rs) == 12 and len(rs.problems) == 1
    text = ' '.join(map(str, [*rs.problems, *learn.problems, rs[0], repr(learn.predict(rs[0].image))]))
    text.encode('utf8')
    learn.show_results(max_n=2), learn.interpret().top_losses(2)
    print(text)
    assert 'ken.png' in capsys.readouterr().out

@pytest.mark.skipif(sys.platform in ('darwin', 'win32'), reason='names of files are text there')
@fault('F22', 'a class whose name is not UTF-8')
def test_classes_that_are_no_text(tmp_path):
    top = pictures(tmp_path/'d', ['a', 'b', 'c', 'd'], (os.fsdecode(b'd\xffgs'), 'çats'))
    learn = lk.classification_learner(lk.classification_dls(top, size=32, bs=4), 'lenet5', path=tmp_path, precision='fp32')
    learn.fit(1)
    again,one = lk.load_learner(learn.export('m.learnkit')),learn.dls.valid_ds.items[0].image
    assert [*again.dls.vocab] == [*learn.dls.vocab] and again.predict(one).label == learn.predict(one).label
    learn.show_results(max_n=2)
    learn.interpret().plot_confusion_matrix()

@pytest.mark.skipif(sys.platform in ('darwin', 'win32'), reason='names of files are text there')
@pytest.mark.parametrize('words', [pytest.param(w, marks=fault('F22', f'names that are not UTF-8: learnkit {w}')) for w in ('train', 'predict', 'predict --json')])
def test_names_that_are_no_text_on_the_command_line(words, tmp_path, drawings):
    top = pictures(tmp_path/'d', [bytes([0xe9, 0xff, 48+i])+b'.png' for i in range(6)])
    with open(os.fsencode(top/'çats')+b'/br\xffken.png', 'wb') as f: f.write(b'not a picture')
    learn = small(drawings, tmp_path)
    learn.export('m.learnkit')
    args = dict(train=['train', str(top), '--out', str(tmp_path/'out'), '--epochs', '0', '--size', '32', '--arch', 'lenet5'], predict=['predict', str(tmp_path/'m.learnkit'), str(top)])
    out = io.TextIOWrapper(io.BytesIO(), encoding='utf8')
    old,sys.stdout = sys.stdout,out
    try: code = main([*args[words.split()[0]], *words.split()[1:]])
    finally: sys.stdout = old
    out.flush()
    text = out.buffer.getvalue().decode('utf8')
    assert code in (0, 1) and 'ken.png' in text and 'Traceback' not in text
    if words.endswith('json'): json.loads(text)

@pytest.mark.parametrize('when', [pytest.param(t, marks=fault('F22', f'files of {w}')) for t,w in ((-1., '1969'), (0., '1970'), (4e9, '2096'))])
def test_clocks(when, tmp_path, drawings):
    "The clock was set back, or the files come from the future: pictures are kept, exchanged files are seen, bundles load."
    top = pictures(tmp_path/'d', [f'{i}' for i in range(6)])
    for o in top.rglob('*.png'): os.utime(o, (when, when))
    learn = lk.classification_learner(lk.classification_dls(top, size=32, bs=4), 'lenet5', path=tmp_path, precision='fp32')
    learn.fit(2)
    path = learn.export('m.learnkit')
    os.utime(path, (when, when))
    one = learn.dls.valid_ds.items[0].image
    before = lk.load_learner(path).predict(one)[2]
    photo(90, 70, seed=99).save(one)
    os.utime(one, (when, when))
    assert not torch.equal(before, learn.predict(one)[2])

@fault('F22', 'the clock is set back while training')
def test_the_clock_is_set_back(drawings, tmp_path, monkeypatch):
    now = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, 'time', lambda: float(next(now)))
    learn = small(drawings, tmp_path)
    learn.fine_tune(1, checkpoint=tmp_path/'c')
    assert learn.results and learn.predict(learn.dls.valid_ds.items[0].image)
