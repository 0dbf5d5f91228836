"Key points from tables: the right columns, parts and places, and every bad row told."
import pytest
from learnkit.core import DataError, NotFound
from learnkit.data.points import mirror_pairs, read_points
from learnkit.data.sources import get_data
from PIL import Image

@pytest.fixture
def table(tmp_path):
    "A function that writes rows of a table for three pictures of 40 by 30 pixels."
    for i in range(3): Image.new('RGB', (40, 30), (i, 0, 0)).save(tmp_path/f'{i}.png')
    def _f(rows, head='fname,nose_x,nose_y,ear_x,ear_y,ear_v'):
        (tmp_path/'t.csv').write_text('\n'.join([head, *rows]))
        return tmp_path/'t.csv'
    return _f

def test_rows(table):
    rs = read_points(table(['0.png,1,2,3.5,4,0', '1.png,5,6,,,', '2.png,39,31,7,8,True', '9.png,1,2,3,4,1', '0.png,a,2,3,4,1', '1.png,,,,,', ',1,2,3,4,1', '2.png,true,2,3,4,1', '']))
    assert [r.points for r in rs] == [[(1, 2, 2), (3.5, 4, 0)], [(5, 6, 2), (0, 0, 0)], [(39, 31, 2), (7, 8, 2)]]
    assert rs.about['points'] == ['nose', 'ear'] and [r.row for r in rs] == [2, 3, 4]
    for n,w in ((4, 'has 1 of 2 points outside 2.png (40 by 30 pixels)'), (5, 'names 9.png, which does not exist'), (6, "has no number, but 'a'"),
        (7, 'has no point'), (8, 'names no picture'), (9, "has no number, but 'true'")): assert any(w in str(o) and f'row {n}' in str(o) for o in rs.problems), w
    assert len(rs.problems) == 6

def test_parts(table, tmp_path):
    f = table(['0.png,1,2,3,4,1', '1.png,1,2,3,4,1'])
    (tmp_path/'held.txt').write_text('1.png\n')
    assert [r.split for r in read_points(f, valid='held.txt')] == ['train', 'valid']
    assert [r.split for r in read_points(f, valid=lambda p: p.stem == '0')] == ['valid', 'train']
    assert [r.split for r in read_points(table(['0.png,1,2,True', '1.png,1,2,False'], 'fname,nose_x,nose_y,is_valid'))] == ['valid', 'train']

def test_tables_that_are_wrong(table, tmp_path):
    with pytest.raises(DataError, match='no columns of points'): read_points(table(['0.png,1'], 'fname,age'))
    with pytest.raises(DataError, match='No row of .* row 2, names 7.png'): read_points(table(['7.png,1,2,3,4,1']))
    with pytest.raises(NotFound, match='no tables of points'): read_points((tmp_path/'empty').mkdir() or tmp_path/'empty')

def test_mirror_pairs():
    names = ['nose', 'left_eye', 'right_eye', 'L ear', 'R ear', 'left_only', 'collar']
    assert mirror_pairs(names) == [0, 2, 1, 4, 3, 5, 6]

def test_faces(mirror):
    rs = read_points(get_data('face_keypoints', mirror=mirror))
    assert (len(rs.train), len(rs.valid)) == (574, 150) and all(len(r.points) == 68 for r in rs)
    assert any('Mariana_Ohata_22.jpg' in str(o) for o in rs.problems)
