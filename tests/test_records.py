"Folders and tables as people have them: labels, splits, and everything that can be wrong (rows 47, 54-60, 70, 71 of the corpus of bad input)."
import os, pickle, unicodedata
from pathlib import Path
import pytest
from fastcore.foundation import L
from PIL import Image
from learnkit.core import DataError, NotFound
from learnkit.data.images import Problem
from learnkit.data.records import Record, Records, read_csv, read_folder, read_names
from learnkit.data.sources import get_data

colours = iter(range(1, 1 << 24))

def draw(path, same=None):
    "A small picture at `path`, different from all others, or like the one at `same`."
    path.parent.mkdir(parents=True, exist_ok=True)
    if same: return path.write_bytes(same.read_bytes())
    n = next(colours)
    Image.new('RGB', (8, 8), (n >> 16, n >> 8 & 255, n & 255)).save(path)

def folder(root, spec):
    "Pictures below `root`: `spec` maps a folder to a number of pictures."
    for k,v in spec.items():
        (root/k).mkdir(parents=True, exist_ok=True)
        for i in range(v): draw(root/k/f'{i}.png')
    return root

def table(root, text, name='labels.csv', n=6, encoding='utf8'):
    for i in range(n): draw(root/f'{i}.png')
    (root/name).write_text(text, encoding=encoding)
    return root/name

def reasons(rs): return [o.reason for o in rs.problems]

@pytest.mark.parametrize('spec,counts,splits', [
    (dict(cats=3, dogs=2), dict(cats=3, dogs=2), (0, 0)),
    ({'train/a':3, 'train/b':3, 'valid/a':2, 'valid/b':2}, dict(a=5, b=5), (6, 4)),
    ({'Training/a':3, 'Training/b':3, 'testing/a':2, 'testing/b':2}, dict(a=5, b=5), (6, 4)),
    ({'train/a':3, 'train/b':3, 'test/a':2, 'test/b':2, 'masks':4}, dict(a=5, b=5), (6, 4)),
    ({'train/a/images':3, 'train/b/images':3, 'val/a':2, 'val/b':2}, dict(a=5, b=5), (6, 4)),
    ({'train/a':3, 'train/b':3}, dict(a=3, b=3), (0, 0)),
    ({'train':3, 'plane':3}, dict(plane=3, train=3), (0, 0)),
    ({'10':2, '2':2, '1':2}, {'1':2, '2':2, '10':2}, (0, 0))])
def test_layouts(spec, counts, splits, tmp_path):
    rs = read_folder(folder(tmp_path, spec))
    assert rs.counts == counts and list(rs.counts) == rs.classes == list(counts) and not rs.problems
    assert (len(rs.train), len(rs.valid)) == splits and all(r.file == tmp_path for r in rs)

def test_third_part_is_left_out_and_said_so(tmp_path):
    folder(tmp_path, {f'{s}/{c}':2 for s in ('train', 'valid', 'test') for c in 'ab'})
    rs = read_folder(tmp_path)
    assert len(rs) == 8 and rs.problems == [Problem(tmp_path/'test', 'is left out: train, valid are used')]
    assert {r.image.parent.parent.name for r in read_folder(tmp_path, valid='test').valid} == {'test'}
    with pytest.raises(NotFound, match='tset'): read_folder(tmp_path, valid='tset')

def test_unlabelled_test_folder(tmp_path):
    rs = read_folder(folder(tmp_path, {'train/a':3, 'train/b':3, 'test':4}))
    assert len(rs) == 6 and reasons(rs) == ['is left out: it has no class folders']

@pytest.mark.parametrize('spec,words', [ # rows 55-58, 70
    ({}, 'is empty'), (dict(cats=3), "has only 'cats'"), ({'pets/cats':2, 'pets/dogs':2}, 'did you mean .*pets'),
    ({'.':3}, 'no folder for each class'), (dict(train=3, test=2), 'no folder for each class'),
    ({'train/a':2, 'train/b':2, 'valid/a':1, 'valid/c':1}, "Class 'c' .* only in the validation part")])
def test_refused_folders(spec, words, tmp_path):
    with pytest.raises(DataError, match=words): read_folder(folder(tmp_path, spec))

@pytest.mark.corpus(70)
def test_wrong_paths(tmp_path):
    with pytest.raises(NotFound, match='There is no folder'): read_folder(tmp_path/'none')
    for name in ('pets.zip', 'pets.txt'):
        (tmp_path/name).touch()
        with pytest.raises(DataError, match='is an archive' if name.endswith('zip') else 'is a file'): read_folder(tmp_path/name)
    with pytest.raises(DataError, match='only files with .zip'): read_folder(tmp_path)
    with pytest.raises(TypeError, match='chek'): read_folder(tmp_path, chek=True)

