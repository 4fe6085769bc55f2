"""Model names -> local folders with a content identity (torch-free, runs in the parent).

A local folder's identity is the sha256 of its configuration, tokenizer and weights, remembered by
size and modification time so that a 30 GB model is read once; a hub model's is its commit, but for a
``.gguf`` file, which has its content's wherever it lies. What came from the hub is compared, once, with
the sha256 that the hub gave.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.artifact import ModelRef
from qeval.core.errors import HubError, ModelError, StoreError, UsageError, short
from qeval.core.extras import require
from qeval.core.files import exists, file_sha256, not_regular, user_path, write_atomic
from qeval.hub.files import configures
from qeval.hub.gguf import gguf_model, split_name
from qeval.llama.gguf_file import all_parts
from qeval.llama.gguf_file import read_header as read_gguf_header
from qeval.models.causal import check_causal, check_causal_gguf
from qeval.models.config import read_json
from qeval.models.weights import read_tensors, weight_files

if TYPE_CHECKING:
    from qeval.hub.download import Plan

_SHA1 = re.compile(r"^[0-9a-f]{40}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
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
    path = _here(name)
    if path is not None:
        if revision:
            raise ModelError(
                f"{name} lies here, and revision {revision!r} is for a model of the hub: leave "
                "`revision` out, or rename the folder"
            )
        check_model(path, need_tokenizer, trust_remote_code)
        # Not resolved: a snapshot of the hub links to blobs, whose names say neither type nor part.
        return ModelRef(name, path.absolute(), identify(path, cache_dir), dtype, trust_remote_code)
    _check_hub_id(name)
    from qeval.hub.download import download_model

    try:
        folder = download_model(name, revision)
    except HubError as err:
        raise ModelError(_not_here(name, revision, err)) from err
    if folder.is_file():
        _hashes([folder], cache_dir)  # before its header is read, which names its parts
        identity = identify(folder, cache_dir)
        check_model(folder)
        return ModelRef(name, folder, identity, dtype, trust_remote_code)
    check_model(folder, need_tokenizer, trust_remote_code)
    _hashes(weight_files(folder), cache_dir)
    _check_small_files(folder)
    return ModelRef(name, folder, f"hub:{name}@{folder.name}", dtype, trust_remote_code)


def _here(name: str, *, weights: bool = True) -> Path | None:
    """The folder or .gguf file that a name means, ``FOLDER:TYPE`` among them; None where there is none.
    Without ``weights`` a folder is itself, whatever lies in it.

    Raises:
        ModelError: the folder has no such GGUF model, or several.
    """
    path, asked = user_path(name), None
    if not exists(path):
        before, _, asked = name.rpartition(":")
        path = user_path(before)
        if not (before and asked and exists(path)):
            return None
        if not path.is_dir():
            raise ModelError(f"{before}: is one file, and a type is for folders: leave out :{asked}")
    if not path.is_dir() or not (weights or asked):
        return path
    found = gguf_model(str(path), _names(path), asked)
    return path / found[0] if found else path


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder, and the .gguf files of the folders in it."""
    for pattern in ("*", "*/*.gguf"):
        yield from (p.relative_to(folder).as_posix() for p in folder.glob(pattern) if p.is_file())


def check_model(path: Path, need_tokenizer: bool = True, trust_remote_code: bool = False) -> None:
    """Raises ModelError where the files of a model are missing or damaged, or bring code that was not
    allowed to run, before any job starts."""
    if path.is_file():
        _check_gguf(path)
        check_causal_gguf(path, read_gguf_header(path))
        return
    if not path.is_dir():
        raise ModelError(f"{not_regular(path, path.stat().st_mode)}, or a model folder")
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: no config.json: not a Hugging Face model folder")
    read_tensors(path)
    if not trust_remote_code:
        _check_no_code(path / "config.json")
    check_causal(path / "config.json")
    if need_tokenizer:
        check_tokenizer(path)


def check_tokenizer(path: Path) -> None:
    """Raises ModelError where a folder has no tokenizer, or a file is no GGUF file."""
    if path.is_file():
        _check_gguf(path)
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


def _check_gguf(path: Path) -> None:
    if path.suffix != ".gguf":
        raise ModelError(f"{path}: a model is a folder or a .gguf file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")


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
            known[sign] = file_sha256(file)
        wanted = _hub_sha256(file)
        if wanted and known[sign] != wanted:
            raise ModelError(_corrupted(file, "sha256", known[sign], wanted))
        out.append(known[sign])
    if len(known) > before:
        with suppress(StoreError):  # a cache that cannot be written: they are read again
            write_atomic(store, json.dumps(known, indent=0))
    return out


