"The check of a data set and its repair: everything that was done to a folder is found, mended where that is sure, and the original stays as it is."
import hashlib, json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from corpus.build import PICTURES, oriented, packed, put, scene
from learnkit.cli import main
from learnkit.core import DataError, LearnkitError, NotFound
from learnkit.data.check import DataReport, check_data
from learnkit.data.images import check_image, image_files, image_notes, open_image
from learnkit.data.masks import read_masks
from learnkit.data.objects import read_csv
from learnkit.data.formats import read_objects
from learnkit.data.records import read_folder
from learnkit.data.repair import Changes, fix_data
from PIL import Image

pytestmark = pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore::PIL.Image.DecompressionBombWarning', 'ignore:Truncated File')

def noise(n, size=64, grain=5):
    "A picture that is like no other: soft spots of any colour."
    a = np.random.default_rng(n).integers(0, 255, (grain, grain, 3), dtype=np.uint8)
    return Image.fromarray(a).resize((size, size), Image.Resampling.BILINEAR)

def classes(top, spec):
    "Pictures below `top`: `spec` maps a folder to their number."
    n = 0
    for folder,many in spec.items():
        (top/folder).mkdir(parents=True)
        for i in range(many): noise(n := n+1).save(top/folder/f'{i}.png')
    return top

def state(folder):
    "All that a look can tell of a folder: names, kinds, sizes, times, contents."
    def one(p):
        s = p.lstat()
        return s.st_mode, s.st_size, s.st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() and not p.is_symlink() else None
    return {str(p.relative_to(folder)):one(p) for p in sorted(folder.rglob('*'))} | {'.':folder.stat().st_mtime_ns}

