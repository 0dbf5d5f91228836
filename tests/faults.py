"""What learnkit survives, in one table: faults, odd input, hostile files.

    python tests/faults.py [--quick] [words for pytest, such as -k resume or a file]

Runs every test that bears one of the marks `fault`, `corpus` and `hostile`, those that are slow as well (unless --quick), and prints a line
for each: its number in the lists of reliability, what is done, whether it was survived, and what is lost by design. A fault is survived, an
input is as expected and a hostile file has not acted if its test passes. Tests that are skipped, for want of a GPU for instance, are told and
not counted. Rows of the corpus that no test has shown are told, too. The exit code is 0 if all is well.
"""
import sys
from collections import defaultdict
from pathlib import Path
import pytest

HERE = Path(__file__).resolve().parent
KINDS = 'fault','corpus','hostile'
ROWS = [i for i in range(1, 73) if i != 46] # 46 is part of 36

class Table:
    "A plugin of pytest that remembers what became of marked tests."
    def __init__(self): self.marks,self.reports = {},{}

    def pytest_collection_modifyitems(self, config, items):
        rest = []
        for o in items:
            self.marks[o.nodeid] = [(m.name, m.args, m.kwargs) for m in o.iter_markers() if m.name in KINDS]
            if not self.marks[o.nodeid]: rest.append(o)
        items[:] = [o for o in items if self.marks[o.nodeid]]
        config.hook.pytest_deselected(items=rest)

    def pytest_runtest_logreport(self, report):
        "The worst of setting up, running and tearing down."
        worst = self.reports.get(report.nodeid, ('passed', ''))
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or '').splitlines()[-1:]
        if worst[0] == 'passed' and not (report.when != 'call' and report.outcome == 'passed'): self.reports[report.nodeid] = report.outcome, ' '.join(why)
        elif report.outcome == 'failed': self.reports[report.nodeid] = report.outcome, ' '.join(why)

    def cases(self, kind):
        "(number, what, lost, outcome, why) of each case of `kind` that ran."
        for node,marks in self.marks.items():
            for name,args,kw in marks:
                if name != kind or node not in self.reports: continue
                number,what = args[0],args[1] if len(args) > 1 else node.partition('::')[2]
                yield number, what, kw.get('lost', 'nothing'), *self.reports[node]

def by_number(o): return [int(p) if p.isdigit() else p for p in str(o[0]).replace('F', 'F ').replace('S', 'S ').split()]

def line(*cells): print('| ' + ' | '.join(str(o).replace('|', '\\|').replace('\n', ' ') for o in cells) + ' |')

def told(outcome, why): return 'yes' if outcome == 'passed' else f'skipped: {why.removeprefix("Skipped: ")}' if outcome == 'skipped' else f'NO: {why[:120]}'

def show(table):
    "Print the table and the sum; was everything survived?"
    print()
    line('id', 'fault', 'survived', 'lost')
    line(*['---']*4)
    faults = sorted(table.cases('fault'), key=by_number)
    for n,what,lost,outcome,why in faults: line(n, what, told(outcome, why), lost if outcome == 'passed' else '?')
    rows = defaultdict(list)
    for n,what,_,outcome,why in table.cases('corpus'): rows[n].append((what, outcome, why))
    for n in ROWS:
        bad = [f'{what}: {told(o, why)}' for what,o,why in rows[n] if o == 'failed']
        good = any(o == 'passed' for _,o,_ in rows[n])
        line(f'row {n}', f'{len(rows[n])} tests of input', '; '.join(bad) or ('yes' if good else 'NO: no test has run'), 'nothing' if good and not bad else '?')
    attacks = sorted(table.cases('hostile'), key=by_number)
    for n,what,_,outcome,why in attacks: line(n, what, 'it did not act' if outcome == 'passed' else told(outcome, why), '')
    ran,acted = [o for o in faults if o[3] != 'skipped'],sum(o[3] == 'failed' for o in attacks)
    survived,fine = sum(o[3] == 'passed' for o in ran),sum(any(o == 'passed' for _,o,_ in v) and not any(o == 'failed' for _,o,_ in v) for v in rows.values())
    n_attacks = sum(o[3] != 'skipped' for o in attacks)
    print(f'\n{survived} of {len(ran)} faults survived, {fine} of {len(ROWS)} inputs as expected, {acted} of {n_attacks} hostile artefacts acted')
    return survived == len(ran) and fine == len(ROWS) and not acted

def main():
    words,table = [o for o in sys.argv[1:] if o != '--quick'],Table()
    some = 'not slow' if '--quick' in sys.argv else ''
    files = [] if any(Path(o.partition('::')[0]).exists() for o in words) else [str(HERE)]
    code = pytest.main(['-q', '-m', some, '--rootdir', str(HERE.parent), '-c', str(HERE.parent/'pyproject.toml'), *files, *words], plugins=[table])
    sys.exit(0 if show(table) and code == 0 else 1)

if __name__ == '__main__': main()
