"Boxes from tables: one row a box, one record a picture, and everything wrong is told with file and row."
import inspect
import numpy as np, pytest
from learnkit.core import DataError, NotFound
from learnkit.data import records
from learnkit.data.doodles import write_doodle_scenes
from learnkit.data.formats import read_coco, write_coco
from learnkit.data.objects import read_csv
from PIL import Image

edges = ['xmin', 'ymin', 'xmax', 'ymax']

def told(rs): return [str(o) for o in rs.problems]

def table(top, rows, head='fname,class,xmin,ymin,xmax,ymax', n=3):
    "A table over `n` pictures p0.png, p1.png… of 100 by 80 pixels."
    for i in range(n): Image.fromarray(np.random.RandomState(i).randint(0, 255, (80, 100, 3), np.uint8)).save(top/f'p{i}.png')
    (top/'t.csv').write_text('\n'.join([head, *rows])+'\n')
    return top/'t.csv'

def test_rows_of_a_picture_are_one_record(tmp_path):
    rs = read_csv(table(tmp_path, ['p0.png,cat,10,20,50,60', 'p1.png,dog,1,2,3,4', 'p0.png,dog,0,0,100,80', 'p2.png,,,,,']), boxes=edges)
    assert [r.image.name for r in rs] == ['p0.png', 'p1.png', 'p2.png'] and not rs.problems and rs.about == dict(classes=['cat', 'dog'])
    a,b,c = rs
    assert (a.boxes, a.labels, a.size, a.row, a.file) == ([[10, 20, 50, 60], [0, 0, 100, 80]], ['cat', 'dog'], (100, 80), 2, tmp_path/'t.csv')
    assert (c.boxes, c.labels, c.split, c.crowd, c.masks) == ([], [], None, None, None), 'a picture of nothing stays'
    assert b.label is None and b.row == 3

def test_the_same_as_coco(tmp_path):
    scenes = write_doodle_scenes(tmp_path/'scenes', n=5, size=96)
    coco = read_coco(scenes)
    rows = [f'images/{r.image.name},{o},{",".join(map(str, b))}' for r in coco for o,b in zip(r.labels, r.boxes)]
    (scenes/'t.csv').write_text('\n'.join(['fname,label,a,b,c,d', *rows]))
    rs = read_csv(scenes/'t.csv', boxes=['a', 'b', 'c', 'd'])
    assert [(r.image, r.boxes, r.labels) for r in rs] == [(r.image, r.boxes, r.labels) for r in coco] and not rs.problems
    again = read_coco(write_coco(rs, scenes/'again.json'))
    assert [r.boxes for r in again] == [r.boxes for r in rs]

@pytest.mark.corpus(65)
def test_boxes_that_are_wrong(tmp_path):
    f = table(tmp_path, ['p0.png,cat,10,20,50,60', 'p0.png,cat,90,70,130,120', 'p0.png,cat,200,10,210,20', 'p0.png,cat,10,10,10,20', 'p0.png,cat,50,10,10,20',
        'p0.png,cat,10,nan,20,30', 'p0.png,cat,10,20,50,60', 'p0.png,,1,2,3,4', 'p0.png,nan,1,2,3,4', 'p0.png,cat,1,2,x,4', 'p0.png,cat,1,2,,4',
        'lost.png,cat,1,2,3,4', ',cat,1,2,3,4', 'p1.png,cat,1,2,3,4,5', 'p1.png,cat,-5,-5,-1,-1', 'p0.png,cat,-0.5,3,20,30', 'p1.png,nan,nan,nan,nan,nan'])
    rs = read_csv(f, boxes=edges)
    assert [r.boxes for r in rs] == [[[10, 20, 50, 60], [90, 70, 100, 80], [0, 3, 20, 30]], []]
    words = {3:'(p0.png) is clipped', 4:'outside the picture of 100 by 80', 5:'without area', 6:'swapped edges', 7:"no number in ymin, but 'nan'",
        8:'second cat', 9:'has no class', 10:'has no class', 11:"no number in xmax, but 'x'", 12:"no number in xmax, but ''",
        13:'names lost.png, which does not exist',
        14:'names no picture', 15:'has 7 cells', 16:'outside the picture'}
    for n,w in words.items(): assert any(f'{f}, row {n}, ' in o and w in o for o in told(rs)), (n, w)
    assert len(rs.problems) == len(words)+1 and any('that no row of t.csv names, such as p2.png' in o for o in told(rs))
    assert not any('  ' in o for o in told(rs))