@pytest.fixture
def hard(tmp_path):
    "A data set that has gone through a hard life."
    top = classes(tmp_path/'beasts', {'train/cats':6, 'train/dogs':6, 'valid/cats':3, 'valid/dogs':3})
    cat,dog = top/'train'/'cats',top/'train'/'dogs'
    jpeg = packed(noise(90), 'JPEG', quality=90)
    (cat/'cut.jpg').write_bytes(jpeg[:len(jpeg)//2])
    (cat/'empty.jpg').write_bytes(b'')
    (cat/'page.jpg').write_text('<html>Sorry</html>')
    (cat/'noend.jpg').write_bytes(jpeg[:-2])
    (dog/'turned.jpg').write_bytes(oriented('JPEG', 6, quality=95))
    (dog/'wrong.jpg').write_bytes(packed(noise(91), 'PNG'))
    shutil.copy(cat/'0.png', cat/'0 copy.png')
    shutil.copy(cat/'1.png', top/'valid'/'cats'/'seen.png')
    shutil.copy(cat/'2.png', dog/'both.png')
    noise(4).resize((40, 40)).save(top/'valid'/'cats'/'smaller.jpg', quality=80)
    return top

# The report

def test_all_is_found(hard):
    r = check_data(hard)
    assert isinstance(r, DataReport) and r.reader == 'read_folder' and not r.ok
    assert r.counts == {'is cut off (truncated)':1, 'is empty':1, 'is an HTML page, not a picture':1}
    assert {r.name(o.path) for o in r.problems} == {f'train/cats/{o}.jpg' for o in ('cut', 'empty', 'page')}
    assert {frozenset((r.name(o.a), r.name(o.b))):(o.how, o.why) for o in r.leaks} == {
        frozenset(('train/cats/1.png', 'valid/cats/seen.png')):('same bytes', 'train and valid'),
        frozenset(('train/cats/2.png', 'train/dogs/both.png')):('same bytes', 'cats and dogs'),
        frozenset(('train/cats/3.png', 'valid/cats/smaller.jpg')):('alike', 'train and valid')}
    assert [tuple(map(r.name, o.paths)) for o in r.harmless] == [('train/cats/0 copy.png', 'train/cats/0.png')]
    assert r.classes == dict(cats=dict(pictures=13, train=8, valid=5), dogs=dict(pictures=12, train=9, valid=3))
    assert {r.name(p):v for p,v in r.notes.items()} == {'train/cats/noend.jpg':['does not end as it should'],
        'train/dogs/turned.jpg':['is turned upright (orientation 6)'], 'train/dogs/wrong.jpg':['is a PNG file named .jpg']}

def test_the_page(hard):
    r = check_data(hard)
    text,md = r.text(),r._repr_markdown_()
    assert text == repr(r) and text.startswith('beasts: 28 pictures, 2 classes, 17 train, 8 valid; 3 problems, 3 leaks')
    for o in ('cut off', 'train/cats/cut.jpg', 'look alike', 'cats: 13 pictures, 8 train, 5 valid', 'Unusual'): assert o in text
    assert '| cats | 13 | 8 | 5 |' in md and 'train/cats/page.jpg' in md
    d = json.loads(json.dumps(r.to_dict()))
    assert d['pictures'] == 28 and len(d['problems']) == 3 and len(d['leaks']) == 3 and d['classes']['dogs']['valid'] == 3

def test_reasons_are_grouped(tmp_path):
    top = classes(tmp_path/'a', {'x':3, 'y':3})
    for i in range(4): noise(50+i).resize((2+i, 100)).save(top/'x'/f'strip{i}.png')
    text = check_data(top, near=False).text(most=2)
    assert '4 is a strip (… by … pixels)' in text and '… and 2 more' in text

@pytest.mark.corpus(54)
def test_show_draws_leaks_first(hard):
    from matplotlib import pyplot as plt
    axs = check_data(hard).show()
    titles = [o.get_title() for o in axs]
    assert len(axs) == 8 and all(o.images for o in axs)
    assert all(o.title.get_color() == 'red' for o in axs[:6]) and axs[6].title.get_color() == 'black'
    assert any('look alike: train and valid' in o.replace('\n', ' ') for o in titles)
    plt.close('all')
    assert [o.get_title().split('\n')[1] for o in check_data(hard/'train'/'dogs').show()] == ['is turned upright (orientation 6)', 'is a PNG file named .jpg']

def test_nothing_to_show(tmp_path):
    r = check_data(classes(tmp_path/'a', {'x':3, 'y':3}))
    assert r.ok and r.show() is None and 'no problems' in repr(r)

@pytest.mark.parametrize('make', [lambda im: packed(im, 'JPEG', quality=30), lambda im: packed(im.resize((60, 45)), 'PNG'),
    lambda im: packed(im.point(lambda v: min(255, int(v*1.1))), 'PNG')], ids=['saved again', 'smaller', 'brighter'])
def test_copies_are_found(tmp_path, make):
    top = classes(tmp_path/'a', {'x':4, 'y':4})
    (top/'y'/'again.png').write_bytes(make(open_image(top/'x'/'1.png')))
    leak, = check_data(top).leaks
    assert {leak.a.name, leak.b.name} == {'1.png', 'again.png'} and leak.how == 'alike' and leak.why == 'x and y'
    assert not check_data(top, near=False).leaks

def test_blank_pictures_are_like_no_other(tmp_path):
    top = classes(tmp_path/'a', {'x':2, 'y':2})
    for i,c in enumerate(('white', 'black', 'grey')): Image.new('RGB', (32, 32), c).save(top/('x', 'y')[i%2]/f'blank{i}.png')
    assert check_data(top).ok

# Readers

def test_a_folder_without_classes(tmp_path):
    for i in range(3): noise(i).save(tmp_path/f'{i}.png')
    (tmp_path/'bad.jpg').write_bytes(b'')
    r = check_data(tmp_path)
    assert r.reader == 'pictures alone' and len(r.files) == 4 and [o.reason for o in r.problems] == ['is empty'] and 'without classes' in repr(r)

def test_a_single_class_is_a_problem_and_pictures_are_checked_all_the_same(tmp_path):
    top = classes(tmp_path/'a', {'cats':3})
    (top/'cats'/'bad.jpg').write_bytes(b'')
    r = check_data(top)
    assert len(r.problems) == 2 and any('needs two classes' in o.reason for o in r.problems) and r.classes == dict(cats=dict(pictures=3))

def test_what_lies_beside_the_parts(tmp_path):
    top = classes(tmp_path/'a', {'train/x':3, 'train/y':3, 'valid/x':2, 'valid/y':2, 'test/x':2})
    shutil.copytree(top/'train', top/'shapes')
    (top/'test'/'x'/'bad.png').write_bytes(b'')
    for r in (check_data(top), check_data(read_folder(top))):
        assert len(r.files) == 13 and not r.twins and r.counts == {'is empty':1, 'is left out: train, valid are used':2}

def table(top):
    "A folder with a table that names pictures rightly and wrongly."
    classes(top, {'pics':4})
    (top/'pics'/'3.png').write_bytes(b'')
    rows = ['fname,label', 'pics/0.png,a', 'pics/1.png,b', 'pics/2.png,a', 'pics/3.png,b', 'pics/9.png,b', 'pics/1.png,a', 'pics/2.png,']
    (top/'labels.csv').write_text('\n'.join(rows)+'\n')
    return top

def test_a_table(tmp_path):
    top = table(tmp_path/'a')
    for r in (check_data(top), check_data(top/'labels.csv'), check_data(read_csv(top/'labels.csv', label='label'))):
        found = {(r.name(o.path), o.row):o.reason for o in r.problems}
        assert found['pics/3.png', 5] == 'is empty' and 'does not exist' in found['labels.csv', 6] and len(r.files) == 4
        assert 'differs from row 3' in found['labels.csv', 7] and found['labels.csv', 8] == 'has no label'

def test_a_table_of_other_columns_and_boxes(tmp_path):
    classes(tmp_path, {'pics':3})
    (tmp_path/'boxes.csv').write_text('filename,xmin,ymin,xmax,ymax,class\npics/0.png,1,1,20,20,cat\npics/1.png,5,5,900,30,dog\n')
    r = check_data(tmp_path)
    assert r.classes == dict(cat=dict(pictures=1), dog=dict(pictures=1)) and any('clipped' in o.reason for o in r.problems) and len(r.files) == 3

def masks(top):
    "A data set of masks; the masks equal each other and are no pictures to compare."
    for o in ('images', 'labels'): (top/o).mkdir(parents=True)
    for i in range(4):
        noise(i).save(top/'images'/f'{i}.png')
        Image.fromarray((np.indices((64, 64))[0] > 32).astype(np.uint8)).save(top/'labels'/f'{i}_P.png')
    (top/'codes.txt').write_text('sky\nroad\n')
    return top

def test_masks_are_no_twins(tmp_path):
    top = masks(tmp_path/'m')
    (top/'images'/'4.png').write_bytes(packed(noise(7), 'PNG'))
    r = check_data(top)
    assert r.reader == 'read_masks' and not r.twins and len(r.files) == 5 and [o.reason for o in r.problems] == ['has no mask of its name in labels']

def test_an_annotation_file_that_can_not_be_read(tmp_path):
    classes(tmp_path, {'images':3})
    (tmp_path/'instances.json').write_text('{"images": [')
    r = check_data(tmp_path)
    assert len(r.files) == 3 and any('not JSON' in o.reason for o in r.problems)
    with pytest.raises(DataError, match='not JSON'): check_data(tmp_path/'instances.json')

@pytest.mark.parametrize('path,kind,words', [('none', NotFound, 'no folder'), ('empty', DataError, 'holds no pictures'), ('none.csv', NotFound, 'no table')])
def test_what_can_not_be_checked(tmp_path, path, kind, words):
    (tmp_path/'empty').mkdir()
    with pytest.raises(kind, match=words): check_data(tmp_path/path)

# The repair

@pytest.mark.fault('F1', 'a folder with 3 broken, 1 turned, 1 wrongly named picture and 5 twins, repaired into a copy')
def test_the_repair(hard, tmp_path):
    before = state(hard)
    made = fix_data(hard, tmp_path/'new')
    assert state(hard) == before
    new,cat,dog = tmp_path/'new',tmp_path/'new'/'train'/'cats',tmp_path/'new'/'train'/'dogs'
    out = {o.path for o in made if o.done == 'left out'}
    assert out == {*(f'train/cats/{o}' for o in ('cut.jpg', 'empty.jpg', 'page.jpg', '0 copy.png', '1.png', '2.png')), 'train/dogs/both.png'}
    assert not any((new/o).exists() for o in out) and (new/'valid'/'cats'/'seen.png').exists()
    assert (cat/'noend.jpg').read_bytes() == (hard/'train'/'cats'/'noend.jpg').read_bytes()+b'\xff\xd9'
    assert (dog/'wrong.png').read_bytes() == (hard/'train'/'dogs'/'wrong.jpg').read_bytes() and not (dog/'wrong.jpg').exists()
    assert not image_notes(dog/'turned.jpg') and np.abs(np.asarray(Image.open(dog/'turned.jpg'), float)-np.asarray(scene(), float)).mean() < 4
    same = [p for p in image_files(new) if (hard/p.relative_to(new)).is_file() and p.name not in ('noend.jpg', 'turned.jpg')]
    assert len(same) == 18 and all(p.read_bytes() == (hard/p.relative_to(new)).read_bytes() for p in same)
    again = check_data(new)
    assert not again.problems and not again.notes and [o.how for o in again.leaks] == ['alike']
    page = (new/'report.md').read_text()
    assert all(o.path in page and o.why in page for o in made) and 'look alike' in page and made.page == new/'report.md'
    assert isinstance(made, Changes) and made.pictures == len(image_files(new)) == 21

def test_every_odd_picture_is_copied_as_learnkit_sees_it_or_left_out(tmp_path):
    for name,odd in PICTURES.items(): put(tmp_path/'odd'/name, odd)
    before,made = state(tmp_path/'odd'),fix_data(check_data(tmp_path/'odd', near=False), tmp_path/'new')
    assert state(tmp_path/'odd') == before
    out,new = {o.path for o in made if o.done == 'left out'},{o.path:o.new for o in made if o.new}
    for name,odd in PICTURES.items():
        old = f'{name}/{odd.name}'
        if check_image(tmp_path/'odd'/old, full=True) or odd.ok is None:
            assert old in out and not (tmp_path/'new'/old).exists(), old
            continue
        if old in out: continue
        a,b = tmp_path/'odd'/old,tmp_path/'new'/new.get(old, old)
        x,y = (np.asarray(open_image(o), float) for o in (a, b))
        assert x.shape == y.shape and np.abs(x-y).mean() < (3 if b.suffix.lower() in ('.jpg', '.jpeg') else 1e-9), old
        assert odd.ok(open_image(b)), old
        assert not [o for o in image_notes(b) if not o.startswith(('is tiny', 'is a strip')) and not (odd.row == 43 or 'EXIF' in o)], (old, image_notes(b))

def test_a_table_goes_with_its_pictures(tmp_path):
    top = table(tmp_path/'a')
    (top/'pics'/'0.png').write_bytes(packed(noise(70), 'JPEG'))
    for i,label in ((4, 'a'), (5, 'b')):
        noise(80).save(top/'pics'/f'{i}.png')
        with open(top/'labels.csv', 'a') as f: f.write(f'pics/{i}.png,{label}\n')
    before,made = state(top),fix_data(top, tmp_path/'new')
    assert state(top) == before
    assert (tmp_path/'new'/'labels.csv').read_text() == 'fname,label\npics/0.jpg,a\npics/2.png,a\n'
    assert sorted(o.name for o in image_files(tmp_path/'new')) == ['0.jpg', '2.png']
    assert {o.row for o in made if o.done == 'row left out'} == {3, 5, 6, 7, 8, 9, 10}
    why = {o.path:o.why for o in made if o.done == 'left out'}
    assert 'row 3 and row 7' in why['pics/1.png'] and 'their labels differ' in why['pics/4.png'] and why['pics/3.png'] == 'is empty'

def test_a_table_keeps_its_bytes_where_nothing_changes(tmp_path):
    top = classes(tmp_path/'a', {'p':4})
    odd = b'\xef\xbb\xbffname;label;"said; ""so"""\r\np/0.png;a;"one\r\ntwo"\r\np\\1.png;b;x\r\np/2.png;a;\xc3\xa9\r\np/3.png;b;\r\n'
    (top/'labels.csv').write_bytes(odd)
    (top/'notes.txt').write_bytes(b'\xff\xfe nothing')
    assert not fix_data(top, tmp_path/'same') and (tmp_path/'same'/'labels.csv').read_bytes() == odd
    (top/'p'/'1.png').write_bytes(packed(noise(8), 'JPEG'))
    (top/'p'/'2.png').write_bytes(b'')
    fix_data(top, tmp_path/'new')
    assert (tmp_path/'new'/'labels.csv').read_bytes() == odd.replace(b'p\\1.png', b'p/1.jpg').replace(b'p/2.png;a;\xc3\xa9\r\n', b'')
    assert (tmp_path/'new'/'notes.txt').read_bytes() == b'\xff\xfe nothing'

def coco(top):
    "Three pictures, one of them empty and one wrongly named, with a box each."
    classes(top, {'images':3})
    (top/'images'/'1.png').write_bytes(b'')
    (top/'images'/'2.png').write_bytes(packed(noise(9), 'JPEG'))
    images = [dict(id=i, file_name=f'{i}.png', width=64, height=64) for i in range(3)]
    notes = [dict(id=i+1, image_id=i, category_id=1, bbox=[1, 2, 30, 30]) for i in range(3)]
    (top/'instances.json').write_text(json.dumps(dict(images=images, annotations=notes, categories=[dict(id=1, name='cat')])))
    return top

def test_coco_goes_with_its_pictures(tmp_path):
    made = fix_data(coco(tmp_path/'a'), tmp_path/'new')
    rs = read_objects(tmp_path/'new')
    assert not rs.problems and sorted(o.image.name for o in rs) == ['0.png', '2.jpg'] and len(made) == 4

def test_voc_keeps_stems(tmp_path):
    top = classes(tmp_path/'a', {'JPEGImages':3})
    (top/'Annotations').mkdir()
    page = '<annotation><filename>{}.png</filename><object><name>cat</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
    for i in range(3): (top/'Annotations'/f'{i}.xml').write_text(page.format(i))
    (top/'JPEGImages'/'1.png').write_bytes(b'')
    (top/'JPEGImages'/'2.png').write_bytes(packed(noise(9), 'JPEG'))
    noise(30).save(top/'JPEGImages'/'x.png')
    fix_data(top, tmp_path/'new')
    rs = read_objects(tmp_path/'new')
    assert sorted(o.image.name for o in rs) == ['0.png', '2.jpg'] and [o.name for o in sorted((tmp_path/'new'/'Annotations').iterdir())] == ['0.xml', '2.xml']
    assert '<filename>2.jpg<' in (tmp_path/'new'/'Annotations'/'2.xml').read_text()

def test_masks_keep_their_pictures(tmp_path):
    top = masks(tmp_path/'m')
    (top/'images'/'1.png').write_bytes(packed(noise(9), 'JPEG'))
    (top/'images'/'2.png').write_bytes(b'')
    (top/'valid.txt').write_text('0.png\n1.png\n2.png\n')
    fix_data(top, tmp_path/'new')
    rs = read_masks(tmp_path/'new')
    assert not rs.problems and sorted((o.image.name, o.mask.name, o.split) for o in rs) == [('0.png', '0_P.png', 'valid'), ('1.jpg', '1_P.png', 'valid'), ('3.png', '3_P.png', 'train')]
    assert (tmp_path/'new'/'valid.txt').read_text() == '0.png\n1.jpg\n'

def test_a_new_name_that_is_taken(tmp_path):
    top = classes(tmp_path/'a', {'x':2, 'y':2})
    (top/'x'/'1.jpg').write_bytes(packed(noise(8), 'PNG'))
    (top/'x'/'1_1.PNG').write_bytes(packed(noise(9), 'PNG'))
    made, = fix_data(top, tmp_path/'new')
    assert made.new == 'x/1_2.png' and len(image_files(tmp_path/'new')) == 6

def test_what_is_no_data_stays_behind(tmp_path):
    top = classes(tmp_path/'a', {'x':2, 'y':2})
    for o in ('.DS_Store', 'Thumbs.db', 'readme.txt', 'report.md'): (top/o).write_text('text')
    (top/'.git').mkdir()
    (top/'y'/'empty').mkdir()
    os.symlink(top/'x'/'0.png', top/'link.png')
    os.symlink(top/'nowhere', top/'lost.png')
    os.symlink(top, top/'x'/'loop')
    if hasattr(os, 'mkfifo'): os.mkfifo(top/'pipe.jpg')
    made = fix_data(top, tmp_path/'new')
    assert {'.DS_Store', '.git', 'Thumbs.db', 'lost.png'} <= {o.path for o in made if o.done == 'left out'}
    assert (tmp_path/'new'/'readme.txt').read_text() == (tmp_path/'new'/'report.md').read_text() == 'text' and (tmp_path/'new'/'report_1.md').is_file()
    assert (tmp_path/'new'/'y'/'empty').is_dir() and not any(o.is_symlink() for o in (tmp_path/'new').rglob('*')) and not (tmp_path/'new'/'pipe.jpg').exists()

@pytest.mark.parametrize('name,words', [('beasts/new', 'inside'), ('beasts', 'same folder'), ('.', 'around'), ('full', 'not empty'), ('file', 'not empty')])
def test_where_no_copy_may_be_written(hard, tmp_path, name, words):
    (tmp_path/'full').mkdir()
    for o in ('full/x', 'file'): (tmp_path/o).write_text('mine')
    before = state(tmp_path)
    with pytest.raises(DataError, match=words): fix_data(hard, tmp_path/name)
    assert state(tmp_path) == before

def test_an_empty_folder_is_taken(hard, tmp_path):
    (tmp_path/'new').mkdir()
    assert fix_data(hard, tmp_path/'new').pictures == 21 and (tmp_path/'new'/'report.md').is_file()

@pytest.mark.fault('F8', 'a picture that vanishes while the repaired copy is written')
def test_the_copy_is_there_whole_or_not_at_all(hard, tmp_path):
    report = check_data(hard)
    (hard/'valid'/'dogs'/'0.png').unlink()
    before = state(tmp_path)
    with pytest.raises(DataError, match='was not written'): fix_data(report, tmp_path/'new')
    assert not (tmp_path/'new').exists() and {k:v for k,v in state(tmp_path).items() if k != '.'} == {k:v for k,v in before.items() if k != '.'}

KILL = '''
import os, signal, sys
from learnkit.data import repair
write = repair._write
def stop(p, copy, top):
    if p.name == sys.argv[3]: os.kill(os.getpid(), signal.SIGKILL)
    write(p, copy, top)
repair._write = stop
repair.fix_data(sys.argv[1], sys.argv[2])
'''

@pytest.mark.fault('F8', 'kill -9 while the repaired copy is written')
@pytest.mark.skipif(os.name != 'posix', reason='needs SIGKILL')
def test_killed_while_it_writes(hard, tmp_path):
    before = state(hard)
    code = subprocess.run([sys.executable, '-c', KILL, hard, tmp_path/'new', '4.png'], capture_output=True, text=True).returncode
    assert code == -9 and not (tmp_path/'new').exists() and state(hard) == before
    assert fix_data(hard, tmp_path/'new').pictures == 21

@pytest.fixture
def small_disk(tmp_path):
    "A folder on a disk of 2 MB."
    d = tmp_path/'disk'
    d.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', d], capture_output=True).returncode: pytest.skip('no disk can be mounted here')
    yield d
    subprocess.run(['umount', '-l', d])

@pytest.mark.skipif(shutil.which('mount') is None, reason='needs mount')
@pytest.mark.parametrize('fmt,words', [pytest.param('WEBP', 'could not be written, since the disk is full', marks=pytest.mark.fault('F9', 'disk full while the repaired copy is written')),
    pytest.param('PNG', 'MB are free', marks=pytest.mark.fault('F9', 'disk too small for the repaired copy'))])
def test_a_full_disk(tmp_path, small_disk, fmt, words):
    for i in range(6):
        for k in 'xy':
            (tmp_path/'a'/k).mkdir(parents=True, exist_ok=True)
            im = noise(2*i+(k == 'x'), 400, 100)
            im.save(tmp_path/'a'/k/f'{i}.{fmt.lower()}', fmt, save_all=True, append_images=[noise(99, 400)], quality=20)
    report = check_data(tmp_path/'a', near=False)
    before = state(tmp_path/'a')
    with pytest.raises(LearnkitError, match=words): fix_data(report, small_disk/'new')
    assert not any(small_disk.iterdir()) and state(tmp_path/'a') == before
    assert fix_data(report, tmp_path/'new').pictures == 12

def test_the_reader_takes_the_copy(hard, tmp_path):
    fix_data(hard, tmp_path/'new')
    a,b = read_folder(hard, check='full'),read_folder(tmp_path/'new', check='full')
    assert len(a.problems) == 5 and not b.problems and b.classes == a.classes

# The command line

@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    "Runs the command line in an empty folder: (words) -> exit code, stdout, stderr."
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    def run(*words):
        capsys.readouterr()
        code = main([str(o) for o in words])
        return code, *capsys.readouterr()
    return run

def test_data_check(cli, hard, tmp_path):
    before = state(hard)
    code,out,err = cli('data', 'check', hard)
    assert code == 1 and 'train/cats/cut.jpg' in out and '3 problems, 3 leaks' in out and not err
    code,out,err = cli('data', 'check', hard, '--json')
    assert code == 1 and len(json.loads(out)['leaks']) == 3
    code,out,err = cli('data', 'check', hard, '--fix', 'new', '--most', 2)
    assert code == 1 and 'all of it: new/report.md' in out and Path('new/train/dogs/wrong.png').is_file() and state(hard) == before
    code,out,err = cli('data', 'check', hard, '--fix', 'new')
    assert code == 1 and 'not empty' in err and err.count('\n') == 1
    code,out,err = cli('data', 'check', hard, '--fix', 'again', '--json')
    res = json.loads(out)
    assert Path(res['fixed']) == Path('again') and {o['done'] for o in res['changes']} >= {'left out', 'renamed', 'written anew', 'end marker added'}

def test_data_check_of_good_data_and_of_none(cli, tmp_path):
    top = classes(tmp_path/'a', {'x':3, 'y':3})
    code,out,err = cli('data', 'check', top)
    assert code == 0 and out.startswith('a: 6 pictures, 2 classes; no problems')
    code,out,err = cli('data', 'check', tmp_path/'none')
    assert code == 1 and err.startswith('learnkit: There is no folder') and not out

def test_data_check_with_columns_and_masks(cli, tmp_path):
    top = classes(tmp_path/'a', {'pics':4})
    (top/'t.csv').write_text('fname,kind\n' + ''.join(f'pics/{i}.png,{"xy"[i%2]}\n' for i in range(4)))
    assert cli('data', 'check', top/'t.csv', '--label', 'kind')[0] == 0
    masks(tmp_path/'m').joinpath('labels').rename(tmp_path/'m'/'truth')
    code,out,err = cli('data', 'check', tmp_path/'m', '--images', 'images', '--masks', 'truth', '--codes', 'codes.txt')
    assert code == 0 and 'm: 4 pictures, 2 classes' in out

# Real pictures

@pytest.mark.parametrize('name,pictures,problems,twins', [('cats_vs_dogs', 1250, 0, 0), ('pets_cats', 360, 0, 5), ('camvid', 468, 0, 12)])
def test_real_pictures(real, name, pictures, problems, twins):
    r = check_data(real(name))
    assert len(r.files) == pictures and len(r.problems) == problems and not r.leaks and not r.notes
    assert len(r.twins) == twins and all(o.how == 'alike' for o in r.twins)

@pytest.mark.slow
def test_real_pictures_are_copied(real, tmp_path):
    top = real('cats_vs_dogs')
    before = state(top)
    assert not fix_data(top, tmp_path/'new') and state(top) == before
    files = image_files(top)
    assert len(files) == 1250 and all(o.read_bytes() == (tmp_path/'new'/o.relative_to(top)).read_bytes() for o in files)
