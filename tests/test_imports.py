"What `import learnkit.all` leaves for later, and that all of it works when it is used; each question in a process that has imported nothing yet."
import builtins, json, pickle, subprocess, sys, threading
from pathlib import Path

import pytest
from learnkit.lazy import HEAVY, deferred, late_function, stand_in

root = Path(__file__).resolve().parents[1]
waiting = sorted({'torch._dynamo', 'sklearn'} | {m.partition(':')[0] for o in HEAVY.values() for m in o})

# What waits in fastai: the checks run one after the other in one process, right after the import

facts = dict(
    nothing_heavy=f'assert [o for o in {waiting} if o in sys.modules] == []',
    no_stand_ins="assert [k for k,m in sys.modules.items() if getattr(vars(m).get('__getattr__'), '__module__', '') == 'learnkit.lazy'] == []",
    no_attributes="assert '_dynamo' not in vars(torch)",
    import_is_pythons='assert builtins.__import__ is python_import',
    collector='assert gc.isenabled() and not gc.get_freeze_count()',
    names="assert [o for o in vars(sys.modules['fastai.vision.all']) if not o.startswith('_') and o not in lk.__all__] == []",
    detection='''
        x,boxes = torch.rand(1, 3, 32, 32), torch.tensor([[0., 0, 0, 16, 16]])
        y = ops.roi_align(x, boxes, [4, 4])
        assert y.shape == (1, 3, 4, 4) and torch.equal(torch.jit.script(ops.roi_align)(x, boxes, [4, 4]), y)
        assert ops.nms(torch.tensor([[0., 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([.9, .8]), .5).tolist() == [0]
        assert 'torch._dynamo' not in sys.modules''',
    dynamo='''
        before = roi.is_compile_supported
        import torch._dynamo, torch._dynamo.utils
        assert torch._dynamo is sys.modules['torch._dynamo'] and 'torch/_dynamo' in torch._dynamo.__file__.replace('\\\\', '/')
        assert before('cpu') == torch._dynamo.utils.is_compile_supported('cpu') and callable(torch._dynamo.explain)''',
    compile='''
        x,boxes = torch.rand(1, 3, 32, 32), torch.tensor([[0., 0, 0, 16, 16]])
        f = torch.compile(lambda x: ops.roi_align(x, boxes, [4, 4])*2, backend='eager', fullgraph=True)
        assert torch.equal(f(x), ops.roi_align(x, boxes, [4, 4])*2)
        g = torch.compile(lambda x: x+1 if roi.is_compile_supported(x.device.type) else x, backend='eager', fullgraph=True)
        assert torch.equal(g(x), x+1 if roi.is_compile_supported('cpu') else x)''',
    splitter='''
        train,valid = lk.TrainTestSplitter(test_size=0.2, random_state=1)(list(range(10)))
        assert (len(train), len(valid)) == (8, 2) and sorted([*train, *valid]) == list(range(10))
        assert [len(o) for o in lk.RandomSplitter(seed=1)(list(range(10)))] == [8, 2]''',
    pickled='''
        f = importlib.import_module('fastai.data.transforms').train_test_split
        assert pickle.loads(pickle.dumps(f)) is f
        assert pickle.loads(pickle.dumps(lk.F1Score())).func is lk.F1Score().func''',
    metrics='''
        import sklearn.metrics
        f = lk.F1Score()
        assert abs(f(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])) - 2/3) < 1e-6
        assert f.func is sklearn.metrics.f1_score
        assert sklearn.metrics.accuracy_score([0, 1], [0, 1]) == 1 and sklearn.metrics is sys.modules['sklearn.metrics']''',
    ndimage='''
        from scipy import ndimage
        assert ndimage is sys.modules['scipy.ndimage'] and type(lk.ndimage) is type(ndimage) and lk.ndimage.zoom is ndimage.zoom''',
    correlation='assert abs(lk.SpearmanCorrCoef()(torch.tensor([1., 2, 3]), torch.tensor([2., 4, 9])) - 1) < 1e-6',
    timm='''
        import timm
        assert timm is sys.modules['timm'] and timm.create_model('resnet18').num_classes == 1000
        net,cfg = importlib.import_module('fastai.vision.learner').create_timm_model('resnet18', 2, pretrained=False)
        assert net.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 2) and cfg['architecture'] == 'resnet18' ''')

start = '''
import builtins, gc, importlib, json, pickle, sys, textwrap, traceback
python_import = builtins.__import__
import learnkit.all as lk
import torch, torchvision.ops as ops
roi = sys.modules['torchvision.ops.roi_align']
res = {}
for name,code in json.loads(sys.argv[1]).items():
    try: exec(textwrap.dedent(code), globals())
    except Exception: res[name] = traceback.format_exc()
print(json.dumps(res))
'''

def python(code, *args):
    "The last line that a fresh Python prints after `code`, read as json."
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *args], capture_output=True, text=True, cwd=root)
    assert res.returncode == 0, res.stderr
    return json.loads(res.stdout.splitlines()[-1])

