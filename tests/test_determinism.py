"Two runs with one seed give the same bits: same machine, same versions, same number of threads, processor."
import os, subprocess, sys
from functools import partial
from hashlib import sha256
from pathlib import Path
import pytest, torch
from fastai.callback.mixup import CutMix, MixUp
import learnkit.all as lk
from learnkit.train import speed

pytestmark = pytest.mark.usefixtures('one_thread')
HERE = Path(__file__).resolve()
fault = pytest.mark.fault

def classes(data, threads=None, size=32, arch=None, workers=0, decode_cache=None, **kw):
    dls = lk.classification_dls(data, size=size, bs=16, num_workers=workers, decode_cache=decode_cache)
    for dl in dls.loaders: dl.threads = threads
    return lk.classification_learner(dls, arch, **dict(precision='fp32') | kw)

def one_stage(learn, **kw):
    learn.fit_one_cycle(2, 1e-3, **kw)
    return learn

def tuned(learn, **kw):
    learn.fine_tune(1, **kw)
    return learn

def masks(d): return one_stage(lk.segmentation_learner(lk.segmentation_dls(lk.read_masks(d, images='.', masks='parts'), size=32, bs=16), precision='fp32'))
def points(d): return one_stage(lk.keypoints_learner(lk.keypoints_dls(lk.read_points(d/'points.csv'), size=32, bs=16), precision='fp32'))
def finder(make, loaders, d):
    rs = lk.read_coco(d/'boxes.json')
    return one_stage(make(loaders(lk.Records(rs[:20], about=rs.about), size=32, bs=8), precision='fp32'))
def maker(kind, d, **kw): return tuned(lk.generation_learner(lk.generation_dls(d, size=16, bs=16), kind, precision='fp32', **kw).keep_samples(0))

RUNS = {'one stage':lambda d: one_stage(classes(d)), 'fine_tune':lambda d: tuned(classes(d)), 'fine_tune(fast=True)':lambda d: tuned(classes(d), fast=True, freeze_epochs=2),
    'random weights':lambda d: tuned(classes(d, arch='lenet5')), 'mixup':lambda d: one_stage(classes(d), cbs=MixUp()), 'cutmix':lambda d: one_stage(classes(d), cbs=CutMix()),
    'bf16':lambda d: one_stage(classes(d, precision='bf16')), 'no pictures kept':lambda d: one_stage(classes(d, decode_cache=0)),
    '4 threads open pictures':lambda d: one_stage(classes(d, threads=4)), 'segmentation':masks, 'keypoints':points, 'detection':partial(finder, lk.detection_learner, lk.detection_dls),
    'VAE':lambda d: maker('vae', d, model_kw=dict(width=8)), 'GAN':lambda d: maker('dcgan', d, model_kw=dict(width=4))}
SLOW = {'diffusion':lambda d: maker('diffusion', d), '2 worker processes':lambda d: one_stage(classes(d, workers=2)),
    'poses':partial(finder, lk.pose_learner, lk.pose_dls), 'shapes':partial(finder, lk.instance_learner, lk.instance_dls)}

def bits(learn): return torch.cat([o.detach().double().flatten() for o in learn.model.state_dict().values()])

def run(f, data, seed=42):
    "What users write: the seed first, then loaders, learner and training."
    lk.set_seed(seed)
    learn = f(data)
    told = [o['values'] for o in learn.history], [torch.stack(o['losses']).tolist() for o in learn.history]
    return bits(learn), str(told)

def same(*runs): return all(torch.equal(o[0], runs[0][0]) and o[1] == runs[0][1] for o in runs)

@pytest.mark.parametrize('kind', [pytest.param(k, marks=fault('F17', f'the same seed again: {k}')) for k in RUNS] +
    [pytest.param(k, marks=[pytest.mark.slow, fault('F17', f'the same seed again: {k}')]) for k in SLOW])
