"""How far something is, as a method or task tells it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""done, total, unit ("layers", "windows", ...)."""
