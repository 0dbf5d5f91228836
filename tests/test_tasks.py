"Every registered task keeps the contract of the verbs, from drawings to a bundle that predicts the same."
import json, numpy as np
import pytest, torch
import learnkit.all as lk
from PIL import Image
from learnkit.data.images import open_image

def table(**column): return lambda path: lk.read_csv(path/'labels.csv', **column)

def objects(path): return lk.read_coco(path/'boxes.json')

READ = dict(classification=lk.read_folder, multilabel=table(labels='attributes'), regression=table(value='age'), detection=objects, instance=objects,
    pose=objects, keypoints=lambda path: lk.read_points(path/'points.csv'),
    segmentation=lambda path: lk.read_masks(path, images='.', masks='parts'), generation=lk.read_folder)

MAKES = {'generation'} # tasks whose learners make pictures and judge none

def trained(name, drawings, path):
    "A learner of the task called `name`, trained for one epoch."
    assert name in READ, f'add to READ how drawings are read for {name}'
    lk.set_seed(1)
    dls = getattr(lk, f'{name}_dls')(READ[name](drawings), size=32, bs=16)
    learn = getattr(lk, f'{name}_learner')(dls, path=path, precision='fp32')
    learn.fit_one_cycle(1)
    return learn

@pytest.fixture(params=sorted(lk.tasks()))
def any_learn(request, drawings, tmp_path): return trained(request.param, drawings, tmp_path)

@pytest.fixture(params=sorted(lk.tasks().keys()-MAKES))
def learn(request, drawings, tmp_path): return trained(request.param, drawings, tmp_path)

@pytest.fixture(params=sorted(MAKES))
def maker(request, drawings, tmp_path): return trained(request.param, drawings, tmp_path)

def same(a, b, eps=1e-6):
    "Equal plain Python values, numbers up to `eps`."
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k], eps) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(lambda x,y: same(x, y, eps), a, b))
    return abs(a-b) < eps or a != a and b != b if isinstance(a, float) else a == b

def test_verbs(any_learn):
    assert any_learn.task.name in lk.tasks() and len(any_learn.recorder.values) == 1
    any_learn.dls.show_batch(max_n=4)
    any_learn.show_results(max_n=4)
    any_learn.plot_curves()

def test_what_is_hard(learn): assert len(learn.interpret().top_losses(3)) == 3

def test_what_makes_pictures(maker):
    one,many = maker.predict(5),maker.predict([5, 6, None])
    assert isinstance(one[0], Image.Image) and isinstance(many, list) and len(many) == 3 and maker.predict([]) == []
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict() and one[0].tobytes() == many[0][0].tobytes()
    again = lk.load_learner(maker.export('model.learnkit'))
    assert [o.tobytes() for o in again.sample(3, seed=1)] == [o.tobytes() for o in maker.sample(3, seed=1)]
    assert {'frechet', 'kernel', 'precision', 'recall'} <= {*maker.interpret(n=8).scores}

def test_predict_one_many_and_bundle(learn):
    items = [learn.dls.valid_ds.items[i].image for i in range(5)]
    many,one = learn.predict(items),learn.predict(items[0])
    assert isinstance(many, list) and len(many) == 5 and isinstance(one, tuple)
    assert same(json.loads(json.dumps(one.to_dict())), one.to_dict())
    assert same(one.to_dict(), many[0].to_dict(), 1e-4)
    path = learn.export('model.learnkit')
    again = lk.load_learner(path).predict(items)
    assert all(same(a.to_dict(), b.to_dict()) for a,b in zip(many, again))

def test_predict_takes_every_kind_of_picture(learn):
    path = learn.dls.valid_ds.items[0].image
    pil = open_image(path)
    array = lk.np.array(pil)
    kinds = [path, str(path), path.read_bytes(), pil, array, torch.tensor(array), torch.tensor(array).permute(2, 0, 1), array/255.]
    facts = [learn.predict(o).to_dict() for o in kinds]
    assert all(same(facts[0], o, 1e-5) for o in facts)
    assert learn.predict([]) == []