def test_widths_and_heights(tmp_path):
    for head in ('x,y,w,h', 'X,Y,Width,Height', 'box_x,box_y,box_w,box_h', 'left,top,width,height'):
        rs = read_csv(table(tmp_path, ['p0.png,cat,10,20,30,40'], f'fname,class,{head}', 1), boxes=head.split(','))
        assert rs[0].boxes == [[10, 20, 40, 60]], head
    for head in ('a,b,right,bottom', 'x0,y0,x1,y1', 'left,top,width,bottom', 'l,t,new,high'):
        assert read_csv(table(tmp_path, ['p0.png,cat,10,20,30,40'], f'fname,class,{head}', 1), boxes=head.split(','))[0].boxes == [[10, 20, 30, 40]], head

def test_parts(tmp_path):
    f = table(tmp_path, ['p0.png,cat,1,2,9,9,False', 'p1.png,cat,1,2,9,9,True', 'p0.png,cat,5,5,9,9,True', 'p2.png,,,,,,True', 'p0.png,cat,5,5,9,9,perhaps'],
        'fname,class,xmin,ymin,xmax,ymax,is_valid')
    rs = read_csv(f, boxes=edges)
    assert [(r.split, len(r.boxes)) for r in rs] == [('train', 1), ('valid', 1), ('valid', 0)]
    assert [o.row for o in rs.problems] == [4, 6] and 'into another part than row 2' in told(rs)[0]
    f = table(tmp_path, ['p0.png,cat,1,2,9,9,train', 'p1.png,cat,1,2,9,9,val', 'p2.png,cat,1,2,9,9,test', 'p2.png,cat,5,2,9,9,test'],
        'fname,class,xmin,ymin,xmax,ymax,part')
    rs = read_csv(f, split='part', boxes=edges)
    assert [r.split for r in rs] == ['train', 'valid'] and any("2 rows of the part 'test'" in o for o in told(rs))

def test_pictures_that_are_wrong(tmp_path):
    f = table(tmp_path, ['p0.png,cat,10,20,50,60', 'p1.png,cat,10,20,50,60', 'p1.png,cat,10,20,60,60'], n=2)
    (tmp_path/'p1.png').write_text('no picture')
    rs = read_csv(f, boxes=edges)
    assert len(rs) == 1 and any('p1.png' in o and 'is text' in o for o in told(rs))
    (tmp_path/'deeper').mkdir()
    for o in tmp_path.glob('*.png'): o.rename(tmp_path/'deeper'/o.stem)
    with pytest.raises(DataError, match='No row of'): read_csv(f, boxes=edges)
    Image.new('RGB', (100, 80)).save(tmp_path/'deeper'/'p0.png')
    assert len(read_csv(f, folder='deeper', boxes=edges)) == 1

def test_tables_that_do_not_fit(tmp_path):
    f = table(tmp_path, ['p0.png,cat,10,20,50,60'])
    for boxes in ('xmin', edges[:3]):
        with pytest.raises(DataError, match='takes four columns of t.csv'): read_csv(f, boxes=boxes)
    with pytest.raises(NotFound, match="no t.csv column 'xmim'.*Did you mean 'xmin'"): read_csv(f, boxes=['xmim', *edges[1:]])
    with pytest.raises(NotFound, match='Did you mean'): read_csv(f, label='klass', boxes=edges)
    with pytest.raises(NotFound, match='column'): read_csv(f, image='file', boxes=edges)
    with pytest.raises(DataError, match='with label='): read_csv(f, labels='class', boxes=edges)
    with pytest.raises(TypeError, match='Did you mean boxes'): read_csv(f, boxs=edges)
    with pytest.raises(DataError, match='lie between 0 and 1'): read_csv(table(tmp_path, ['p0.png,cat,.1,.2,.5,.6', 'p1.png,cat,.2,.2,1,1']), boxes=edges)
    with pytest.raises(DataError, match='3 pictures and no object'): read_csv(table(tmp_path, ['p0.png,,,,,', 'p1.png,,,,,', 'p2.png,,,,,']), boxes=edges)
    with pytest.raises(DataError, match='no rows'): read_csv(table(tmp_path, []), boxes=edges)

def test_without_boxes_nothing_has_changed(tmp_path):
    f = table(tmp_path, ['p0.png,cat,1,2,3,4', 'p1.png,dog,1,2,3,4', 'p1.png,dog,1,2,3,4'])
    for kw in (dict(label='class'), dict(labels='class'), dict(value=edges), dict(value='xmin', check=False)):
        a,b = read_csv(f, **kw),records.read_csv(f, **kw)
        assert [*a] == [*b] and told(a) == told(b)
    assert [*inspect.signature(read_csv).parameters][:-1] == [*inspect.signature(records.read_csv).parameters], 'boxes comes last'
