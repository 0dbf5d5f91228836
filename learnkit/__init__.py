"Image deep learning with one set of verbs for every task; start with `from learnkit.all import *`."
__version__ = "0.1.0"

import warnings as _warnings
# fastai 2.8 calls torch.jit.script when it is imported; nobody who reads the message can do anything about it.
_warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
