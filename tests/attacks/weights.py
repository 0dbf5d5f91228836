"Files of weights. `make(folder)` writes one; a payload makes the canary."
import os, pickle, struct, zipfile
import numpy as np, torch
from attacks import Canary, Shelf, canary

attack = Shelf()

def repacked(path, kind=zipfile.ZIP_DEFLATED):
    "The torch file at `path` with its members packed."
    with zipfile.ZipFile(path) as z: members = [(o.filename, z.read(o)) for o in z.infolist()]
    with zipfile.ZipFile(path, 'w', kind, compresslevel=9) as z:
        for name, data in members: z.writestr(name, data)
    return path

def torch_zip(folder, page, **members):
    "A torch file with the pickle `page` written by hand."
    with zipfile.ZipFile(folder/'evil.pth', 'w') as z:
        z.writestr('evil/data.pkl', page)
        for k, v in (dict(version=b'3\n', byteorder=b'little') | members).items(): z.writestr(f'evil/{k}', v)
    return folder/'evil.pth'

@attack('S2', 'weights with __reduce__', said='could not be read', call=os.system)
@attack('S2', 'weights with __reduce__ of a function of files', said='could not be read', call=os.mkdir)
@attack('S2', 'old weights with __reduce__', said='could not be read', call=os.mkdir, zipped=False)
def reduced(folder, call, zipped=True):
    torch.save(dict(w=torch.ones(2), opt=Canary(folder, call)), folder/'evil.pth', _use_new_zipfile_serialization=zipped)
    return folder/'evil.pth'

for o in ('builtins\neval', 'builtins\nexec', 'builtins\ngetattr', 'os\nsystem', 'posix\nsystem', 'subprocess\nPopen', 'torch.hub\nload', 'torch.serialization\nload',
    'numpy\nload', 'torch.jit\nload', 'importlib\nimport_module', 'learnkit.use.bundle\nload_learner', 'fastcore.foundation\nL.__init__'):
    attack('S2', f'weights that call {o.replace(chr(10), ".")}', said=f'asks for {o.replace(chr(10), ".").removeprefix("builtins.")}')(lambda folder, o=o: torch_zip(folder,
        b'\x80\x02c'+o.encode()+b'\nX'+struct.pack('<I', len(text := f'__import__("os").mkdir("{canary(folder)}")'.encode()))+text+b'\x85R.'))

@attack('S2', 'a plain pickle called .pth', said='could not be read')
def plain(folder):
    (folder/'evil.pth').write_bytes(pickle.dumps(Canary(folder), 2))
    return folder/'evil.pth'

@attack('S3', 'a damaged zip with a pickle in front, for a second try', said='could not be read')
def second_try(folder):
    torch.save(torch.ones(2), folder/'evil.pth')
    (folder/'evil.pth').write_bytes(pickle.dumps(Canary(folder), 2)+(folder/'evil.pth').read_bytes()[:-30])
    return folder/'evil.pth'

@attack('S2', '40 MB of zeros packed into 40 kB', said='packed')
def packed(folder):
    torch.save(dict(w=torch.zeros(10_000_000)), folder/'evil.pth')
    return repacked(folder/'evil.pth')

@attack('S2', 'a tensor that repeats one number 10^12 times', said='repeats')
def repeated(folder):
    torch.save(dict(w=torch.ones(1).expand(1_000_000, 1_000_000)), folder/'evil.pth')
    return folder/'evil.pth'

@attack('S2', 'a table that holds itself', said='no tensors')
def endless(folder):
    d = dict(a=1)
    d['state_dict'] = d
    torch.save(d, folder/'evil.pth')
    return folder/'evil.pth'

@attack('S2', 'a number of numpy of 2 GB', said='could not be read')
def fat_number(folder):
    return torch_zip(folder, b'\x80\x02}X\1\0\0\0wcnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\0\0\0V2000000000\x85R\x85Rs.')

@attack('S2', 'a number of numpy that takes bytes for objects', said='could not be read')
def false_object(folder):
    class Scalar:
        def __reduce__(self): return np._core.multiarray.scalar, (np.dtype([('a', 'O')]), b'A'*8)
    torch.save(dict(w=torch.ones(2), n=Scalar()), folder/'evil.pth')
    return folder/'evil.pth'

@attack('S15', 'safetensors with a header of 8 EB', said='could not be read')
def big_header(folder):
    (folder/'evil.safetensors').write_bytes(struct.pack('<Q', (8 << 60)-1)+b'{}')
    return folder/'evil.safetensors'

@attack('S2', 'weights whose names are numbers', said='no tensors')
def odd_names(folder):
    torch.save({1: torch.ones(2), (2, 3): torch.ones(2)}, folder/'evil.pth')
    return folder/'evil.pth'

@attack('S2', 'one tensor instead of weights', said='could not be read')
def one_tensor(folder):
    torch.save(torch.ones(2), folder/'evil.pth')
    return folder/'evil.pth'
