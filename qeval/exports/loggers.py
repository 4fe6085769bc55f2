"""Rows as runs of an experiment logger: settings as parameters, numbers as metrics.

Each is the logger's own library, with its own settings and its own offline mode: MLflow writes to
``MLFLOW_TRACKING_URI``, W&B with ``WANDB_MODE=offline`` to a folder, Trackio to a local database.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from qeval.core.errors import UsageError, did_you_mean
from qeval.core.extras import require
from qeval.exports.rows import ExportRow

Logger = Callable[[ExportRow, str], None]


def log(rows: Sequence[ExportRow], logger: str, project: str) -> int:
    """A run for each row with a number; how many.

    Args:
        logger: one of LOGGERS.
        project: the experiment or project.

    Raises:
        UsageError: no such logger.
        MissingExtraError: its package is not installed.
    """
    if logger not in LOGGERS:
        raise UsageError(f"no logger {logger!r}{did_you_mean(logger, LOGGERS)}")
    require(logger, logger)
    chosen = [row for row in rows if row.numbers]
    for row in chosen:
        LOGGERS[logger](row, project)
    return len(chosen)


def _mlflow(row: ExportRow, project: str) -> None:
    import mlflow

    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=row.name):
        mlflow.log_params({name: str(value)[:6000] for name, value in settings(row).items()})
        mlflow.log_metrics({_plain(name): value for name, value in metrics(row).items()})


def _wandb(row: ExportRow, project: str) -> None:
    import wandb

    with wandb.init(project=project, name=row.name, config=dict(settings(row)), reinit=True) as run:
        run.summary.update(metrics(row))


def _trackio(row: ExportRow, project: str) -> None:
    import trackio

    trackio.init(project=project, name=row.name, config=dict(settings(row)))
    trackio.log(metrics(row))
    trackio.finish()


LOGGERS: Mapping[str, Logger] = {"mlflow": _mlflow, "wandb": _wandb, "trackio": _trackio}


def settings(row: ExportRow) -> dict[str, object]:
    """What was asked, and what it was measured on."""
    asked = row.records.quantization
    found: dict[str, object] = {
        "model": row.model,
        "dtype": row.records.dtype,
        "row": row.label,
        "method": asked.get("name"),
        "engine": row.records.engine,
        "simulated": row.records.simulated,
    }
    found |= {f"option {k}": v for k, v in (asked.get("options") or {}).items() if v is not None}
    for name in ("conditions", "engine_version", "qeval", "git_commit"):
        said = dict.fromkeys(str(line[name]) for line in row.lines if line[name])
        found |= {name: "; ".join(said)} if said else {}
    return found


def metrics(row: ExportRow) -> dict[str, float]:
    """``ppl gptq/wikitext2 [first 4]``, and ``... low``, ``... high`` and ``... difference``."""
    found: dict[str, float] = {}
    for line in row.numbers:
        first = f"[first {line['limit']}]" if line["limit"] else ""
        name = " ".join(str(p) for p in (line["metric"], line["protocol"], first) if p)
        for part in ("value", "low", "high", "difference"):
            value = line[part]
            if isinstance(value, int | float):
                found.setdefault(name if part == "value" else f"{name} {part}", float(value))
    return found


def _plain(name: str) -> str:
    """MLflow's names: letters, digits, underscores, dashes, periods, spaces, slashes."""
    return re.sub(r"[^\w\-. /]", "_", name)
