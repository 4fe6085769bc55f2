"""Results folders for the library's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qeval.core.record import Record
from qeval.store.records import Store


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """Writes records into a results folder."""

    def kept(records: Sequence[Record], name: str = "results") -> Path:
        folder = tmp_path / name
        for record in records:
            Store(folder).append(record)
        return folder

    return kept
