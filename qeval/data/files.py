"""Files of datasets -> rows: WikiText's and PTB's lines, JSON, JSON lines (.gz, too), parquet."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from qeval.core.errors import DataError, MissingExtraError
from qeval.core.files import open_regular, parse_json
from qeval.core.units import human_bytes

MOST_TEXT = 2**31  # bytes; a shard of C4 is 0.8 GB
MOST_RATIO = 100  # of a packed text to its file: text packs to a third or a tenth


def read_rows(path: Path, column: str | None = "text") -> tuple[str, ...]:
    """The rows of a local dataset file; its name's ending says how it is written. ``column`` None: a
    table, from a ``.json`` list of objects, a ``.jsonl`` or a ``.parquet``.

    Raises:
        DataError: it cannot be read that way; the message names the file and the line.
    """
    if path.suffix == ".parquet":
        return _parquet(path, column)
    if column is None:
        return _table(path)
    if path.suffix == ".raw":
        return tuple("" if line.isspace() else line for line in _lines(path))
    if path.suffix == ".txt":
        return tuple(line.strip() for line in _lines(path))
    if path.suffix == ".json":
        return _json_list(path)
    return read_jsonl(path)


def read_text(path: Path) -> str:
    """UTF-8 text with its line ends as they are."""
    try:
        with open_regular(path, DataError) as file:
            raw = _unpacked(path, file) if path.suffix == ".gz" else file.read(MOST_TEXT + 1)
    except (OSError, EOFError, zlib.error) as err:
        raise DataError(f"{path}: cannot be read ({err})") from err
    if len(raw) > MOST_TEXT:
        raise DataError(f"{path}: over {human_bytes(MOST_TEXT)} of text: take a part of it")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not UTF-8 text (byte {err.start}); convert it first") from err


def _unpacked(path: Path, file: BinaryIO) -> bytes:
    """What a .gz file holds, read in pieces: a few MB of one may stand for any number of GB.

    Raises:
        DataError: it is more than text can be packed.
    """
    most = max(MOST_RATIO * path.stat().st_size, 2**24)
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=file) as packed:
        while out.tell() <= MOST_TEXT and (piece := packed.read(2**20)):
            out.write(piece)
            if out.tell() > most:
                raise DataError(
                    f"{path}: unpacks to over {MOST_RATIO} times its size: no text; get it again, or "
                    "gunzip it first"
                )
    return out.getvalue()


def _lines(path: Path) -> list[str]:
    """Lines with their newline; only ``\\n`` ends one (WikiText holds other Unicode line ends)."""
    lines = read_text(path).split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def _json_list(path: Path) -> tuple[str, ...]:
    rows = parse_json(read_text(path), str(path), DataError)
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise DataError(f"{path}: must be a JSON list of strings")
    return tuple(rows)


def read_jsonl(path: Path) -> tuple[str, ...]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = parse_json(line, f"{path}:{number}", DataError)["text"]
        except (KeyError, TypeError) as err:
            raise DataError(f'{path}:{number}: not a JSON object with a "text" ({err!r})') from err
        if not isinstance(text, str):
            raise DataError(f'{path}:{number}: "text" must be a string, not {type(text).__name__}')
        rows.append(text)
    return tuple(rows)


def _table(path: Path) -> tuple[str, ...]:
    if path.suffix == ".json":
        rows = parse_json(read_text(path), str(path), DataError)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: must be a JSON list of objects")
        return tuple(map(_canonical, rows))
    lines = read_text(path).rstrip().split("\n")
    return tuple(_canonical(_object(line, f"{path}:{n}")) for n, line in enumerate(lines, start=1))


def _object(line: str, where: str) -> dict[str, object]:
    row = parse_json(line, where, DataError, "; mend or remove the line")
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object; mend or remove the line")
    return row


def _canonical(row: Mapping[str, object]) -> str:
    """Equal rows have equal text, wherever they come from."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False)


def _parquet(path: Path, column: str | None) -> tuple[str, ...]:
    try:
        parquet = import_module("pyarrow.parquet")  # untyped
    except ImportError as err:
        raise MissingExtraError("pyarrow", "hub") from err
    try:
        if column is None:
            return tuple(map(_canonical, parquet.read_table(path).to_pylist()))
        rows = parquet.read_table(path, columns=[column])[column].to_pylist()
    except (OSError, ValueError, KeyError, TypeError) as err:
        what = (
            f"a parquet file with a column {column!r}" if column else "a parquet file of plain values"
        )
        raise DataError(f"{path}: not {what} ({str(err).partition(chr(10))[0]})") from err
    if bad := [i for i, row in enumerate(rows, start=1) if not isinstance(row, str)]:
        raise DataError(f"{path}: row {bad[0]}: {column!r} must be a string, not {rows[bad[0] - 1]!r}")
    return tuple(rows)