def test_bad_pictures_are_set_aside(tmp_path): # rows 4, 5, 32, 55, 71
    folder(tmp_path, dict(a=3, b=3, empty=0, models=0, __MACOSX=2))
    (tmp_path/'a/x.jpg').write_text('<html>')
    (tmp_path/'b/y.HEIC').write_bytes(b'\0\0\0\x18ftypheic')
    draw(tmp_path/'loose.png')
    rs = read_folder(tmp_path)
    assert rs.counts == dict(a=3, b=3)
    assert {o.path.name for o in rs.problems} == {'x.jpg', 'y.HEIC', 'empty', 'loose.png'}
    assert read_folder(tmp_path, check=False).counts == dict(a=4, b=3)
    with pytest.raises(DataError, match="'fulll'"): read_folder(tmp_path, check='fulll')

def test_damage_inside_needs_the_full_check(tmp_path):
    folder(tmp_path, dict(a=2, b=2))
    Image.effect_noise((60, 60), 99).save(tmp_path/'a/x.png')
    data = bytearray((tmp_path/'a/x.png').read_bytes())
    data[100:200] = bytes(100)
    (tmp_path/'a/x.png').write_bytes(data)
    assert not read_folder(tmp_path).problems and len(read_folder(tmp_path, check='full').problems) == 1

def test_class_without_a_sound_picture(tmp_path):
    folder(tmp_path, dict(a=3, b=3))
    for i in range(2): (tmp_path/f'c{i}.png').touch()
    (tmp_path/'c').mkdir()
    for i in range(2): (tmp_path/f'c{i}.png').rename(tmp_path/f'c/{i}.png')
    with pytest.raises(DataError, match="None of the 2 pictures of class 'c' .* is empty"): read_folder(tmp_path)

def test_suspicious_classes(tmp_path): # rows 57, 60
    rs = read_folder(folder(tmp_path, {'train/Cat':2, 'train/cat':2, 'train/one dog':1, 'valid/Cat':1, 'valid/cat':1}))
    text = ' '.join(reasons(rs))
    assert 'differ only in capitals: Cat, cat' in text and "single picture of class 'one dog'" in text and "no picture of class 'one dog' in the val" in text

@pytest.mark.corpus(54)
def test_same_file_twice(tmp_path):
    folder(tmp_path, {'train/a':2, 'train/b':2, 'valid/a':1, 'valid/b':1})
    draw(tmp_path/'train/b/x.png', same=tmp_path/'train/a/0.png')
    draw(tmp_path/'valid/a/x.png', same=tmp_path/'train/a/1.png')
    draw(tmp_path/'train/a/x.png', same=tmp_path/'train/a/1.png')
    rs = read_folder(tmp_path)
    assert len(rs) == 9 and len(rs.problems) == 2 and all('same file' in o for o in reasons(rs))
    assert {o.path.relative_to(tmp_path).as_posix() for o in rs.problems} == {'train/b/x.png', 'valid/a/x.png'}

@pytest.mark.corpus(54)
def test_same_file_twice_before_a_split(tmp_path):
    folder(tmp_path, dict(a=3, b=3))
    draw(tmp_path/'a/x.png', same=tmp_path/'a/0.png')
    rs = read_folder(tmp_path)
    assert len(rs) == 7 and reasons(rs) == [f'is the same file as {tmp_path}/a/0.png (a split at random may put them into both parts)']

def test_own_label_function(tmp_path):
    rs = read_folder(folder(tmp_path, {'x/a':2, 'x/b':2, 'y/a':1}), label=lambda p: p.parent.name)
    assert rs.counts == dict(a=3, b=2)

def test_names(tmp_path):
    for o in ('great_cat_1', 'great_cat_2', 'dog_1', 'dog-x'): draw(tmp_path/'images'/f'{o}.png')
    rs = read_names(tmp_path, r'^(.+)_\d+\.png$')
    assert rs.counts == {'dog':1, 'great_cat':2} and "does not fit the pattern" in reasons(rs)[0]
    assert read_names(tmp_path, r'images/(?P<label>[a-z]+)').classes == ['dog', 'great']
    for bad,words in ((r'.+_\d', '0 groups'), (r'(.)(.)', '2 groups'), (r'(', 'not a regular'), (r'(z)', 'No name of the 4'), (r'(g)', "only 'g'")):
        with pytest.raises(DataError, match=words): read_names(tmp_path, bad)

