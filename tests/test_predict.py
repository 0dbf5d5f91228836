"Predicting by the short way says what validation says, and is never stale."
import pickle, pytest, torch
import learnkit.all as lk
from copy import deepcopy
from learnkit.train.speed import PackedConv, folded, for_answers
from PIL import Image
from torch import nn

@pytest.fixture
def learn(drawings, tmp_path, one_thread):
    lk.set_seed(4)
    learn = lk.classification_learner(lk.classification_dls(drawings, size=48, bs=16), path=tmp_path/'work', precision='fp32')
    learn.fit_one_cycle(1)
    return learn

def both(learn):
    "Probabilities of the validation pictures by validation, by `predict` of a list, and one by one."
    files = [o.image for o in learn.dls.valid_ds.items]
    valid = learn.get_preds()[0]
    return valid, torch.stack([p[2] for p in learn.predict(files)]), torch.stack([learn.predict(o)[2] for o in files])

def test_the_same_as_validation(learn):
    a,b,c = both(learn)
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(b, c, atol=1e-5)
    assert learn.predict_dtype == torch.float32

def test_never_stale(learn):
    "Training, loading and a changed weight are seen by the next prediction."
    file = learn.dls.valid_ds.items[0].image
    def p(): return learn.predict(file)[2]
    first = p()
    learn.save('m')
    learn.fit_one_cycle(1)
    assert not torch.allclose(first, p(), atol=1e-6)
    learn.load('m')
    assert torch.allclose(first, p(), atol=1e-6)
    with torch.no_grad(): learn.model[1][-1].weight.zero_()
    assert p().tolist() == pytest.approx([.5, .5], abs=.02)

def test_short_numbers(learn):
    a = both(learn)[1]
    b = both(learn.to_bf16())[1]
    assert learn.predict_dtype == torch.bfloat16 and 0 < (a-b).abs().max() < .1

def test_auto_measures_once(learn):
    learn.to_precision('auto').predict(learn.dls.valid_ds.items[0].image)
    assert learn.predict_dtype in (torch.float32, torch.bfloat16) and 'answer' in (lk.settings.cache_path/'speed.json').read_text()

def test_a_photograph_is_reduced_as_in_training(learn, tmp_path):
    f = tmp_path/'large.jpg'
    Image.open(learn.dls.valid_ds.items[0].image).resize((1600, 1600), Image.BICUBIC).save(f, quality=95)
    dl = learn.dls.test_dl([lk.Record(f)])
    assert torch.allclose(learn.get_preds(dl=dl)[0][0], learn.predict(f)[2], atol=1e-5)

def test_folding_falls_back():
    "A network whose steps PyTorch can't follow is copied; its parts that it can follow are folded."
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        def forward(self, x): return self.part(x) if x.mean() > 0 else -self.part(-x)
    m = Odd().eval()
    m.part[1].running_mean.uniform_()
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode(): assert torch.allclose(folded(m)(x), m(x), atol=1e-5)
    assert not any(isinstance(o, nn.BatchNorm2d) for o in folded(m).modules())
    assert any(isinstance(o, nn.BatchNorm2d) for o in m.modules()), 'the network itself is left alone'

@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='PyTorch has no oneDNN here')
def test_packed_weights():
    "Convolutions of all kinds answer alike with packed weights, for other batches and sizes too, also after copying."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Conv2d(3, 8, 3, stride=2, padding=1),nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
            self.c,self.d = nn.Conv2d(8, 8, 3, padding='same'),nn.Conv2d(8, 4, (3, 1), padding=(1, 0), padding_mode='reflect')
        def forward(self, x): return self.d(self.c(torch.relu(self.b(self.b(self.a(x))))))
    m,x,y = Net().eval(),torch.randn(1, 3, 32, 32),torch.randn(3, 3, 50, 41)
    nets = for_answers(m, x, ['fp32'])
    p = nets['fp32 packed']
    assert [isinstance(o, PackedConv) for o in (p.a, p.b, p.c, p.d)] == [True, True, False, False]
    with torch.inference_mode():
        for o,want in ((p, m), (deepcopy(p), m), (pickle.loads(pickle.dumps(p.a)), m.a)):
            for b in (x, y): assert torch.allclose(o(b), want(b), atol=1e-5)
