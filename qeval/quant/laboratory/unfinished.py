"""Finished blocks, kept on disk until the whole model is done, so that an interrupted build can
continue.

One safetensors file a block: the block's tensors as they now are, what else is to be kept of its
layers, and, in the header, their reports. A file appears by one rename, so it is there whole or not at
all. The folder is the artifact key's own (``BuildContext.unfinished``): same model, options and text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

_STATE, _KEPT = "state:", "kept:"


@dataclass(frozen=True)
class Done:
    """A finished block."""

    state: dict[str, Tensor]  # by the names inside the block
    kept: dict[str, Tensor]
    facts: list[dict[str, object]]  # a layer's each, plain data


class Unfinished:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, index: int) -> Done | None:
        """Block ``index`` as an earlier attempt left it, or None."""
        from safetensors import SafetensorError, safe_open

        path = self._path(index)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as err:  # a machine that lost power: the rename is there, the data not
            print(f"{path}: {err}: its block is done again")  # to the job's log
            return None
        return Done(_of(_STATE, tensors), _of(_KEPT, tensors), facts)

    def save(self, index: int, done: Done) -> None:
        from safetensors.torch import save_file

        path = self._path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {
            f"{part}{name}": tensor.detach().cpu().contiguous()
            for part, tensors in ((_STATE, done.state), (_KEPT, done.kept))
            for name, tensor in tensors.items()
        }
        half = path.with_suffix(".half")
        save_file(named, half, {"facts": json.dumps(done.facts)})
        half.replace(path)

    def _path(self, index: int) -> Path:
        return self._folder / f"block-{index:05d}.safetensors"


def _of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
