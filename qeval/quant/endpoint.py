"""`endpoint`: what a server answers, as a row beside rows that are built here.

Prompts have the ids of the row's model, so that the server is asked what the other rows are asked. A
model that is known by its endpoint alone stands among ``models``.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.endpoint import Endpoint
from qeval.core.errors import UsageError
from qeval.core.options import Options
from qeval.models.endpoint import endpoint_artifact
from qeval.quant.base import Method


@final
class EndpointRow(Method[Endpoint]):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = Endpoint
    scalar: ClassVar[str | None] = None
    engine: ClassVar[str | None] = "openai"

    def label(self, options: Endpoint) -> str:
        return options.name

    def find(self, options: Endpoint, model: ModelRef, cache_dir: Path) -> Artifact:
        """Raises UsageError for a tokenizer beside the row's own."""
        if options.tokenizer is not None:
            raise UsageError(
                f"{options.name}: tokenizer: the row's model {model.id} has its own: leave it out, or "
                "name the endpoint among models"
            )
        return endpoint_artifact(options, model)
