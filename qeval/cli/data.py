"""`qeval data`: datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qeval.cli.shared import FOLDER, TEXT_OR_JSON, group
from qeval.core.console import columns, echo
from qeval.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@group()
def data() -> None:
    """Datasets: list the known ones, download them for machines without a hub, check them.

    \b
    Examples:
      qeval data list
    """


@data.command(name="list")
@TEXT_OR_JSON
@click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR].")
def data_list(data_dir: Path | None, fmt: str) -> None:
    """List the datasets with their licence and where each would come from.

    \b
    Examples:
      qeval data list --data-dir ./data
    """
    echo(data_json(data_dir) if fmt == "json" else data_table(data_dir))


@data.command(name="fetch")
@click.argument("names", nargs=-1, required=True)
@click.option("--data-dir", type=FOLDER, required=True, help="Folder to write them to.")
def data_fetch(names: tuple[str, ...], data_dir: Path) -> None:
    """Download datasets from the hub into a data directory.

    \b
    Examples:
      qeval data fetch wikitext2 ptb --data-dir ./data
    """
    for line in fetch_datasets(names, data_dir):
        echo(line)


@data.command(name="verify")
@click.option("--data-dir", type=FOLDER, help="[default: QEVAL_DATA_DIR].")
@TEXT_OR_JSON
def data_verify(data_dir: Path | None, fmt: str) -> None:
    """Compare the files of a data directory with the sha256s of the manifest.

    \b
    Examples:
      qeval data verify --data-dir ./data
    """
    text, ok = verify_datasets(data_dir, fmt)
    echo(text)
    sys.exit(0 if ok else 3)


def data_json(data_dir: Path | None) -> str:
    import json

    from qeval.data.datasets import DataSource
    from qeval.data.manage import list_datasets

    found = [
        {
            "name": item.entry.name,
            "where": item.where,
            "path": str(item.path) if item.path else None,
            "licence": item.entry.licence,
            "about": item.entry.about,
        }
        for item in list_datasets(DataSource(data_dir))
    ]
    return json.dumps(found, indent=1, ensure_ascii=False)


def data_table(data_dir: Path | None) -> str:
    from qeval.data.datasets import DataSource
    from qeval.data.manage import list_datasets

    rows = [("name", "found", "licence", "what")]
    for item in list_datasets(DataSource(data_dir)):
        where = str(item.path) if item.path else item.where
        rows.append((item.entry.name, where, item.entry.licence, item.entry.about))
    return columns(rows)


def fetch_datasets(names: Sequence[str], data_dir: Path) -> Iterator[str]:
    from qeval.data.manage import fetch

    for name in names:
        got = fetch(name, data_dir)
        state = "downloaded" if got.downloaded else "already there"
        n = len(got.corpus.documents)
        yield f"{name}: {state}, {n} documents, {got.path}, sha256 {got.file_sha256}"


def verify_datasets(data_dir: Path | None, fmt: str = "text") -> tuple[str, bool]:
    import json
    from dataclasses import asdict

    from qeval.data.datasets import DATA_DIR_VARIABLE, DataSource
    from qeval.data.manage import verify

    folder = DataSource(data_dir).data_dir
    if folder is None:
        raise UsageError(f"qeval data verify: give --data-dir, or set {DATA_DIR_VARIABLE}")
    found = verify(folder)
    ok = all(v.status != "wrong" for v in found)
    if fmt == "json":
        files = [{**asdict(v), "path": str(v.path)} for v in found]
        return json.dumps(files, indent=1, ensure_ascii=False), ok
    rows = [(v.status, v.name, str(v.path), v.file_sha256[:16], v.message) for v in found]
    return columns(rows) or f"{folder}: no known dataset", ok
