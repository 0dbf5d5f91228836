"""Seconds to import `learnkit.all` beside `fastai.vision.all`, in fresh processes that take turns.

    python benchmarks/imports.py [RUNS]

Two clocks: the import statement itself, and the whole process from its start to its end. The last arm imports at once what
learnkit leaves for later (`learnkit.lazy.HEAVY`): the seconds that wait until they are needed, and that most programs never spend.
"""
import statistics, subprocess, sys, time

LATER = 'import torch._dynamo.utils, sklearn.model_selection, sklearn.metrics, scipy.stats, timm'
ARMS = {'fastai.vision.all': 'from fastai.vision.all import *', 'learnkit.all': 'from learnkit.all import *', 'learnkit.core': 'import learnkit.core',
    'learnkit.all, all used': f'from learnkit.all import *\n{LATER}'}

def seconds(code):
    "Seconds that `code` takes in a fresh Python, and seconds of that Python as a whole."
    start = time.perf_counter()
    code = f'import time as _time\n_start = _time.perf_counter()\n{code}\nprint(_time.perf_counter()-_start)'
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1]), time.perf_counter()-start

def main(runs=5):
    "Print, for both clocks, the median of `runs` of each arm and the median of the paired ratios."
    for code in ARMS.values(): seconds(code)
    times = [{k:seconds(v) for k,v in (ARMS if i%2 else dict(reversed(ARMS.items()))).items()} for i in range(runs)]
    for clock,what in enumerate(('import alone', 'whole process')):
        print(what)
        for k in ARMS: print(f'  {k:<23} {statistics.median(o[k][clock] for o in times):6.2f} s   all: {" ".join(f"{o[k][clock]:.2f}" for o in times)}')
        ratios = sorted(o['learnkit.all'][clock]/o['fastai.vision.all'][clock] for o in times)
        print(f'  learnkit.all / fastai.vision.all = {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})')

if __name__ == '__main__': main(*map(int, sys.argv[1:2]))
