"The errors of detectors: each kind by hand, numbers that add up, curves that agree with the counts, and clear words for other tasks."
import numpy as np, pandas as pd, pytest, torch
from learnkit.core import DataError, NotFound
from learnkit.data.doodles import write_doodle_scenes
from learnkit.data.formats import read_coco
from learnkit.data.objects import encode_runs
from learnkit.train.metrics import average_precision
from learnkit.use.objects import ERRORS, object_errors, object_report

def facts(*rows, **more):
    "Facts of rows (box, label) or (box, label, score)."
    keys = ['boxes', 'labels', 'scores'][:len(rows[0]) if rows else 3]
    return dict(zip(keys, map(list, zip(*rows)))) | more if rows else dict(boxes=[], labels=[], scores=[], **more)

def kinds(found, truth, **kw): return object_errors([facts(*found)], [truth], **kw).kind.tolist()

A,B = [10, 10, 50, 50],[60, 10, 100, 50]
far = [200, 200, 240, 240]
two = facts((A, 'cat'), (B, 'dog'))
def moved(box, by): return [box[0]+by, box[1], box[2]+by, box[3]]

# Each kind

@pytest.mark.parametrize('found,expected', [
    ([(A, 'cat', .9), (B, 'dog', .8)], []),
    ([(A, 'cat', .9)], ['missed']),
    ([(A, 'cat', .9), (B, 'dog', .8), (far, 'dog', .7)], ['false']),
    ([(A, 'cat', .9), (B, 'cat', .8)], ['wrong class']),
    ([(A, 'cat', .9), (moved(B, 20), 'dog', .8)], ['poorly placed']),
    ([(A, 'cat', .9), (B, 'dog', .8), (moved(A, 2), 'cat', .7)], ['double']),
    ([(A, 'cat', .9), (B, 'dog', .24)], ['missed']),
    ([], ['missed', 'missed']),
    ([(moved(A, -39), 'cat', .9), (B, 'dog', .8)], ['false', 'missed']),
    ([(moved(A, -20), 'dog', .9), (B, 'dog', .8)], ['false', 'missed']),
    ([(A, 'cat', .9), (B, 'dog', .8), (A, 'dog', .7)], ['wrong class']),
    ([(A, 'cat', .9), (B, 'cat', .8), (moved(B, 20), 'dog', .7)], ['wrong class', 'poorly placed']),
    ([(A, 'cat', .9), (B, 'dog', .8), (A, 'bird', .7), (far, 'bird', .6)], ['wrong class', 'false'])])
def test_each_kind(found, expected): assert kinds(found, two) == expected

def test_the_surest_is_right_and_the_other_double():
    rows = object_errors([facts((moved(A, 1), 'cat', .5), (moved(A, 8), 'cat', .9))], [facts((A, 'cat'))])
    assert rows.kind.tolist() == ['double'] and rows.score[0] == .5 and rows.box[0] == moved(A, 1)

def test_what_stands_in_the_table():
    rows = object_errors([facts(), facts((A, 'cat', .9), (B, 'cat', .8), (moved(far, 0), 'dog', .6))], [facts((A, 'cat')), facts((A, 'cat'), (B, 'dog'))])
    assert list(rows) == ['picture', 'kind', 'true', 'predicted', 'overlap', 'score', 'box']
    assert rows.picture.tolist() == [0, 1, 1] and rows.kind.tolist() == ['missed', 'wrong class', 'false']
    assert rows.true.fillna('').tolist() == ['cat', 'dog', ''] and rows.predicted.fillna('').tolist() == ['', 'cat', 'dog']
    assert rows.overlap.tolist() == [0, 1, 0] and rows.score.fillna(-1).tolist() == [-1, .8, .6] and rows.box.tolist() == [A, B, far]
    assert object_errors([facts((moved(A, 20), 'cat', .9))], [facts((A, 'cat'))]).overlap[0] == pytest.approx(1/3)

def test_overlaps_that_count():
    found = [(moved(A, 20), 'cat', .9), (B, 'dog', .8)] # the first overlaps by a third
    assert kinds(found, two) == ['poorly placed'] and kinds(found, two, least=.3) == [] and kinds(found, two, poor=.4) == ['false', 'missed']
    assert kinds(found, two, thresh=.85) == ['poorly placed', 'missed'] and kinds(found, two, thresh=.95) == ['missed', 'missed']

