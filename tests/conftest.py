"What several test files share: drawings to learn from, the folder of real pictures, and a cache of their own."
import os, signal, threading
from contextlib import contextmanager
from pathlib import Path
import matplotlib, pytest

matplotlib.use('Agg')
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell has programs in the background ignore Ctrl-C, and tests press it
ROOT = Path(__file__).resolve().parent.parent

@contextmanager
def serving(server):
    "`server` (of `http.server`), at work in a thread of its own within the block."
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()

@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    "Each test has its own cache, no progress bars, and no figure stays open."
    from matplotlib import pyplot as plt
    monkeypatch.setenv('LEARNKIT_CACHE_PATH', str(tmp_path/'cache'))
    monkeypatch.setenv('LEARNKIT_PROGRESS', 'false')
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def one_thread():
    "Small layers are faster on one thread, most of all where other programs run."
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='session')
def drawings(tmp_path_factory):
    "A folder of 80 drawings of cats and dogs with everything known about them."
    from learnkit.data.doodles import write_doodles
    return write_doodles(tmp_path_factory.mktemp('drawings')/'doodles', n=80, size=64, seed=7)

@pytest.fixture(scope='session')
def mirror():
    "The folder of real pictures; tests that need it are skipped where it is absent."
    place = Path(os.environ.get('LEARNKIT_MIRROR') or ROOT.parent/'shared'/'data')
    if not (place/'cats_vs_dogs.tar').is_file(): pytest.skip(f'no real pictures: {place} has no cats_vs_dogs.tar (set LEARNKIT_MIRROR)')
    return place.resolve()

@pytest.fixture
def real(mirror):
    "A function from the name of a data set to its folder of real pictures."
    from learnkit.data.sources import get_data
    return lambda name: get_data(name, mirror=mirror)
