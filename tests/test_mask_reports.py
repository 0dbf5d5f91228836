"Reports about masks: figures counted by hand, those of training again, little memory, the worst pictures first, and clear words for other tasks."
import gc, math, types, weakref
import numpy as np, pandas as pd, pytest, torch
import learnkit.all as lk
from learnkit.core import DataError, NotFound
from learnkit.data.masks import IGNORE
from learnkit.data.show import class_colors
from learnkit.use.interpret import VERBS, in_short, verb_for
from PIL import Image
from torch import nn

NAMES = ['sky', 'sea', 'sand', 'ship']
W,H,SIZE = 40,30,(24, 32) # pixels of the files; height and width for the network

def written(top, n=13, seed=0):
    "Pictures with masks of three classes, a class that never occurs, and parts that count for nothing; in the last picture nothing counts."
    dice = np.random.RandomState(seed)
    for o in ('images', 'labels'): (top/o).mkdir()
    for i in range(n):
        mask = dice.randint(0, 3 if i % 3 else 2, (6, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
        mask[:5] = IGNORE
        x = (mask[...,None]*[40, 70, 25] + dice.randint(0, 90, (H, W, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(x).save(top/'images'/f'p{i:02d}.png'), Image.fromarray(mask).save(top/'labels'/f'p{i:02d}.png')
    rs = lk.read_masks(top, codes=NAMES, ignore=IGNORE, valid=lambda o: o.stem > 'p02')
    Image.fromarray(np.full_like(mask, IGNORE)).save(rs[-1].mask)
    return rs

@pytest.fixture(scope='module')
def records(tmp_path_factory, one_thread): return written(tmp_path_factory.mktemp('masks'))

def painter(n=4, seed=3, never=3):
    "A network that hardly depends on anything but colours, and never says the class `never`."
    torch.manual_seed(seed)
    net = nn.Conv2d(3, n, 3, padding=1)
    net.bias.data[never] = -1e4
    return net

@pytest.fixture(scope='module')
def learn(records):
    res = lk.segmentation_learner(lk.segmentation_dls(records, size=SIZE, bs=3), precision='fp32')
    res.model = painter()
    return res

@pytest.fixture(scope='module')
def interp(learn): return learn.interpret()

@pytest.fixture(scope='module')
def table(interp):
    "The table of all pixels, and that of each picture, counted one by one."
    res = np.zeros((len(interp), 4, 4), int)
    for c,true,said in zip(res, interp.targs.tolist(), interp.decoded.tolist()):
        for a,b in zip(sum(true, []), sum(said, [])):
            if a != IGNORE: c[a,b] += 1
    return res.sum(0),res

def iou(c): return np.array([c[i,i]/(c[i].sum()+c[:,i].sum()-c[i,i]) if c[i].any() or c[:,i].any() else math.nan for i in range(len(c))])

# What is kept

def test_what_is_remembered(interp, learn, records):
    n = len(records.valid)
    assert len(interp) == n == 10 and interp.preds is None and interp.kinds == ['labels', 'shares', 'masks']
    for o in (interp.targs, interp.decoded): assert o.dtype == torch.uint8 and o.shape == (n, *SIZE)
    preds,targs,losses = learn.get_preds(with_loss=True)
    assert torch.equal(targs.byte(), interp.targs) and torch.equal(preds.argmax(1).byte(), interp.decoded.as_subclass(torch.Tensor))
    assert torch.allclose(losses.reshape(n, -1).mean(1), interp.losses, atol=1e-6) and interp.losses[-1] == 0
    assert [str(o) for o in interp.pictures] == [str(o.image) for o in records.valid] and 'Interpretation of 10 pictures' in repr(interp)

def test_no_scores_stay_in_memory(learn):
    "Only the batch at work is there, and afterwards nothing but masks, one byte a pixel."
    there,most = [],[]
    def seen(m, inp, out):
        gc.collect()
        most.append(sum(o() is not None for o in there))
        there.append(weakref.ref(out))
    hook = learn.model.register_forward_hook(seen)
    try: interp = learn.interpret(learn.dls.test_dl(learn.dls.valid_ds.items, with_labels=True, bs=1))
    finally: hook.remove()
    learn.pred = None
    gc.collect()
    assert len(most) == 10 and max(most) <= 1 and not any(o() is not None for o in there)
    found = [o for o in vars(interp).values() if isinstance(o, torch.Tensor)]
    assert len(found) == 3 and sum(o.numel()*o.element_size() for o in found) == 10*(2*SIZE[0]*SIZE[1]+4)

def test_one_pass_in_silence(learn, capsys):
    class Passes(lk.Callback):
        n = 0
        def before_validate(self): self.n += 1
    cb = Passes()
    with learn.added_cbs([cb]): learn.interpret()
    assert cb.n == 1 and capsys.readouterr().out == ''
    with lk.settings.using(progress=True): learn.interpret()
    assert capsys.readouterr().out == '', 'no terminal, no bar'

def test_facts_are_those_of_predict(interp, learn):
    files = [*interp.pictures]
    assert len(interp.facts) == 10 and interp.facts[0] == learn.predict(files[0]).to_dict() and interp.facts[-1] == learn.predict(files[-1]).to_dict()
    assert interp.facts[1:3] == [o.to_dict() for o in learn.predict(files[1:3])] and len([*interp.facts]) == 10
    assert sum(interp.facts[0]['shares']) == pytest.approx(1) and interp.facts[0]['masks'][0]['size'] == [H, W]
    with pytest.raises(IndexError): interp.facts[10]
    said = [np.asarray(learn.predict(o)[1]) for o in files]
    assert np.mean([a != b.numpy() for a,b in zip(said, interp.decoded)]) < 1e-3

@pytest.mark.parametrize('task,read', [('classification', lk.read_folder), ('detection', lambda path: lk.read_coco(path/'boxes.json')),
    ('keypoints', lambda path: lk.read_points(path/'points.csv')), ('instance', lambda path: lk.read_coco(path/'boxes.json'))])
def test_batch_by_batch_is_all_at_once(task, read, drawings, one_thread):
    learn = getattr(lk, f'{task}_learner')(getattr(lk, f'{task}_dls')(read(drawings)[::4], size=32, bs=3), precision='fp32')
    interp = learn.interpret()
    preds,targs,decoded,*losses = learn.get_preds(with_decoded=True, with_loss=not hasattr(learn.loss_func, 'each'), reorder=False)
    def same(a, b): return all(map(same, a, b)) if isinstance(a, (tuple, list, lk.L)) else torch.allclose(a.float(), b.float(), atol=1e-6, equal_nan=True)
    assert same(preds, interp.preds) and same(decoded, interp.decoded)
    assert len(interp.facts) == len(interp) == len(interp.truth) == len(interp.guess) == len(learn.dls.valid_ds) and isinstance(interp.facts, lk.L)
    if not isinstance(targs, tuple): assert same(targs, interp.targs)
    assert same(losses[0] if losses else learn.loss_func.each(preds, interp.targs), interp.losses)
    assert [*interp.facts[0]] == interp.kinds and len(interp.top_losses(2)) == 2

# Figures

def test_report_is_counted(interp, table):
    r,(c,each) = interp.report(),table
    assert list(r.index) == [*NAMES, 'all'] and list(r) == ['IoU', 'dice', 'precision', 'recall', 'pixels', 'pictures']
    hit,true,said = c.diagonal(),c.sum(1),c.sum(0)
    assert np.allclose(r.IoU[:4], iou(c), atol=6e-4, equal_nan=True) and math.isnan(r.IoU['ship'])
    with np.errstate(invalid='ignore'): expected = dict(dice=2*hit/(true+said), precision=hit/said, recall=hit/true, pixels=true/c.sum())
    for k,v in expected.items(): assert np.allclose(r[k][:4], v, atol=6e-4, equal_nan=True)
    assert r.pictures.tolist() == [*(each.sum(2) > 0).sum(0), 10] and r.pictures['sky'] == 9 and 'int' in str(r.pictures.dtype)
    assert r.pixels['all'] == 1 and r.recall['all'] == pytest.approx(np.nanmean(expected['recall']), abs=6e-4)

def test_figures_are_those_of_training(interp, learn):
    valid = dict(zip(['loss', *[o.name for o in learn.metrics]], learn.validate()))
    assert interp.report().IoU['all'] == pytest.approx(valid['mIoU'], abs=6e-4)
    title = interp.plot_iou().get_title()
    assert title == f"mIoU {valid['mIoU']:.3f}, accuracy {valid['accuracy']:.3f}"

def test_bars(interp, table):
    from matplotlib import pyplot as plt
    _,ax = plt.subplots()
    assert interp.plot_iou(ax) is ax
    said = [o.get_text() for o in ax.get_yticklabels()]
    v = iou(table[0])
    order = [i for i in np.argsort(v) if not math.isnan(v[i])]
    assert said == [NAMES[i] for i in order] and len(said) == 3, 'a class without pixels has no bar'
    assert np.allclose([o.get_width() for o in ax.patches], v[order]) and ax.lines[0].get_xdata()[0] == pytest.approx(np.nanmean(v))
    assert np.allclose([o.get_facecolor()[:3] for o in ax.patches], class_colors(4)[order])

def test_confusion_of_pixels(interp, table):
    c = table[0]
    assert np.array_equal(interp.confusion_matrix(), c)
    pairs = interp.most_confused()
    assert len(pairs) == ((c > 0) & ~np.eye(4, dtype=bool)).sum() and pairs[0][2] == (c*(1-np.eye(4))).max()
    assert all(c[NAMES.index(a),NAMES.index(b)] == n for a,b,n in pairs)
    def texts(**kw): return [o.get_text() for o in interp.plot_confusion_matrix(**kw).axes[0].texts]
    assert texts() == [str(o) for o in c.flatten()], 'small counts are shown as they are'
    assert {*texts(normalize=True)} < {f'{o/100:.2f}' for o in range(1, 101)}

def test_large_counts_are_shown_as_shares(interp):
    it = types.SimpleNamespace(confusion_matrix=lambda: np.array([[30000, 10000], [1, 5000]]), vocab=['a', 'b'])
    draw = type(interp).plot_confusion_matrix
    assert [o.get_text() for o in draw(it).axes[0].texts] == ['0.75', '0.25', '1.00']
    assert [o.get_text() for o in draw(it, normalize=False).axes[0].texts] == ['30000', '10000', '1', '5000']

# Pictures

def test_worst_first(interp, table, records):
    each = table[1]
    with np.errstate(invalid='ignore'): ious = np.array([[v if t else math.nan for v,t in zip(iou(c), c.any(1))] for c in each])
    mean = np.array([np.nanmean(o) if not np.isnan(o).all() else 2 for o in ious])
    t = interp.worst(99)
    assert t.index.tolist() == np.argsort(mean, kind='stable').tolist() and list(t) == ['file', 'IoU', 'accuracy', 'lowest']
    assert t.index[-1] == 9 and math.isnan(t.IoU.iloc[-1]) and t.lowest.iloc[-1] == 'nothing', 'nothing counts in the last picture'
    for i,row in t.iloc[:-1].iterrows():
        k = int(np.nanargmin(ious[i]))
        assert row.file == str(records.valid[i].image) and row.IoU == pytest.approx(mean[i], abs=6e-4) and row.lowest == f'{NAMES[k]} {ious[i,k]:.2f}'
        assert row.accuracy == pytest.approx(each[i].trace()/each[i].sum(), abs=6e-4)
    assert len(interp.worst(2)) == 2

def test_worst_are_drawn(interp):
    axs = interp.plot_worst(3, ncols=2)
    t = interp.worst(3)
    assert [o.get_title() for o in axs] == [f'IoU {r.IoU:.2f}, lowest: {r.lowest}' for r in t.itertuples()]
    i,(both,wrong) = t.index[0],[o.get_array() for o in axs[0].images]
    red,black = (wrong == [1, 0, 0]).all(2),(wrong == 0).all(2)
    true,said = interp.targs[i].numpy(),interp.decoded[i].numpy()
    assert np.array_equal(black, true == IGNORE) and np.array_equal(red, (true != said) & (true != IGNORE)) and red.any() and black.any()
    assert both.shape[:2] == (SIZE[0], 2*SIZE[1]+2) and axs[0].get_xlim()[1] == pytest.approx(3*SIZE[1]+3.5)
    assert len(interp.plot_worst(99)) == 10 and len(interp.plot_worst(1)) == 1
    with pytest.raises(TypeError, match='thresh'): interp.plot_worst(2, thresh=.5)

def test_losses_in_words(interp):
    t = interp.top_losses(10)
    assert t.target.iloc[-1] == 'nothing' and t.target.str.match(r'^s\w+ 0\.\d\d(, s\w+ 0\.\d\d)*$').iloc[:-1].all()
    assert len(interp.plot_top_losses(2)) == 2
    assert in_short(torch.tensor([[0, 0, 2, 255]]), ['a', 'b', 'c']) == 'a 0.67, c 0.33' and in_short(torch.tensor([[7]])) == '7 1.00'
    assert in_short(torch.tensor([[0, 1], [2, 3]]).byte()) == '0 0.25, 1 0.25, 2 0.25, …' and in_short('cat') == 'cat'

# Grad-CAM

def test_grad_cam_of_a_class(records):
    learn = lk.segmentation_learner(lk.segmentation_dls(records, size=64, bs=3), precision='fp32')
    f = records[0].image
    said = learn.predict(f)[1]
    largest = int(torch.bincount(said.flatten().long()).argmax())
    heat,x = learn.grad_cam(f)
    assert heat.ndim == 2 and 0 <= heat.min() and heat.max() == 1 and x.shape[-2:] == (64, 64)
    assert torch.equal(heat, learn.grad_cam(f, largest)[0]) and torch.equal(heat, learn.grad_cam(f, NAMES[largest])[0])
    with torch.no_grad(): learn.model.score.bias[3] -= 1e4
    with pytest.raises(DataError, match=r'No pixel of this picture was taken for ship.*There are: s'): learn.grad_cam(f, 'ship')
    with pytest.raises(NotFound, match='There is no class .shop.'): learn.grad_cam(f, 'shop')
    axs = learn.interpret().plot_grad_cam(2)
    assert {o.get_title() for o in axs} <= {*NAMES}

def test_grad_cam_says_what_it_explains(drawings, one_thread):
    learn = lk.keypoints_learner(lk.keypoints_dls(lk.read_points(drawings/'points.csv'), size=32, bs=16), precision='fp32')
    with pytest.raises(DataError, match='explains the score of a class'): learn.grad_cam(learn.dls.valid_ds.items[0].image)
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'small', precision='fp32')
    f = learn.dls.valid_ds.items[0].image
    cats,dogs = (learn.grad_cam(f, o)[0] for o in ('cats', 'dogs'))
    assert torch.equal(cats, learn.grad_cam(f, 0)[0]) and torch.equal(learn.grad_cam(f)[0], cats if learn.predict(f).label == 'cats' else dogs)

# Other answers

def test_other_tasks(drawings, one_thread):
    it = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'small', precision='fp32').interpret()
    for f in (it.plot_iou, it.worst):
        with pytest.raises(DataError, match='for answers with shares, and those of the task classification have label, prob'): f()
    with pytest.raises(DataError, match=r'no plot_worst for answers with label, prob, probs, .* There is report, confusion_matrix, top_losses'): it.plot_worst()
    assert isinstance(it.report(), pd.DataFrame) and it.confusion_matrix().sum() == len(it)

@pytest.mark.parametrize('column', ['labels', 'value'])
def test_tables_of_other_answers(column, drawings, one_thread):
    task = dict(labels='multilabel', value='regression')[column]
    rs = lk.read_csv(drawings/'labels.csv', **{column:dict(labels='attributes', value='age')[column]})
    it = getattr(lk, f'{task}_learner')(getattr(lk, f'{task}_dls')(rs, size=32, bs=16), 'small', precision='fp32').interpret()
    assert len(it.report()) and len(it.top_losses(2)) == 2
    with pytest.raises(DataError, match='There is no confusion_matrix for answers with'): it.confusion_matrix()

def test_a_new_kind_of_answer(interp, monkeypatch):
    "What was entered last counts, where several functions fit."
    monkeypatch.setattr('learnkit.use.interpret.VERBS', {**VERBS})
    assert verb_for('report', 'masks')(len) is len and interp.report() == 10
    with pytest.raises(DataError, match='no dance for answers with labels, shares, masks'): interp._verb('dance')

def test_one_picture(drawings, one_thread):
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'small', precision='fp32')
    it = learn.interpret(learn.dls.test_dl(learn.dls.valid_ds.items[:1], with_labels=True))
    assert len(it) == len(it.facts) == 1 and it.preds.shape == (1, 2) and it.targs.shape == (1,)
    assert it.confusion_matrix().sum() == 1 and len(it.report()) == 2 and it.top_losses().target.tolist() == ['cats']

def test_nothing_to_hold_answers_against(learn):
    with pytest.raises(DataError, match='Give pictures with targets'): learn.interpret(learn.dls.test_dl([o.image for o in learn.dls.valid_ds.items[:2]]))
    with pytest.raises(DataError, match='no pictures'): learn.interpret(learn.dls.valid.new(learn.dls.valid_ds.new_empty()))

def test_masks_without_a_pixel_that_counts(learn, records):
    it = learn.interpret(learn.dls.test_dl([records.valid[-1]], with_labels=True))
    r = it.report()
    assert r.IoU.isna().all() and r.pictures.tolist() == [0]*4+[1] and not it.confusion_matrix().any() and it.most_confused() == []
    assert it.worst(3).lowest.tolist() == ['nothing'] and len(it.plot_worst()) == 1 and it.plot_iou() is not None
