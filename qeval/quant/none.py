"""`none`: the model as it is, in the spec's dtype. The baseline of every comparison."""

from __future__ import annotations

from typing import Any, ClassVar

from qeval.core.artifact import Artifact
from qeval.core.options import Options
from qeval.formats.describe import describe_folder
from qeval.quant.base import BuildContext, Method


class NoOptions(Options):
    """`none` has no options: the dtype is the spec's."""


class Unquantized(Method):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = NoOptions
    scalar: ClassVar[str | None] = None
    in_place: ClassVar[bool] = True
    engine: ClassVar[str | None] = None

    def label(self, options: Any) -> str:
        return "none"

    def build(self, options: Any, context: BuildContext) -> Artifact:
        """The model's own folder, or its .gguf file where that is all there is."""
        return describe_folder(context.model.path, context.model.dtype)