def test_crowds():
    crowd = facts((A, 'cat'), ([100, 100, 200, 200], 'cat'), crowd=[False, True])
    inside = [110, 110, 130, 130]
    assert kinds([(A, 'cat', .9), (inside, 'cat', .8), (moved(inside, 30), 'cat', .7)], crowd) == [], 'what lies in a crowd does not count'
    assert kinds([(A, 'cat', .9)], crowd) == [], 'a crowd is not missed'
    assert kinds([(A, 'cat', .9), (inside, 'dog', .8)], crowd) == ['false'], 'a crowd is of one class'
    assert kinds([(A, 'cat', .9), ([90, 110, 102, 130], 'cat', .8)], crowd) == ['false'], 'most of it lies outside'
    assert kinds([(A, 'cat', .9)], facts((A, 'cat'), crowd=[True])) == []

def test_no_objects_and_no_findings():
    nothing = dict(boxes=[], labels=[])
    assert kinds([], nothing) == [] and kinds([(A, 'cat', .9)], nothing) == ['false'] and kinds([], nothing | dict(crowd=[])) == []
    assert len(object_errors([], [])) == 0 and list(object_errors([], [])) == ['picture', 'kind', 'true', 'predicted', 'overlap', 'score', 'box']

def test_shapes_and_points():
    def mask(*rows):
        m = np.zeros((20, 20), bool)
        for a,b in rows: m[a:b] = True
        return m
    box = [0, 0, 20, 20]
    truth = dict(boxes=[box], labels=['cat'], masks=[mask((0, 10))])
    def found(m): return [dict(boxes=[box], labels=['cat'], scores=[.9], masks=[m])]
    assert [object_errors(found(m), [truth], kind='masks').kind.tolist() for m in (mask((1, 10)), mask((7, 20)), mask((12, 20)))] == [
        [], ['poorly placed'], ['false', 'missed']]
    assert object_errors(found(mask((12, 20))), [truth]).empty, 'the boxes agree'
    assert object_errors(found(encode_runs(mask((7, 20)))), [truth], kind='masks').kind.tolist() == ['poorly placed'], 'runs will do'
    pose = dict(boxes=[box, box], labels=['cat', 'cat'], points=[[(5, 5, 2), (9, 9, 1)], None])
    def there(p): return [dict(boxes=[box], labels=['cat'], scores=[.9], points=[p])]
    assert object_errors(there([(5, 5, .9), (9, 9, .8)]), [pose], kind='points').empty, 'objects without points do not count'
    assert object_errors(there([(5, 5, .9), (90, 9, .8)]), [pose], kind='points', least=.6).kind.tolist() == ['poorly placed']

def test_facts_that_do_not_fit():
    with pytest.raises(DataError, match='Findings in 1 pictures, and the truth of 2'): object_errors([facts()], [two, two])
    with pytest.raises(DataError, match='Picture 1 of found has label, prob, and no boxes'): object_errors([facts(), dict(label='cat', prob=.9)], [two, two])
    with pytest.raises(DataError, match='no scores'): object_errors([two], [two])
    with pytest.raises(DataError, match='poor=0.6'): object_errors([facts()], [two], poor=.6)
    with pytest.raises(DataError, match='no masks'): object_errors([facts()], [two], kind='masks')
    with pytest.raises(NotFound, match='kind of target'): object_errors([facts()], [two], kind='box')

# Against average precision

def random_scenes(n=40, seed=0):
    "Findings and truth of `n` pictures, with crowds."
    dice = np.random.RandomState(seed)
    for _ in range(n):
        m,k = dice.randint(0, 6, 2)
        t = np.c_[xy := dice.randint(0, 80, (m, 2)), xy+dice.randint(10, 60, (m, 2))].astype(float)
        p = np.concatenate([t+dice.randn(m, 4)*4, np.c_[xy := dice.randint(0, 80, (k, 2)), xy+dice.randint(10, 60, (k, 2))]])
        label = dice.randint(0, 2, m)
        said = np.r_[np.where(dice.rand(m) < .2, 1-label, label), dice.randint(0, 2, k)]
        names = np.array(['cat', 'dog'])
        yield (dict(boxes=p.tolist(), labels=names[said].tolist(), scores=dice.rand(m+k).tolist()),
            dict(boxes=t.tolist(), labels=names[label].tolist(), crowd=(dice.rand(m) < .1).tolist()))

