"Guards of the drawn data sets: labels agree with the picture, the layouts can be read, and neither species nor the sign of a hand is a matter of colour or place."
import csv, json
import numpy as np, pytest
from PIL import Image
from learnkit.core import DataError, NotFound
from learnkit.data.doodles import ATTRIBUTES, doodles, draw_doodle, draw_hand, write_doodle_hands, write_doodle_scenes, write_doodles
from learnkit.data.drawing import COATS, PART_CODES, PATTERNS, POINT_NAMES, POSES, SIGNS, SPECIES
from learnkit.data.images import open_image

@pytest.fixture(scope='module')
def some(): return doodles(120, size=96, seed=1)

@pytest.fixture(scope='module')
def scenes(): return doodles(60, size=96, seed=2, animals=(2, 6))

def test_same_seed_same_drawing():
    a,b = draw_doodle(7, 64),draw_doodle(7, 64)
    assert a.image.tobytes()==b.image.tobytes() and (a.parts==b.parts).all() and a.points==b.points and a.captions==b.captions
    assert draw_doodle(8, 64).image.tobytes()!=a.image.tobytes()
    assert [o.captions for o in doodles(3, 64)]==[o.captions for o in doodles(5, 64)[:3]]

def test_size_changes_nothing_but_the_scale():
    for i in range(6):
        small,large = draw_doodle((3, i), 96),draw_doodle((3, i), 192)
        assert (small.attributes, small.age, small.captions)==(large.attributes, large.age, large.captions)
        assert np.abs(np.array(small.boxes)*2 - large.boxes).max() <= 3
        both = np.array(small.visible[0])*np.array(large.visible[0])>0
        assert np.abs(np.array(small.points[0])*2 - large.points[0])[both].max() < 0.1

FACTS = ('A portrait of a grey striped cat with a collar under the sky behind a fence, facing left.', 2.2,
    [181, 190, 170, 199, 142, 110, 131, 199, 121, 108, 136, 199, 169, 149, 155, 200])

def test_facts_of_one_seed_are_the_same_everywhere():
    o = draw_doodle(2024, 96)
    assert o.captions['en']==FACTS[0] and o.age==FACTS[1]
    assert np.abs(np.array(o.image.convert('L').resize((4, 4), Image.Resampling.BOX), int).ravel() - FACTS[2]).max() <= 3

def _check_masks(o):
    n = len(o.boxes)
    assert n==len(o.labels)==len(o.points)==len(o.visible)==len(o.animals)
    assert ((o.instances>0)==(o.parts>0)).all() and set(np.unique(o.instances))-{0}==set(range(1, n+1))
    assert o.parts.max() < len(PART_CODES)
    for i,(x0,y0,x1,y1) in enumerate(o.boxes):
        mask = o.instances==i+1
        assert mask.sum()>=8 and mask[y0:y1,x0:x1].sum()==mask.sum()
        assert mask[y0].any() and mask[y1-1].any() and mask[:,x0].any() and mask[:,x1-1].any()
    assert o.labels==[a.species for a in o.animals] and o.species in o.labels

def test_masks_and_boxes_agree(some, scenes):
    for o in some+scenes: _check_masks(o)
    assert {len(o.boxes) for o in scenes}=={2, 3, 4, 5, 6}

PART_OF = dict(left_eye='eye', right_eye='eye', nose='nose', left_ear='ear', right_ear='ear', tail_base='tail')

def test_points_lie_on_their_parts(some, scenes):
    for o in some+scenes:
        for i,(points,visible) in enumerate(zip(o.points, o.visible)):
            for name,(x,y),v in zip(POINT_NAMES, points, visible):
                assert v in (0, 1, 2) and 0<=x<o.image.width and 0<=y<o.image.height
                if v<2: continue
                x,y,code = int(x),int(y),PART_CODES.index(PART_OF.get(name, 'leg'))
                near = np.s_[max(0, y-2):y+3,max(0, x-2):x+3]
                assert ((o.instances[near]==i+1) & (o.parts[near]==code)).any(), (name, o.captions['en'])

def test_left_is_the_animals_own_left(some):
    for o in some:
        eyes = [p for p,v in zip(o.points[0][:2], o.visible[0][:2]) if v]
        if len(eyes)==2: assert eyes[0][0] > eyes[1][0]

