"""The rules of a gate: a YAML file, or one bound on every loss.

rules:
  - row: all              # every row but the baseline and the floors; or a label, method or glob
    kld: <= 0.02          # a column of the table, by name, heading or glob
    ppl_increase: <= 2%   # its change from the baseline: _increase, _decrease, _loss
    pass@1: not worse
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qeval.core.errors import SpecError, did_you_mean
from qeval.decide.bounds import NOT_WORSE, Bound, parse
from qeval.plan.yaml_file import KeyPath, YamlFile

Change = Literal["increase", "decrease", "loss"]
CHANGES: tuple[Change, ...] = ("increase", "decrease", "loss")
ALL = "all"
EVERY_LOSS = "every loss"
"""Names no column: every perplexity and share that has a difference from the baseline."""


@dataclass(frozen=True)
class Rule:
    """``bound``: None for "not worse". ``file`` and ``where`` say where it stands, for messages."""

    row: str
    column: str
    bound: Bound | None
    file: YamlFile | None = None
    where: KeyPath = ()

    @property
    def text(self) -> str:
        return NOT_WORSE if self.bound is None else str(self.bound)

    @property
    def line(self) -> int | None:
        return self.file.line(self.where) if self.file else None

    def error(self, message: str) -> SpecError:
        if self.file is None:
            return SpecError(f"--max-loss: {message}")
        return self.file.error(self.where, message)


def load_rules(path: Path) -> list[Rule]:
    """Raises SpecError, with file, line and key, for what is no list of rules."""
    file = _read(path)
    for key in file.data:
        if key != "rules":
            raise file.error((key,), f"unknown key{did_you_mean(key, ['rules'])}")
    entries = file.data.get("rules")
    if not isinstance(entries, list) or not entries:
        raise file.error(("rules",), "must be a list such as [{row: all, ppl_increase: '<= 2%'}]")
    return [rule for i, entry in enumerate(entries) for rule in _rules(file, ("rules", i), entry)]


def every_loss(at_most: float) -> Rule:
    """``at_most``: a share."""
    return Rule(ALL, EVERY_LOSS, Bound("<=", 100 * at_most, "%"))


def _read(path: Path) -> YamlFile:
    try:
        return YamlFile(path, holds="rules")
    except SpecError as err:
        if "indentation indicators" in str(err):  # YAML's own word for "> 30"
            raise SpecError(f"{err}; quote a bound that begins with '>', as in '\">= 30\"'") from err
        raise


def _rules(file: YamlFile, where: KeyPath, entry: object) -> list[Rule]:
    if not isinstance(entry, dict):
        raise file.error(where, "a rule is a mapping such as {row: all, ppl_increase: '<= 2%'}")
    row = entry.get("row", ALL)
    if not isinstance(row, str) or not row.strip():
        raise file.error((*where, "row"), f"must be the name of a row, a glob, or {ALL}")
    bounds = [name for name in entry if name != "row"]
    if not bounds:
        raise file.error(where, "no bound: add one such as ppl_increase: '<= 2%'")
    return [_rule(file, (*where, name), row, name, entry[name]) for name in bounds]


def _rule(file: YamlFile, where: KeyPath, row: str, column: str, written: object) -> Rule:
    if not isinstance(written, str):
        raise file.error(where, f"must be a bound such as '<= 0.02' or '{NOT_WORSE}', not {written!r}")
    if " ".join(written.split()) == NOT_WORSE:
        if column.rpartition("_")[2] in CHANGES:
            stem = column.rpartition("_")[0]
            raise file.error(where, f"'{NOT_WORSE}' is of the number itself: write {stem}: {NOT_WORSE}")
        return Rule(row, column, None, file, where)
    try:
        return Rule(row, column, parse(written), file, where)
    except ValueError as err:
        raise file.error(where, str(err)) from err
