"""A model's JSON files, read within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeval.core.errors import ModelError
from qeval.core.files import parse_json, read_bytes

_LONGEST_CONFIG = 2**22  # bytes; as values they may take twenty times as much memory


def read_json(file: Path, most: int = _LONGEST_CONFIG) -> dict[str, Any]:
    """Raises ModelError where the file is missing, longer than ``most`` bytes, or no JSON object."""
    raw = read_bytes(file, most, ModelError)
    data = parse_json(raw, str(file), ModelError, ": copy it again")
    if not isinstance(data, dict):
        raise ModelError(f"{file}: must be a JSON object")
    return data
