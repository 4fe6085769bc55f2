"""The settings of a run: those of its spec and of whoever starts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qeval.core.settings import EngineSettings, RunSettings
    from qeval.plan.keys import Spec


def run_settings(
    engine: EngineSettings, cache_dir: Path | None, data_dir: Path | None, **more: Any
) -> RunSettings:
    """With the folders of the environment's variables, or the usual ones, where none are given."""
    from qeval.core.files import real_path
    from qeval.core.settings import RunSettings, default_cache_dir
    from qeval.data.datasets import DataSource

    data = DataSource(data_dir).data_dir
    return RunSettings(
        real_path(cache_dir or default_cache_dir()), real_path(data) if data else None, engine, **more
    )


def spec_settings(
    spec: Spec,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    allow_weak_sandbox: bool = False,
) -> RunSettings:
    """Those of a spec; what the command line says wins."""
    from qeval.core.settings import EngineSettings

    engine = EngineSettings(
        device=spec.device, batch_size=spec.batch_size, n_threads=spec.n_threads
    )  # dtype and trust_remote_code are each model's own
    return run_settings(
        engine,
        cache_dir or (Path(spec.cache_dir) if spec.cache_dir else None),
        data_dir or (Path(spec.data_dir) if spec.data_dir else None),
        build_timeout=spec.timeout,
        weak_sandbox=allow_weak_sandbox,
    )