@pytest.mark.parametrize('seed', range(5))
def test_recall_is_that_of_average_precision(seed):
    "At threshold 0 the objects that were found are those that average precision counts; each object is right, missed or explained."
    found,truth = zip(*random_scenes(seed=seed))
    for at in (.5, .75):
        s,rows = average_precision(found, truth),object_errors(found, truth, thresh=0, least=at)
        for k,name in enumerate(s.classes):
            n = sum(o == name and not c for t in truth for o,c in zip(t['labels'], t['crowd']))
            right = round(s.recall[0,np.isclose(s.thresholds, at).argmax(),k]*n)
            missed = ((rows.kind == 'missed') & (rows.true == name)).sum()
            assert missed <= n-right <= missed + rows.kind.isin(['wrong class', 'poorly placed']).sum()
            wrong = ((rows.predicted == name)).sum()
            assert right+wrong <= sum(o == name for p in found for o in p['labels'])
    assert {*rows.kind} <= {*ERRORS}

# What a learner offers

@pytest.fixture(scope='module')
def scenes(tmp_path_factory, one_thread): return read_coco(write_doodle_scenes(tmp_path_factory.mktemp('d')/'scenes', n=12, size=96))

def cheat(x, boxes, labels, *more):
    "What a network gives in validation: the truth, of which a few objects are lost, renamed, moved or doubled."
    g = torch.Generator().manual_seed(int(labels.sum()))
    b,y = (torch.cat([o.as_subclass(torch.Tensor)]*2, 1) for o in (boxes, labels))
    fate,first = torch.rand(y.shape, generator=g),torch.arange(y.shape[1]) < labels.shape[1]
    b = b + torch.where(first, .4*(fate > .8), 1.5*(fate > .8))[...,None]*torch.randn(b.shape, generator=g)*(b[...,2:]-b[...,:2]).repeat(1, 1, 2)
    y = torch.where((fate < .2) & first, 3-y, y)*(y > 0)*(fate > torch.where(first, .1, .6))
    scores = torch.rand(y.shape, generator=g)*(y > 0)
    found = [b, y.clamp(0), scores]
    if more and more[0].shape[-1] > 2: found.append(torch.rand(*y.shape, 28, 28, generator=g)*.5+.45)
    elif more:
        p = more[0].as_subclass(torch.Tensor).view(*labels.shape, -1, 2).nan_to_num()
        found.append(torch.cat([torch.cat([p]*2, 1), torch.ones(*y.shape, p.shape[2], 1)], -1))
    best = scores.argsort(1, descending=True)
    def filled(o): return torch.cat([o, o.new_zeros(12-len(o), *o.shape[1:])])
    return tuple(torch.stack([filled(o[j]) for o,j in zip(f, best)]) for f in found), dict(loss=scores.sum())

def interpreted(records, task='detection', **kw):
    import learnkit.task.detection as d
    learn = getattr(d, f'{task}_learner')(getattr(d, f'{task}_dls')(records, size=64, bs=4, **kw), pretrained=False, precision='fp32')
    learn.model.forward = cheat
    return learn.interpret(learn.dls.test_dl(records, with_labels=True))

@pytest.fixture(scope='module')
def interp(scenes): return interpreted(scenes)

def test_report_adds_up(interp, scenes):
    r,rows = interp.report(),interp.errors()
    assert r.equals(object_report(interp)) and list(r.index) == ['cat', 'dog', 'all']
    assert list(r) == ['AP', 'AP50', 'objects', 'found', 'right', *ERRORS]
    for k in ('objects', *ERRORS): assert r[k].iloc[:2].sum() == r[k]['all']
    assert r.objects['all'] == sum(len(o.boxes) for o in scenes) and r[list(ERRORS)].loc['all'].sum() == len(rows)
    assert {*rows.kind} == {*ERRORS}, f'an error of each kind is wanted, {rows.kind.value_counts()}'
    for o in r.index:
        right,wrong = r.found[o]*r.objects[o],r.loc[o, list(ERRORS[1:])].sum()
        assert right == pytest.approx(round(right), abs=.05) and r.right[o] == pytest.approx(right/(right+wrong), abs=2e-3)
    n = sum(v >= .25 for f in interp.facts for v in f['scores'])
    assert n == round(r.found['all']*r.objects['all']) + r.loc['all', list(ERRORS[1:])].sum()

