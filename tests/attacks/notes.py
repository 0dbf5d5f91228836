"Annotations that mean harm. `make(folder)` writes a data set with two pictures and returns the file or folder to read."
import json
from PIL import Image
from attacks import Shelf, canary

attack = Shelf()

def pictures(folder, size=(32, 32), names=('1.jpg', '2.jpg')):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, 'red').save(folder/o)
    return folder

def put(folder, name, text):
    path = pictures(folder)/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

def coco(folder, note=None, **more):
    "A COCO file with one good annotation, and one that `note` changes."
    good = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 20, 20])
    images = [dict(id=i, file_name=f'{i}.jpg', width=32, height=32) for i in (1, 2)]
    page = dict(images=images, annotations=[good, good | dict(id=2, image_id=2) | (note or {})], categories=[dict(id=1, name='cat')])
    return put(folder, 'notes.json', json.dumps(page | more))

@attack('S15', 'COCO nested 100,000 deep', said='JSON|nested', text='['*100_000+']'*100_000)
@attack('S15', 'COCO nested 100,000 deep in one field', said='JSON|nested', text='{"images":'+'{"a":'*100_000+'1'+'}'*100_000+'}')
@attack('S15', 'COCO with a number of 10,000 digits', said='JSON', text='{"images":['+'9'*10_000+']}')
@attack('S15', 'COCO that is a Python expression', said='JSON', text='__import__("os").system("touch canary")')
def coco_text(folder, text): return put(folder, 'notes.json', text)

for k, v in {'runs that claim 10^12 pixels': dict(segmentation=dict(size=[1_000_000, 1_000_000], counts=[10**12])),
    'runs of another size': dict(segmentation=dict(size=[60_000, 60_000], counts=[1_800_000_000, 1_800_000_000])),
    'runs below nought': dict(segmentation=dict(size=[32, 32], counts=[2000, -1000, 24])),
    'runs without end in letters': dict(segmentation=dict(size=[32, 32], counts='o'*1000)),
    'runs that are no numbers': dict(segmentation=dict(size=[32, 32], counts=['x', None])),
    'a size that is no number': dict(segmentation=dict(size=['x', None], counts=[1024])),
    'a polygon at 1e308': dict(segmentation=[[1e308, 1e308, -1e308, 1e308, 1e308, -1e308]]),
    'a polygon at infinity': dict(segmentation=[[float('inf'), 0, 0, float('nan'), 5, 5]]),
    'a polygon of 100,000 corners': dict(segmentation=[[0.5, 0.5]*100_000]),
    'a box of 1e308': dict(bbox=[1e308, 1e308, 1e308, 1e308]), 'a box that is no list': dict(bbox={'__class__': 1}),
    'a box that is nowhere': dict(bbox=[float('nan')]*4), 'an id that is a list': dict(image_id=[1], id={})}.items():
    attack('S15', f'COCO: {k}', fine=True)(lambda folder, v=v: coco(folder, v))

@attack('S15', 'COCO: a picture of 10^9 by 10^9', fine=True, image=dict(width=10**9, height=10**9))
@attack('S9', 'COCO: a picture outside', fine=True, image=dict(file_name='../../../../etc/passwd'))
@attack('S9', 'COCO: a picture with an absolute path', fine=True, image=dict(file_name='/etc/passwd'))
@attack('S14', 'COCO: a picture at a web address', fine=True, image=dict(file_name='http://127.0.0.1:9/x.jpg'))
@attack('S15', 'COCO: a picture that is a device', fine=True, image=dict(file_name='/dev/zero'))
@attack('S15', 'COCO: a name with a nought', fine=True, image=dict(file_name='1.jpg\0.png'))
def coco_image(folder, image):
    images = [dict(id=i, file_name=f'{i}.jpg', width=32, height=32) for i in (1, 2)]
    images[1] |= image
    return coco(folder, images=images)

def entities(n, body='<name>&a9;</name>'):
    lines = ''.join(f'<!ENTITY a{i} "{f"&a{i-1};"*10}">' for i in range(1, n))
    return f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a0 "lol">{lines}]><annotation>{body}</annotation>'

VOC = '<size><width>32</width><height>32</height></size><object>{}<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>'

@attack('S15', 'VOC with a thousand million laughs', fine=True, page=entities(10, VOC.format('<name>&a9;</name>')))
@attack('S15', 'VOC with one long entity a thousand times', fine=True, page='<!DOCTYPE annotation [<!ENTITY a "'+'A'*1_000_000+'">]><annotation>'
    + VOC.format('<name>'+'&a;'*5000+'</name>')+'</annotation>')
@attack('S15', 'VOC with an outside entity', fine=True, page='<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>'
    + VOC.format('<name>&a;</name>')+'</annotation>')
