"""Model names -> local folders with a content identity (torch-free, runs in the parent).

A local folder's identity is the sha256 of its configuration, tokenizer and weights, remembered by
size and modification time so that a 30 GB model is read once; a hub model's is its commit. What came
from the hub is compared, once, with the sha256 that the hub gave.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qeval.engines.gguf_file import all_parts
from qeval.engines.gguf_file import read_header as read_gguf_header
from qeval.errors import MissingExtraError, ModelError
from qeval.files import write_atomic
from qeval.quant.base import ModelRef
from qeval.quant.folder import check_floats
from qeval.quant.formats import read_json, recognise
from qeval.weights import read_tensors, weight_files

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_COMMIT = re.compile(r"^[0-9a-f]{7,40}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_NOT_LOADED = ("*.gguf", "*.pth", "*.onnx", "*.msgpack", "*.h5", "*.ot", "original/*")
_NOT_CONTENT = {"README.md", "LICENSE", "qeval.json", ".gitattributes", ".gitignore"}


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
        ModelError: missing, damaged, no tokenizer, code of its own without ``trust_remote_code``, or
            neither here nor on the hub.
    """
    path = Path(name).expanduser()
    if path.exists():
        check_model(path, need_tokenizer, trust_remote_code)
        # Not resolved: a snapshot of the hub links to blobs, whose names say neither type nor part.
        return ModelRef(name, path.absolute(), identify(path, cache_dir), dtype, trust_remote_code)
    if not _HUB_ID.match(name):
        raise ModelError(f"{name}: no such model folder or .gguf file")
    folder = _download(name, revision)
    check_model(folder, need_tokenizer, trust_remote_code)
    _hashes(weight_files(folder), cache_dir)
    return ModelRef(name, folder, f"hub:{name}@{folder.name}", dtype, trust_remote_code)


def check_model(path: Path, need_tokenizer: bool = True, trust_remote_code: bool = False) -> None:
    """Raises ModelError where the files of a model are missing or damaged, or bring code that nobody
    allowed to run, before any job starts."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path}: a model is a folder or a .gguf file")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
        read_gguf_header(path)
        return
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json: not a Hugging Face model folder")
    tensors = read_tensors(path)
    if recognise(path) is None:
        check_floats(path, tensors)
    if not trust_remote_code:
        _check_no_code(path / "config.json")
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


def _check_no_code(config: Path) -> None:
    """Raises ModelError where transformers has no class of its own for the model and would run the
    one that comes with it."""
    data = read_json(config)
    auto_map, kind = data.get("auto_map"), data.get("model_type")
    if not isinstance(auto_map, dict) or "AutoModelForCausalLM" not in auto_map:
        return
    library = find_spec("transformers")
    places = library.submodule_search_locations if library is not None else None
    if not places:
        return
    known = (Path(places[0]) / "models" / "auto").glob("*.py")
    if not any(f'"{kind}"' in file.read_text(encoding="utf-8") for file in known):
        raise ModelError(
            f"{config}: auto_map: the model ({kind}) runs code of its own: read it, then set "
            "trust_remote_code: true on the model, or on the checkpoint"
        )


def identify(path: Path, cache_dir: Path) -> str:
    """``sha256:<hex>`` of a .gguf file, all its parts if it is split, or of a folder's files except
    documentation.

    Raises:
        ModelError: a file is not what the hub gave.
    """
    if path.is_file():
        files = all_parts(path) if path.suffix == ".gguf" else [path]
    else:
        files = sorted(p for p in path.iterdir() if p.is_file())
    files = [p for p in files if p.name not in _NOT_CONTENT]
    total = hashlib.sha256()
    for file, digest in zip(files, _hashes(files, cache_dir), strict=True):
        total.update(f"{file.name if path.is_dir() else ''}:{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _hashes(files: Sequence[Path], cache_dir: Path) -> list[str]:
    """The sha256 of each file: remembered, or read now.

    Raises:
        ModelError: one is not the one that the hub named.
    """
    store = cache_dir / "identities.json"
    try:
        known: dict[str, str] = json.loads(store.read_text())
    except (OSError, ValueError):
        known = {}  # a cache: made anew where it is missing or torn
    before = len(known)
    out = []
    for file in files:
        stat = file.stat()
        sign = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        if sign not in known:
            with file.open("rb") as handle:
                known[sign] = hashlib.file_digest(handle, "sha256").hexdigest()
        wanted = _hub_sha256(file)
        if wanted and known[sign] != wanted:
            raise ModelError(
                f"{file}: corrupted: its sha256 is {known[sign]}, the hub's {wanted}: delete "
                f"{file.resolve()} and download it again"
            )
        out.append(known[sign])
    if len(known) > before:
        write_atomic(store, json.dumps(known, indent=0))
    return out


def _hub_sha256(file: Path) -> str | None:
    """What the hub said a large file's sha256 is: the name of the blob that a snapshot links to, or the
    second line of what `hf download --local-dir` noted; None for files of the user's own."""
    if file.is_symlink() and _SHA256.match(file.resolve().name):
        return file.resolve().name
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    if not note.is_file():
        return None
    _, etag, when, *_ = [*note.read_text(encoding="utf-8").split("\n"), "", "", ""]
    try:
        unchanged = file.stat().st_mtime <= float(when) + 1  # as huggingface_hub decides it
    except ValueError:
        return None
    return etag if unchanged and _SHA256.match(etag) else None


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as err:
        raise MissingExtraError("huggingface_hub", "hub") from err
    skip = list(_NOT_LOADED)
    try:
        names = list_repo_files(name, revision=revision)
        skip += ["*.bin"] if any(n.endswith(".safetensors") for n in names) else []
        skip += [] if "qmodel.pt" in names else ["*.pt"]  # hqq's weights
    except Exception:  # no hub (each layer has its own exceptions): what is on this disk must do
        skip += ["*.bin"]
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=skip))
    except Exception as err:
        if kept := _cached_commit(name, revision):
            return kept
        reason = str(err).strip().splitlines()[0]
        raise ModelError(f"{name}: no such folder, and the hub did not give it: {reason}") from err


def _cached_commit(name: str, revision: str | None) -> Path | None:
    """The snapshot of a commit, whole or shortened as git does it, that lies in the hub's cache; None
    where it does not. A commit's files never change, so it does not matter why the hub gave none.
    snapshot_download itself looks there for branches and tags only (huggingface_hub 1.33)."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    if not _COMMIT.match(revision or ""):
        return None
    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    commits = [folder.name for folder in (repo / "snapshots").glob(f"{revision}*")]
    if len(commits) != 1:
        return None
    skip = [*_NOT_LOADED, "*.bin", "*.pt"]  # check_model says whether its weights are whole
    try:
        kept = snapshot_download(name, revision=commits[0], ignore_patterns=skip, local_files_only=True)
    except Exception:  # not all of its files are there
        return None
    return Path(kept)
