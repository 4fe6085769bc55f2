"""The devices of this machine, found without importing torch."""

from __future__ import annotations

import re


def device_name(value: str) -> str:
    """A device as a spec or an option names it. Raises ValueError for any other word."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value):
        return value
    raise ValueError("must be auto, cpu, cuda or cuda:N")
