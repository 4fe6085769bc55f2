"""Which ``.gguf`` files of a repository or a folder are one model, told by their names alone.

``ORG/NAME:TYPE`` is found as llama.cpp's ``-hf ORG/NAME:TYPE`` finds it (common/download.cpp,
``find_best_model``): the type stands in the path before a ``.`` or ``-``, in letters of either case,
and files with ``mmproj``, ``imatrix`` or ``mtp-`` in their names are no models. Unlike there, a type is
whole on its left too (F16 is not BF16), may be the name of a folder, and nothing is guessed: llama.cpp
takes the first of several models that fit, and Q4_K_M where no type is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from qeval.core.errors import ModelError
from qeval.hub.files import weights

ENDING = ".gguf"
_NO_MODEL = ("mmproj", "imatrix", "mtp-")  # a picture's encoder, an importance matrix, a draft
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_LEFT, _RIGHT = r"(?<![^-._/])", r"(?![^-./])"  # what a type stands between, or nothing
_TYPE = re.compile(
    _LEFT + r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|B?F16|F32|FP16|FP32|MXFP4\w*|NVFP4)" + _RIGHT, re.IGNORECASE
)
_HUB_NAME = re.compile(r"((?!\.)[\w.-]+/[\w.-]+?)(?::([\w.-]+)|/(.+\.gguf))?")
_MOST_NAMED = 40  # models in a message


def split_name(name: str) -> tuple[str, str | None] | None:
    """The repository of a hub's model, ``ORG/NAME``, and the type or file that its name adds
    (``:Q4_K_M``, ``/folder/file.gguf``); None: no such name."""
    found = _HUB_NAME.fullmatch(name)
    return (found[1], found[2] or found[3]) if found else None


def gguf_model(base: str, names: Iterable[str], asked: str | None) -> list[str]:
    """Of a repository's or folder's files (paths, with ``/``) those of the one GGUF model that is
    meant, in the order of its parts; none where its other weights are meant, or there is no model.

    Args:
        base: the repository or folder, for messages.
        asked: a type, the path of a file, or None: the only model that is there.

    Raises:
        ModelError: no model is of that type, several are, or a part is missing.
    """
    there = set(names)
    models = sorted({parts(name)[0] for name in there if _is_model(name)})
    if asked is None and (weights(there) or not models):
        return []
    if asked is not None and asked.endswith(ENDING):
        first = _file(base, there, models, asked)
    else:
        first = _only(base, models, asked)
    wanted = parts(first)
    for number, name in enumerate(wanted, 1):
        if name not in there:
            raise ModelError(
                f"{base}: {name} is missing, part {number} of {len(wanted)}: get it, or choose another "
                "model"
            )
    return wanted


def parts(name: str) -> list[str]:
    """All parts of the model that a file belongs to, named as by llama.cpp's ``llama_split_path``; the
    file alone where it is not split."""
    found = _PART.fullmatch(name)
    if not found or not 1 <= int(found[2]) <= int(found[3]):
        return [name]
    return [f"{found[1]}-{i:05d}-of-{found[3]}{ENDING}" for i in range(1, int(found[3]) + 1)]


def _is_model(name: str) -> bool:
    file = PurePosixPath(name).name.lower()
    return file.endswith(ENDING) and not any(word in file for word in _NO_MODEL)


def _file(base: str, there: set[str], models: list[str], asked: str) -> str:
    if asked not in there:
        has = f"it has {_named(models)}" if models else "it has no GGUF model"
        raise ModelError(f"{base}: no file {asked} in it; {has}")
    first = parts(asked)[0]
    if first != asked:
        raise ModelError(f"{base}: {asked} is a later part of a split model: give the first, {first}")
    return first


def _only(base: str, models: list[str], asked: str | None) -> str:
    fits = models if asked is None else _of_type(models, asked)
    if len(fits) == 1:
        return fits[0]
    if not models:
        raise ModelError(f"{base}: no GGUF model in it")
    if not fits:
        raise ModelError(f"{base}: no GGUF model of type {asked} in it; it has {_named(models)}")
    if asked is None:
        example = _spelled(base, _choices(fits)[0])
        raise ModelError(
            f"{base}: {len(fits)} GGUF models: choose one, as in {example}; it has {_named(fits)}"
        )
    what = f"{len(fits)} GGUF models of type {asked}"
    files = ", ".join(_spelled(base, name) for name in fits[:_MOST_NAMED])
    raise ModelError(f"{base}: {what}: choose a file: {files}")


def _of_type(models: list[str], asked: str) -> list[str]:
    """Those whose type it is; else those that have it in their path."""
    exact = [name for name in models if (_type(name) or "").lower() == asked.lower()]
    word = re.compile(_LEFT + re.escape(asked) + _RIGHT, re.IGNORECASE)
    return exact or [name for name in models if word.search(_without_part(name))]


def _type(name: str) -> str | None:
    """The last one in the path, as it is written there."""
    return next(reversed(_TYPE.findall(_without_part(name))), None)


def _without_part(name: str) -> str:
    found = _PART.fullmatch(name)
    return found[1] if found else name.removesuffix(ENDING)


def _choices(models: list[str]) -> list[str]:
    """What to write for each model: its type, or its file where that is not of one model alone."""
    types = [_type(name) for name in models]
    pairs = zip(models, types, strict=True)
    return [kind if kind and len(_of_type(models, kind)) == 1 else name for name, kind in pairs]


def _named(models: list[str]) -> str:
    more = f" and {len(models) - _MOST_NAMED} more" if len(models) > _MOST_NAMED else ""
    return ", ".join(_choices(models)[:_MOST_NAMED]) + more


def _spelled(base: str, choice: str) -> str:
    return f"{base}/{choice}" if choice.endswith(ENDING) else f"{base}:{choice}"
