"""Which rows are measurably better than which, and the ranks that this makes.

One row beats another where their difference, paired unit by unit, is significant after Holm's
correction for all pairs of the candidates, and not equivalent within the margin. "Not distinguishable"
is not transitive (a may be like b and b like c, and a better than c), so rows are ranked in layers:
rank 1 are those that no row beats, rank 2 those that only rank 1 beats, and so on. No row beats another
of its own rank, and none is chosen before one of a better rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from qeval.report.compare import Difference, Margins, corrected
from qeval.report.draft import between
from qeval.report.fill import FoundCell


@dataclass(frozen=True)
class Ranks:
    """``of``: by row, from 1. ``pairs``: the difference of the first row from the second. ``untested``:
    pairs that only their numbers tell apart."""

    of: Mapping[int, int]
    pairs: Mapping[tuple[int, int], Difference]
    untested: frozenset[tuple[int, int]]

    def largest_loss(self, row: int, *, lower_is_better: bool) -> float:
        """By how much the row may be worse than one of its rank: the largest of the one-sided 95%
        bounds; 0 where none is over it."""
        found = [0.0]
        for (i, j), change in self.pairs.items():
            if row not in (i, j) or self.of[i] != self.of[j]:
                continue
            larger = (row == i) == lower_is_better  # whether a change above 0 is this row's loss
            bound = change.at_most if larger else change.at_least
            if bound is not None:
                found.append(bound if larger else _turned(bound, change.kind))
        return max(found)


def _turned(bound: float, kind: str) -> float:
    """The change of the second row from the first, from that of the first from the second."""
    return 1 / (1 + bound) - 1 if kind == "relative" else -bound


def ranks(
    cells: Mapping[int, FoundCell],
    margins: Margins,
    *,
    lower_is_better: bool,
    at_floor: frozenset[int] = frozenset(),
) -> Ranks:
    """
    Args:
        cells: by row, of one column, with a finite number each.
        at_floor: rows that are not ranked among each other.
    """
    found = {(i, j): between(cells[i], cells[j], margins) for i, j in combinations(sorted(cells), 2)}
    told = [pair for pair, d in found.items() if isinstance(d, Difference) and d.p is not None]
    changes = corrected([d for pair in told if isinstance(d := found[pair], Difference)])
    pairs = dict(zip(told, changes, strict=True))
    beats: set[tuple[int, int]] = set()
    for i, j in found:
        if {i, j} <= at_floor:
            continue
        by = _by(pairs.get((i, j)), cells[i], cells[j])
        if by:
            beats.add((i, j) if (by < 0) == lower_is_better else (j, i))
    untested = frozenset(found.keys() - pairs.keys())
    return Ranks(layers(sorted(cells), lambda a, b: (a, b) in beats), pairs, untested)


def layers(rows: Sequence[int], beats: Callable[[int, int], bool]) -> dict[int, int]:
    """The rank of each row, from 1."""
    out: dict[int, int] = {}
    left = list(rows)
    while left:
        best = [i for i in left if not any(beats(j, i) for j in left)] or left
        rank = max(out.values(), default=0) + 1
        out |= dict.fromkeys(best, rank)
        left = [i for i in left if i not in out]
    return out


def _by(change: Difference | None, ours: FoundCell, theirs: FoundCell) -> float:
    """Over 0 where the first is measurably larger; 0 where it cannot be told. By the numbers alone
    where no test can be made."""
    if change is not None:
        return change.value if change.significant and not change.equivalent else 0.0
    assert ours.metric is not None and theirs.metric is not None
    assert ours.metric.value is not None and theirs.metric.value is not None
    return ours.metric.value - theirs.metric.value
