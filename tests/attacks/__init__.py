"""Builders of hostile files. Each function writes one artefact into a folder when a test runs, and nothing hostile is kept.

A payload, wherever one can be put, makes a file called canary in the folder above; a test fails where that file exists."""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

@dataclass(frozen=True)
class Attack:
    "One hostile artefact: the weakness of the table (S1 to S15), what it is, and the function (folder, …) -> path that writes it."
    id: str
    what: str
    make: Callable
    said: str = '' # regular expression for the sentence that has to come; '': any error of learnkit
    fine: bool = False # may it be read, as long as nothing acts?
    slow: bool = False # takes over three seconds

class Shelf(list):
    "A list of attacks; as a decorator it enters the function that makes one, or several that differ in arguments."
    def __call__(self, id, what, said='', fine=False, slow=False, **kwargs):
        def _f(make):
            self.append(Attack(id, what, (lambda *args: make(*args, **kwargs)) if kwargs else make, said, fine, slow))
            return make
        return _f

class Canary:
    "A pickle of this makes a file when it is read."
    def __init__(self, folder, call=os.mkdir): self.call,self.path = call,str(canary(folder))
    def __reduce__(self): return self.call, ((f'touch {self.path}',) if self.call is os.system else (self.path,))

def canary(folder):
    "The file that each payload makes."
    return Path(folder).parent/'canary'
