"""The baseline's predictions, computed once and kept for all rows of a table:
``<cache_dir>/references/<key>/``.

A logit is kept as its distance from the largest of its token, in 65,536 steps that are finest near the
top: (code * step)^2 nats, up to 40, since exp(-40) times any vocabulary is under 1e-11. The error of
the mean KLD is under 1e-6 nats (tests/store/test_references.py); llama.cpp's file, 16 bits from the
largest down to 16 nats under it, costs 5e-4. Two bytes for each entry of the vocabulary: 98 kB a token
at 49,152, 256 kB at 128,256.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.errors import StoreError
from qeval.core.files import disk_message
from qeval.core.units import human_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DEEPEST = 40.0  # nats under the largest
_CODES = 65535
CODE_BYTES = 2
"""Of each entry of the vocabulary, for each token."""


def encoded(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """[n, vocabulary] of float -> codes of the same shape. What is not finite makes its whole row
    65535, which no finite row is: its largest has code 0."""
    import numpy as np

    with np.errstate(all="ignore"):
        depth = logits.max(-1, keepdims=True).astype(np.float64) - logits
        codes = np.rint(np.sqrt(np.minimum(depth, _DEEPEST)) * (_CODES / _DEEPEST**0.5))
    codes[~np.isfinite(logits).all(-1)] = _CODES
    found: NDArray[np.uint16] = codes.astype(np.uint16)
    return found


def decoded(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Logits up to a constant for each row, NaN where they were not finite."""
    import numpy as np

    logits: NDArray[np.float64] = codes * (_DEEPEST**0.5 / _CODES)
    np.square(logits, out=logits)
    np.negative(logits, out=logits)
    logits[codes.min(-1) == _CODES] = np.nan
    return logits


class References:
    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / "references"

    def find(self, key: str) -> Reference | None:
        """What was written whole, or None."""
        folder = self.folder / key
        try:
            facts = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
            found = Reference(folder, int(facts["rows"]), int(facts["vocabulary"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.is_whole() else None

    def sizes(self, days: float = 0.0) -> dict[Path, int]:
        """The bytes of each that is as old as that, of what killed runs left, too."""
        limit = time.time() - days * 86400
        folders = [f for f in self.folder.glob("*") if f.is_dir() and f.stat().st_mtime <= limit]
        return {f: sum(p.stat().st_size for p in f.iterdir()) for f in folders}

    def remove(self, days: float = 0.0) -> int:
        """Remove those; the number of bytes."""
        chosen = self.sizes(days)
        for folder in chosen:
            shutil.rmtree(folder, ignore_errors=True)
        return sum(chosen.values())

    @contextmanager
    def writing(self, key: str, rows: int, vocabulary: int) -> Iterator[Writer]:
        """Write one. It appears under its key when the block ends without an error.

        Raises:
            StoreError: there is no room for it, or the cache cannot be written.
        """
        needed = CODE_BYTES * rows * vocabulary
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise StoreError(
                    f"{self.folder}: the baseline's predictions take {human_bytes(needed)} and "
                    f"{human_bytes(free)} are free: set `limit` (windows), or another --cache-dir"
                )
            out = self.folder / f".writing-{key[:16]}-{secrets.token_hex(4)}"
            out.mkdir()
        except OSError as err:
            raise StoreError(disk_message(self.folder, err)) from err
        try:
            with (out / "codes").open("wb") as file:
                writer = Writer(out / "codes", file.fileno(), rows, vocabulary)
                yield writer
            writer.check_whole()
            (out / "reference.json").write_text(json.dumps({"rows": rows, "vocabulary": vocabulary}))
            if self.find(key) is None:  # else another run was faster, and its readers are at it
                shutil.rmtree(self.folder / key, ignore_errors=True)
                out.rename(self.folder / key)
        except OSError as err:
            raise StoreError(disk_message(self.folder, err)) from err
        finally:
            shutil.rmtree(out, ignore_errors=True)


class Writer:
    def __init__(self, path: Path, descriptor: int, rows: int, vocabulary: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._rows, self._vocabulary, self._written = rows, vocabulary, 0

    def append(self, logits: NDArray[np.float32]) -> None:
        """[n, vocabulary]. Raises StoreError where the disk is full."""
        assert logits.shape[1] == self._vocabulary
        data = memoryview(encoded(logits).tobytes())
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as err:
            raise StoreError(disk_message(self._path, err)) from err
        self._written += len(logits)

    def check_whole(self) -> None:
        assert self._written == self._rows, f"{self._written} of {self._rows} rows"


class Reference:
    """Predictions on the disk: ``rows`` tokens, in the order in which they were appended."""

    def __init__(self, folder: Path, rows: int, vocabulary: int) -> None:
        self.folder, self.rows, self.vocabulary = folder, rows, vocabulary

    def is_whole(self) -> bool:
        codes = self.folder / "codes"
        return codes.is_file() and codes.stat().st_size == CODE_BYTES * self.rows * self.vocabulary

    def predictions(
        self, windows: Sequence[Sequence[int]], *, first: int = 1
    ) -> Iterator[NDArray[np.float64]]:
        """As an engine gives them, up to a constant for each token: [len - first, vocabulary].

        Raises:
            StoreError: it is of other windows.
        """
        sizes = [len(window) - first for window in windows]
        if sum(sizes) != self.rows:
            raise StoreError(f"{self.folder}: holds {self.rows} tokens, not {sum(sizes)}: remove it")
        start = 0
        for size in sizes:
            yield decoded(self.read(start, size))
            start += size

    def read(self, start: int, n: int) -> NDArray[np.uint16]:
        """The codes of ``n`` rows: read, not mapped, since mapped pages would count as this process's
        memory."""
        import numpy as np

        codes = np.fromfile(
            self.folder / "codes",
            np.uint16,
            count=n * self.vocabulary,
            offset=CODE_BYTES * start * self.vocabulary,
        )
        return codes.reshape(n, self.vocabulary)