def test_words_agree(some):
    for o in some:
        a,en,ja = o.animals[0],o.captions['en'],o.captions['ja']
        assert o.attributes==[w for w in ATTRIBUTES if w in o.attributes] and o.age==a.age
        assert a.noun in en and ('犬' in ja)==(a.species=='dog') and ('猫' in ja)==(a.species=='cat')
        assert a.coat in en.split() and a.coat in o.attributes and a.pattern in o.attributes and a.pose in o.attributes
        assert ('collar' in o.attributes)==('collar' in en)==('首輪' in ja)==((o.parts==PART_CODES.index('collar')).sum()*5000>o.parts.size)
        assert ('tongue' in o.attributes)==('tongue' in en)==('舌' in ja)
        assert ('dusk' in o.attributes)==('dusk' in en)==('夕暮れ' in ja)
        for word,japanese in dict(fence='さく', ball='ボール', plant='植物', grass='草', room='部屋').items():
            assert (word in o.attributes)==(word in en)==(japanese in ja)
        assert ('young' in o.attributes)==(a.age<2)==('子' in ja)

def test_all_words_are_drawn(some):
    assert {w for o in some for w in o.attributes}==set(ATTRIBUTES)
    assert {o.species for o in some}==set(SPECIES)
    assert {(a.pose, a.pattern, a.species) for o in some for a in o.animals}>={(p, q, s) for p in POSES for q in PATTERNS[:1] for s in SPECIES}
    assert {a.coat for o in some for a in o.animals}==set(COATS)

def test_twins_differ_in_form_only():
    for i in range(6):
        cat,dog = (draw_doodle((5, i), 96, species=s) for s in SPECIES)
        a,b = cat.animals[0],dog.animals[0]
        same = 'age pose facing coat pattern colours tail collar build turn tilt stride'.split()
        assert [getattr(a, k) for k in same]==[getattr(b, k) for k in same]
        left,right = (np.array(o.image)[:10,:10] for o in (cat, dog))
        assert (left==right).all() or cat.instances[:12,:12].any() or dog.instances[:12,:12].any()

def _linear(x, y, n):
    "Accuracy on the rest of a logistic regression that saw the first `n` rows."
    from sklearn.linear_model import LogisticRegression
    x = (x - x[:n].mean(0))/(x[:n].std(0) + 1e-6)
    return LogisticRegression(C=0.01, max_iter=200).fit(x[:n], y[:n]).score(x[n:], y[n:])

def test_a_linear_model_does_not_tell_cats_from_dogs():
    items = doodles(600, size=32, seed=4)
    y = np.array([o.species=='dog' for o in items])
    pixels = np.stack([np.asarray(o.image, np.float32).ravel() for o in items])
    colours = np.stack([np.concatenate([np.histogram(c, 8, (0, 256))[0] for c in np.asarray(o.image).reshape(-1, 3).T]) for o in items])
    places = np.array([o.boxes[0] for o in items], float)
    for x in (pixels, colours, places): assert _linear(x, y, 400) < 0.75

def test_write_doodles(tmp_path):
    path = write_doodles(tmp_path/'d', n=20, size=48, seed=3, valid=0.25)
    rows = list(csv.DictReader(open(path/'labels.csv', encoding='utf8')))
    assert len(rows)==20 and [r['is_valid'] for r in rows].count('True')==5
    codes = (path/'codes.txt').read_text().split()
    assert codes==list(PART_CODES)
    points,notes = list(csv.DictReader(open(path/'points.csv'))),json.loads((path/'boxes.json').read_text())
    for r,p,o,im in zip(rows, points, doodles(20, 48, 3), notes['images'], strict=True):
        assert r['fname']==p['fname']==im['file_name'] and r['fname'].startswith(('train/', 'valid/')[r['is_valid']=='True'] + r['species'])
        assert Image.open(path/r['fname']).tobytes()==o.image.tobytes()
        assert (np.array(Image.open(path/'parts'/r['fname'].split('/')[-1]))==o.parts).all()
        assert r['attributes'].split(';')==o.attributes and float(r['age'])==o.age and r['caption_ja']==o.captions['ja']
        assert (float(p['nose_x']), float(p['nose_y']))==o.points[0][2] and int(p['nose_v'])==o.visible[0][2]

def test_write_scenes_in_coco(tmp_path):
    path = write_doodle_scenes(tmp_path/'s', n=6, size=64, seed=3)
    notes = json.loads((path/'annotations'/'instances.json').read_text())
    items = doodles(6, 64, 3, (1, 4))
    assert len(notes['annotations'])==sum(len(o.boxes) for o in items) and [c['name'] for c in notes['categories']]==list(SPECIES)
    seen = {i:0 for i in range(1, 7)}
    for n in notes['annotations']:
        o,k = items[n['image_id']-1],seen[n['image_id']]
        seen[n['image_id']] += 1
        counts = n['segmentation']['counts']
        mask = np.repeat(np.arange(len(counts))%2, counts).reshape(64, 64, order='F')
        saved = np.array(Image.open(path/'masks'/f"scene_{n['image_id']-1:04d}.png"))
        assert (mask==(o.instances==k+1)).all() and (saved==o.instances).all() and n['area']==mask.sum()
        x,y,w,h = n['bbox']
        assert [x, y, x+w, y+h]==o.boxes[k] and n['category_id']==SPECIES.index(o.labels[k])+1 and len(n['keypoints'])==3*len(POINT_NAMES)

