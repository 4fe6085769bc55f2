"""`checkpoint`: existing weights (a folder, a hub id or a .gguf file), evaluated as they are.

Token ids come from the model of the row, so that every row of a table reads the same tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from qeval.models import resolve_model
from qeval.quant.base import Artifact, BuildContext, Method, Options
from qeval.quant.folder import describe_folder


class CheckpointOptions(Options):
    path: str  # folder, .gguf file, or hub id
    revision: str | None = None  # on the hub
    label: str | None = None  # the row's name; None: the last part of the path

    def identity(self) -> dict[str, Any]:
        return {}  # the content's hash stands in the artifact's details


class Checkpoint(Method):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = CheckpointOptions
    scalar: ClassVar[str | None] = "path"
    in_place: ClassVar[bool] = True
    engine: ClassVar[str | None] = None

    def label(self, options: CheckpointOptions) -> str:
        return options.label or Path(options.path).name

    def build(self, options: CheckpointOptions, context: BuildContext) -> Artifact:
        """Raises ModelError where the checkpoint is missing or cut off."""
        found = resolve_model(
            options.path,
            dtype=context.model.dtype,
            cache_dir=context.cache_dir,
            revision=options.revision,
            trust_remote_code=context.model.trust_remote_code,
            need_tokenizer=False,
        )
        artifact = describe_folder(found.path, found.dtype)
        return replace(artifact, details={**artifact.details, "identity": found.identity})
