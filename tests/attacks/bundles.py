"Bundles, and what is given out as one. `make(folder, page, tensors)` gets the page and the weights of a real bundle."
import json, os, pickle, struct, zipfile
import torch
from safetensors.torch import save
from attacks import Canary, Shelf, canary

attack = Shelf()

def write(folder, page, tensors, name='forged.learnkit'):
    "A well-formed bundle of any `page`."
    path = folder/name
    path.write_bytes(save(tensors, dict(format='pt', learnkit=page if isinstance(page, str) else json.dumps(page))))
    return path

def raw(folder, header, data=b'', length=None):
    "A file with this `header` (text or a dict), whatever its numbers say."
    head = (header if isinstance(header, str) else json.dumps(header)).encode()
    (folder/'raw.learnkit').write_bytes(struct.pack('<Q', len(head) if length is None else length)+head+data)
    return folder/'raw.learnkit'

def header(page, **tensors):
    "A safetensors header of `page` and of tensors name=(shape, offsets)."
    res = {k: dict(dtype='F32', shape=shape, data_offsets=at) for k, (shape, at) in tensors.items()}
    return dict(__metadata__=dict(format='pt', learnkit=json.dumps(page)), **res)

# Files that are programs

@attack('S1', 'a pickle called .learnkit', said='pickle', protocol=2)
@attack('S1', 'a pickle of the first protocol', said='no learnkit bundle', protocol=0)
@attack('S1', 'a pickle of protocol 3', said='pickle', protocol=3)
@attack('S1', 'a pickle of the last protocol', said='pickle', protocol=5)
def pickled(folder, page, tensors, protocol):
    path = folder/'model.learnkit'
    path.write_bytes(pickle.dumps(Canary(folder), protocol))
    return path

@attack('S1', 'a torch zip with __reduce__', said='pickle', call=os.system, name='model.pth')
@attack('S1', 'a torch zip with __reduce__ called .learnkit', said='pickle', call=os.mkdir, name='model.learnkit')
@attack('S1', 'a torch file of the old kind', said='pickle', call=os.mkdir, name='model.pt', zipped=False)
@attack('S1', 'a .pkl of a learner', said='trust=True', call=os.mkdir, name='model.pkl')
def torch_file(folder, page, tensors, call, name, zipped=True):
    torch.save(dict(model=tensors, opt=Canary(folder, call)), folder/name, _use_new_zipfile_serialization=zipped)
    return folder/name

@attack('S1', 'a zip with a pickle in it', said='pickle')
def zipped_pickle(folder, page, tensors):
    with zipfile.ZipFile(folder/'model.learnkit', 'w') as z: z.writestr('data.pkl', pickle.dumps(Canary(folder)))
    return folder/'model.learnkit'

@attack('S1', 'a bundle with a zip of a pickle behind it', said='damaged')
def with_a_tail(folder, page, tensors):
    path = write(folder, page, tensors)
    with zipfile.ZipFile(path, 'a') as z: z.writestr('archive/data.pkl', pickle.dumps(Canary(folder)))
    return path

@attack('S1', 'a bundle with a pickle as a tensor', said='do not fit')
def with_a_member(folder, page, tensors):
    return write(folder, page, tensors | {'data.pkl': torch.tensor(list(pickle.dumps(Canary(folder))), dtype=torch.uint8)})

@attack('S4', 'a program of torch.export', said='torch.export', name='net.pt2', start=b'PK\3\4')
@attack('S6', 'a Keras model', said='Keras', name='net.keras', start=b'PK\3\4')
@attack('S6', 'an old Keras model', said='HDF5', name='net.h5', start=b'\x89HDF\r\n\x1a\n')
@attack('S6', 'a joblib file', said='pickle', name='net.joblib', start=b'\x80\4\x95')
@attack('S6', 'a 7z archive, which scanners do not look into', said='bundle', name='net.learnkit', start=b"7z\xbc\xaf'\x1c")
@attack('S7', 'an ONNX network', said='ONNX', name='net.onnx', start=b'\x08\x08\x12\x07pytorch')
@attack('S7', 'an ONNX network called .learnkit', said='bundle', name='net.learnkit', start=b'\x08\x08\x12\x07pytorch')
def other_format(folder, page, tensors, name, start):
    (folder/name).write_bytes(start+pickle.dumps(Canary(folder)))
    return folder/name

@attack('S7', 'an ONNX network with weights in a file outside', said='ONNX')
def onnx_outside(folder, page, tensors):
    canary(folder).with_name('secret').write_bytes(bytes(64))
    entry = b'\x0a\x08location\x12\x0a../secret\0'
    (folder/'net.onnx').write_bytes(b'\x08\x08\x3a'+bytes([len(entry)+2])+b'\x6a'+bytes([len(entry)])+entry)
    return folder/'net.onnx'

@attack('S15', 'a pipe', said='plain file')
def fifo(folder, page, tensors):
    os.mkfifo(folder/'model.learnkit')
    return folder/'model.learnkit'

@attack('S15', 'a link to an endless device', said='plain file')
def endless(folder, page, tensors):
    (folder/'model.learnkit').symlink_to('/dev/zero')
    return folder/'model.learnkit'

