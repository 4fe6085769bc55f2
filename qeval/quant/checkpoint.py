"""`checkpoint`: existing weights (a folder, a hub id or a .gguf file), evaluated as they are.

Float weights or any packed format of docs/formats.md. Token ids come from the model of the row, so that
every row of a table reads the same tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, final

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import UsageError
from qeval.core.execution import Kernel
from qeval.core.options import Options
from qeval.formats.base import registered
from qeval.formats.describe import describe_folder
from qeval.formats.limits import check_kernel
from qeval.models.resolve import resolve_model
from qeval.quant.base import Method


class CheckpointOptions(Options):
    path: str  # folder, .gguf file, or hub id; FOLDER:TYPE or ORG/NAME:TYPE of several .gguf files
    revision: str | None = None  # on the hub
    label: str | None = None  # the row's name; None: the last part of the path, and its format
    kernel: Kernel = "auto"  # GPTQ and AWQ
    trust_remote_code: bool = False  # run code that comes with the checkpoint, or with the model

    def identity(self) -> dict[str, object]:
        return {}  # the content's hash is the artifact's

    def execution(self) -> dict[str, object]:
        return {} if self.kernel == "auto" else {"kernel": self.kernel}


@final
class Checkpoint(Method[CheckpointOptions]):
    version: ClassVar[int] = 1
    Options: ClassVar[type[Options]] = CheckpointOptions
    scalar: ClassVar[str | None] = "path"
    engine: ClassVar[str | None] = None

    def label(self, options: CheckpointOptions) -> str:
        return options.label or Path(options.path).name.replace(":", " ")

    def models(self, options: CheckpointOptions) -> tuple[tuple[str, str | None], ...]:
        return ((options.path, options.revision),)

    def check_device(self, options: CheckpointOptions, model: ModelRef, device: str) -> None:
        check_kernel(f"checkpoint {self.label(options)}", options.kernel, device)

    def find(self, options: CheckpointOptions, model: ModelRef, cache_dir: Path) -> Artifact:
        """Raises ModelError where the checkpoint is missing, damaged or of no known format, UsageError
        for a kernel that its format does not have."""
        trust = options.trust_remote_code or model.trust_remote_code
        found = resolve_model(
            options.path,
            dtype=model.dtype,
            cache_dir=cache_dir,
            revision=options.revision,
            trust_remote_code=trust,
            need_tokenizer=False,
        )
        artifact = describe_folder(found.path, found.dtype)
        packed = artifact.format
        if options.kernel != "auto" and not (packed and registered(packed).takes_kernel):
            raise UsageError(
                f"checkpoint {options.path}: kernel: {options.kernel} is for GPTQ and AWQ, "
                f"and this is {packed.label if packed else 'float'}: leave it out"
            )
        return replace(artifact, identity=found.identity, trust_remote_code=trust)
