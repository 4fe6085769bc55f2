"""The tree stays one that a newcomer can hold in the head. What may import what is checked by
import-linter (pyproject.toml), through scripts/check."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "qeval"


def test_folders_stay_small():
    folders = [PACKAGE, *(p.parent for p in PACKAGE.rglob("__init__.py"))]
    modules = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert modules.pop(PACKAGE) <= 6
    assert {folder: n for folder, n in modules.items() if n > 20} == {}


def test_every_folder_says_what_it_is_for():
    for init in PACKAGE.rglob("__init__.py"):
        assert init.read_text(encoding="utf-8").startswith('"""'), init


def test_few_types_are_any():
    """At most 8 in 1,000 lines; it was 25. What comes from outside is an ``object`` until it is looked
    at; a library's own classes have their names, under TYPE_CHECKING."""
    text = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert len(re.findall(r"\bAny\b", text)) <= 8 * text.count("\n") / 1000
