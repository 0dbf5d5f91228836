"The command line: every command, its json, its exit codes, and one sentence for each mistake that leaves nothing behind."
import json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from PIL import Image
from learnkit.cli import main
from learnkit.data.doodles import write_doodles

COMMANDS = [['demo'], ['train'], ['predict'], ['data'], ['data', 'list'], ['data', 'get'], ['data', 'mirror'], ['data', 'check'], ['tasks'], ['models'], ['describe']]
FIGURES = r'error_rate=[\d.]+ data=\S+ train=\d+ valid=\d+ arch=\S+ epochs=\d+ seconds=[\d.]+'
FAST = ['--epochs', 0, '--size', 32, '--bs', 8]

@pytest.fixture(scope='session')
def few(tmp_path_factory):
    "30 drawings of 48 px with labels, attributes and ages."
    return write_doodles(tmp_path_factory.mktemp('few')/'few', n=30, size=48, seed=3)

@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    "Runs the command line in an empty folder: (words) -> exit code, stdout, stderr."
    monkeypatch.chdir(tmp_path)
    for k in ('LEARNKIT_MIRROR', 'LEARNKIT_OFFLINE'): monkeypatch.delenv(k, raising=False)
    def run(*words):
        capsys.readouterr()
        code = main([str(o) for o in words])
        return code, *capsys.readouterr()
    return run

@pytest.fixture(scope='session')
def trained(few, tmp_path_factory):
    "A bundle that a short run wrote."
    out = tmp_path_factory.mktemp('trained')
    assert main([str(o) for o in ['train', few, '--out', out, '--quiet', *FAST]]) == 0
    return out/'model.learnkit'

def files(folder): return sorted(str(o.relative_to(folder)) for o in folder.rglob('*'))

def one_sentence(err):
    "`err` without the program's name, if it is a single line of moderate length that is no traceback."
    assert err.startswith('learnkit: ') and err.count('\n') == 1 and 20 < len(err) < 600, err
    assert 'Traceback' not in err and 'Errno' not in err, err
    return err

# What works

@pytest.mark.parametrize('words', [[], *COMMANDS], ids=' '.join)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as e: main([*words, '--help'])
    out = capsys.readouterr().out
    assert e.value.code == 0 and f'usage: {" ".join(["learnkit", *words])}' in out
    if words and words != ['data']: assert '--json' in out and '--mirror' in out and '--offline' in out

def test_version(capsys):
    import learnkit
    with pytest.raises(SystemExit) as e: main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out.strip() == learnkit.__version__

def test_demo(cli, few, tmp_path):
    code,out,err = cli('demo', '--data', few, '--out', 'show', '--epochs', 1, '--size', 32, '--bs', 8)
    assert code == 0
    assert files(tmp_path/'show') == ['batch.png', 'confusion.png', 'curves.png', 'model.learnkit', 'results.png']
    assert re.fullmatch(FIGURES, last := out.splitlines()[-1]), last
    assert 'data=few train=24 valid=6 arch=tiny epochs=2' in last
    assert re.search(r'^\w+_\d+\.(png|jpg) from (cats|dogs): (cats|dogs) \(\d\.\d\d\)$', out, re.M)
    for o in (tmp_path/'show').glob('*.png'): assert Image.open(o).width > 200

def test_demo_on_a_folder_without_parts(cli, few, tmp_path):
    shutil.copytree(few/'train', tmp_path/'beasts')
    code,out,err = cli('demo', '--data', 'beasts', '--valid', 0.5, '--scratch', *FAST)
    assert code == 0 and 'data=beasts train=12 valid=12' in out and (tmp_path/'demo'/'model.learnkit').is_file()

def test_demo_json(cli, few, tmp_path):
    code,out,err = cli('demo', '--data', few, '--json', *FAST)
    res = json.loads(out)
    assert code == 0 and res['train'] == 24 and res['arch'] == 'tiny' and res['problems'] == []
    assert res['prediction']['label'] in ('cats', 'dogs') and Path(res['bundle']).is_file() and 'written:' in err

@pytest.mark.parametrize('column,task,metric', [('label=species', 'classification', 'error_rate'), ('labels=attributes', 'multilabel', 'accuracy_multi'),
    ('value=age', 'regression', 'mae')])
