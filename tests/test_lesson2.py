"Rock, paper, scissors in two epochs, as lesson 2 has it: on the photographs of the game, and on the drawings that the lesson shows."
import random, statistics
import pytest
from learnkit.all import Callback, classification_dls, classification_learner, get_data, read_folder, set_seed

class EachStep(Callback):
    def __init__(self): self.right = []
    def after_loss(self):
        if self.training: self.right.append((self.pred.argmax(1) == self.y).float().mean().item())

def some(records, sign, seed, n_train=124, n_test=11):
    "Records of one sign: some to learn from, some to be tested on."
    rs = random.Random(seed).sample([r for r in records if r.label == sign], n_train+n_test)
    for i,r in enumerate(rs): r.split = 'train' if i < n_train else 'valid'
    return rs

def right(data, seed):
    "How many of 33 unseen hands of the set `data` are right after two epochs of twelve steps."
    records = read_folder(get_data(data))
    hands = [r for sign in records.classes for r in some(records, sign, seed)]
    test = [r for r in hands if r.split == 'valid']
    dls = classification_dls(hands, size=(96,144), bs=32)
    dls.train.drop_last = False
    set_seed(seed)
    steps = EachStep()
    learn = classification_learner(dls, cbs=steps)
    learn.fine_tune(1, freeze_epochs=1)
    assert len(dls.train_ds) == 372 and len(test) == 33 and not {r.image for r in test} & {r.image for r in dls.train_ds.items}
    assert sum(len(h['losses']) for h in learn.history) == len(steps.right) == 24
    return sum(r.label == p.label for r,p in zip(test, learn.predict([r.image for r in test])))

@pytest.mark.parametrize('data', ['rps', 'doodle_hands'])
def test_three_signs_in_24_steps(data, request, monkeypatch):
    if data == 'rps': monkeypatch.setenv('LEARNKIT_MIRROR', str(request.getfixturevalue('mirror')))
    got = [right(data, seed) for seed in range(3)]
    assert statistics.median(got) >= 30, got
