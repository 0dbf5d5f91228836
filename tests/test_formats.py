"Boxes, shapes and points from COCO, VOC and YOLO: the same records, and everything wrong is told with its place."
import json, shutil
import numpy as np, pytest
from learnkit.core import DataError, NotFound
from learnkit.data.doodles import write_doodle_scenes
from learnkit.data.formats import read_coco, read_voc, read_yolo, write_coco
from learnkit.data.masks import read_masks
from learnkit.data.objects import decode_runs, encode_runs, fit_box, shape_mask
from PIL import Image

@pytest.fixture(scope='module')
def made(tmp_path_factory): return write_doodle_scenes(tmp_path_factory.mktemp('d')/'scenes', n=6, size=96)

@pytest.fixture
def scenes(made, tmp_path): return shutil.copytree(made, tmp_path/'scenes')

def pictures(folder, n=2, size=(100, 80)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray(np.random.RandomState(i).randint(0, 255, (*size[::-1], 3), np.uint8)).save(folder/f'p{i}.png')
    return folder

def told(rs): return [str(o) for o in rs.problems]

def coco(top, notes=(), images=None, categories=None, **more):
    "A COCO file over two pictures of 100 by 80 pixels, with the annotations `notes` (box, and what differs)."
    pictures(top/'images')
    images = images or [dict(id=i, file_name=f'p{i}.png', width=100, height=80) for i in (0, 1)]
    notes = [dict(dict(id=i, image_id=0, category_id=1, bbox=b), **kw) for i,(b,kw) in enumerate(notes, 1)]
    (top/'a.json').write_text(json.dumps(dict(images=images, annotations=notes, categories=categories or [dict(id=1, name='cat'), dict(id=7, name='dog')], **more)))
    return top/'a.json'

# COCO

def test_coco_as_drawn(scenes):
    rs,doc = read_coco(scenes),json.loads((scenes/'annotations'/'instances.json').read_text())
    assert len(rs) == 6 and not rs.problems and sum(len(r.boxes) for r in rs) == len(doc['annotations'])
    assert rs.about['classes'] == [o['name'] for o in doc['categories']] and {*rs.classes} <= {*rs.about['classes']}
    ids = read_masks(scenes, masks='masks', label='animal')
    for a,b in zip(rs, ids):
        assert a.image == b.image and np.allclose(sorted(a.boxes), sorted(b.boxes), atol=1.01)
        for shape,box in zip(a.masks, a.boxes):
            ys,xs = np.nonzero(shape_mask(shape, (96, 96)))
            assert [xs.min(), ys.min(), xs.max()+1, ys.max()+1] == pytest.approx(box, abs=1.01)

def test_coco_and_back(scenes):
    rs = read_coco(scenes)
    again = read_coco(write_coco(rs, scenes/'again.json'))
    what = 'image boxes labels masks points crowd'.split()
    assert [[getattr(r, k) for k in what] for r in again] == [[getattr(r, k) for k in what] for r in rs] and again.about == rs.about

good = [10, 10, 30, 20]
def test_coco_boxes_that_are_wrong(tmp_path):
    f = coco(tmp_path, [(good, {}), ([90, 70, 40, 40], {}), ([200, 10, 5, 5], {}), ([10, 10, 0, 5], {}), ([10, 10, -4, 5], {}), ([float('nan'), 1, 2, 3], {}),
        (good, {}), (good, dict(image_id=55)), ([1, 2, 3], {}), (None, {}), ([99.5, 10, 1, 5], {}), ('abcd', {}),
        (good, dict(id=1, image_id=1))])
    rs = read_coco(f)
    assert rs[0].boxes == [[10, 10, 40, 30], [90, 70, 100, 80], [99.5, 10, 100, 15]] and rs[1].boxes == [[10, 10, 40, 30]]
    words = ['annotation 2 (p0.png) is clipped', 'annotation 3 (p0.png) has a box outside the picture of 100 by 80', 'annotation 4 (p0.png) has a box without area',
        'annotation 5 (p0.png) has a box with swapped', 'annotation 6 (p0.png) has a number that is none', 'annotation 7 (p0.png) is a second cat',
        'annotation 8 is for image 55', 'annotation 9 (p0.png) has [1, 2, 3] in place',
        'annotation 10 (p0.png) has None in place', 'annotation 12 (p0.png)', 'has 1 annotation id that occurs more than once, such as 1']
    for w in words: assert any(w in o and str(f) in o for o in told(rs)), w
    assert len(rs.problems) == len(words)

def test_coco_background_crowd_shapes_and_points(tmp_path):
    cats = [dict(id=1, name='person', keypoints=['nose', 'left_ear', 'right_ear'], skeleton=[[1, 2], [1, 3]])]
    runs = dict(size=[80, 100], counts=[0, 8000])
    f = coco(tmp_path, [(good, dict(segmentation=[[10, 10, 40, 10, 40, 30]], keypoints=[12, 12, 2, 0, 0, 0, 20, 20, 1])),
        ([0, 0, 100, 80], dict(segmentation=runs, iscrowd=1)), ([5, 5, 5, 5], dict(segmentation=[[1, 2]], keypoints=[1, 2]))], categories=cats)
    rs = read_coco(f)
    a,b = rs
    assert a.masks == [[[10, 10, 40, 10, 40, 30]], runs, None] and a.crowd == [False, True, False]
    assert a.points == [[(12, 12, 2), (0, 0, 0), (20, 20, 1)], None, None]
    assert (b.boxes, b.labels, b.masks, b.points, b.crowd) == ([], [], [], [], []), 'a picture of nothing stays'
    assert rs.about == dict(classes=['person'], points=['nose', 'left_ear', 'right_ear'], lines=[(0, 1), (0, 2)])
    assert any('segmentation that is neither' in o for o in told(rs)) and any('not triples' in o for o in told(rs))
    assert shape_mask(runs, (100, 80)).all()

def test_coco_pictures_that_are_wrong(tmp_path):
    ims = [dict(id=0, file_name='p0.png', width=100, height=80), dict(id=0, file_name='p1.png'), dict(id=2, file_name='lost.png'), dict(id=3),
        dict(id=4, file_name='p1.png', width=80, height=100)]
    rs = read_coco(coco(tmp_path, [(good, {}), (good, dict(image_id=2))], images=ims))
    assert [r.image.name for r in rs] == ['p0.png']
    for w in ('two images with id 0', 'lost.png, which does not exist', 'image 4 of the list has no id or no file_name', 'p1.png is 100 by 80 pixels, and its boxes are for 80 by 100'):
        assert any(w in o for o in told(rs)), w
    bad = coco(tmp_path, [(good, {})])
    (tmp_path/'images'/'p1.png').write_bytes(b'no picture')
    rs = read_coco(bad)
    assert len(rs) == 1 and any('is text' in o for o in told(rs))

@pytest.mark.corpus(12)
def test_turned_photographs(tmp_path):
    "A size that fits the file but not the upright picture is told; boxes for the upright picture are used."
    pictures(tmp_path/'images', 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path/'images'/'p0.png').save(tmp_path/'images'/'t.jpg', exif=exif)
    for (w,h),n in (((80, 100), 1), ((100, 80), 0)):
        f = coco(tmp_path, [(good, {}), (good, dict(image_id=1))], images=[dict(id=0, file_name='p0.png'), dict(id=1, file_name='t.jpg', width=w, height=h)])
        rs = read_coco(f)
        assert len(rs) == 1+n and any('EXIF' in o for o in told(rs)) == (n == 0)

@pytest.mark.parametrize('text,words', [('{', 'is not JSON'), ('[1]', 'not a COCO file'), ('{"images": []}', "no list 'annotations'"), ('\xff', 'UTF-8'),
    ('{"images": [], "annotations": [], "categories": []}', 'names no picture that exists')])
def test_json_that_is_not_coco(tmp_path, text, words):
    (tmp_path/'a.json').write_bytes(text.encode('latin1'))
    with pytest.raises(DataError, match=words): read_coco(tmp_path/'a.json')

def test_coco_without_objects(tmp_path):
    with pytest.raises(DataError, match='2 pictures and no object that can be used'): read_coco(coco(tmp_path))
    with pytest.raises(NotFound, match='no file'): read_coco(tmp_path/'none.json')
    with pytest.raises(NotFound, match='holds no JSON'): read_coco(pictures(tmp_path/'empty'))

def test_coco_two_files(tmp_path):
    for part in ('train', 'val'):
        coco(tmp_path/part, [(good, {})])
        (tmp_path/'annotations').mkdir(exist_ok=True)
        shutil.move(tmp_path/part/'a.json', tmp_path/'annotations'/f'instances_{part}2017.json')
        shutil.move(tmp_path/part/'images', tmp_path/f'{part}2017')
    rs = read_coco(tmp_path)
    assert [r.split for r in rs] == ['train']*2+['valid']*2 and rs[0].image != rs[2].image
    shutil.copy(tmp_path/'annotations'/'instances_val2017.json', tmp_path/'annotations'/'instances_val2.json')
    with pytest.raises(DataError, match='several JSON files'): read_coco(tmp_path)

# VOC

def voc(top, name, objects, size='<size><width>100</width><height>80</height></size>'):
    (top/'Annotations').mkdir(parents=True, exist_ok=True)
    o = ''.join(f'<object><name>{k}</name>{more}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>' for k,(a,b,c,d),more in objects)
    (top/'Annotations'/f'{name}.xml').write_text(f'<annotation>{size}{o}</annotation>')

def test_voc(tmp_path):
    pictures(tmp_path/'JPEGImages', 5)
    voc(tmp_path, 'p0', [('cat', (1, 1, 100, 80), ''), ('dog', (11, 21, 30, 40), '<difficult>1</difficult>'), ('dog', ('x', 21, 30, 40), '')])
    voc(tmp_path, 'p1', [])
    voc(tmp_path, 'p2', [('cat', (2, 2, 9, 9), '')], size='')
    voc(tmp_path, 'lost', [('cat', (2, 2, 9, 9), '')])
    (tmp_path/'Annotations'/'p3.xml').write_text('<annotation><object>')
    (tmp_path/'ImageSets'/'Main').mkdir(parents=True)
    for k,v in (('train', 'p0'), ('val', 'p1\np2')): (tmp_path/'ImageSets'/'Main'/f'{k}.txt').write_text(v)
    rs = read_voc(tmp_path)
    assert [r.boxes for r in rs] == [[[0, 0, 100, 80], [10, 20, 30, 40]], [], [[1, 1, 9, 9]]], 'VOC counts from 1'
    assert [r.split for r in rs] == ['train', 'valid', 'valid'] and rs.about['classes'] == ['cat', 'dog']
    for w in ('p0.xml object 3 has no bndbox', 'lost.xml has no picture', 'p3.xml is not XML', '1 picture without an XML file, such as p4.png'):
        assert any(w in o for o in told(rs)), w
    assert read_voc(tmp_path, difficult=False)[0].labels == ['cat']
    voc(tmp_path, 'p1', [('cat', (0, 4, 9, 9), '')])
    assert [r.boxes[0] for r in read_voc(tmp_path)] == [[1, 1, 100, 80], [0, 4, 9, 9], [2, 2, 9, 9]], 'a set with a 0 counts from 0'

def test_voc_side_by_side(tmp_path):
    for part in ('train', 'valid'):
        pictures(tmp_path/part, 1)
        voc(tmp_path, 'p0', [('cat', (0, 2, 9, 9), '')])
        shutil.move(tmp_path/'Annotations'/'p0.xml', tmp_path/part/'p0.xml')
    shutil.rmtree(tmp_path/'Annotations')
    assert [(r.split, r.image.parent.name) for r in read_voc(tmp_path)] == [('train', 'train'), ('valid', 'valid')]
    with pytest.raises(NotFound, match='no .xml'): read_voc(pictures(tmp_path/'none'))

# YOLO

def yolo(top, page='names: [cat, dog]\ntrain: images/train\nval: images/val\n'):
    for part in ('train', 'val'): pictures(top/'images'/part), (top/'labels'/part).mkdir(parents=True, exist_ok=True)
    (top/'data.yaml').write_text(page)
    return top

def test_yolo(tmp_path):
    top = yolo(tmp_path)
    (top/'labels'/'train'/'p0.txt').write_text('0 .5 .5 .2 .5\n1 .1 .1 .3 .1 .3 .4\n0 .5 .5\n0 a b c d\n1 300 200 40 40\n\n')
    rs = read_yolo(top)
    assert rs[0].labels == ['cat', 'dog'] and rs[0].boxes[0] == pytest.approx([40, 20, 60, 60]) and rs[0].boxes[1] == pytest.approx([10, 8, 30, 32])
    assert rs[0].masks[1] == [pytest.approx([10, 8, 30, 8, 30, 32])] and [r.split for r in rs] == ['train']*2+['valid']*2 and rs[1].boxes == []
    for n,w in ((3, 'has 3 numbers'), (4, 'has to hold numbers'), (5, '300 where a share')):
        assert any(w in o and f'row {n}' in o and 'p0.txt' in o for o in told(rs)), w

def test_yolo_points(tmp_path):
    top = yolo(tmp_path, 'names: {0: cat}\ntrain: images/train\nkpt_shape: [2, 3]\n')
    (top/'labels'/'train'/'p0.txt').write_text('0 .5 .5 .2 .5 .1 .2 2 .3 .4 0\n')
    rs = read_yolo(top/'data.yaml')
    assert rs[0].points == [[pytest.approx((10, 16, 2)), pytest.approx((30, 32, 0))]] and rs[0].split is None

@pytest.mark.parametrize('page,kind,words', [('names: [a]\ntrain: ../../etc\n', NotFound, 'does not exist'), ('names: [a]\ntrain: /tmp\n', DataError, 'outside its own folder'),
    ('just words', DataError, 'needs names'), ('names: [a', DataError, 'not YAML'), ('train: images/train', DataError, 'and has train')])
def test_yaml_that_is_wrong(tmp_path, page, kind, words):
    with pytest.raises(kind, match=words): read_yolo(yolo(tmp_path/'set', page))

def test_yaml_that_runs_nothing(tmp_path):
    with pytest.raises(DataError, match='not YAML'): read_yolo(yolo(tmp_path/'set', '!!python/object/apply:os.system ["touch x"]'))

def test_yolo_list_of_pictures(tmp_path):
    top = yolo(tmp_path, 'names: [cat]\ntrain: train.txt\n')
    (top/'train.txt').write_text('images/train/p0.png\nimages/train/lost.png\n')
    (top/'labels'/'train'/'p0.txt').write_text('0 .5 .5 .2 .5\n')
    rs = read_yolo(top)
    assert len(rs) == 1 and any('row 2' in o and 'lost.png, which does not exist' in o for o in told(rs))

def test_coco_of_strange_types(tmp_path):
    rs = read_coco(coco(tmp_path, [(['10', '10', '30', '20'], {}), (good, dict(image_id=[1])), (good, dict(id=[2]))]))
    assert rs[0].boxes == [[10, 10, 40, 30]] and any('for image [1]' in o for o in told(rs))

@pytest.mark.corpus(66)
@pytest.mark.parametrize('k', [9, {}, None, 'cat', 1.5])
def test_coco_classes_that_are_not_there(tmp_path, k):
    with pytest.raises(DataError, match=r'a.json annotation 2 \(p0.png\) has the unknown category .*There are 1 cat, 7 dog'): read_coco(coco(tmp_path, [(good, {}), (good, dict(category_id=k))]))

@pytest.mark.corpus(66)
@pytest.mark.parametrize('k', ['5', 'nan', '-1', '.5'])
def test_yolo_classes_that_are_not_there(tmp_path, k):
    top = yolo(tmp_path)
    (top/'labels'/'train'/'p0.txt').write_text(f'0 .5 .5 .2 .5\n{k} .5 .5 .2 .2\n')
    with pytest.raises(DataError, match='p0.txt, row 2, has the unknown class .*There are 0 cat, 1 dog'): read_yolo(top)

def test_list_with_folders(tmp_path):
    "Names with folders mean that folder's picture alone; a part that is asked for goes before what the files say."
    for k in 'ab': pictures(tmp_path/'images'/k, 1)
    (tmp_path/'v.txt').write_text('b/p0.png\n')
    f = coco(tmp_path, [(good, {}), (good, dict(image_id=1))], images=[dict(id=i, file_name=f'{k}/p0.png') for i,k in enumerate('ab')])
    assert [r.split for r in read_coco(f, valid='v.txt')] == ['train', 'valid']
    with pytest.raises(NotFound, match='no list of validation'): read_coco(f, valid='w.txt')

# Shapes

def test_runs():
    rng = np.random.RandomState(0)
    for shape,p in (((7, 5), .5), ((64, 48), .02), ((3, 300), .9), ((5, 4), 0), ((5, 4), 1)):
        m = rng.rand(*shape) < p
        assert np.array_equal(decode_runs(encode_runs(m)), m)
    assert decode_runs(dict(size=[2, 3], counts=[1, 2, 3])).tolist() == [[False, True, False], [True, False, False]]
    assert encode_runs(np.ones((2, 2), bool))['counts'] == '04'
    with pytest.raises(DataError, match='hold 5 pixels'): decode_runs(dict(size=[2, 3], counts=[5]))

def test_fit_box_is_exact(): assert fit_box((0, 0, 10.5, 80), (100, 80)) == [0, 0, 10.5, 80]

# Real data sets

def test_blood_cells(real):
    rs = read_voc(real('bccd'))
    assert len(rs) == 324 and rs.counts.keys() == {'RBC', 'WBC', 'Platelets'} and len(rs.valid) > 0
    assert sum(len(r.boxes) for r in rs) > 4300

def test_real_coco(real):
    rs = read_coco(real('coco'))
    assert len(rs) == 465 and (len(rs.train), len(rs.valid)) == (369, 96) and len(rs.about['classes']) == 80
    assert sum(len(r.boxes) for r in rs) > 3990 and sum(sum(r.crowd) for r in rs) == 42
    people = read_coco(real('coco')/'annotations'/'person_keypoints.json')
    assert len(people.about['points']) == 17 and sum(p is not None for r in people for p in r.points) == 125

def test_real_voc(real):
    rs = read_voc(real('coco_voc20'))
    assert len(rs) == 371 and (len(rs.train), len(rs.valid)) == (295, 76) and len(rs.classes) == 20
    pets = read_voc(real('pets_cats'), images='images', annotations='annotations/xmls')
    assert len(pets) == 209 and any('151 pictures without an XML file' in str(o) for o in pets.problems)