def test_train_from_a_table(cli, few, tmp_path, column, task, metric):
    kind,name = column.split('=')
    code,out,err = cli('train', few/'labels.csv', f'--{kind}', name, *FAST)
    assert code == 0 and f'{metric}=' in out.splitlines()[-1] and f'task={task}' in out
    assert (tmp_path/'trained'/'confusion.png').is_file() == (task == 'classification')
    code,out,err = cli('predict', 'trained/model.learnkit', few/'valid', '--json')
    assert code == 0 and len(json.loads(out)) == 6 and kind in json.loads(out)[0]

def test_train_and_predict_masks(cli, few, tmp_path):
    code,out,err = cli('train', 'segmentation', few, '--images', '.', '--masks', 'parts', *FAST)
    assert code == 0 and 'mIoU=' in out and {'batch.png', 'curves.png', 'iou.png', 'model.learnkit', 'results.png'} <= {*files(tmp_path/'trained')}, err
    photo = next((few/'valid').rglob('*.png'))
    code,out,err = cli('predict', 'trained/model.learnkit', photo, '--out', 'drawn')
    assert code == 0 and 'background 0.' in out and files(tmp_path/'drawn') == [f'{photo.stem}.png', f'{photo.stem}_mask.png'], err
    assert Image.open(tmp_path/'drawn'/f'{photo.stem}_mask.png').size == Image.open(photo).size
    assert 'task=segmentation' in cli('train', few, '--images', '.', '--masks', 'parts', *FAST)[1]
    assert 'images' in refused(cli, tmp_path/'trained', 'train', 'segmentation', few/'train')

def test_train_names_the_task(cli, few):
    code,out,err = cli('train', few/'labels.csv', '--task', 'regression', '--value', 'age', '--json', *FAST)
    assert code == 0 and json.loads(out)['task'] == 'regression'

def test_predict_goes_past_a_broken_picture(cli, trained, few, tmp_path):
    good = next((few/'valid'/'cats').iterdir())
    (tmp_path/'broken.jpg').write_text('no picture')
    code,out,err = cli('predict', trained, 'broken.jpg', good, few/'valid'/'dogs', 'absent.png')
    lines = out.splitlines()
    assert code == 1 and len(lines) == 6 and not err
    assert lines[0].startswith('broken.jpg: not predicted') and re.fullmatch(rf'{re.escape(str(good))}: (cats|dogs), [\d.]+', lines[1])
    assert 'absent.png: not predicted' in lines[-1]
    code,out,err = cli('predict', trained, 'broken.jpg', good, '--json')
    bad,right = json.loads(out)
    assert code == 1 and 'text' in bad['error'] and right['label'] in right['probs'] and abs(sum(right['probs'].values())-1) < 1e-4

def test_tasks(cli):
    code,out,err = cli('tasks')
    assert code == 0 and all(o in out for o in ('classification', 'multilabel_dls', 'regression_learner')) and not err
    assert {o['task'] for o in json.loads(cli('tasks', '--json')[1])} >= {'classification', 'multilabel', 'regression'}

def test_models(cli):
    code,out,err = cli('models', 'resnet*')
    assert code == 0 and re.search(r'^resnet18 .*torchvision .*bsd-3-clause', out, re.M) and 'vgg' not in out
    res = json.loads(cli('models', '--task', 'classification', '--licence', 'commercial', '--max-params', '2e6', '--json')[1])
    assert res[0]['accuracy'] and {o['task'] for o in res} == {'classification'} and all(o['params'] <= 2e6 for o in res)
    assert [o['weights'] for o in res if o['arch'] == 'tiny'] == ['package']
    code,out,err = cli('models', '--source', 'learnkit', '--sort', 'params')
    assert [o.split()[0] for o in out.splitlines()][:2] == ['arch', 'tiny'] and len(out.splitlines()) == 4
    assert "Did you mean 'detection'" in cli('models', '--task', 'detecton')[2]

def test_describe(cli):
    code,out,err = cli('describe', 'vit_h_14')
    assert code == 0 and re.search(r'^licence +cc-by-nc-4.0$', out, re.M) and re.search(r'^commercial +no$', out, re.M)
    assert json.loads(cli('describe', '--json')[1])['arch'] == 'tiny'