def test_groups_and_freezing(learn):
    groups = learn.splitter(learn.model)
    assert len(groups) == 3 and sum(len(g) for g in groups) == len(list(learn.model.parameters()))
    learn.freeze()
    bn = {p for m in learn.model.modules() if isinstance(m, lk.nn.modules.batchnorm._BatchNorm) for p in m.parameters()}
    assert not any(p.requires_grad for g in groups[:2] for p in g if p not in bn)

def test_validation_agrees_with_predict(learn):
    preds = learn.predict([o.image for o in learn.dls.valid_ds.items])
    assert all(same(a, b.to_dict(), 1e-3) for a,b in zip(learn.interpret().facts, preds))

def test_rare_classes_count(drawings):
    rs = lk.read_folder(drawings)
    few = [r for r in rs if r.label == 'dogs' or r.split == 'valid'] + [r for r in rs.train if r.label == 'cats'][:8]
    learn = lk.classification_learner(lk.classification_dls(few, size=32), class_weights='balanced', label_smoothing=.1)
    cats,dogs = learn.loss_func.func.weight.tolist()
    assert cats/dogs == pytest.approx(32/8) and learn.loss_func.func.label_smoothing == .1

def test_arguments_that_do_not_exist(drawings):
    dls = lk.classification_dls(drawings, size=32, bs=16)
    with pytest.raises(TypeError, match='classification_learner has no argument .pretraned.*Did you mean pretrained'): lk.classification_learner(dls, pretraned=False)
    with pytest.raises(TypeError, match='vision_learner has no argument'): lk.vision_learner(dls, lk.resnet18, metrcs=lk.accuracy)
    with pytest.raises(TypeError, match='Did you mean bs'): lk.classification_dls(drawings, bz=3)

def test_a_path_without_an_obvious_reader(drawings):
    for f in (lk.multilabel_dls, lk.regression_dls):
        with pytest.raises(lk.DataError, match='read_csv'): f(drawings)

def test_a_set_of_weights_is_looked_for_by_its_name(drawings, monkeypatch):
    monkeypatch.setenv('LEARNKIT_OFFLINE', 'true')
    dls = lk.classification_dls(drawings, size=32, bs=16)
    with pytest.raises(lk.OfflineError, match='resnet50-0676ba61'): lk.vision_learner(dls, lk.models.resnet50, weights=lk.models.ResNet50_Weights.IMAGENET1K_V1)

def test_a_log_file_gets_one_line_an_epoch(drawings, capsys):
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'small', precision='fp32')
    with lk.settings.using(progress=True):
        learn.fit_one_cycle(2)
        rows = capsys.readouterr().out.splitlines()
        learn.lr_find(num_it=6, show_plot=False), learn.validate(), learn.predict(learn.dls.valid_ds.items[0].image)
    assert [o.split()[0] for o in rows] == ['loader:', 'epoch', '0', '1'] and capsys.readouterr().out == ''

def test_lr_find_and_interruption_leave_the_weights(drawings, tmp_path, monkeypatch):
    learn = lk.classification_learner(lk.classification_dls(drawings, size=32, bs=16), 'small', path=tmp_path/'work')
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    learn.lr_find(num_it=6, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items())
    def stop(self, *args): raise KeyboardInterrupt
    monkeypatch.setattr(lk.Recorder, 'after_train', stop)
    with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=20, show_plot=False)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and not (tmp_path/'work').exists()


def test_a_batch_is_mirrored_turned_and_lit(tmp_path):
    "A DataBlock keeps the last of several transforms of one class, which once left brightness as the only variation."
    lk.set_seed(0)
    rs = [lk.Record(Image.fromarray(np.repeat(np.repeat([[[0], [255]]], 32, 0), 16, 1).repeat(3, 2).astype(np.uint8)), label=o) for o in 'ab'*8]
    x = lk.classification_dls(rs, size=32, bs=12, augment=1.).train.one_batch()[0].as_subclass(torch.Tensor)
    left,right = x[..., :8].mean((1, 2, 3)), x[..., -8:].mean((1, 2, 3))
    assert 0 < (left > right).sum() < len(x), 'no picture, or every one, is mirrored'
    middle = (x[:, 0, :, 12:20]).std(-2).mean(-1)
    assert (middle > .01).any(), 'no picture is turned'
    assert x.amax((1, 2, 3)).std() > 0, 'no picture is darker than another'
