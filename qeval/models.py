"""Model names -> local folders with a content identity (torch-free, runs in the parent).

A local folder's identity is the sha256 of its configuration, tokenizer and weights, remembered by
size and modification time so that a 30 GB model is read once; a hub model's is its commit.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from qeval.errors import MissingExtraError, ModelError
from qeval.files import write_atomic
from qeval.quant.base import ModelRef
from qeval.weights import read_tensors

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_NOT_CONTENT = {"README.md", "LICENSE", ".gitattributes", ".gitignore"}


def resolve_model(
    name: str,
    *,
    dtype: str,
    cache_dir: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    need_tokenizer: bool = True,
) -> ModelRef:
    """Find the model, download it from the hub if needed, and check that its files are whole.

    Raises:
        ModelError: missing, truncated, no tokenizer, or neither here nor on the hub.
    """
    path = Path(name).expanduser()
    if path.exists():
        check_model(path, need_tokenizer)
        return ModelRef(name, path.resolve(), identify(path, cache_dir), dtype, trust_remote_code)
    if not _HUB_ID.match(name):
        raise ModelError(f"{name}: no such model folder or .gguf file")
    folder = _download(name, revision)
    check_model(folder, need_tokenizer)
    return ModelRef(name, folder, f"hub:{name}@{folder.name}", dtype, trust_remote_code)


def check_model(path: Path, need_tokenizer: bool = True) -> None:
    """Raises ModelError where the files of a model are missing or cut off, before any job starts."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path}: a model is a folder or a .gguf file")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
        return
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json: not a Hugging Face model folder")
    read_tensors(path)
    if not need_tokenizer:
        return
    tokenizer_files = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "tokenizer_config.json",
    )
    if not any((path / name).is_file() for name in tokenizer_files):
        raise ModelError(
            f"{path}: no tokenizer (tokenizer.json): copy the model's tokenizer files there"
        )


def identify(path: Path, cache_dir: Path) -> str:
    """``sha256:<hex>`` of a .gguf file, or of a folder's files except documentation."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    files = [p for p in files if p.name not in _NOT_CONTENT]
    store = cache_dir / "identities.json"
    try:
        known: dict[str, str] = json.loads(store.read_text())
    except (OSError, ValueError):
        known = {}  # a cache: made anew where it is missing or torn
    before = len(known)
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        sign = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        if sign not in known:
            with file.open("rb") as handle:
                known[sign] = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{file.name if path.is_dir() else ''}:{known[sign]}\n".encode())
    if len(known) > before:
        write_atomic(store, json.dumps(known, indent=0))
    return f"sha256:{total.hexdigest()}"


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as err:
        raise MissingExtraError("huggingface_hub", "hub") from err
    skip = ["*.gguf", "*.pth", "*.pt", "*.onnx", "*.msgpack", "*.h5", "*.ot", "original/*"]
    try:
        names = list_repo_files(name, revision=revision)
        skip += ["*.bin"] if any(n.endswith(".safetensors") for n in names) else []
    except Exception:  # no hub (each layer has its own exceptions): what is on this disk must do
        skip += ["*.bin"]
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=skip))
    except Exception as err:
        reason = str(err).strip().splitlines()[0]
        raise ModelError(f"{name}: no such folder, and the hub did not give it: {reason}") from err
