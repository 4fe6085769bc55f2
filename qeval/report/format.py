"""Numbers as people read them: as many digits as their interval supports, signs on differences."""

from __future__ import annotations

import math

from qeval.core.units import gib, human_seconds
from qeval.report.compare import Difference
from qeval.report.table import Column, Entry

SIMULATED = "†"
_TINY = 5e-6  # smaller numbers are written with an exponent
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_PRINTED_UNITS = {"bytes": "GiB", "share": "", "bits": ""}


def printed_unit(column: Column) -> str:
    """The unit in a header; times carry theirs in the cell."""
    if column.kind == "time" and column.unit == "s":
        return ""
    return _PRINTED_UNITS.get(column.unit, column.unit)


def marks(notes: tuple[int, ...]) -> str:
    """Footnote numbers: ``' ¹ ²'``."""
    return "".join(f" {str(n).translate(_SUPERSCRIPTS)}" for n in notes)


def value_text(column: Column, entry: Entry) -> str:
    """``21.62 ± 0.31``, ``22.6% [16.9, 29.6]``, ``0.254 †``, ``failed ¹``."""
    if entry.value is None:
        return entry.status + marks(entry.notes)
    marked = (f" {SIMULATED}" if entry.accounted else "") + (" at the floor" if entry.at_floor else "")
    return _number(column, entry) + marked + marks(entry.notes)


def difference_text(entry: Entry) -> str:
    """``+1.3% [+0.9, +1.7]``, ``-3.7 pts [-8.1, +0.6] n.s.``, ``×1.32``; ``identical``
    where no unit differs; empty without a difference."""
    change = entry.difference
    if change is None:
        return ""
    said = change_text(change)
    if said == "identical" or change.kind in ("ratio", "time"):
        return said
    tested = {True: "", False: " n.s.", None: " untested"}[change.significant]
    return said + (" equiv." if change.equivalent else tested)


def change_text(change: Difference) -> str:
    """``difference_text`` without the verdict."""
    if change.value == change.low == change.high == 0:
        return "identical"
    if change.kind in ("ratio", "time"):
        return f"×{_significant(change.value, 3)}"
    if is_factor(change):
        return _growth(change)
    half = _half_width(change.low, change.high)
    if change.kind == "difference":
        return _plain(change, half)
    decimals = max(1, _decimals(100 * half, most=3 if change.kind == "relative" else 1)) if half else 1
    unit = "%" if change.kind == "relative" else " pts"
    low_high = _interval(change, decimals) if change.low is not None else ""
    return _signed(change.value, decimals) + unit + low_high


def _plain(change: Difference, half: float) -> str:
    """``+0.031 [+0.029, +0.033]``: in the metric's own unit."""
    decimals = _decimals(half, most=6) if half else _decimals_of(change.value, 3)
    if change.low is None or change.high is None:
        return f"{change.value:+.{decimals}f}"
    low, high = (f"{x:+.{decimals}f}" for x in (change.low, change.high))
    return f"{change.value:+.{decimals}f} [{low}, {high}]"


def is_factor(change: Difference) -> bool:
    """A relative change so large that a factor reads better than a percentage."""
    return change.kind == "relative" and change.value >= 9


def _growth(change: Difference) -> str:
    low, high = change.low, change.high
    interval = "" if low is None or high is None else f" [{_factor(low)}, {_factor(high)}]"
    return f"×{_factor(change.value)}{interval}"


def _factor(growth: float) -> str:
    return _significant(1 + growth, 4)


def _interval(change: Difference, decimals: int) -> str:
    assert change.low is not None and change.high is not None
    return f" [{_signed(change.low, decimals)}, {_signed(change.high, decimals)}]"


def _signed(share: float, decimals: int) -> str:
    value = round(100 * share, decimals)
    return f"{value + 0.0:+.{decimals}f}"  # + 0.0 turns -0.0 into 0.0


def _number(column: Column, entry: Entry) -> str:
    assert entry.value is not None
    if column.unit == "bytes":
        return gib(entry.value)
    if column.unit == "bits":
        return f"{entry.value:.2f}"
    if column.kind == "time":
        return human_seconds(entry.value)
    if column.unit == "share":
        return _with_interval(entry, scale=100, unit="%")
    return _with_interval(entry, scale=1, unit="")


def _with_interval(entry: Entry, *, scale: float, unit: str) -> str:
    assert entry.value is not None
    half = scale * (entry.half or _half_width(entry.low, entry.high))
    value = scale * entry.value
    if not half:
        return (f"{value:.1f}" if unit else _significant(value, 4)) + unit
    if not unit and 0 < abs(value) < _TINY:
        low, high = scale * (entry.low or 0.0), scale * (entry.high or 0.0)
        return f"{value:.2g} [{low:.2g}, {high:.2g}]"
    most = 4 if abs(value) >= 0.01 else 7
    decimals = 1 if unit else max(_decimals(half, most=most), min(4, _decimals_of(value, 4)))
    if entry.half is not None:
        return f"{value:.{decimals}f}{unit} ± {half:.{decimals}f}"
    low, high = scale * (entry.low or 0.0), scale * (entry.high or 0.0)
    return f"{value:.{decimals}f}{unit} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _half_width(low: float | None, high: float | None) -> float:
    return 0.0 if low is None or high is None else (high - low) / 2


def _decimals(half: float, most: int) -> int:
    """Decimals that show two digits of a half-width."""
    return min(most, max(0, 1 - math.floor(math.log10(half))))


def _significant(value: float, digits: int) -> str:
    """``digits`` significant digits, without an exponent where that is short: 1234, 56.4, 0.0123."""
    if value == 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{value:.{_decimals_of(value, digits)}f}"


def _decimals_of(value: float, digits: int) -> int:
    """Decimals that show ``digits`` significant digits, at most 4."""
    return min(4, max(0, digits - 1 - math.floor(math.log10(abs(value))))) if value else 0