def test_data(cli, few, tmp_path):
    shutil.copytree(few, tmp_path/'cache'/'data'/'beasts')
    code,out,err = cli('data', 'mirror', 'shelf', 'beasts')
    assert code == 0 and out.strip() == 'shelf/beasts.tar' and files(tmp_path/'shelf') == ['beasts.tar', 'beasts.tar.sha256']
    shutil.rmtree(tmp_path/'cache')
    code,out,err = cli('data', 'list', '--mirror', 'shelf')
    assert code == 0 and re.search(r'^beasts .*mirror', out, re.M) and re.search(r'^doodles .*built-in', out, re.M)
    code,out,err = cli('data', 'get', 'beasts', '--mirror', 'shelf', '--offline')
    assert code == 0 and files(Path(out.strip())) == files(few)
    row = next(o for o in json.loads(cli('data', 'list', '--json')[1]) if o['name'] == 'beasts')
    assert row['source'] == 'cache'
    assert json.loads(cli('data', 'get', 'beasts', '--json')[1]) == {'beasts': str(tmp_path/'cache'/'data'/'beasts')}
    code,out,err = cli('demo', '--data', 'beasts', *FAST)
    assert code == 0 and 'data=beasts train=24' in out

def test_a_text_named_jpg_and_an_empty_class_are_said(cli, few, tmp_path):
    shutil.copytree(few, tmp_path/'beasts')
    (tmp_path/'beasts'/'train'/'cats'/'notes.jpg').write_text('shopping list')
    (tmp_path/'beasts'/'train'/'birds').mkdir()
    code,out,err = cli('train', 'beasts', *FAST)
    assert code == 0 and 'train=24' in out
    assert re.search(r'^problem: .*notes\.jpg.*text', out, re.M) and re.search(r'^problem: .*birds.*without pictures', out, re.M)
    code,out,err = cli('train', 'beasts', '--json', *FAST)
    assert len(json.loads(out)['problems']) == 2 and err.count('problem: ') == 2

def test_a_folder_named_as_a_data_set(cli, few, tmp_path):
    shutil.copytree(few, tmp_path/'rps')
    assert './rps' in cli('train', 'rps', '--offline')[1]
    code,out,err = cli('train', './rps', '--offline', *FAST)
    assert code == 0 and 'data=rps train=24' in out and './rps' not in out.partition('\n')[0].partition('of ')[0]

# Mistakes: one sentence, exit code 1, and nothing stays behind

def refused(cli, folder, *words):
    "The sentence of a command that fails with exit code 1, says so in json too, and writes nothing below `folder`."
    before = files(folder)
    code,out,err = cli(*words)
    assert code == 1 and not re.search(FIGURES, out)
    sentence = one_sentence(err)
    assert files(folder) == before
    code,out,err = cli(*words, '--json')
    assert code == 1 and json.loads(out)['error'] == sentence.removeprefix('learnkit: ').strip() and files(folder) == before
    return sentence

@pytest.mark.parametrize('command', [['demo', '--data'], ['train']], ids=['demo', 'train'])
@pytest.mark.parametrize('data,said', [('no/such/folder', 'There is no folder'), ('dodles', 'doodles'), ('flat', 'no folder for each class'),
    ('one', 'two classes'), ('empty', 'empty'), ('words', 'no pictures'), ('all_bad', 'can be opened'), ('one/cats/a.png', 'file, not a folder'),
    ('absent.csv', 'absent.csv')])
def test_bad_data(cli, few, tmp_path, command, data, said):
    for o in ('one/cats', 'flat', 'empty', 'words/a', 'all_bad/a', 'all_bad/b'): (tmp_path/o).mkdir(parents=True)
    for i,o in enumerate(sorted((few/'train'/'cats').iterdir())[:4]):
        for d in ('one/cats', 'flat', 'all_bad/a'): shutil.copy(o, tmp_path/d/f'{"abcd"[i]}.png')
    for o in ('words/a/x.txt', 'all_bad/b/x.jpg'): (tmp_path/o).write_text('words')
    assert said in refused(cli, tmp_path, *command, data)

