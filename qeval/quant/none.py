"""`none`: the model as it is, in the spec's dtype. The baseline of every comparison."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.options import Options
from qeval.formats.describe import describe_folder
from qeval.models.endpoint import endpoint_artifact
from qeval.quant.base import Method


class NoOptions(Options):
    """`none` has no options: the dtype is the spec's."""


@final
class Unquantized(Method[NoOptions]):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = NoOptions
    scalar: ClassVar[str | None] = None
    engine: ClassVar[str | None] = None

    def label(self, options: NoOptions) -> str:
        return "none"

    def find(self, options: NoOptions, model: ModelRef, cache_dir: Path) -> Artifact:
        """The model's own folder, its .gguf file where that is all there is, or its server."""
        if model.endpoint is not None:
            return endpoint_artifact(model.endpoint, model)
        return describe_folder(model.path, model.dtype)