def test_names_with_parts(tmp_path):
    for s in ('train', 'test'):
        for o in ('cat_1', 'dog_1', 'cat_2', 'dog_2'): draw(tmp_path/s/f'{o}.png')
    rs = read_names(tmp_path, r'(\w+)_')
    assert (len(rs.train), len(rs.valid)) == (4, 4)

@pytest.mark.parametrize('text,kw,field,first', [
    ('fname,label\n0.png,a\n1.png,b\n', {}, 'label', 'a'), ('fname;label\n0.png;a\n1.png;b\n', {}, 'label', 'a'),
    ('\ufefffname\tlabel\r\n0.png\ta\r\n1.png\tb\r\n', {}, 'label', 'a'), ('id,what\n0,a\n1,b\n', dict(image='id', label='what', suffix='.png'), 'label', 'a'),
    ('fname,labels\n0.png,x;y\n1.png,\n', {}, 'labels', ['x', 'y']), ('fname,tags\n0.png,x y\n', dict(labels='tags', delim=' '), 'labels', ['x', 'y']),
    ('fname,value\n0.png,1.5\n', {}, 'value', 1.5), ('fname,x,y\n0.png,1,2\n', dict(value=['x', 'y']), 'value', [1., 2.]),
    ('fname,label\n0.png,"a, ""b""\nc"\n1.png,b\n', {}, 'label', 'a, "b"\nc'), ('fname,label\n.\\0.png,a\n1.png,b', {}, 'label', 'a')])
def test_tables(text, kw, field, first, tmp_path):
    rs = read_csv(table(tmp_path, text), **kw)
    assert getattr(rs[0], field) == first and rs[0].row == 2 and rs[0].file == tmp_path/'labels.csv'
    assert [o for o in reasons(rs) if 'pictures that no row' not in o] == [o for o in reasons(rs) if 'single' in o]

@pytest.mark.corpus(59)
def test_bad_rows(tmp_path):
    t = table(tmp_path, 'fname,label\n0.png,a\n0.png,a\n0.png,b\n1.png,\n2.png,nan\nnone.png,a\n3.png,b,c\n,a\n\n4.png,b\n5.png,b\n5.jpg,a\n1.png,a\n')
    (tmp_path/'5.jpg').touch()
    draw(tmp_path/'more.png')
    rs = read_csv(t)
    assert [(o.row, o.reason) for o in rs.problems[:7]] == [
        (3, 'names 0.png again, as row 2'), (4, 'names 0.png again, and differs from row 2'), (5, 'has no label'), (6, 'has no label'),
        (7, 'names none.png, which does not exist'), (8, 'has 3 cells, and there are 2 columns'), (9, 'names no picture')]
    rest = [str(o) for o in rs.problems[7:]]
    assert any('more.png' in o or 'no row' in o for o in rest) and any('5.jpg, row 13, is empty' in o for o in rest)
    assert [r.row for r in rs] == [2, 11, 12, 14] and rs.counts == dict(a=2, b=2)

@pytest.mark.parametrize('text,kw,kind,words', [
    ('', {}, DataError, 'no rows'), ('fname,label\n', {}, DataError, 'no rows'), ('fname,label\n0.png,a\n', dict(label='lable'), NotFound, "Did you mean 'label'"),
    ('fname,label\n0.png,a\n', dict(image='file'), NotFound, 'column'), ('fname,a,a\n0.png,1,2\n', dict(label='a'), DataError, 'two columns'),
    ('fname,x\n0.png,a\n', {}, DataError, 'label=, labels= or value='), ('fname,x,y\n0.png,a,1\n', dict(label='x', value='y'), DataError, 'one of'),
    ('fname,label\n0.png,a\n1.png,a\n', {}, DataError, "only 'a'"), ('fname,label\nx.png,a\ny.png,b\n', {}, DataError, 'row 2 names x.png, which does not exist'),
    ('fname,value\n0.png,inf\n1.png,x\n', {}, DataError, "no number in value, but 'inf'"), ('fname,label\n0.png,a\n1.png,b\n', dict(split='is_vald'), NotFound, 'is_vald'),
    ('fname,label,is_valid\n0.png,a,maybe\n', {}, DataError, "'maybe' for the part"), ('fname,label\n0.png,a\n', dict(folder='nowhere'), NotFound, 'nowhere'),
    ('fname,label\n"' + 'x'*200_000 + '",a\n', {}, DataError, 'as a table')])