@attack('S15', 'a folder', said='folder')
def a_folder(folder, page, tensors):
    (folder/'model.learnkit').mkdir()
    return folder/'model.learnkit'

# Headers that lie

@attack('S15', 'a header of 8 EB', said='damaged', length=8 << 60)
@attack('S15', 'a header of 99 MB in a file of 1 kB', said='damaged', length=99_000_000)
@attack('S15', 'a header shorter than it is', said='damaged', length=40)
def header_length(folder, page, tensors, length): return raw(folder, header(page), bytes(1000), length % (1 << 64))

@attack('S15', 'a header of 40 MB', said='header')
def long_header(folder, page, tensors): return raw(folder, '{"a":' + ' '*40_000_000 + '{}}')

@attack('S15', 'tensors on top of each other', said='damaged', a=([256], [0, 1024]), b=([256], [0, 1024]))
@attack('S15', 'a tensor beyond the end', said='damaged', a=([1 << 18], [0, 1 << 20]))
@attack('S15', 'a tensor that ends before it starts', said='damaged', a=([256], [1024, 0]))
@attack('S15', 'bytes that belong to no tensor', said='damaged', a=([128], [0, 512]))
@attack('S15', 'a shape of terabytes in 1 kB', said='damaged', a=([1 << 20, 1 << 20], [0, 1024]))
@attack('S15', 'a shape beyond 64 bits', said='damaged', a=([1 << 62, 1 << 62], [0, 1024]))
def offsets(folder, page, tensors, **places): return raw(folder, header(page, **places), bytes(1024))

@attack('S15', 'the same name twice')
def twice(folder, page, tensors):
    one = '"a":{"dtype":"F32","shape":[256],"data_offsets":[0,1024]}'
    return raw(folder, f'{{"__metadata__":{json.dumps(header(page)["__metadata__"])},{one},{one}}}', bytes(1024))

@attack('S15', 'a header nested 100,000 deep', said='damaged')
def deep_header(folder, page, tensors): return raw(folder, '{"a":' + '['*100_000 + ']'*100_000 + '}')

@attack('S15', 'a page nested 100,000 deep', said='damaged')
def deep_page(folder, page, tensors): return write(folder, '['*100_000 + ']'*100_000, tensors)

@attack('S15', 'a page nested 900 deep', said='forged')
def rather_deep_page(folder, page, tensors):
    text = json.dumps(page | dict(about='HERE'))
    return write(folder, text.replace('"HERE"', '{"a":'*900 + '1' + '}'*900), tensors)

@attack('S15', 'a page that is no text of JSON', said='damaged')
def no_json(folder, page, tensors): return write(folder, '__import__("os").system("touch canary")', tensors)

@attack('S15', 'a number of 5,000 digits', said='damaged')
def long_number(folder, page, tensors): return write(folder, json.dumps(page).replace('"n_out": ', '"n_out": ' + '9'*5000, 1), tensors)

@attack('S15', 'four million class names', said='header')
def many_names(folder, page, tensors): return raw(folder, header(page | dict(vocab=['a']*4_000_000)))

# Pages that ask for too much

def asks(id, what, said='forged', slow=False, **more):
    "Enter an attack whose page has the fields `more`."
    attack(id, what, said=said, slow=slow)(lambda folder, page, tensors: write(folder, page | more, tensors))

def steps(*items): return [*map(list, items)]

FIT = dict(size=[32, 32], method='crop', pad_mode='reflection')
HUGE = 10**9
for k, v in {'a picture of 100,000 by 100,000': [100_000, 100_000], 'a picture of 1 by 10^9': [1, HUGE], 'a size below nought': [-5, 5],
    'a size in words': ['8', 'x'], 'a size with a fraction': [8.5, 8], 'a size of five numbers': [8]*5, 'a size that is infinite': [float('inf'), 8]}.items():
    asks('S15', k, said='size|million', item=steps(('Resize', FIT | dict(size=v)), ('ToTensor', {})))
asks('S15', 'a batch enlarged to 100,000 by 100,000', said='size', batch=steps(('AffineCoordTfm', dict(size=[100_000, 100_000]))))
asks('S15', 'a border of 1,000 times the picture', said='border', item=steps(('RandomResizedCrop', dict(size=[32, 32], val_xtra=1e3)), ('ToTensor', {})))
asks('S15', 'a mean of 100,000 numbers', said='colours', batch=steps(('IntToFloatTensor', {}), ('Normalize', dict(mean=[.5]*100_000, std=[.5]*100_000))))
asks('S15', 'ten thousand steps', said='steps', item=steps(*[('Resize', FIT)]*10_000, ('ToTensor', {})))
asks('S15', 'answers without end', n_out=HUGE)
asks('S15', 'points without end', task='keypoints', arch='lenet5', about=dict(points=['p']*500_000))
for k, v in {'a head of a million features': dict(lin_ftrs=[1_000_000, 1_000_000]), 'a head of 2 GB': dict(lin_ftrs=[23_000, 23_000]),
    'a million answers': dict(n_out=900_000), 'a head of 10^5 layers': dict(lin_ftrs=[1]*90_000)}.items(): asks('S15', k, said='larger than the weights', model=v)