def test_bad_column(cli, few, tmp_path):
    assert 'species' in refused(cli, tmp_path, 'train', few/'labels.csv', '--label', 'specis')
    assert 'species' in refused(cli, tmp_path, 'train', few/'labels.csv')
    assert 'not one' in refused(cli, tmp_path, 'train', few, '--label', 'species')

def test_task_and_targets_must_fit(cli, few, tmp_path):
    assert '--labels' in refused(cli, tmp_path, 'train', few, '--task', 'multilabel')
    assert '--value' in refused(cli, tmp_path, 'train', few, '--task', 'regression')
    assert '--task multilabel' in refused(cli, tmp_path, 'train', few/'labels.csv', '--labels', 'attributes', '--task', 'classification')
    assert 'regression' in refused(cli, tmp_path, 'train', few, '--task', 'regresion')

def test_unknown_architecture(cli, few, tmp_path):
    assert "'resnet18'" in refused(cli, tmp_path, 'demo', '--data', few, '--arch', 'resnt18')
    assert 'resnet' in refused(cli, tmp_path, 'models', 'resnt18')
    assert '"resnet*"' in refused(cli, tmp_path, 'models', 'resnet')

def test_an_unknown_architecture_is_told_before_data_is_made(cli, tmp_path): refused(cli, tmp_path, 'demo', '--arch', 'resnt18')

