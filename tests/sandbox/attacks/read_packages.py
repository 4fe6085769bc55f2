# Imports what the user has installed, which may hold tokens, and whose code differs between machines.
# The interpreter's library folder contains site-packages.
# contained: passed
import glob
import importlib.util
import sys


def attack():
    for folder in {os.path.dirname(os.__file__), *sys.path}:
        found = glob.glob(f"{folder}/site-packages/*") + glob.glob(f"{folder}/../dist-packages/*")
        if found:
            return str(found)
    names = ["pip", "numpy", "pytest", "torch", "click", "qeval"]
    return next((name for name in names if importlib.util.find_spec(name)), None)
