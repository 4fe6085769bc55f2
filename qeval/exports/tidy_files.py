"""Tidy lines (report/tidy.py) as csv and parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from qeval.core.errors import StoreError
from qeval.core.extras import require
from qeval.core.files import disk_message
from qeval.report.tidy import FIELDS

_NUMBERS = ("value", "low", "high", "stderr", "difference", "difference_low", "difference_high", "p")
_TYPES = {
    **dict.fromkeys((*_NUMBERS, "p_holm", "detectable"), "float64"),
    **dict.fromkeys(("n", "limit", "n_threads", "batch_size"), "int64"),
    **dict.fromkeys(
        ("baseline", "simulated", "accounted", "significant", "equivalent", "at_floor"), "bool"
    ),
}
"""Of the columns that are no text, whatever a file has in them."""


def csv_text(lines: Sequence[dict[str, object]]) -> str:
    """A header, then one metric a line; nothing where there is nothing, yes and no as 1 and 0."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: int(v) if isinstance(v, bool) else v for k, v in line.items()})
    return out.getvalue()


def write_parquet(lines: Sequence[dict[str, object]], path: Path) -> None:
    """The same, with types.

    Raises:
        MissingExtraError: pyarrow is not installed.
        StoreError: the file cannot be written.
    """
    require("parquet", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
    schema = pa.schema([(name, types.get(_TYPES.get(name, ""), pa.string())) for name in FIELDS])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(lines), schema=schema), path)
    except OSError as err:
        raise StoreError(disk_message(path.parent, err)) from err