@pytest.fixture(scope='module')
def failed(): return python(start, json.dumps(facts))

@pytest.mark.parametrize('fact', facts)
def test_after_import(failed, fact): assert fact not in failed, failed[fact]

def test_what_is_there_is_left_alone():
    code = '''
import json, sys, torch._dynamo.utils, sklearn.model_selection, sklearn.metrics, scipy.stats, timm
mods = [torch._dynamo, sklearn.metrics, timm]
import learnkit.all, fastai.vision.learner, fastai.metrics, fastai.interpret, fastai.data.transforms, torchvision
used = [fastai.vision.learner.timm is timm, fastai.metrics.skm is sklearn.metrics, fastai.interpret.skm is sklearn.metrics,
    fastai.metrics.scs is scipy.stats, fastai.data.transforms.train_test_split is sklearn.model_selection.train_test_split,
    sys.modules['torchvision.ops.roi_align'].is_compile_supported is torch._dynamo.utils.is_compile_supported]
print(json.dumps([*used, mods == [sys.modules[o] for o in ('torch._dynamo', 'sklearn.metrics', 'timm')]]))
'''
    assert python(code) == [True]*7

# What the helper does with libraries that it does not know

@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "A folder with the library `heavylib`, and a function that imports a new module with the given text while its imports are deferred."
    (tmp_path/'heavylib').mkdir()
    (tmp_path/'heavylib'/'__init__.py').write_text('here = 1\n')
    (tmp_path/'heavylib'/'part.py').write_text('size = 3\ndef double(x): return 2*x\ndef half(x): return x/2\nclass Thing: pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    def run(text, name='lazy_user'):
        (tmp_path/f'{name}.py').write_text(text)
        with deferred({'lazy_user': ['heavylib', 'heavylib.part', 'heavylib.part:double', 'no_such_library:f']}): __import__(name)
        return sys.modules[name]
    yield run
    for o in [o for o in sys.modules if o.partition('.')[0] in ('heavylib', 'lazy_user', 'other_user')]: del sys.modules[o]

def loaded(): return sorted(o for o in sys.modules if o.startswith('heavylib'))

@pytest.mark.parametrize('text,use', [('import heavylib.part as p', lambda o: o.p.double(2)), ('import heavylib.part', lambda o: o.heavylib.part.double(2)),
    ('from heavylib.part import double', lambda o: o.double(2)), ('from heavylib.part import double as d', lambda o: o.d(2)),
    ('from heavylib import part', lambda o: o.part.double(2)), ('import heavylib.part', lambda o: 4*o.heavylib.here), ('import heavylib', lambda o: 4*o.heavylib.here)])
def test_named_imports_wait(shelf, text, use):
    o = shelf(text)
    assert loaded() == []
    assert use(o) == 4
    assert loaded()[0] == 'heavylib' and all('heavylib' in sys.modules[k].__file__ for k in loaded())

@pytest.mark.parametrize('text', ['from heavylib.part import double, half', 'from heavylib.part import Thing', 'from heavylib.part import *',
    'from heavylib import here', 'from heavylib import part, here\nfrom heavylib.part import half', 'import importlib\nimportlib.import_module("heavylib.part")'])
def test_all_else_is_imported_at_once(shelf, text):
    o = shelf(text)
    assert 'heavylib' in loaded()
    if hasattr(o, 'double'): assert o.double is sys.modules['heavylib.part'].double

def test_other_modules_get_the_real_one(shelf):
    o = shelf('import heavylib.part as p', name='other_user')
    assert o.p is sys.modules['heavylib.part']

def test_missing_library_is_known_at_once(shelf):
    o = shelf('try: from no_such_library import f\nexcept ImportError: f = None')
    assert o.f is None

def test_missing_name_is_an_error(shelf):
    o = shelf('import heavylib.part as p')
    with pytest.raises(AttributeError, match='nothing'): o.p.nothing
    assert 'half' in dir(o.p)

def test_changes_are_seen(shelf, monkeypatch):
    o = shelf('import heavylib.part as p\nfrom heavylib.part import double')
    assert o.p.size == 3
    monkeypatch.setattr(sys.modules['heavylib.part'], 'size', 5)
    assert o.p.size == 5
    assert pickle.loads(pickle.dumps(o.double)) is o.double

def test_import_is_restored_after_an_error(shelf):
    old = builtins.__import__
    with pytest.raises(ZeroDivisionError): shelf('1/0')
    assert builtins.__import__ is old

def test_threads_import_meanwhile(shelf):
    with deferred(dict(lazy_user=['heavylib.part'])):
        t = threading.Thread(target=exec, args=('import heavylib.part',))
        t.start()
        t.join()
    assert loaded() == ['heavylib', 'heavylib.part']

def test_stand_ins_are_plain():
    assert type(stand_in('json')) is type(sys)
    assert late_function('json', 'dumps', __name__)({}) == '{}'
