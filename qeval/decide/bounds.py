"""Bounds as people write them (``<= 2%``, ``>= 30``, ``<= 16GiB``, ``not worse``), and their verdicts.

A verdict looks at what the true number is at least and at most, not at the number:

    pass       the bound holds at both ends
    fail       it holds at neither
    undecided  it holds at one: the measurement is not sharp enough
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qeval.core.units import BYTES

Verdict = Literal["pass", "fail", "undecided"]

NOT_WORSE = "not worse"
_SHAPE = re.compile(r"(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)")
_POINTS = ("%", "pts", "points")


@dataclass(frozen=True)
class Bound:
    """``value`` is in ``unit``, as it is written; "": none."""

    operator: str  # <=, <, >=, >
    value: float
    unit: str = ""

    def __str__(self) -> str:
        space = "" if self.unit in ("", "%") or self.unit in BYTES else " "
        return f"{self.operator} {self.value:g}{space}{self.unit}"

    def holds(self, number: float, limit: float) -> bool:
        """``limit``: the bound's value in the number's own unit."""
        if self.operator.startswith("<"):
            return number < limit or (number == limit and self.operator == "<=")
        return number > limit or (number == limit and self.operator == ">=")

    def verdict(self, low: float, high: float, limit: float) -> Verdict:
        """Of a number that is at least ``low`` and at most ``high``."""
        held = {self.holds(low, limit), self.holds(high, limit)}
        return "undecided" if len(held) > 1 else "pass" if held == {True} else "fail"


def parse(text: str) -> Bound:
    """Raises ValueError, with the fix, for what is no bound."""
    found = _SHAPE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no bound: write '<= 0.02', '<= 2%', '>= 30' or '{NOT_WORSE}'")
    return Bound(found[1], float(found[2]), found[3])


def not_worse(least_loss: float, most_loss: float, margin: float) -> Verdict:
    """Of a loss: within the margin, or shown to be one, or neither."""
    if most_loss <= margin:
        return "pass"
    return "fail" if least_loss > 0 else "undecided"


def of_value(bound: Bound, unit: str, name: str) -> float:
    """The bound's value in the unit of a column.

    Raises:
        ValueError: it is in another one.
    """
    if unit == "bytes":
        if bound.unit in BYTES:
            return bound.value * BYTES[bound.unit]
        raise ValueError(f"{name} is a size: write its unit, as in '{bound.operator} 16GiB'")
    if unit == "share":
        if bound.unit == "%":
            return bound.value / 100
        if not bound.unit and 0 <= bound.value <= 1:
            return bound.value
        raise ValueError(f"{name} is a share: write a percentage, as in '{bound.operator} 30%'")
    if bound.unit in ("", unit):
        return bound.value
    if bound.unit == "%":
        raise ValueError(f"{name} is no share: for a change from the baseline write {name}_increase")
    raise ValueError(f"{name} is in {unit or 'no unit'}, not in {bound.unit!r}")


def of_change(bound: Bound, kind: str, unit: str, name: str) -> float:
    """The bound's value in the terms of a Difference.

    Args:
        kind: the Difference's.
        unit: of the metric.

    Raises:
        ValueError: it is in another unit.
    """
    if kind == "difference":
        if bound.unit in ("", unit):
            return bound.value
        raise ValueError(f"the change of {name} is in {unit or 'no unit'}, not in {bound.unit!r}")
    if bound.unit in (_POINTS if kind == "points" else ("%",)):
        return bound.value / 100
    said = "2 pts" if kind == "points" else "2%"
    raise ValueError(f"of the change of {name} write '{bound.operator} {said}'")
