"""How to execute, not what to measure: devices, threads, folders."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qeval.core.execution import Execution
from qeval.core.files import user_path


@dataclass(frozen=True)
class EngineSettings:
    """How to execute, not what to measure: but for ``execution``, none of this enters the key of a cell
    whose task does not measure the machine itself (Task.measures_machine)."""

    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: str = "bfloat16"  # of a torch model's weights and compute; llama.cpp reads it from the file
    batch_size: int | None = None  # sequences at once; None: the engine's own choice
    n_threads: int | None = None  # CPU threads; None, or more than there are: the cores it may use
    trust_remote_code: bool = False  # run code that comes with the model
    execution: Execution = field(default_factory=Execution)  # the row's own part
    layers_apart: bool = (
        False  # a task looks at single linears: none are put together (formats/merged.py)
    )

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "execution": self.execution.to_json()}


def default_cache_dir() -> Path:
    """``QEVAL_CACHE_DIR``, else ``$XDG_CACHE_HOME/qeval``, else ``~/.cache/qeval``."""
    if named := os.environ.get("QEVAL_CACHE_DIR"):
        return Path(named)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "qeval"


@dataclass(frozen=True)
class RunSettings:
    """How to execute; nothing of it enters a key."""

    cache_dir: Path
    data_dir: Path | None
    engine: EngineSettings
    build_timeout: float | None = None
    weak_sandbox: bool = False
