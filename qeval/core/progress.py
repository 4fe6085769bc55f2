"""How far something is, as a method, a task or the worker tells it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""done, total, unit ("layers", "windows", "layers, the last one's name").

A phase without steps is ``0, 0, "loading the model"``.
"""


def kind(unit: str) -> str:
    """What a unit counts, without what it says of the last one."""
    return unit.partition(",")[0]
