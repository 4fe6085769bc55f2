"""Specs of a tiny model, and records of earlier runs of them as the runner writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qeval.api.settings import spec_settings
from qeval.core.record import Conditions, Metric, Record
from qeval.forecast.look import Forecast, forecast
from qeval.forecast.power import wish
from qeval.plan.cells import Cell
from qeval.plan.spec import load_spec
from qeval.plan.survey import survey
from qeval.report.results import read_results
from qeval.store.records import Store

TEXT = "dataset: 'file:text.txt', seq_len: 32"


@pytest.fixture
def write(tiny_llama, tmp_path, monkeypatch) -> Callable[..., Path]:
    """A spec of the model with these tasks."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)

    def made(
        *tasks: str, rows: Sequence[str] = ("gguf: Q8_0", "gguf: Q4_0"), model: Path = tiny_llama
    ) -> Path:
        rows = ["none", *(f"{{{row}}}" for row in rows)]
        lists = (f"quantizations: [{', '.join(rows)}]", f"tasks: [{', '.join(tasks)}]")
        head = ("name: s", f"models: [{model}]", "dtype: float32", "device: cpu")
        Path("s.yaml").write_text("\n".join((*head, *lists)))
        return Path("s.yaml")

    return made


@pytest.fixture
def told() -> Callable[..., Forecast]:
    def look(spec: Path, *folders: str, detect: Sequence[str] = (), **over: object) -> Forecast:
        experiment = load_spec(spec, over)
        settings = spec_settings(experiment.settings)
        done = Store("results/s").latest()
        found = survey(experiment, settings, done)
        records = read_results([Path(f) for f in folders]) if folders else []
        return forecast(found, experiment, settings, records, [wish(d) for d in detect])

    return look


@pytest.fixture
def measured() -> Callable[..., None]:
    """Put records of a spec's cells into a results folder; ``metrics``: of a cell, or None."""

    def put(
        spec: Path,
        folder: str,
        metrics: Callable[[Cell], Sequence[Metric] | None],
        *,
        model: str | None = None,
        tokenizer: str = "t",
        seconds: tuple[float, float] = (30.0, 20.0),
        **over: object,
    ) -> None:
        """``seconds``: of the whole job, and of the part that units take."""
        experiment = load_spec(spec, over)
        found = survey(experiment, spec_settings(experiment.settings), {})
        for step in found.steps:
            given = metrics(step.cell)
            if given is None:
                continue
            cell = step.cell.describe()
            if model:
                cell["model"] = {**cell["model"], "id": model, "identity": model}
            Store(folder).append(
                Record(
                    "eval",
                    f"{model or ''}{step.cell.key}",
                    cell,
                    "ok",
                    tuple(given),
                    timing={"wall_s": seconds[0], "run_s": seconds[1]},
                    conditions=_here(step.cell, experiment),
                    provenance={
                        "text_sha256": "a",
                        "tokens_sha256": "b",
                        "tokenizer_sha256": tokenizer,
                    },
                )
            )

    return put


def _here(cell: Cell, experiment: object) -> Conditions:
    from qeval.plan.cells import ThisMachine

    found = ThisMachine(experiment.settings, Path()).conditions(cell.row.engine)
    names = ("host", "device", "device_name", "n_threads")
    return Conditions(**{name: found[name] for name in names})


def _ppl(values: Sequence[float]) -> Metric:
    value = math.exp(math.fsum(values) / len(values))
    made = Metric("ppl", value, "gptq/file:text.txt@32", n=len(values), values=tuple(values))
    return replace(made, better="lower", pairs="window", change="relative", heading="PPL")


def _passed(values: Sequence[float]) -> Metric:
    units = tuple(map(str, range(len(values))))
    made = Metric("pass@1", 0.5, "humaneval/base/greedy", n=len(values), values=tuple(values))
    return replace(made, units=units, better="higher", pairs="problem", change="points")


def _kld(values: Sequence[float]) -> Metric:
    made = Metric("kld", math.fsum(values) / len(values), "kl/llamacpp/file:text.txt@32", "nats")
    said = {"better": "lower", "pairs": "window", "change": "difference", "heading": "KLD"}
    return replace(made, n=len(values), values=tuple(values), from_baseline=True, **said)


@pytest.fixture
def ppl() -> Callable[[Sequence[float]], Metric]:
    return _ppl


@pytest.fixture
def passed() -> Callable[[Sequence[float]], Metric]:
    return _passed


@pytest.fixture
def kld() -> Callable[[Sequence[float]], Metric]:
    return _kld
