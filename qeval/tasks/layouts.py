"""Short tables with a name (``qeval table --layout NAME``): whose columns, and what heads them."""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    protocols: str  # how the protocol ids of its columns begin
    metrics: tuple[str, ...]  # a column each, in this order
    unit: str  # of a metric that nothing measured
    heading: str  # stands before that of the first column
    counted: str  # what a limit counts


LAYOUTS = {
    "starcoder2": Layout("humaneval/", ("pass@1", "pass@10"), "share", "HumanEval", "problems"),
}
