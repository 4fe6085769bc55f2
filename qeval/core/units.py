"""Units as people read them: GiB = 2^30 bytes, seconds as h/m/s. No other module formats these."""

from __future__ import annotations

GIB = 2**30


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
