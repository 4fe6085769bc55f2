"""Windows whose log-likelihoods a server gave, kept on disk: a run that was killed asks for the rest.

One JSON line a window in ``nll.jsonl`` of the cell's folder, which belongs to the cell's key and so to
its windows. (An engine here computes them again sooner than anybody restarts a run.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.errors import StoreError
from qeval.core.files import disk_message
from qeval.core.jsonl import append_line, cut_torn_line, lines, parsed
from qeval.engines.base import LM, Ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "nll.jsonl"


def nll_of(lm: LM, windows: list[list[int]], first: int, folder: Path) -> Iterator[NDArray[np.float32]]:
    """``lm.nll`` of all windows, in order; those on disk are not asked for.

    Raises:
        StoreError: the folder cannot be written.
    """
    import numpy as np

    path = folder / FILE
    kept = _read(path)
    missing = [i for i in range(len(windows)) if i not in kept]
    asked: list[Ids] = [windows[i] for i in missing]
    with path.open("ab", buffering=0) as file:
        found = zip(missing, lm.nll(asked, first=first), strict=True)
        for i in range(len(windows)):
            if i not in kept:
                number, nll = next(found)
                values = [float(x) if math.isfinite(x) else None for x in nll]
                append_line(file, json.dumps({"window": number, "nll": values}) + "\n", path)
                kept[number] = values
            yield np.array([math.nan if x is None else x for x in kept[i]], np.float32)


def _read(path: Path) -> dict[int, list[float | None]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        cut_torn_line(path)
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err
    found = (parsed(line, f"{path}:{number}") for number, line in lines(path))
    return {entry["window"]: entry["nll"] for entry in found}
