"""The whole line with real engines, as a user types it: a tiny model, every method, task and format."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import InProcess
from program import qeval as program

from qeval.llama.converter import converter_folder
from qeval.store.records import Store, latest

pytestmark = pytest.mark.real

SPEC = """\
name: line
models: [{model}]
dtype: float32
quantizations:
  - none
  - rtn: {{num_bits: 8, group_size: 4}}
  - gguf: {{type: [F32, Q8_0], pre_tokenizer: gpt-2}}
tasks:
  - perplexity: {{dataset: pydoc, protocol: [gptq, llamacpp], seq_len: 128, limit: 3}}
  - humaneval: {{limit: 2, max_new_tokens: 8}}
  - mbpp: {{limit: 2, max_new_tokens: 8, mode: few-shot}}
  - speed: {{prefill_tokens: 64, decode_prompt: 16, new_tokens: 32, batch_sizes: [1], repeats: 1}}
n_threads: 1
data_dir: {data}
"""


HUMANEVAL = "humaneval/base/greedy/max8"
MBPP = "mbpp/few-shot/greedy/7-problems/max8"


CELLS = {  # of a row, one for each path that no other row takes; True: by a worker of its own
    "none": {"gptq": False, "llamacpp": False, "humaneval": True, "mbpp": False, "speed": False},
    "RTN W8A16g4": {"gptq": True, "speed": False},
    "F32": {"gptq": False, "llamacpp": False},
    "Q8_0": {"gptq": False, "llamacpp": False, "humaneval": False, "speed": True},
}


def only(*kinds: bool) -> list[str]:
    cells = [(row, task) for row, tasks in CELLS.items() for task in tasks if tasks[task] in kinds]
    return [f"--only=* · {row} · {task}*" for row, task in cells]


def qeval(*args: object) -> str:
    done = program(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tiny_llama: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("line")
    problems = Path(__file__).with_name("tasks") / "coding" / "mbpp_small.jsonl"
    (folder / "mbpp.jsonl").write_bytes(problems.read_bytes())
    (folder / "spec.yaml").write_text(SPEC.format(model=tiny_llama, data=folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEVAL_CACHE_DIR", str(folder / "cache"))
        patch.setenv("QEVAL_LLAMA_CPP", str(converter_folder(cache_dir)))
        line = ["run", folder / "spec.yaml", "--results", folder / "r", "--device", "cpu"]
        command = [sys.executable, "-m", "qeval", *map(str, line), *only(True)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        patch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)  # builds are there
        again = qeval(*line, *only(True, False))
    assert "gptq/pydoc@128" in again
    return folder / "r"


def metrics(results: Path) -> dict[tuple[str, str, str], float | None]:
    return {
        (r.cell["quantization"]["label"], m.name, m.protocol): m.value
        for r in latest(Store(results).read()).values()
        for m in r.metrics
    }


def test_every_cell_is_ok_once(results):
    records = [r for r in Store(results).read() if r.kind == "eval"]
    found: dict[str, list[str]] = {row: [] for row in CELLS}
    for r in records:
        found[r.cell["quantization"]["label"]].append(r.status)
    expected = {row: ["ok"] * len(tasks) for row, tasks in CELLS.items()}
    expected["RTN W8A16g4"] = ["ok", "skipped"]  # no speed of simulated weights
    assert found == expected


def test_both_engines_agree_on_the_float_model(results):
    found = metrics(results)
    for protocol in ("gptq/pydoc@128", "llamacpp/pydoc@128"):
        ours, theirs = found["none", "ppl", protocol], found["F32", "ppl", protocol]
        assert theirs == pytest.approx(ours, rel=1e-3), protocol
        assert found["Q8_0", "ppl", protocol] == pytest.approx(ours, rel=0.05)


def test_memory_and_provenance_of_every_cell(results):
    for r in latest(Store(results).read()).values():
        if r.kind == "eval" and r.status == "ok":
            assert r.memory.ram_peak > 2**20
            assert r.memory.weights > 0
            assert r.memory.kv_cache > 0
            assert r.memory.vram_process is None or r.memory.vram_process > 0
            assert r.provenance["settings"]["device"] == "cpu"
            assert r.provenance["packages"]


def test_stored_size_is_the_files_size(results):
    for r in latest(Store(results).read()).values():
        if r.kind == "eval" and r.cell["quantization"]["name"] == "gguf":
            stored = r.artifact["weight_bytes"] + r.artifact["embedding_bytes"]
            size = Path(r.artifact["path"]).stat().st_size
            assert stored < size < stored + 40_000  # header and vocabulary


def test_the_table_in_every_format(results):
    text = qeval("table", results)
    assert "RTN W8A16g4 †" in text
    assert "[first 3]" in text
    assert "| quantization |" in qeval("table", results, "--format", "markdown")
    rows = list(csv.DictReader(io.StringIO(qeval("table", results, "--format", "csv"))))
    assert [row["quantization"] for row in rows] == ["none", "RTN W8A16g4", "F32", "Q8_0"]
    json.loads(qeval("table", results, "--format", "json"), parse_constant=pytest.fail)
    layout = qeval("table", results, "--layout", "starcoder2")
    assert layout.splitlines()[0].split() == [
        "model",
        "quantization",
        "HumanEval",
        "pass@1",
        "pass@10",
        "RAM",
    ]


def test_score_repeats_the_verdicts_without_a_model(results):
    files = {
        r.metrics[0].protocol: results / r.files["samples"]
        for r in latest(Store(results).read()).values()
        if r.files and r.cell["quantization"]["label"] == "none"
    }
    assert set(files) == {HUMANEVAL, MBPP}
    for protocol, samples in files.items():
        out = qeval("score", samples, "--format", "json", "--data-dir", results.parent)
        *verdicts, last = [json.loads(line) for line in out.splitlines()]
        text = samples.with_name("verdicts.jsonl").read_text()
        saved = [json.loads(line) for line in text.splitlines()]
        assert len(saved) == 2
        found = [(v["verdict"]["task_id"], v["verdict"]["status"]) for v in verdicts]
        assert found == [(v["task_id"], v["status"]) for v in saved]
        expected = metrics(results)["none", "pass@1", protocol]
        assert last["totals"]["metrics"][0]["value"] == expected


def test_a_built_file_is_a_checkpoint(results, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    found = metrics(results)
    gguf = next(
        r.artifact["path"]
        for r in latest(Store(results).read()).values()
        if r.kind == "eval" and r.cell["quantization"]["label"] == "Q8_0"
    )
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"name: c\nmodels: [{tiny_llama}]\ndtype: float32\nquantizations: [{{checkpoint: {gguf}}}]\n"
        "tasks: [{perplexity: {dataset: pydoc, seq_len: 128, limit: 3}}]\nn_threads: 1\n"
    )
    qeval("run", spec, "--results", tmp_path / "r", "--device", "cpu")
    expected = found["Q8_0", "ppl", "gptq/pydoc@128"]
    assert metrics(tmp_path / "r")["model.gguf", "ppl", "gptq/pydoc@128"] == pytest.approx(expected)
