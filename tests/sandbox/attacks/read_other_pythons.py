# Imports packages of other Pythons of the machine, of programs that bring their own, and the wheels that the
# standard library carries along: their folders are put into sys.path.
# contained: passed
# in the open: succeeds
import glob
import importlib.util
import sys


def imported(folder, name):
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(name)
        return spec and (spec.origin or "").startswith(folder) and spec.origin
    except (ImportError, ValueError):
        return None
    finally:
        sys.path.remove(folder)


def attack():
    standard = os.path.dirname(os.__file__)
    beside = [f"{standard}/{name}" for name in ("site-packages", "dist-packages")]
    wheels = [(path, name) for path in glob.glob(f"{standard}/**/*.whl", recursive=True) for name in ("pip", "setuptools")]
    below = [(path, os.path.splitext(name)[0]) for path in beside if os.path.isdir(path) for name in os.listdir(path)]
    for folder, name in [*TARGET["packages"], *wheels, *below]:
        if got := imported(folder, name):
            return got
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt", "/usr/share"):
        for path, _, files in os.walk(folder):
            if not os.path.realpath(path).startswith(os.path.realpath(standard)):
                found = [name for name in files if name.endswith((".py", ".pyc", ".whl", ".egg", ".zip"))]
                if found:
                    return f"{path}/{found[0]}"
