"""Endpoints in a spec: what is refused with which line, and what decides a cell's key."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from qeval.core.endpoint import NO_FILES, Endpoint
from qeval.core.errors import ModelError, QevalError, SpecError
from qeval.core.record import Record
from qeval.jobs.job import Job
from qeval.models.endpoint import endpoint_model
from qeval.models.told import has_chat_template, told_limit
from qeval.plan.cells import ThisMachine, row_cells
from qeval.plan.spec import load_spec
from qeval.plan.state import is_done

GOOD = """\
name: t
models:
  - endpoint: {base_url: http://localhost:8000/v1, model: m}
quantizations: [none]
tasks: [humaneval: {mode: base}]
"""
SECRET = "hunter2hunter2"


def load(tmp_path: Path, text: str):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return load_spec(path)


def with_options(options: str) -> str:
    return GOOD.replace("model: m}", f"model: m, {options}}}")


def test_a_model_that_is_an_endpoint(tmp_path):
    (model,) = load(tmp_path, GOOD).models
    assert model.id == "m@localhost:8000"
    assert model.endpoint == Endpoint(base_url="http://localhost:8000/v1", model="m")
    (named,) = load(tmp_path, GOOD.replace("  - endpoint", "  - id: mine\n    endpoint")).models
    assert named.id == "mine"


def test_an_endpoint_beside_rows_that_are_built(tmp_path):
    text = GOOD.replace("[none]", "[none, endpoint: {base_url: https://h/v1, model: [a, b]}]")
    rows = load(
        tmp_path, text.replace("endpoint: {base_url: http://localhost:8000/v1, model: m}", "x/y")
    )
    assert [q.label for q in rows.quantizations] == ["none", "a@h", "b@h"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            with_options("api_key: hunter2hunter2"),
            "api_key: keys are not written in a spec: put it into",
        ),
        (
            with_options("api_key_env: hunter2hunter2"),
            "api_key_env: must be the name of an environment",
        ),
        (
            GOOD.replace("http://", "http://me:hunter2hunter2@"),
            "base_url: has a user or password before",
        ),
        (
            GOOD.replace("http://localhost:8000/v1", '"http://h/v1?k=hunter2hunter2"'),
            "base_url: must end with its path (usually /v1)",
        ),
        (
            GOOD.replace("http://localhost:8000/v1", "localhost:8000"),
            "base_url: must be the address of",
        ),
        (
            GOOD.replace("http://localhost:8000/v1", "http://localhost:99999/v1"),
            "must be the address of",
        ),
        (
            GOOD.replace("{base_url: http://localhost:8000/v1, model: m}", "x"),
            "endpoint: input should be",
        ),
        (GOOD.replace(", model: m", ""), "endpoint: the key 'model' is missing"),
        (with_options("concurency: 3"), "unknown key; did you mean 'concurrency'?"),
        (with_options("concurrency: 0"), "greater than or equal to 1 (got 0)"),
        (with_options("max_retries: -1"), "greater than or equal to 0"),
        (with_options("timeout: 0"), "greater than 0"),
        (with_options("api: responses"), "input should be 'completions' or 'chat'"),
        (with_options("api: chat, prompts: ids"), "prompts: a chat request has text: leave it out"),
        (with_options("api: chat, tokenizer: x"), "tokenizer: of no use with api: chat"),
        (with_options("extra_body: {seed: 1, n: 2}"), "n, seed: set by qeval from the task's options"),
        (
            GOOD.replace("  - endpoint", "  - dtype: float16\n    endpoint"),
            "dtype: an endpoint's server",
        ),
        (
            GOOD.replace("[none]", "[none, rtn]"),
            "m@localhost:8000 runs on a server, and has just the row",
        ),
        (
            GOOD.replace("[none]", "[{none: {}, kv_cache: 8}]"),
            "has just the row `none`, not KV8: give the",
        ),
        (
            GOOD.replace("[none]", "[endpoint: {model: m}]"),
            "quantizations.endpoint: the key 'base_url'",
        ),
    ],
)
def test_what_is_wrong_is_one_line_without_any_key(tmp_path, text, line):
    assert text != GOOD
    with pytest.raises(SpecError) as err:
        load(tmp_path, text)
    assert line in str(err.value), err.value
    assert "spec.yaml" in str(err.value)
    shown = "".join(traceback.format_exception(err.value))  # what --debug prints
    assert SECRET not in str(err.value) and SECRET not in shown


def test_a_kept_key_in_an_extra_word_is_not_shown(tmp_path):
    """Of the row of a quantization, too."""
    row = "endpoint: {base_url: 'https://u:hunter2hunter2@h/v1', model: a}"
    with pytest.raises(SpecError) as err:
        load(tmp_path, GOOD.replace("[none]", f"[{row}]"))
    assert SECRET not in "".join(traceback.format_exception(err.value))


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://localhost:1/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://192.168.0.9:8000/v1", True),
        ("http://gpu-box:8000/v1", True),
        ("http://box.lan/v1", True),
        ("http://8.8.8.8/v1", False),
        ("http://api.example.com/v1", False),
        ("https://api.example.com/v1", None),
    ],
)
def test_plain_http_over_the_internet_is_warned_of(url, near):
    warning = Endpoint(base_url=url, model="m", api_key_env="K").warning
    assert (warning is None) == (near is not False)
    if warning:
        assert "can read prompts and the key; use https" in warning


def keys(tmp_path: Path, **options: object) -> list[str]:
    endpoint = Endpoint(**{"base_url": "http://localhost:8000/v1", "model": "m", **options})
    experiment = load(tmp_path, GOOD)
    model = endpoint_model(endpoint, "name", str(options.get("dtype", "bfloat16")), tmp_path / "cache")
    cells = row_cells(
        experiment,
        model,
        experiment.quantizations[0],
        (0, 0),
        tmp_path,
        ThisMachine(experiment.settings, tmp_path),
    )
    return [cell.key for cell in cells]


def test_the_key_of_a_cell_has_who_is_asked_and_not_how(tmp_path, tiny_llama):
    plain = keys(tmp_path)
    how = {"concurrency": 3, "timeout": 9.0, "max_retries": 1, "samples_per_request": 2, "label": "x"}
    for name, value in {**how, "api_key_env": "SOME_KEY", "max_seq_len": 99}.items():
        assert keys(tmp_path, **{name: value}) == plain, name
    others = [
        keys(tmp_path, base_url="http://localhost:8001/v1"),
        keys(tmp_path, model="n"),
        keys(tmp_path, api="chat"),
        keys(tmp_path, prompts="text"),
        keys(tmp_path, extra_body={"top_k": 5}),
        keys(tmp_path, tokenizer=str(tiny_llama)),
    ]
    assert len({str(found) for found in [plain, *others]}) == 1 + len(others)
    assert keys(tmp_path, base_url="http://localhost:8000/v1/") == plain


def test_dtype_is_not_the_servers(tmp_path):
    endpoint = Endpoint(base_url="http://localhost:8000/v1", model="m")
    experiment = load(tmp_path, GOOD)
    found = set()
    for dtype in ("float32", "bfloat16"):
        model = endpoint_model(endpoint, "m", dtype, tmp_path)
        where = ((0, 0), tmp_path, ThisMachine(experiment.settings, tmp_path))
        found |= {c.key for c in row_cells(experiment, model, experiment.quantizations[0], *where)}
    assert len(found) == 1


def test_a_tokenizer_that_is_not_here(tmp_path):
    endpoint = Endpoint(base_url="http://localhost:8000/v1", model="m", tokenizer=str(tmp_path / "no"))
    with pytest.raises(ModelError, match=r"no: no such model folder or .gguf file"):
        endpoint_model(endpoint, "m", "float32", tmp_path)
    (tmp_path / "no").mkdir()
    with pytest.raises(ModelError, match="no tokenizer"):
        endpoint_model(endpoint, "m", "float32", tmp_path)


def test_what_is_told_before_anything_is_asked(tmp_path, tiny_llama):
    def model(**options: object):
        endpoint = Endpoint(base_url="http://localhost:8000/v1", model="m", **options)
        return endpoint_model(endpoint, "m", "float32", tmp_path)

    assert model().path == NO_FILES
    assert has_chat_template(model()) is False and has_chat_template(model(api="chat")) is True
    assert told_limit(model()) is None and told_limit(model(max_seq_len=99)) == 99
    assert told_limit(model(tokenizer=str(tiny_llama))) == 512


def test_a_job_takes_the_endpoint_along(tmp_path):
    endpoint = Endpoint(base_url="http://localhost:8000/v1", model="m", extra_body={"a": [1]})
    model = endpoint_model(endpoint, "m", "float32", tmp_path)
    from qeval.core.settings import EngineSettings
    from qeval.models.endpoint import endpoint_artifact, endpoint_of

    artifact = endpoint_artifact(endpoint, model)
    job = Job(
        "eval", "k", "t", model, "speed", {}, tmp_path, tmp_path, None, EngineSettings(), artifact
    )
    again = Job.from_json(job.to_json())
    assert again.model == model and hash(again.model) == hash(model)
    assert again.artifact is not None and endpoint_of(again.artifact) == endpoint
    assert json.loads(job.to_json())["artifact"]["weight_bytes"] is None


def test_what_a_server_did_not_offer_is_asked_again(tmp_path):
    experiment = load(tmp_path, GOOD)
    endpoint = experiment.models[0].endpoint
    model = endpoint_model(endpoint, "m", "float32", tmp_path)
    where = ((0, 0), tmp_path, ThisMachine(experiment.settings, tmp_path))
    (cell,) = row_cells(experiment, model, experiment.quantizations[0], *where)
    by_plan = Record("eval", cell.key, {}, "skipped", error="the engine offers none")
    by_worker = Record("eval", cell.key, {}, "skipped", error="the server gives none", log="jobs/x.log")
    assert is_done(cell, {cell.key: by_plan}) and not is_done(cell, {cell.key: by_worker})
    assert by_worker.settled  # and no failure of a run


def test_a_row_with_a_tokenizer_of_its_own(tmp_path):
    from qeval.core.artifact import ModelRef
    from qeval.quant.endpoint import EndpointRow

    endpoint = Endpoint(base_url="http://localhost:8000/v1", model="m", tokenizer="x")
    with pytest.raises(QevalError, match="the row's model y has its own: leave it out, or name"):
        EndpointRow().find(endpoint, ModelRef("y", tmp_path, "sha256:1", "float32"), tmp_path)
