"Set up `.venv` with learnkit in it, unless that has been done: `python tools/install.py base`, or `dev` for working on learnkit."
import hashlib, shutil, subprocess, sys, venv
from pathlib import Path

root = Path(__file__).resolve().parents[1]
env = root/'.venv'
python = env/('Scripts/python.exe' if sys.platform == 'win32' else 'bin/python')
done,busy = env/'installed',env/'installing'

def facts():
    "What an install depends on: where the checkout is (scripts name their folder) and what pyproject.toml asks for."
    return f"{root} {hashlib.sha256((root/'pyproject.toml').read_bytes()).hexdigest()}"

def works(*args):
    "Whether the environment's Python runs with `args`."
    try: return subprocess.run([python, *args], capture_output=True).returncode == 0
    except OSError: return False

def ready(extra): # 'base' or 'dev'; 'dev' holds 'base'
    "Whether `extra` was installed to the end, for this pyproject.toml in this folder."
    text = done.read_text(encoding='utf8') if done.is_file() and not busy.exists() else ''
    return text in {f'{facts()} {o}' for o in (extra, 'dev')} and works('-c', 'pass')

def pip_install(extra):
    "Install learnkit in place, with a dot every five seconds; returns pip's exit code, pip itself prints only what went wrong."
    what = f"{root}{'[dev]' if extra == 'dev' else ''}"
    p = subprocess.Popen([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '-e', what])
    while True:
        try: return p.wait(5)
        except subprocess.TimeoutExpired: print('.', end='', flush=True)

def main(extra):
    "Make the environment where it is missing or was left half made, and install `extra` into it."
    if sys.version_info < (3, 11): sys.exit(f'learnkit needs Python 3.11 or later, and {sys.executable} is {sys.version.split()[0]}.')
    if ready(extra): return
    fresh = busy.exists() or not works('-m', 'pip', '--version')
    if fresh and env.is_symlink(): sys.exit(f'{env} is a link to an environment that does not work; remove the link.')
    if fresh:
        shutil.rmtree(env, ignore_errors=True)
        venv.create(env, clear=True, with_pip=True)
    busy.touch()
    note = '; PyTorch and the others are several gigabytes, so this takes minutes' if fresh else ''
    print(f'Installing learnkit ({extra}) and its libraries into {env}{note}', end='', flush=True)
    code = pip_install(extra)
    print()
    # a new environment that failed stays marked and is made anew next time; one that worked before is kept as it is
    if code and not fresh: busy.unlink()
    if code: sys.exit(f'Installing failed (pip ended with {code}); the lines above say why. When that is mended, give the same command again.')
    done.write_text(f'{facts()} {extra}', encoding='utf8')
    busy.unlink()

if __name__ == '__main__':
    if len(sys.argv) != 2 or sys.argv[1] not in ('base', 'dev'): sys.exit(__doc__)
    try: main(sys.argv[1])
    except KeyboardInterrupt: sys.exit('\nStopped before the end; the same command begins anew.')