def test_refused_tables(text, kw, kind, words, tmp_path):
    with pytest.raises(kind, match=words) as e: read_csv(table(tmp_path, text), **kw)
    assert len(str(e.value)) < 1000

def test_table_of_another_encoding_folder_or_place(tmp_path):
    t = table(tmp_path, 'fname,label\n0.png,caf\u00e9\n1.png,b\n', encoding='latin-1')
    with pytest.raises(DataError, match='UTF-8'): read_csv(t)
    with pytest.raises(DataError, match='it holds labels.csv'): read_csv(tmp_path)
    with pytest.raises(NotFound, match='no table'): read_csv(tmp_path/'label.csv')

def test_splits_of_a_table(tmp_path):
    t = table(tmp_path, 'fname,label,is_valid\n0.png,a,False\n1.png,b,0\n2.png,a,True\n3.png,b,1.0\n')
    assert [r.split for r in read_csv(t)] == ['train', 'train', 'valid', 'valid'] and [r.split for r in read_csv(t, split=None)] == [None]*4
    t = table(tmp_path, 'fname,label,part\n0.png,a,train\n1.png,b,Train\n2.png,a,val\n3.png,b,val\n4.png,a,test\n5.png,b,test\n')
    rs = read_csv(t, split='part')
    assert len(rs) == 4 and "has 2 rows of the part 'test', which are left out" in reasons(rs)

def test_pictures_in_another_folder(tmp_path):
    table(tmp_path/'images', '')
    t = table(tmp_path/'notes', 'fname,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n', n=0) if (tmp_path/'notes').mkdir() is None else None
    with pytest.raises(DataError, match='say folder=.*images'): read_csv(t)
    for o in ('../images', tmp_path/'images', os.path.relpath(tmp_path/'images')): assert len(read_csv(t, folder=o)) == 4

@pytest.mark.corpus(47)
def test_accents_match_however_they_are_stored(tmp_path): # row 47
    name = 'caf\u00e9 \u732b.png'
    draw(tmp_path/unicodedata.normalize('NFD', name))
    rs = read_csv(table(tmp_path, f'fname,label\n{unicodedata.normalize("NFC", name)},a\n1.png,b\n'))
    assert len(rs) == 2

def test_records_are_a_list_with_a_memory(tmp_path):
    rs = read_folder(folder(tmp_path, dict(a=3, b=3, c=0)))
    back = pickle.loads(pickle.dumps(rs))
    for o in (rs[:2], rs[[0, 3]], rs.filter(lambda r: r.label == 'a'), rs.shuffle(), rs.sorted('image'), rs+rs[:1], back):
        assert type(o) is Records and o.problems[:1] == rs.problems
    assert type(rs.map(lambda r: r.label)) is L and rs.attrgot('label').unique() == ['a', 'b']
    assert (rs+Records([], [Problem(Path('x'), 'is odd')])).problems[-1].reason == 'is odd'
    assert back == rs and 'a 3, b 3' in repr(rs) and '| a | 3 |' in rs._repr_markdown_() and '1 problem' in repr(rs)
    assert repr(Record(Path('x/1.jpg'), label='a')) == "Record(1.jpg, label='a')" and Records().classes == []

MIRROR = Path(os.environ.get('LEARNKIT_MIRROR') or Path(__file__).resolve().parents[2]/'shared/data')

@pytest.mark.parametrize('name,read,counts,splits', [
    ('cats_vs_dogs', read_folder, dict(cats=625, dogs=625), (1000, 250)), ('rps', read_folder, dict(paper=687, rock=701, scissors=725), (0, 0)),
    ('mnist_png', read_folder, {str(i):360 for i in range(10)}, (3000, 600)), ('cifar10', read_folder, None, (3000, 600)),
    ('pets_cats', lambda p: read_names(p, r'^(.+)_\d+\.jpg$'), dict(Abyssinian=180, Bengal=180), (0, 0)),
    ('coco', lambda p: read_csv(p/'annotations/multilabel.csv', folder='../images'), None, (369, 96))])
def test_real_sets(name, read, counts, splits):
    tar = MIRROR/f'{name}.tar'
    if not tar.exists(): pytest.skip(f'there is no {name}.tar in the mirror (LEARNKIT_MIRROR)')
    rs = read(get_data(name, mirror=MIRROR))
    assert (len(rs.train), len(rs.valid)) == splits and not rs.problems
    if counts: assert rs.counts == counts
