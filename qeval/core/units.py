"""Units as people read them: GiB = 2^30 bytes, seconds as h/m/s. No other module formats these."""

from __future__ import annotations

import re

GIB = 2**30
_BINARY = {f"{letter}iB": 1 << (10 * i) for i, letter in enumerate("KMGT", 1)}
_DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES: dict[str, int] = {"B": 1, **_BINARY, **_DECIMAL}
"""Bytes of a unit: GiB = 2^30, GB = 10^9."""


def parse_bytes(text: str) -> float:
    """Bytes of ``12GiB``, ``512 MiB`` or ``12GB``.

    Raises:
        ValueError: it is no size over zero; with the fix.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]+)", text.strip())
    if not found or found[2] not in BYTES or not float(found[1]):
        raise ValueError(f"{text!r} is no size: write it with its unit, as in 12GiB")
    return float(found[1]) * BYTES[found[2]]


def parse_percent(text: str) -> float:
    """The share that ``1%`` or ``1`` means: 0.01.

    Raises:
        ValueError: it is no percentage over zero and below a million; with the fix.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%?", text.strip())
    if not found or not 0 < float(found[1]) < 1e6:
        raise ValueError(f"{text!r} is no percentage over zero: write 1 or 1%")
    return float(found[1]) / 100


def gib(n_bytes: float) -> str:
    """Bytes as GiB: ``29.7`` from 1 up, ``0.110`` below, so that tiny models do not show as 0.0."""
    value = n_bytes / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:#.3g}"


def human_bytes(n_bytes: float) -> str:
    """Bytes with the binary unit that fits: ``98.0 MiB``."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def human_seconds(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 m 20 s``, ``2 h 05 m``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