def test_the_same_bits(kind, drawings):
    f = (RUNS | SLOW)[kind]
    a,b = run(f, drawings),run(f, drawings)
    assert same(a, b) and torch.isfinite(a[0]).all()

@fault('F17', 'the same seed five times')
def test_five_of_five(drawings):
    runs = [run(RUNS['fine_tune'], drawings) for _ in range(5)]
    assert same(*runs) and not same(runs[0], run(RUNS['fine_tune'], drawings, seed=43))

@fault('F17', 'pictures opened by 1 and by 4 threads')
def test_threads_that_open_pictures_change_nothing(drawings):
    assert same(*(run(lambda d: one_stage(classes(d, threads=n)), drawings) for n in (1, 4)))

@fault('F17', 'pictures kept in memory, on disk, and not at all')
def test_where_pictures_are_kept_changes_nothing(drawings):
    assert same(*(run(lambda d: one_stage(classes(d, decode_cache=mb)), drawings) for mb in (100, .02, 0)))

@fault('F17', 'precision that is measured in the first run and noted for the second')
def test_measured_precision(drawings):
    "What a measurement draws is not taken from the random numbers of the training."
    runs = [run(lambda d: tuned(classes(d, precision='auto')), drawings) for _ in range(2)]
    assert same(*runs) and (lk.settings.cache_path/'speed.json').is_file()

@fault('F17', 'precision that is measured where nothing can be noted')
def test_measured_precision_without_notes(drawings, tmp_path, monkeypatch):
    (tmp_path/'x').write_text('')
    monkeypatch.setenv('LEARNKIT_CACHE_PATH', str(tmp_path/'x'))
    assert same(*(run(lambda d: tuned(classes(d, precision='auto')), drawings) for _ in range(2)))

@fault('F17', 'a flickering measurement')
def test_measured_precision_of_a_busy_machine(drawings, monkeypatch):
    "A note is kept though the machine would give other times now."
    times = iter(range(1, 10000))
    monkeypatch.setattr(speed, 'seconds', lambda f, n=3: (f(), float((next(times)*7919) % 101))[1])
    assert same(*(run(lambda d: tuned(classes(d, precision='auto')), drawings) for _ in range(3)))

@fault('F17', 'use_deterministic_algorithms: nothing is measured')
def test_deterministic_algorithms(drawings):
    torch.use_deterministic_algorithms(True)
    try:
        a = run(lambda d: tuned(classes(d, precision='auto')), drawings)
        assert not (lk.settings.cache_path/'speed.json').exists()
    finally: torch.use_deterministic_algorithms(False)
    assert same(a, run(lambda d: tuned(classes(d, precision='fp32')), drawings))

ASIDE = dict(predict=lambda l: l.predict(l.dls.valid_ds.items[0].image), export=lambda l: l.export('m.learnkit'), save=lambda l: l.save('m'))

@pytest.mark.parametrize('what', [pytest.param(k, marks=fault('F17', f'{k} between two stages')) for k in ASIDE])
def test_asking_between_stages_changes_nothing(what, drawings, tmp_path):
    def stages(ask, d):
        learn = classes(d, precision='auto', path=tmp_path)
        one_stage(learn)
        if ask: ASIDE[what](learn)
        return one_stage(learn)
    assert same(run(partial(stages, False), drawings), run(partial(stages, True), drawings))

@pytest.mark.slow
@fault('F17', 'two processes, one after the other, with other hashes')
def test_other_processes(drawings):
    def start(h):
        env = os.environ | dict(PYTHONHASHSEED=str(h), OMP_NUM_THREADS='2')
        return subprocess.run([sys.executable, HERE, drawings], env=env, capture_output=True, text=True, timeout=200)
    a,b = start(1),start(2)
    assert a.returncode == 0, a.stderr
    assert a.stdout == b.stdout and len(a.stdout) > 100

if __name__ == '__main__':
    for k in ('fine_tune', 'VAE'):
        w,told = run(RUNS[k], Path(sys.argv[1]))
        print(k, sha256(w.numpy().tobytes()).hexdigest(), told)
