"Learners that make pictures: two optimisers that leave each other alone, repeatable samples, training that goes on where it stopped."
import json, subprocess, sys
import pytest, torch
import learnkit.all as lk
from learnkit.cli import main
from learnkit.data.images import open_image
from learnkit.models.gan import GAN, GENERATORS
from learnkit.train.generate import TrainingBroke

pytestmark = pytest.mark.usefixtures('one_thread')
GANS = sorted(k for k,v in GENERATORS.items() if issubclass(v, GAN))
SMALL = dict(vae=dict(width=4), diffusion=dict(width=8))

def loaders(path, **kw): return lk.generation_dls(path, **(dict(size=16, bs=16) | kw))

def learner(path, kind='dcgan', seed=1, tmp='.', model_kw=None, **kw):
    "A small learner of `kind` on the drawings in `path`."
    lk.set_seed(seed)
    return lk.generation_learner(loaders(path, **kw), kind, model_kw=dict(width=4) | SMALL.get(kind, {}) | (model_kw or {}), precision='fp32', path=tmp)

def copies(net): return [p.detach().clone() for p in net.parameters()]
def alike(a, b): return all(torch.equal(x, y) for x,y in zip(a, b, strict=True))
def pictures(o): return [im.tobytes() for im in o]

@pytest.mark.parametrize('kind', GANS)
def test_who_is_not_in_turn_does_not_move_by_one_bit(kind, drawings):
    learn = learner(drawings, kind)
    net,moves = learn.model,[]
    net.n_critic = 2
    learn.create_opt()
    learn.fit(1) # momentum is there now
    x,*y = learn.dls.train.one_batch()
    learn._split((x, *y))
    x,y = x.as_subclass(torch.Tensor),(learn.xb[1].as_subclass(torch.Tensor) if len(learn.xb) > 1 else None)
    net.train()
    for losses,moving,still in ((learn._critic_losses, net.critic, net.generator), (learn._generator_losses, net.generator, net.critic)):
        a,b = copies(moving),copies(still)
        learn._turn(x, y, losses)
        moves.append((alike(a, copies(moving)), alike(b, copies(still))))
    assert moves == [(False, True), (False, True)]

def test_the_generator_waits_for_n_critic_steps(drawings):
    learn = learner(drawings, 'wgan_gp')
    learn.model.n_critic,turns = 2,[]
    turn = learn._turn
    learn._turn = lambda x, y, losses: (turns.append(losses.__name__), turn(x, y, losses))[1]
    learn.fit(1)
    assert turns == ['_critic_losses', '_critic_losses', '_generator_losses']*2

def test_both_rates_are_visible_and_scheduled(drawings):
    learn = learner(drawings)
    learn.fine_tune(2, base_lr=(1e-3, 4e-3))
    assert len(learn.opt.hypers) == 2 and learn.opt.hypers[1]['lr'] == pytest.approx(4*learn.opt.hypers[0]['lr'])
    assert learn.opt.hypers[1]['lr'] < 1e-3 and max(learn.recorder.lrs) == pytest.approx(4e-3)
    learn.fit(1, lr=(1e-4, 2e-4))
    assert [h['lr'] for h in learn.opt.hypers] == [1e-4, 2e-4]

@pytest.mark.parametrize('kind', sorted(GENERATORS))
def test_same_seed_same_samples_whatever_their_number(kind, drawings):
    learn = learner(drawings, kind)
    a,b = learn.sample(3, seed=5),learn.sample(5, seed=5)
    assert pictures(a) == pictures(learn.sample(3, seed=5)) and pictures(a) != pictures(learn.sample(3, seed=6))
    x,y = (learn.sample_tensor(n, seed=5, bs=2)[0][:3] for n in (3, 5))
    assert torch.allclose(x, y, atol=1e-5) and len(b) == 5 and a[0].size == (16, 16)

