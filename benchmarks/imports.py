"""Seconds to import `learnkit.all` beside `fastai.vision.all`, in fresh processes that take turns.

    python benchmarks/imports.py [RUNS]
"""
import statistics, subprocess, sys, time

ARMS = {'fastai.vision.all': 'from fastai.vision.all import *', 'learnkit.all': 'from learnkit.all import *', 'learnkit.core': 'import learnkit.core'}

def seconds(code):
    "Seconds of a fresh Python that runs `code`."
    start = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    return time.perf_counter()-start

def main(runs=5):
    "Print the median of `runs` of each arm and the median of the paired ratios."
    for code in ARMS.values(): seconds(code)
    times = [{k:seconds(v) for k,v in (ARMS if i%2 else dict(reversed(ARMS.items()))).items()} for i in range(runs)]
    for k in ARMS: print(f'{k:<20} {statistics.median(o[k] for o in times):6.2f} s   all: {" ".join(f"{o[k]:.2f}" for o in times)}')
    print(f"learnkit.all / fastai.vision.all = {statistics.median(o['learnkit.all']/o['fastai.vision.all'] for o in times):.3f}")

if __name__ == '__main__': main(*map(int, sys.argv[1:2]))
