# Leaves modules in the scratch folder under the names of the library's, with bytecode and start-up
# hooks, for the judge and the next program to import.
# An interpreter that was started with the folder on its path takes them first.
# contained: failed: AssertionError
# in the open: succeeds
import sys

TEXT = "import os\nos._exit(0)\n"
for name in (
    "colorsys",
    "unittest",
    "json",
    "random",
    "re",
    "sitecustomize",
    "usercustomize",
    "fractions",
):
    with open(f"{name}.py", "w") as file:
        file.write(TEXT)
os.makedirs(".local/lib/python3/site-packages", exist_ok=True)
for path in (
    ".local/lib/python3/site-packages/hostile.pth",
    "hostile.pth",
    "pyvenv.cfg",
    "python3._pth",
):
    with open(path, "w") as file:
        file.write("import os; os._exit(0)\n")
sys.path.insert(0, os.getcwd())


def solve(x):
    return 0