@pytest.mark.parametrize('kind', ['dcgan', 'infogan', 'cgan', 'vae', 'diffusion'])
def test_stop_and_continue_is_running_through(kind, drawings, tmp_path):
    through = learner(drawings, kind, tmp=tmp_path)
    through.fine_tune(4)
    first = learner(drawings, kind, tmp=tmp_path)
    def stop(): raise KeyboardInterrupt
    class Stop(lk.Callback):
        def before_epoch(self):
            if self.epoch == 2: stop()
    with pytest.raises(KeyboardInterrupt): first.fine_tune(4, cbs=Stop())
    first.save('half')
    then = learner(drawings, kind, seed=9, tmp=tmp_path).load('half')
    torch.manual_seed(123)
    then.fine_tune(4, start_epoch=2)
    a,b = through.model.state_dict(),then.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert then.model.life[0] == 4

def test_a_bundle_makes_the_same_pictures_and_goes_on(drawings, tmp_path):
    learn = learner(drawings, 'cgan', tmp=tmp_path, grey=True)
    learn.fit(1)
    again = lk.load_learner(learn.export('made.learnkit'))
    assert type(again) is type(learn) and again.sample(1)[0].mode == 'L'
    assert pictures(again.sample(4, 'dogs', seed=2)) == pictures(learn.sample(4, 'dogs', seed=2))
    assert list(again.dls.vocab) == ['cats', 'dogs']

def test_labels_are_asked_for_by_name_number_and_list(drawings):
    learn = learner(drawings, 'cgan')
    x = [learn.sample_tensor(2, o, seed=1)[1].tolist() for o in ('dogs', 1, ['cats', 'dogs'])]
    assert x == [[1, 1], [1, 1], [0, 1]]
    assert learn.predict('dogs').label == 'dogs' and learn.predict(['cats', 3])[0].label == 'cats'
    with pytest.raises(lk.NotFound, match='no class .dog.*dogs'): learn.sample(1, 'dog')
    with pytest.raises(lk.DataError, match='no class number 7'): learn.sample(1, 7)
    with pytest.raises(lk.DataError, match='2 labels for 3'): learn.sample(3, ['cats', 'dogs'])
    with pytest.raises(lk.DataError, match='knows no classes'): learner(drawings).sample(1, 'dogs')
    with pytest.raises(lk.DataError, match='n=0'): learn.sample(0)

def test_nan_stops_before_the_step(drawings):
    for kind in ('dcgan', 'vae'):
        learn = learner(drawings, kind)
        learn.create_opt()
        before = copies(learn.model)
        name = 'critic_loss' if kind == 'dcgan' else 'forward'
        setattr(learn.model, name, lambda *args: dict(broken=next(learn.model.parameters()).sum()*float('nan')))
        with pytest.raises(TrainingBroke, match=r'loss broken became nan in epoch 0, step (0|3).*learning rate'): learn.fit(1)
        assert alike(before, copies(learn.model))

def test_collapse_is_told_once(drawings, capsys):
    learn = learner(drawings)
    learn.watch.patience = 0
    with lk.settings.using(progress=True): learn.fit(2, lr=(0., 0.))
    assert capsys.readouterr().out.count('nearly all alike') == 1

def test_pictures_are_kept_drawn_and_written(drawings, tmp_path):
    learn = learner(drawings).keep_samples(6, folder=tmp_path/'s')
    with pytest.raises(lk.DataError, match='train first'): learn.show_progress()
    learn.fit(2)
    assert [e for e,_ in learn.kept] == [1, 2] and learn.kept[0][1].shape == (6, 16, 16, 3)
    assert sorted(o.name for o in (tmp_path/'s').iterdir()) == ['epoch_0001.png', 'epoch_0002.png']
    assert len(learn.show_progress(4, gif=tmp_path/'x.gif')) == 8 and open_image(tmp_path/'x.gif').size == (3*34-2, 2*34-2)

@pytest.mark.parametrize('kind', ['vae', 'dcgan'])
def test_validation_keeps_no_pictures_and_ends(kind, drawings):
    learn = learner(drawings, kind)
    learn.validate()
    assert learn.kept == []
    learn.fit(1)
    learn.validate()
    assert len(learn.kept) == 1