@attack('S14', 'VOC with a page from the web', fine=True, page='<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/a.dtd"><annotation>'+VOC.format('<name>cat</name>')+'</annotation>')
@attack('S15', 'VOC nested 50,000 deep', fine=True, page='<annotation>'+'<object>'*50_000+'</object>'*50_000+'</annotation>')
@attack('S15', 'VOC with a size of 10^9 by 10^9', fine=True, page='<annotation>'+VOC.replace('32', '1000000000').format('<name>cat</name>')+'</annotation>')
def voc(folder, page):
    put(folder, '1.xml', '<annotation>'+VOC.format('<name>cat</name>')+'</annotation>')
    put(folder, '2.xml', page)
    return folder

YAML = '!!python/object/apply:os.system ["touch {}"]'

@attack('S6', 'YOLO with a page that calls os.system', said='YAML', text='path: {}\ntrain: .\nnames: [cat]\n')
@attack('S6', 'YOLO with a name that calls os.system', said='YAML', text='path: .\ntrain: .\nnames: [{}]\n')
@attack('S6', 'YOLO with a module in its page', said='YAML', text='path: .\ntrain: .\nnames: [!!python/name:os.system ]\n')
@attack('S15', 'YOLO with a thousand million laughs', said='texts', text='train: .\na0: &a0 [lol]\n'
    + ''.join(f'a{i}: &a{i} [{", ".join([f"*a{i-1}"]*10)}]\n' for i in range(1, 10))+'names: *a9\n')
@attack('S15', 'YOLO with a list that holds itself', said='texts', text='train: .\nnames: &a [*a, *a]\n')
@attack('S15', 'YOLO nested 1,500 deep', said='YAML|nested', text='train: .\nnames: '+'['*1_500+']'*1_500+'\n')
@attack('S9', 'YOLO with pictures outside', said='outside', text='path: /\ntrain: etc\nnames: [cat]\n')
def yolo(folder, text):
    put(folder, '1.txt', '0 .5 .5 .2 .2\n')
    return put(folder, 'data.yaml', text.replace('{}', YAML.format(canary(folder))))

@attack('S15', 'YOLO with 10^5 numbers in a line and one of 1e308', fine=True)
def yolo_line(folder):
    put(folder, '1.txt', '0 .5 .5 .2 .2\n0 '+'1e308 '*100_000+'\n1e308 nan inf -inf 0\n')
    return put(folder, 'data.yaml', 'train: .\nnames: [cat]\n')

@attack('S15', 'a table with a cell of 50 MB', said='table|column', text='fname,label\n1.jpg,"'+'A'*50_000_000+'"\n')
@attack('S15', 'a table with a quote that never ends', said='table|column', text='fname,label\n1.jpg,"cat\n'+'2.jpg,dog\n'*50_000)
@attack('S15', 'a table with 100,000 columns', said='', text='fname,label'+',x'*100_000+'\n1.jpg,cat\n')
@attack('S15', 'a table of nothing but commas', said='', text=','*5_000_000)
@attack('S12', 'a table with formulas and script', fine=True, text='fname,label\n1.jpg,"=cmd|\'/C calc\'!A0"\n2.jpg,<script>alert(1)</script>\n')
@attack('S9', 'a table with paths outside', said='', text='fname,label\n../../../../etc/passwd,a\n/dev/zero,b\n')
def table(folder, text): return put(folder, 'table.csv', text)

# Masks

def masks(folder, mask, size=(32, 32)):
    for o in ('1', '2') if size[0] < 99 else '1':
        pictures(folder, size, [f'images/{o}.jpg'])
        (folder/'labels').mkdir(exist_ok=True)
        mask.save(folder/'labels'/f'{o}.png')
    (folder/'codes.txt').write_text('background\ncat\n')
    return folder

@attack('S10', 'a mask of 63 megapixels in colours', fine=True, slow=True, mode='RGB')
@attack('S10', 'a mask of 63 megapixels', fine=True, slow=True, mode='L')
@attack('S10', 'a mask of 63 megapixels and 16 bits', fine=True, slow=True, mode='I;16')
def large_masks(folder, mode): return masks(folder, Image.new(mode, (7900, 7900)), (7900, 7900))

@attack('S10', 'masks of 400 megapixels', said='megapixels')
def mask_bomb(folder):
    from attacks.pictures import png, zeros
    masks(folder, Image.new('L', (32, 32)))
    for o in ('1', '2'): png(folder/'labels'/f'{o}.png', 20_000, 20_000, colour=0, packed=zeros(1 << 20))
    return folder

@attack('S12', 'class names that are script', fine=True)
def script(folder):
    names = [f'{o}<img src=x onerror=alert(1)>|`' for o in 'ab']
    for o in names: pictures(folder, names=[f'{o}/1.jpg', f'{o}/2.jpg'])
    return folder