for k, v in {'a million colours': dict(n_in=1_000_000), 'features below nought': dict(lin_ftrs=[-3]),
    'features that are infinite': dict(lin_ftrs=[float('inf')])}.items(): asks('S15', k, model=v)
for k, v in {'a decoder of 1 GB': dict(decoder='deeplab', width=4_000), 'a decoder of 9 TB': dict(decoder='unet', width=1_000_000, full=True)}.items():
    asks('S15', k, said='larger than the weights|allocate', task='segmentation', arch='small', model=v, n_out=None)
for k, v in {'10^8 times of noise': ('diffusion', dict(times=300_000_000)), 'a diffusion of 2 GB': ('diffusion', dict(width=1_500)),
    'a code of 150,000 numbers': ('vae', dict(z_dim=150_000)), 'noise of 10^9 numbers': ('dcgan', dict(z_dim=HUGE)),
    'a critic of 3 GB': ('dcgan', dict(width=2_000))}.items():
    asks('S15', k, said='larger than the weights|a million', task='generation', arch=v[0], model=v[1], vocab=None, item=steps(('Resize', FIT), ('ToTensor', {})))
for o in ('vit_giant_patch14_224', 'regnet_y_128gf'): asks('S15', f'the architecture {o} with the weights of another', said='larger than the weights', slow=True, arch=o)

# Pages that name code

for o in ('os.system', 'torch.hub.load', '../../evil', 'hf-hub:evil/net', 'hf_hub:evil/net', 'timm/hf-hub:evil/net', 'local-dir:/tmp/evil', 'timm/local-dir:x',
    '__import__("os").system("true")', 'torchvision/../os', 'builtins.exec', 'resnet18.hf-hub:evil/net', 'timm.create_model', 'models.resnet18', ''):
    asks('S5', f'the architecture {o!r}', said='architecture', arch=o)
asks('S5', 'an architecture that is no text', arch=dict(__reduce__='os.system'))
asks('S5', 'an unknown task', said='no task', task='__main__')
for o in ('eval', 'builtins.exec', 'Lambda', 'Transform', 'os.system', '__class__', 'PILImage.create'):
    asks('S5', f'the transform {o}', said='transform', item=steps((o, dict(func='os.system'))))
asks('S5', 'a transform with a function', said='arguments', item=steps(('Resize', FIT | dict(func='os.system'))))
asks('S5', 'a transform with a method that is code', said='no method', item=steps(('Resize', FIT | dict(method='__import__("os")'))))
asks('S5', 'a transform without a name', item=[[]])
for k, v in dict(__class__='os.system', __init__='x', custom_head='os.system', init='os.system', pretrained=True, pretrained_cfg=dict(url='http://127.0.0.1:9/x'),
    checkpoint_path='/etc/passwd', features_only=True, arch='os.system', dls=None, weights='DEFAULT', n_out='9', ps='eval').items():
    asks('S6', f'the argument {k} of the model', model={k: v})
for k, v in dict(kind='fasterrcnn_resnet50_fpn', decoder='os.system').items():
    asks('S6', f'{k}={v} for a task that does not have it', model={k: v})
asks('S6', 'a detector of torchvision with weights of its body', task='detection', arch='fasterrcnn_resnet50_fpn', n_out=None,
    model=dict(kind='fasterrcnn_resnet50_fpn', weights_backbone='DEFAULT'))
asks('S6', 'a precision that is code', said='no precision', precision='__import__("os")')
for k, v in dict(picture='CMYK', about='x', vocab='abc', pretrained='yes', model=[], item={}, batch=None, versions=3, results='x').items():
    asks('S6', f'{k} is {v!r}', **{k: v})
asks('S6', 'classes that are no text', vocab=[1, 2, 3])
asks('S6', 'another format', said='format', learnkit=99, versions='<script>')

# Weights

@attack('S15', 'weights that are no numbers', said='NaN')
def nans(folder, page, tensors):
    k = next(k for k, v in tensors.items() if v.is_floating_point() and v.numel() > 8)
    return write(folder, page, tensors | {k: torch.full_like(tensors[k], float('nan'))})

@attack('S15', 'weights of another shape', said='weights')
def other_shape(folder, page, tensors):
    k = next(k for k, v in tensors.items() if v.ndim > 1)
    return write(folder, page, tensors | {k: tensors[k].flatten()})

@attack('S15', 'a tensor of no bytes and 10^9 rows', said='weights')
def no_bytes(folder, page, tensors): return write(folder, page, tensors | dict(more=torch.empty(HUGE, 0)))

@attack('S15', 'no weights at all', said='weights')
def no_weights(folder, page, tensors): return write(folder, page, {})

@attack('S12', 'class names and facts that are script', fine=True)
def script(folder, page, tensors):
    bad = f'<script>fetch("http://127.0.0.1:9/")</script><img src=x onerror="{folder}">'
    return write(folder, page | dict(vocab=[bad+str(i) for i, _ in enumerate(page['vocab'])], about=dict(title=bad), licence=bad), tensors)