def test_scores_are_measured_in_the_files(interp, scenes):
    s = interp.scores
    assert interp.scores is s and s.classes == ['cat', 'dog'] and s.areas == ['all', 'small', 'medium', 'large']
    r = interp.report()
    assert r.AP['all'] == pytest.approx(s.mAP, abs=1e-3) and r.AP50['cat'] == pytest.approx(s.mean(.5, label='cat'), abs=1e-3)
    assert 0 < s.mAP <= s.mAP50 < 1
    small = np.array([(b[2]-b[0])*(b[3]-b[1]) < 32**2 for o in scenes for b in o.boxes])
    assert np.isnan(s.mean(area='small')) == (not small.any())

def test_errors_name_files(interp, scenes):
    rows = interp.errors()
    assert [str(scenes[i].image) for i in rows.picture] == rows.file.tolist()
    assert len(interp.errors(thresh=.99)) and {*interp.errors(thresh=1.1).kind} == {'missed'}
    assert 'poorly placed' not in {*interp.errors(least=.05).kind}

def test_pictures_are_drawn(interp):
    ax = interp.plot_precision_recall()
    said = [o.get_text() for o in ax.get_legend().get_texts()]
    assert sorted(o.split()[0] for o in said) == ['cat', 'dog'] and all(f'{interp.scores.mean(.5, label=o.split()[0]):.2f}' == o.split()[1] for o in said)
    lines,dots = ax.lines[::2],ax.lines[1::2]
    assert all((np.diff(o.get_ydata()) <= 1e-9).all() for o in lines), 'precision never rises with recall'
    for line,dot in zip(lines, dots):
        (x,),(y,) = dot.get_data()
        assert y <= np.interp(x, *line.get_data())+.02, 'the working point lies on its curve or below'
    assert len(interp.plot_precision_recall(.75, classes='cat', thresh=.5).lines) == 2
    with pytest.raises(DataError, match='at=0.42 is none of the overlaps 0.50'): interp.plot_precision_recall(.42)
    with pytest.raises(NotFound, match='class'): interp.plot_precision_recall(classes=['bird'])
    ax = interp.plot_errors()
    high = sum(o.get_height() for o in ax.patches)
    assert high == len(interp.errors()) and f"{interp.report().objects['all']} objects" in ax.get_title()
    axs = interp.plot_worst(4, ncols=3)
    first = interp.errors().picture.value_counts().iloc[0]
    assert len(axs) == 4 and sum(int(o.split()[0]) for o in axs[0].get_title().split(', ')) == first
    assert len(interp.plot_worst(99)) == len(interp) and len(interp.plot_top_losses(2)) == 2

@pytest.mark.parametrize('task,extra', [('instance', 'masks'), ('pose', 'points')])
def test_shapes_and_poses_of_a_learner(scenes, task, extra):
    it = interpreted(scenes[:4], task)
    assert extra in it.facts[0] and list(it.report().index) == ['cat', 'dog', 'all'] and len(it.errors())
    assert it.scores.areas == ['all', *['small']*(extra == 'masks'), 'medium', 'large']
    assert len(it.plot_worst(2)) == 2 and it.plot_precision_recall() and it.plot_errors()

def test_nothing_found(scenes):
    it = interpreted(scenes)
    it.preds = tuple(o*0 for o in it.preds)
    assert it.scores.mAP == 0 and {*it.errors().kind} == {'missed'}
    r = it.report()
    assert r.found['all'] == 0 and np.isnan(r.right['all']) and r.missed['all'] == r.objects['all']
    assert it.plot_precision_recall() and it.plot_errors() and it.plot_worst(1)

def test_crowds_of_records(scenes):
    rs = scenes.map(lambda r: r)
    for r in rs: r.crowd = [False]*len(r.boxes)
    try:
        rs[1].crowd[0] = True
        it = interpreted(rs)
        assert it.report().objects['all'] == sum(len(o.boxes) for o in rs)-1
    finally:
        for r in rs: r.crowd = None

def test_other_tasks(drawings, one_thread):
    from learnkit.task.classification import classification_dls, classification_learner
    it = classification_learner(classification_dls(drawings, size=32, bs=16), 'small', precision='fp32').interpret()
    asked = [lambda: it.scores, it.errors, it.plot_precision_recall, it.plot_errors, lambda: object_report(it)]
    for f in asked:
        with pytest.raises(DataError, match='for answers with boxes, and those of the task classification have label, prob'): f()
    with pytest.raises(DataError, match='no plot_worst for answers with label, prob, probs'): it.plot_worst()
    assert isinstance(it.report(), pd.DataFrame) and 'f1' in it.report()