def test_interpolation_begins_and_ends_where_it_should(drawings):
    learn = learner(drawings)
    a = learn.interpolate(3, 4, steps=5)
    assert len(a) == 5 and pictures(a[:1]) == pictures(learn.sample(1, seed=3)) and pictures(a[-1:]) == pictures(learn.sample(1, seed=4))
    with pytest.raises(lk.DataError, match='neither a seed'): learn.interpolate('cat.jpg', 4)

def test_averages_follow(drawings):
    learn = learner(drawings)
    net = learn.model
    start = copies(net.averaged)
    learn.fit(1)
    assert not alike(start, copies(net.averaged)) and not alike(copies(net.generator), copies(net.averaged))
    assert not any(p.requires_grad for p in net.averaged.parameters())

def test_what_a_gan_does_not_do(drawings):
    learn = learner(drawings)
    with pytest.raises(lk.DataError, match='no learning rate can be found'): learn.lr_find()
    with pytest.raises(lk.DataError, match='none can be frozen'): learn.freeze()
    with pytest.raises(lk.NotFound, match='dcgn.*dcgan'): lk.gan_learner(learn.dls, 'dcgn')
    with pytest.raises(TypeError, match='gan_learner has no argument'): lk.gan_learner(learn.dls, widht=3)
    with pytest.raises(lk.DataError, match='squares'): lk.gan_learner(loaders(drawings, size=(16, 32)))
    with pytest.raises(lk.DataError, match='2 or more classes'): lk.gan_learner(loaders(drawings, labels=False), 'cgan')

def test_pictures_without_labels(drawings):
    dls = loaders(drawings/'train'/'cats', mirror=True)
    assert len(dls.one_batch()) == 1 and dls.show_batch(max_n=2)
    learn = lk.gan_learner(dls, width=4, precision='fp32')
    learn.fit(1)
    assert learn.recorder.metric_names == ['epoch', 'train_loss', 'critic', 'generator', 'time'] and len(learn.sample(2)) == 2
    with pytest.raises(lk.DataError, match='has no label'): loaders(drawings/'train'/'cats', labels=True)

def test_half_precision(drawings):
    for kind in GANS:
        lk.set_seed(1)
        learn = lk.gan_learner(loaders(drawings), kind, width=4, precision='bf16')
        learn.fit(1)
        assert learn.half == 'bf16' and torch.isfinite(learn.sample_tensor(2)[0]).all()

def test_command_line(drawings, tmp_path, capsys):
    out = tmp_path/'out'
    assert main(['train', 'generation', str(drawings), '--kind', 'dcgan', '--size', '16', '--bs', '16', '--epochs', '2', '--grey', '--out', str(out)]) == 0
    assert {'batch.png', 'curves.png', 'results.png', 'progress.png', 'progress.gif', 'nearest.png', 'model.learnkit'} <= {o.name for o in out.iterdir()}
    assert len([*(out/'samples').iterdir()]) == 2
    assert main(['sample', str(out/'model.learnkit'), '-n', '12', '--out', str(tmp_path/'made'), '--seed', '3', '--json']) == 0
    res = json.loads(capsys.readouterr().out.partition('{\n')[2].join(['{', '']))
    assert len(res['pictures']) == 12 and open_image(res['pictures'][0], 'L').size == (16, 16)
    same = lk.load_learner(out/'model.learnkit').sample(12, seed=3)[11]
    assert open_image(res['pictures'][11], 'L').tobytes() == same.tobytes()
    assert main(['predict', str(out/'model.learnkit'), str(drawings)]) == 1 and 'learnkit sample' in capsys.readouterr().err
    assert main(['train', 'generation', str(drawings), '--kind', 'dcgn']) == 1 and 'dcgan' in capsys.readouterr().err
    assert main(['train', 'classification', str(drawings), '--grey']) == 1 and '--grey' in capsys.readouterr().err

def test_a_fresh_process_samples_from_a_bundle(drawings, tmp_path):
    path = learner(drawings, tmp=tmp_path).export('a.learnkit')
    words = ['sample', str(path), '-n', '2', '--out', str(tmp_path/'made')]
    assert subprocess.run([sys.executable, '-m', 'learnkit.cli', *words], capture_output=True, text=True).stdout.startswith('2 pictures')
