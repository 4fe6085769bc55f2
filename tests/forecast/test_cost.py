"""Time and disk of what is left, from what earlier runs took here."""

from __future__ import annotations

import json

import pytest

from qeval.api.settings import spec_settings
from qeval.core.units import human_seconds
from qeval.forecast.show import json_text, text
from qeval.plan.spec import load_spec
from qeval.plan.survey import survey
from qeval.store.records import Store

PPL = "{perplexity: {dataset: 'file:text.txt', seq_len: 32}}"


def line(found, name):
    return next(job for job in found.jobs if job.name.startswith(name))


def test_only_the_part_of_the_units_grows_with_them(write, told, measured, ppl):
    """30 s for 10 windows, of which 20 s were theirs: 10 + 2 a window."""
    spec = write(PPL)
    measured(spec, "before", lambda c: [ppl([1.0] * 10)], limit=10)
    job = line(told(spec, "before", limit=40), "gptq")
    assert (job.to_run, job.known, job.done) == (3, 3, 0)
    assert job.seconds == pytest.approx(3 * 90)
    assert line(told(spec, "before", limit=10), "gptq").seconds == pytest.approx(3 * 30)


def test_a_row_has_its_own_time_and_another_the_median(write, told, measured, ppl):
    spec = write(PPL, rows=["rtn: {num_bits: 4, group_size: 4}"])
    for row, wall in (("none", 30.0), ("rtn", 60.0)):
        named = lambda c, row=row: [ppl([1.0] * 10)] if c.row.quantization.method == row else None  # noqa: E731
        measured(spec, "before", named, limit=10, seconds=(wall, 20.0))
    assert line(told(spec, "before", limit=10), "gptq").seconds == pytest.approx(90)
    other = write(PPL, rows=["rtn: {num_bits: 4, group_size: 4}", "rtn: {num_bits: 2, group_size: 4}"])
    assert line(told(other, "before", limit=10), "gptq").seconds == pytest.approx(90 + 45)


def test_another_machine_model_dtype_or_engine_tells_nothing(write, told, measured, ppl, monkeypatch):
    spec = write(PPL)
    measured(spec, "model", lambda c: [ppl([1.0] * 10)], limit=10, model="another")
    assert line(told(spec, "model", limit=10), "gptq").known == 0
    one_engine = lambda c: [ppl([1.0] * 10)] if c.row.engine == "hf" else None  # noqa: E731
    measured(spec, "engine", one_engine, limit=10)
    assert line(told(spec, "engine", limit=10), "gptq").known == 1
    spec.write_text(spec.read_text().replace("dtype: float32", "dtype: bfloat16"))
    assert line(told(spec, "engine", limit=10), "gptq").known == 0
    spec.write_text(spec.read_text().replace("dtype: bfloat16", "dtype: float32"))
    monkeypatch.setenv("QEVAL_HOST", "elsewhere")
    assert line(told(spec, "engine", limit=10), "gptq").known == 0
    assert "unknown: no earlier run here" in text(told(spec, "engine", limit=10))


def test_cells_that_are_done_take_no_time(write, told, measured, ppl):
    spec = write(PPL)
    measured(spec, "results/s", lambda c: [ppl([1.0] * 10)] if c.row.is_baseline else None)
    job = line(told(spec, "results/s"), "gptq")
    assert (job.done, job.to_run) == (1, 2)


def test_a_build_takes_what_it_took_here(write, told, tmp_path):
    spec = write(PPL, rows=["rtn: {num_bits: 4, group_size: 4}"])
    experiment = load_spec(spec)
    found = survey(experiment, spec_settings(experiment.settings), {})
    [key] = found.room.builds
    assert (line(told(spec), "builds").to_run, line(told(spec), "builds").known) == (1, 0)
    from qeval.core import machine
    from qeval.core.record import Conditions, Record

    cell = {"model": {"id": "m"}, "quantization": {"name": "rtn"}}
    here = Conditions(host=machine.host())
    Store("before").append(Record("build", key, cell, "ok", timing={"wall_s": 12.0}, conditions=here))
    assert line(told(spec, "before"), "builds").seconds == 12.0


def test_text_and_json_say_the_same(write, told, measured, ppl):
    spec = write(PPL, "{humaneval: {mode: base}}", "speed")
    some = lambda c: [ppl([1.0, 1.1] * 8)] if c.task.task == "perplexity" else None  # noqa: E731
    measured(spec, "before", some, limit=16)
    found = told(spec, "before", detect=["1", "0.001nats"])
    shown, data = text(found), json.loads(json_text(found))
    for column in data["columns"]:
        assert f"{column['n']:,} {column['counted']}" in shown and column["spread"] in shown
    assert "--detect 0.001nats: no column is in that unit" in shown
    assert "n for 1 " in shown and "; there are 164" in shown
    assert data["disk"]["builds_bytes"] == sum(found.disk.room.builds.values()) > 0
    total = sum(job["seconds"] for job in data["jobs"])
    assert f"about {human_seconds(total)} for" in shown.split(" jobs to run: ")[1]
