"""A row's weights as a folder of their own, with their card: ready for transformers, vLLM or llama.cpp.

The weights are those that were measured, copied file by file: an artifact of the cache, or the model
folder or file of a row that quantized nothing. Links (as the hub's cache has them) become files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qeval.core.errors import StoreError, UsageError
from qeval.core.files import disk_message, write_atomic
from qeval.engines.base import Packed
from qeval.engines.vllm_limits import check_packed
from qeval.exports.card import card
from qeval.exports.rows import ExportRow
from qeval.llama.gguf_file import all_parts

_NOT_IN_TRANSFORMERS = ("hqq", "quanto")


def export_model(row: ExportRow, folder: Path) -> list[Path]:
    """The files written to ``folder``, the card (README.md) last. It appears whole or not at all.

    Raises:
        UsageError: the folder is there already and not empty; or the row's weights are not what other
            programs would run (activations or KV cache in few bits, a server).
        StoreError: the weights are no longer where they were; or the disk.
    """
    source = _source(row)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already: name a new folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        try:
            _copy(source, partial)
            if (partial / "README.md").exists():  # of the model that was found
                (partial / "README.md").rename(partial / "README.original.md")
            text = card(row, usage="\n".join(_usage(row, partial, folder)))
            write_atomic(partial / "README.md", text)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as err:
        raise StoreError(disk_message(folder.parent, err)) from err
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [*(f for f in files if f.name != "README.md"), folder / "README.md"]


def _source(row: ExportRow) -> Path:
    records, made = row.records, row.records.artifact
    if made.get("engine") == "openai" or str(records.identity).startswith("endpoint:"):
        raise UsageError(f"{row.name}: its weights are on a server")
    if records.low_bits or records.floor:
        what = " and ".join(sorted(records.low_bits)) or records.floor
        raise UsageError(
            f"{row.name}: {what} are rounded by qeval while the weights run; no other program would: "
            "export the row of the same weights without it"
        )
    path = Path(str(made.get("path") or ""))
    if not made.get("path") or not path.exists():
        raise StoreError(
            f"{row.name}: its weights are not here ({path}): run its spec again on this machine; a "
            "build that left the cache is made again"
        )
    return path


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():
        skipped = shutil.ignore_patterns(".git", ".cache", "*.lock")
        shutil.copytree(source, folder, ignore=skipped, dirs_exist_ok=True)
        return
    for file in all_parts(source):
        shutil.copy(file, folder / file.name)


def _usage(row: ExportRow, folder: Path, name: Path) -> Iterator[str]:
    """How to run it with what reads such files."""
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        yield from _of_gguf(f"{name.name}/{ggufs[0]}")
        return
    details: Mapping[str, Any] = row.records.artifact.get("details") or {}
    packed = details.get("format") or {}
    kind, extra = str(packed.get("name") or ""), packed.get("extra")
    if row.records.simulated:
        yield (
            "Its weights carry the rounding but are stored as floats: quality is what was measured, "
            "size and speed are those of the float model."
        )
        yield ""
    if kind in _NOT_IN_TRANSFORMERS:
        yield f"transformers does not read this format; its own library, {kind}, and qeval do:"
        yield from ("", "```yaml", f"- checkpoint: {name.name}", "```")
        return
    yield from (
        "With transformers"
        + (f" (`pip install 'qeval[{extra}]'`, or what that installs):" if extra else ":"),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name.name}", dtype="auto")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name.name}")',
        "```",
    )
    if _in_vllm(Packed(kind, packed.get("num_bits"), packed.get("symmetric")) if kind else None):
        yield from ("", f"With vLLM: `vllm serve {name.name}`")


def _in_vllm(packed: Packed | None) -> bool:
    try:
        check_packed(packed, None)
    except UsageError:
        return False
    return True


def _of_gguf(path: str) -> Iterator[str]:
    yield from (
        f"With llama.cpp: `llama-server -m {path}`, or in Python:",
        "",
        "```python",
        "from llama_cpp import Llama",
        "",
        f'model = Llama("{path}")',
        "```",
    )
