"What a hostile file has done while it was read: programs started, places written to, memory taken, time used up."
import os, re, resource, signal, sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

STARTS = {'os.exec', 'os.fork', 'os.forkpty', 'os.posix_spawn', 'os.spawn', 'os.startfile', 'os.system', 'pickle.find_class', 'pty.spawn', 'socket.bind',
    'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'subprocess.Popen', 'webbrowser.open'}
CHANGES = {'os.chmod', 'os.chown', 'os.link', 'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.symlink', 'os.truncate', 'os.utime', 'shutil.move', 'shutil.rmtree'}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
GB,SECONDS = 1_000_000_000,10 # of memory; of work, and six times as many of waiting
state = dict(inside=None, seen=[], hooked=False)

class TooLong(BaseException):
    "A file that hangs; no handler of errors may swallow it."

@lru_cache(64)
def _real(folder): return os.path.realpath(folder)

def _elsewhere(path):
    "Is `path` outside the folder that is watched?"
    if not isinstance(path, (str, bytes, os.PathLike)): return False
    folder,name = os.path.split(os.fsdecode(path))
    p = f'{_real(folder)}/{name}' if name not in ('', '.', '..') else os.path.realpath(path)
    return not Path(p).is_relative_to(state['inside']) and '__pycache__' not in p and 'torchinductor_' not in p and p != os.devnull

def _hook(event, args):
    if state['inside'] is None: return
    if event in STARTS: state['seen'].append((event, str(args)[:200]))
    elif event in CHANGES and not (isinstance(args[-1], int) and args[-1] > 2) and any(map(_elsewhere, args)): # with an open folder, shutil.rmtree names what is in it
        state['seen'].append((event, str(args)[:200]))
    elif event == 'open' and args[2] is not None and args[2] & WRITES and _elsewhere(args[0]): state['seen'].append((event, str(args)[:200]))

def memory(key):
    "VmRSS, VmHWM (its peak) or VmSize of this process, in bytes."
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

def _too_long(*_): raise TooLong(f'worked for {SECONDS} s, or waited for {6*SECONDS} s')

@contextmanager
def watched(folder, extra=3*GB):
    "Watch what happens within: raise `AssertionError` for any act outside `folder` or over 1 GB of memory; `extra`: bytes after which the system refuses more."
    if not state['hooked']: sys.addaudithook(_hook)
    limit,before = resource.getrlimit(resource.RLIMIT_AS),[(o, signal.signal(o, _too_long)) for o in (signal.SIGALRM, signal.SIGPROF)]
    _real.cache_clear()
    Path('/proc/self/clear_refs').write_text('5')
    start = memory('VmRSS')
    resource.setrlimit(resource.RLIMIT_AS, (memory('VmSize')+extra, limit[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(6*SECONDS)
    state.update(hooked=True, inside=Path(folder).resolve(), seen=[])
    try: yield
    finally:
        state['inside'] = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for o in before: signal.signal(*o)
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert not state['seen'], state['seen']
    assert (taken := memory('VmHWM')-start) < GB, f'took {taken/1e6:,.0f} MB'