def _hub_sha256(file: Path) -> str | None:
    """What the hub said a large file's sha256 is: the name of the blob that a snapshot links to, or the
    second line of what `hf download --local-dir` noted; None for files of the user's own."""
    blob = _blob(file)
    if blob is not None:
        return blob if _SHA256.match(blob) else None
    notes = (  # in the folder that was named, of which the file may lie in a folder
        folder / ".cache/huggingface/download" / f"{file.relative_to(folder)}.metadata"
        for folder in list(file.parents)[:2]
    )
    note = next((path for path in notes if path.is_file()), None)
    if note is None:
        return None
    _, etag, when, *_ = [*note.read_text(encoding="utf-8").split("\n"), "", "", ""]
    try:
        unchanged = file.stat().st_mtime <= float(when) + 1  # as huggingface_hub decides it
    except ValueError:
        return None
    return etag if unchanged and _SHA256.match(etag) else None


def _blob(file: Path) -> str | None:
    """The name of the blob that a snapshot's file links to: its sha256, or a small file's id in git.
    No further: a blob may itself lead to a store that all repositories share, under another hash."""
    while file.is_symlink():
        file = file.parent / file.readlink()
        if file.parent.name == "blobs":
            return file.name
    return None


def _check_small_files(folder: Path) -> None:
    """Raises ModelError for a configuration or tokenizer that is not the commit's: those are named by
    their id in git, the sha1 of "blob", the length, a NUL and the content; by the sha1 of the content
    alone where a mirror that keeps its own checksums (Artifactory) stands before the hub."""
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        blob = _blob(file)
        if blob is None or not _SHA1.match(blob):
            continue
        data = file.read_bytes()
        found = _sha1(b"blob %d\x00" % len(data) + data)
        if blob not in (found, _sha1(data)):
            raise ModelError(_corrupted(file, "git id", found, blob))


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _corrupted(file: Path, what: str, found: str, wanted: str) -> str:
    return (
        f"{file}: corrupted: its {what} is {found}, the hub's {wanted}: delete {file.resolve()} and "
        "download it again"
    )


def tokenizer_of(name: str, cache_dir: Path) -> tuple[Path, str]:
    """The folder or ``.gguf`` file of a tokenizer, from the hub without its weights, and its content's
    identity: of a folder that of what configures a model.

    Raises:
        ModelError: it has none, or is neither here nor on the hub.
    """
    path = _here(name, weights=False)
    if path is None:
        _check_hub_id(name)
        from qeval.hub.download import download_model

        try:
            path = download_model(name, weights=False)
        except HubError as err:
            raise ModelError(_not_here(name, None, err)) from err
    path = path.absolute()
    check_tokenizer(path)
    if path.is_file():
        return path, identify(path, cache_dir)
    files = sorted(file for file in path.iterdir() if file.is_file() and configures(file.name))
    told = "".join(
        f"{file.name}:{file_sha256(file)}\n" for file in files if file.name not in _NOT_CONTENT
    )
    return path, f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"


def planned_download(name: str, revision: str | None = None, *, weights: bool = True) -> Plan | None:
    """What ``resolve_model``, or ``tokenizer_of`` without ``weights``, would download, asked of the hub
    without a download; None for what is a folder or file here.

    Raises:
        ModelError: the hub refuses it, or it is not the name of a model, or of several GGUF models.
        MissingExtraError: a hub's model, and huggingface_hub is not installed.
    """
    if _here(name, weights=weights) is not None:
        return None
    _check_hub_id(name)
    from qeval.hub.download import planned_model

    try:
        return planned_model(name, revision, weights=weights)
    except HubError as err:
        raise ModelError(_not_here(name, revision, err)) from err


def _check_hub_id(name: str) -> None:
    if split_name(name) is None:
        raise ModelError(
            f"{short(name)}: no such model folder or .gguf file (a hub's model is ORG/NAME, also with "
            "a GGUF file's type or path: ORG/NAME:TYPE, ORG/NAME/FILE.gguf)"
        )
    require("hub", "huggingface_hub")
    try:
        import_module("qeval.hub.download")
    except ImportError as err:
        fix = "pip install -U 'qeval[hub]'"
        raise UsageError(f"{name}: huggingface_hub is older than 1.25 ({err}): {fix}") from err


def _not_here(name: str, revision: str | None, err: HubError) -> str:
    where = f"{name} @{revision}" if revision else name
    what = "file" if name.endswith(".gguf") else "folder"
    return f"{where}: no such {what}, and the hub did not give it: {err.reason}"