HAND = ('scissors', [90, 125, 102, 94, 108, 105, 93, 89])

def test_same_seed_same_hand():
    a,b = draw_hand(7),draw_hand(7)
    assert a.size==(150, 100) and a.mode=='RGB' and a.tobytes()==b.tobytes() and a.info['sign']==b.info['sign']
    assert len({draw_hand((7, i)).tobytes() for i in range(8)})==8 and {draw_hand((7, i), size=(32, 32)).info['sign'] for i in range(20)}==set(SIGNS)
    o = draw_hand(2024)
    assert o.info['sign']==HAND[0]
    assert np.abs(np.array(o.convert('L').resize((4, 2), Image.Resampling.BOX), int).ravel() - HAND[1]).max() <= 3

def test_a_hand_keeps_its_place_at_any_size():
    for i in range(4):
        small,large = draw_hand((3, i)),draw_hand((3, i), size=(300, 200)).resize((150, 100), Image.Resampling.BOX)
        assert small.info['sign']==draw_hand((3, i), size=(300, 200)).info['sign']
        assert np.abs(np.subtract(*(np.array(o.resize((15, 10), Image.Resampling.BOX), int) for o in (small, large)))).mean() < 6

def test_twin_hands_differ_in_form_only():
    for i in range(4):
        corners = [np.array(draw_hand((5, i), sign).resize((15, 10), Image.Resampling.BOX), int)[[0, 0, -1, -1], [0, -1, 0, -1]] for sign in SIGNS]
        assert all((np.abs(corners[0]-o).max(1)<=6).sum()>=2 for o in corners[1:])

def test_a_linear_model_does_not_tell_the_signs():
    y,items = np.arange(450)%3,[draw_hand((4, i), SIGNS[i%3], (75, 50)) for i in range(450)]
    pixels = np.stack([np.asarray(o.resize((24, 16)), np.float32).ravel() for o in items])
    colours = np.stack([np.concatenate([np.histogram(c, 8, (0, 256))[0] for c in np.asarray(o).reshape(-1, 3).T]) for o in items])
    for x in (pixels, colours): assert _linear(x, y, 300) < 0.75

def test_write_hands(tmp_path):
    path = write_doodle_hands(tmp_path/'h', n=10, seed=3)
    assert sorted(o.name for o in path.iterdir())==sorted(SIGNS) and [len(list((path/o).iterdir())) for o in SIGNS]==[4, 3, 3]
    for f in path.glob('*/*'):
        sign,i = f.stem.split('_')
        assert f.parent.name==sign==SIGNS[int(i)%3] and open_image(f).tobytes()==draw_hand((3, int(i)), sign).tobytes()
    again = write_doodle_hands(tmp_path/'again', n=10, seed=3)
    assert all((again/f.relative_to(path)).read_bytes()==f.read_bytes() for f in path.glob('*/*'))

def test_mistakes_are_named(tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'thesis.txt').write_text('mine')
    with pytest.raises(DataError, match='already exists'): write_doodles(tmp_path/'full', n=2)
    with pytest.raises(DataError, match='already exists'): write_doodle_hands(tmp_path/'full', n=2)
    with pytest.raises(DataError, match='at least one'): write_doodles(tmp_path/'none', n=0)
    with pytest.raises(DataError, match='at least one'): write_doodle_hands(tmp_path/'none', n=0)
    with pytest.raises(DataError, match='32 to 1024'): write_doodles(tmp_path/'none', n=2, size=8)
    with pytest.raises(DataError, match='1 to 6'): draw_doodle(1, animals=9)
    with pytest.raises(DataError, match='smaller number'): doodles(1, animals=(3, 1))
    with pytest.raises(NotFound, match="'cat'"): draw_doodle(1, species='cta')
    with pytest.raises(DataError, match='8 x 100'): draw_hand(1, size=(8, 100))
    with pytest.raises(NotFound, match="'scissors'"): draw_hand(1, sign='scisors')
    with pytest.raises(TypeError, match='sign'): draw_hand(1, sing='rock')
    with pytest.raises(TypeError, match='species'): draw_doodle(1, specie='cat')
    assert [o.name for o in tmp_path.iterdir()]==['full'] and [o.name for o in (tmp_path/'full').iterdir()]==['thesis.txt']