def test_weights_out_of_reach(cli, few, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    said = refused(cli, tmp_path, 'demo', '--data', few, '--arch', 'resnet18', '--offline')
    assert 'resnet18' in said and 'offline' in said and 'pretrained=False' in said

@pytest.mark.parametrize('mirror', ['http://127.0.0.1:9', 'nowhere'])
def test_unreachable_mirror(cli, tmp_path, monkeypatch, mirror):
    monkeypatch.setattr('time.sleep', lambda s: None)
    for words in (['demo', '--data', 'cats_vs_dogs'], ['data', 'get', 'cats_vs_dogs'], ['data', 'mirror', 'shelf', 'cats_vs_dogs']):
        assert mirror.removeprefix('http://') in refused(cli, tmp_path, *words, '--mirror', mirror)

def test_no_mirror(cli, tmp_path): assert 'mirror' in refused(cli, tmp_path, 'demo', '--data', 'cats_vs_dogs')

@pytest.mark.parametrize('out', ['taken', 'taken/below', '/dev/null/x', '/proc/learnkit'])
def test_bad_out(cli, few, tmp_path, out):
    if out.startswith('/proc') and not Path('/proc').is_dir(): pytest.skip('no /proc here')
    (tmp_path/'taken').write_text('a file')
    assert out in refused(cli, tmp_path, 'demo', '--data', few, '--out', out)
    assert (tmp_path/'taken').read_text() == 'a file'

def test_out_without_leave(cli, few, tmp_path):
    if os.geteuid() == 0: pytest.skip('root may write everywhere')
    (tmp_path/'locked').mkdir(mode=0o500)
    assert 'locked' in refused(cli, tmp_path, 'demo', '--data', few, '--out', 'locked/x')

def test_no_bundle(cli, few, tmp_path, trained):
    photo = next((few/'valid'/'cats').iterdir())
    for name,b in (('words', b'these are words'), ('empty', b''), ('cut', trained.read_bytes()[:5000]), ('pickle', b'\x80\x04N.')): (tmp_path/name).write_bytes(b)
    for o in ('words', 'empty', 'cut', 'pickle', 'absent'): assert o in refused(cli, tmp_path, 'predict', o, photo)
    assert 'folder' in refused(cli, tmp_path, 'predict', few, photo)

def test_nothing_to_predict(cli, trained, tmp_path):
    (tmp_path/'empty').mkdir()
    assert 'empty' in refused(cli, tmp_path, 'predict', trained, 'empty')

def test_bad_setting(cli, few, tmp_path, monkeypatch):
    monkeypatch.setenv('LEARNKIT_OFFLINE', 'perhaps')
    assert "'perhaps'" in refused(cli, tmp_path, 'tasks')

# Commands that are not understood: exit code 2

@pytest.mark.parametrize('words,said', [
    (['demo', '--epocs', '3'], '--epochs'), (['demo', '--epoch', '3'], '--epochs'), (['train', '--arhc=resnet18', 'x'], '--arch'),
    (['data', 'list', '--jsn'], '--json'), (['predict', 'm', 'p', '--ofline'], '--offline'), (['trian', 'x'], 'train'),
    (['data', 'lst'], 'list'), ([], 'COMMAND'), (['train'], 'data'), (['tasks', 'x'], 'x'), (['data', 'get'], 'names')], ids=' '.join)
def test_misspelt(cli, tmp_path, words, said):
    for o in ([], ['--json'])[:1 if not words else 2]:
        code,out,err = cli(*words, *o)
        assert code == 2 and said in one_sentence(err).partition('See:')[0] and '--help' in err and files(tmp_path) == []
        assert json.loads(out)['error'] in err if o else not out

@pytest.mark.parametrize('option,value', [('--epochs', -1), ('--epochs', 'many'), ('--size', 0), ('--size', -5), ('--bs', 0), ('--valid', 2),
    ('--valid', 0), ('--lr', 0), ('--lr', 'nan'), ('--seed', 'x')])
def test_bad_numbers(cli, few, tmp_path, option, value):
    code,out,err = cli('demo', '--data', few, option, value)
    assert code == 2 and option in one_sentence(err) and str(value) in err and files(tmp_path) == []

def test_objects_are_trained_and_found(cli, tmp_path):
    "A task in front of a folder whose files tell their format; then boxes as words."
    from learnkit.data.doodles import write_doodle_scenes
    scenes = write_doodle_scenes(tmp_path/'scenes', n=20, size=64, seed=1)
    code,out,err = cli('train', 'detection', scenes, '--size', 64, '--epochs', 0, '--out', tmp_path/'o', '--json')
    res = json.loads(out)
    assert code == 0 and res['task'] == 'detection' and {'mAP', 'mAP50'} <= res.keys()
    assert {o.name for o in (tmp_path/'o').glob('*.png')} == {f'{k}.png' for k in ('batch', 'curves', 'results', 'precision_recall', 'errors')}
    code,out,err = cli('predict', res['bundle'], scenes/'images'/'scene_0000.png', '--json')
    assert code == 0 and json.loads(out)[0].keys() >= {'boxes', 'labels', 'scores'}
    code,out,err = cli('train', 'detection', 'detection', scenes)
    assert code == 1 and 'learnkit train TASK DATA' in err

# As a process of its own

def process(*words, **kw):
    code = 'import sys; from learnkit.cli import main; sys.exit(main())'
    return subprocess.run([sys.executable, '-c', code, *map(str, words)], capture_output=True, text=True, **kw)

def test_process(few, tmp_path):
    env = os.environ | dict(LEARNKIT_PROGRESS='true', LEARNKIT_CACHE_PATH=str(tmp_path/'cache'))
    r = process('demo', '--data', few, '--out', tmp_path/'out', '--epochs', 1, '--size', 32, env=env)
    assert r.returncode == 0 and re.fullmatch(FIGURES, r.stdout.splitlines()[-1]) and 'Traceback' not in r.stderr
    assert '\r' not in r.stdout and '█' not in r.stdout, 'bars do not belong into a file'
    assert re.search(r'^epoch +train_loss +valid_loss +error_rate +time *$', r.stdout, re.M) and len(re.findall(r'^0 +\d\.\d+ +\d\.\d+', r.stdout, re.M)) == 2

def test_process_mistake(tmp_path):
    r = process('demo', '--data', 'no/such', cwd=tmp_path)
    assert r.returncode == 1 and not r.stdout and one_sentence(r.stderr)

def test_reader_that_stops_early():
    code = 'import sys; from learnkit.cli import main; sys.exit(main(["models"]))'
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close()
    assert p.wait() == 0 and p.stderr.read() == b''
    p.stderr.close()

def test_help_needs_no_heavy_library():
    code = 'import sys; from learnkit.cli import main\ntry: main(["--help"])\nexcept SystemExit: print([o for o in ("torch", "matplotlib", "fastai") if o in sys.modules])'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.splitlines()[-1] == '[]'
