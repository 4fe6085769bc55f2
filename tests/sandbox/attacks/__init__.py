"""Hostile programs, one in each file, and the host they are tried against.

A file begins with comments: what it tries, why that might work, and

    # contained: passed, timeout        the verdicts that mean it was contained
    # in the open: succeeds             without a sandbox it does get through ("as root": only for root)

The second line is checked, too (test_attacks.py): an attack that fails everywhere would show nothing.
Its text is run as a program's ``code``, after ``TARGET = {...}`` (what to aim at) and ``_kit.py``.
What it defines says which of three kinds it is:

    attack()   an escape: returns a description of what it got, or None. The judge's test raises
               Escaped unless it is None; so ``passed`` means that it got nothing.
    solve(x)   a forgery: a wrong answer to "x squared" that is after the verdict ``passed``.
    feed(...)  a poisoned value: the judge's test iterates, compares, hashes, prints and calls it;
               ``passed`` means that the judge survived that.

Every attack goes only as far as its proof needs: bombs stop soon after the limit, signals are harmless
ones, what is read of the machine is named and not shown. ``probe`` finds out, by reading alone, whether
the walls stand at all; nothing else may be run where they do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeval.sandbox import Limits, Program, Verdict

FOLDER = Path(__file__).parent
KIT = (FOLDER / "_kit.py").read_text()
LIMITS = Limits(
    timeout_s=1.0,
    memory_bytes=512 << 20,
    scratch_bytes=8 << 20,
    scratch_files=200,
    open_files=64,
    threads=32,
)

SECRET = 'SECRET_OF_THE_TEST = "the judge\'s test: four and forty-nine"\n'
ESCAPE = f"""\
{SECRET}
class Escaped(Exception): pass
def check():
    got = attack()
    if got is not None:
        raise Escaped(got)
"""
FORGERY = f"""\
{SECRET}
def check():
    import colorsys
    assert colorsys.rgb_to_hsv(1, 1, 1) == (0, 0, 1)
    assert solve(2) == 4
    assert solve(7) == 49
"""
# Every use that a test could make of a value; what it raises is the code's own affair.
FEEDING = """\
import copy, itertools, json, math
USES = (
    repr, str, bool, len, hash, abs, int, float, list, tuple, set, dict, sorted, sum, max, iter, next,
    callable, copy.copy, copy.deepcopy, json.dumps, math.sqrt, type, id, vars, dir,
    lambda v: v == 4, lambda v: 4 == v, lambda v: v == v, lambda v: v != v, lambda v: v < 4,
    lambda v: v + 1, lambda v: 1 + v, lambda v: v[0], lambda v: v["a"], lambda v: v(), lambda v: v.a,
    lambda v: 4 in v, lambda v: v in [4], lambda v: {v: 1}, lambda v: f"{v:>10}", lambda v: v.__class__,
    lambda v: isinstance(v, int), lambda v: [*itertools.islice(v, 1000)], lambda v: feed(v),
)
def check():
    given = [[1, 2], {"a": 1}, {3}]
    got = feed(*given)
    for value in (got, *given):
        for use in USES:
            try:
                use(value)
            except Exception:
                pass
    assert not (got == 4 and got == 49), "equal to everything"
"""
TESTS = {"attack": ESCAPE, "solve": FORGERY, "feed": FEEDING}


@dataclass(frozen=True)
class Attack:
    """One file. ``allowed`` are verdicts (``Verdict.text`` or a status) that mean: contained."""

    name: str
    text: str
    kind: str
    allowed: tuple[str, ...]
    in_the_open: str  # "succeeds", "as root" or ""

    def program(self, id: str, target: dict[str, Any]) -> Program:
        return Program(id, self.code(target), TESTS[self.kind], "check()", names=(self.kind,))

    def code(self, target: dict[str, Any]) -> str:
        return f"TARGET = {target!r}\n{KIT}\n{self.text}"

    def contained(self, verdict: Verdict) -> bool:
        return bool({verdict.status, verdict.text} & set(self.allowed)) and (
            verdict.text != "failed: Escaped" and not (self.kind == "solve" and verdict.passed)
        )


def _read(path: Path) -> Attack:
    """Raises ValueError for a file whose head or function is missing."""
    text = path.read_text()
    head = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if found := re.fullmatch(r"# (contained|in the open): (.+)", line):
            head[found[1]] = found[2]
    kinds = [kind for kind in TESTS if re.search(rf"^(def|class) {kind}\b", text, re.MULTILINE)]
    if len(kinds) != 1 or "contained" not in head:
        raise ValueError(f"{path}: needs '# contained: ...' at its top and one of {', '.join(TESTS)}")
    allowed = tuple(word.strip() for word in head["contained"].split(","))
    return Attack(path.stem, text, kinds[0], allowed, head.get("in the open", ""))


ATTACKS = {p.stem: _read(p) for p in sorted(FOLDER.glob("*.py")) if not p.name.startswith("_")}
