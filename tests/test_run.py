"""`qeval run` as a user meets it: resuming, faults, signals. Real workers, a toy plugin's models."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import InProcess

from qeval.cli.run import run_spec
from qeval.core.errors import PreflightError, SandboxError, StoreError, UsageError
from qeval.core.record import Metric, Record
from qeval.report.describe import describe
from qeval.report.render import render
from qeval.report.rows import build_table
from qeval.store.records import Store, latest

SPEC = """\
name: toy
models: [{model}]
dtype: float32
quantizations: [{quantizations}]
tasks: [{tasks}]
"""
QUICK = "misbehave: {how: ok}"  # no tokenizer, so no import of transformers: 0.2 s a job
PPL = "perplexity: {dataset: 'file:TEXT', seq_len: 32, limit: 4}"


@pytest.fixture
def toy(plugin, tiny_llama, tmp_path, monkeypatch):
    """Writes a spec of the plugin's method and runs it in this process (its workers are processes)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.setenv("QEVAL_TEST_LOG", str(tmp_path / "builds.log"))

    def write(tasks: str = QUICK, quantizations: str = "copy: 8") -> Path:
        text = SPEC.format(
            model=tiny_llama,
            quantizations=", ".join(f"{{{q}}}" for q in quantizations.split("; ")),
            tasks=", ".join(f"{{{t}}}" for t in tasks.split("; ")),
        )
        path = tmp_path / "toy.yaml"
        path.write_text(text.replace("TEXT", str(tmp_path / "text.txt")))
        return path

    return write


@pytest.fixture
def here(monkeypatch):
    """Jobs in this process, too: for what is the same wherever they run."""
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)


def evals(folder: Path | str = "results/toy") -> list[Record]:
    return [r for r in latest(Store(folder).read()).values() if r.kind == "eval"]


def builds(tmp_path: Path) -> list[str]:
    log = tmp_path / "builds.log"
    return log.read_text().splitlines() if log.exists() else []


def test_a_run_measures_and_a_second_run_does_nothing(toy, tmp_path):
    spec = toy(tasks=PPL)
    assert run_spec(spec).exit_code == 0
    (record,) = evals()
    (metric,) = record.metrics
    assert record.status == "ok"
    assert metric.value == pytest.approx(512.0, rel=0.1)
    assert metric.protocol == "gptq/file:text.txt@32"
    assert len(metric.values) == 4
    assert record.artifact["weight_bytes"] == 8000
    assert record.provenance["text_sha256"]
    before = Path("results/toy/records.jsonl").read_bytes()
    outcome = run_spec(spec)
    assert outcome.exit_code == 0
    assert len([r for r in outcome.results if r.kind == "eval"]) == 1
    assert Path("results/toy/records.jsonl").read_bytes() == before
    assert builds(tmp_path) == ["build 8"]


def _as_pass_at_1(metric: Metric) -> Metric:
    return replace(metric, name="pass@1", protocol="humaneval/x", pairs="problem")


def test_a_task_of_a_third_party_compares_as_the_built_in_ones_do(toy, here):
    """Direction, paired difference with its interval, baseline, order, every form, `show`."""
    run_spec(toy(tasks=f"quiz: {{}}; {QUICK}", quantizations="copy: 8; copy: 2"))
    records = Store("results/toy").read()
    table = build_table(records, baseline="copy8", sort="right")
    assert [r.quantization for r in table.rows] == ["copy2", "copy8"]
    assert [r.quantization for r in build_table(records, sort="-right").rows] == ["copy8", "copy2"]
    column = next(c for c in table.columns if c.name == "right")
    assert (column.title, column.better, column.unit) == ("answers", "higher", "share")
    assert "longest" not in {c.name for c in table.columns}
    change = table.rows[0].entries[column.id].difference
    assert (change.kind, change.value, change.significant) == ("points", -0.75, True)
    assert change.p == 2 / 2**18  # 18 answers lost, none won: McNemar
    assert change.low < -0.75 < change.high < 0
    assert "answers [low, high]: 95% interval" in table.legend
    assert any(line.endswith("during the task quiz") for line in table.legend)
    assert table.footnotes == ("no cheating",)

    red, green = "\x1b[1;31m-75.0 pts", "\x1b[1;32m+75.0 pts"  # bold: a large one
    assert red in render(table, "text", color=True)
    assert green in render(build_table(records, baseline="copy2"), "text", color=True)
    (row, _) = csv.DictReader(io.StringIO(render(table, "csv")))
    assert row["right quiz/v1 (share)"] == "0.25"
    assert (row["right quiz/v1 difference"], row["right quiz/v1 significant"]) == ("-0.75", "1")
    assert float(row["right quiz/v1 difference low"]) == change.low
    (shown,) = (c for c in json.loads(render(table, "json"))["columns"] if c["name"] == "right")
    assert (shown["title"], shown["better"]) == ("answers", "higher")
    quiz = next(r for r in records if r.kind == "eval" and r.cell["task"]["name"] == "quiz")
    assert "longest = 9, n = 0, quiz/v1" in describe(quiz)

    as_built_in = [
        replace(r, metrics=tuple(_as_pass_at_1(m) if m.name == "right" else m for m in r.metrics))
        for r in records
    ]
    theirs = build_table(as_built_in, baseline="copy8", sort="pass@1")
    assert theirs.rows[0].entries["pass@1 humaneval/x"] == table.rows[0].entries[column.id]


def test_one_build_serves_all_tasks_and_all_results_folders(toy, here, tmp_path):
    spec = toy(tasks=f"{QUICK}; misbehave: {{how: garbage}}")
    run_spec(spec, Path("a"))
    run_spec(spec, Path("b"))
    assert builds(tmp_path) == ["build 8"]
    assert len(evals("a")) == len(evals("b")) == 2


def test_a_renamed_spec_and_other_batch_size_measure_nothing_again(toy, here):
    spec = toy()
    run_spec(spec)
    text = spec.read_text().replace("name: toy", "name: other") + "batch_size: 3\nn_threads: 1\n"
    spec.write_text(text)
    before = Path("results/toy/records.jsonl").read_bytes()
    run_spec(spec, Path("results/toy"))
    assert Path("results/toy/records.jsonl").read_bytes() == before


def test_what_measures_the_machine_is_measured_again_on_another_and_nothing_else(
    toy, here, monkeypatch
):
    spec = toy(tasks=f"{QUICK}; stopwatch: {{}}")
    monkeypatch.setenv("QEVAL_HOST", "laptop")
    run_spec(spec)
    run_spec(spec, limit=1)
    assert len(evals()) == 3  # the limit makes another `misbehave`, and no other stopwatch
    monkeypatch.setenv("QEVAL_HOST", "box")
    outcome = run_spec(spec)
    lap = [r for r in outcome.results if r.metrics and r.metrics[0].name == "lap"]
    assert [r.conditions.host for r in lap] == ["laptop", "box"]  # the first one is not lost
    assert len({r.key for r in lap}) == 2
    before = Path("results/toy/records.jsonl").read_bytes()
    monkeypatch.setenv("QEVAL_HOST", "laptop")
    run_spec(spec)
    assert Path("results/toy/records.jsonl").read_bytes() == before


def test_every_record_of_a_worker_has_its_conditions(toy, monkeypatch):
    monkeypatch.setenv("QEVAL_HOST", "box")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_spec(toy(tasks=f"{QUICK}; misbehave: {{how: raise}}"))
    records = Store("results/toy").read()
    assert [(r.kind, r.status) for r in records] == [
        ("build", "ok"),
        ("eval", "ok"),
        ("eval", "failed"),
    ]
    for record in records:
        found = record.conditions
        assert (found.host, found.n_threads) == ("box", 1)
        assert found.cores >= 1 and found.device != "auto"
    assert records[1].conditions.load_before is not None


def test_names_baseline_and_order_are_those_of_the_spec_at_hand(toy, here):
    spec = toy(quantizations="copy: 8; copy: 4")
    run_spec(spec)
    text = spec.read_text().replace("[{copy: 8}, {copy: 4}]", "[{copy: 4}, {copy: 8}]")
    spec.write_text(text + "baseline: copy4\n")
    evals = [r for r in run_spec(spec).results if r.kind == "eval"]
    found = {r.cell["quantization"]["label"]: (r.cell["baseline"], r.cell["order"]) for r in evals}
    assert found == {"copy4": (True, [0, 0, 0]), "copy8": (False, [0, 1, 0])}


def test_another_limit_or_text_is_another_cell(toy, tmp_path, capsys):
    spec = toy(tasks=PPL)
    keys = set()
    for limit, text in ((None, "a text"), (2, "a text"), (None, "another text")):
        (tmp_path / "text.txt").write_text(text)
        run_spec(spec, dry_run=True, limit=limit)
        keys.add(capsys.readouterr().out.split()[0])
    assert len(keys) == 3


ENDS = {  # of a job: its status, and a word of its error
    "kill": ("killed", "SIGKILL"),
    "exit": ("failed", "exit code 7"),
    "raise": ("failed", "ZeroDivisionError: division by zero"),
    "oom": ("oom", "Unable to allocate"),
    "garbage": ("ok", ""),
    "fine": ("ok", ""),
}


def misbehaving(hows: Iterable[str]) -> str:
    return "; ".join(f"misbehave: {{how: {how}}}" for how in hows)


def test_however_a_job_ends_it_is_recorded_and_the_run_goes_on(toy):
    assert run_spec(toy(tasks=misbehaving(ENDS))).exit_code == 3
    for (status, words), record in zip(ENDS.values(), evals(), strict=True):
        assert record.status == status
        assert words in (record.error or "")
        assert "\n" not in (record.error or "")


LOGGED = {
    "raise": ["Traceback (most recent call last)", "in run", "ZeroDivisionError: division by zero"],
    "oom": ["Traceback (most recent call last)", "MemoryError"],
    "segfault": ["Fatal Python error: Segmentation fault", "in run"],
    "refuse": ["FileNotFoundError: [Errno 2]", "EngineError: it cannot"],
    "wait, timeout: 3": ["most recent call first", "in run"],
}


def test_the_log_says_where_a_cell_failed_and_everything_names_the_log(toy, capsys):
    outcome = run_spec(toy(tasks=f"{misbehaving(LOGGED)}; {QUICK}"))
    *failed, good = evals()
    table = render(build_table(outcome.results), "text")
    for words, bad in zip(LOGGED.values(), failed, strict=True):
        text = (Path("results/toy") / bad.log).read_text()
        for word in words:
            assert word in text
        assert "NoneType: None" not in text
        assert bad.log == f"jobs/eval-{bad.key[:16]}.log"
        assert f"\nlog           results/toy/{bad.log}\n" in describe(bad)
        assert f"(log: {bad.log})" in table
    assert outcome.last_line.startswith("5 cells failed; logs: results/toy/jobs/eval-")
    assert "Traceback" not in capsys.readouterr().err
    assert "log:" not in render(build_table([good]), "text")


def test_cells_of_a_failed_build_name_its_log(toy):
    outcome = run_spec(toy(quantizations="copy: {fail: true}; copy: {num_bits: 6, die: true}"))
    (first, second) = evals()
    builds = {r.key: r for r in outcome.results if r.kind == "build"}
    assert sorted(r.log for r in builds.values()) == sorted([first.log, second.log])
    assert "BuildError: this one never works" in (Path("results/toy") / first.log).read_text()
    logs = f"results/toy/{first.log}, results/toy/{second.log}"
    assert outcome.last_line == f"2 cells failed; logs: {logs}"


def test_debug_prints_the_workers_traceback_once(toy, capsys):
    quantizations = "copy: {fail: true}; copy: 4"
    run_spec(toy(tasks=f"{QUICK}; misbehave: {{how: refuse}}", quantizations=quantizations), debug=True)
    err = capsys.readouterr().err
    assert err.count("BuildError: this one never works: use another\n") == 1
    assert err.count("EngineError: it cannot\n") == 1
    assert err.count("FileNotFoundError: [Errno 2]") == 1  # what it came from
    assert err.count("Traceback (most recent call last)") == 3


def test_a_table_with_failed_cells_ends_with_3(toy):
    spec = toy(tasks=f"misbehave: {{how: raise}}; {QUICK}")
    assert run_spec(spec, only=["misbehave ok"]).exit_code == 0
    assert run_spec(spec, only=["raise"]).exit_code == 3
    outcome = run_spec(spec, only=["misbehave ok"])  # nothing to do, but the table has what failed
    assert outcome.exit_code == 3
    assert outcome.last_line.startswith("1 cell failed; log: results/toy/jobs/eval-")
    done = subprocess.run(
        [sys.executable, "-m", "qeval", "run", str(spec), "--only", "misbehave ok"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == f"qeval: {outcome.last_line}"
    assert "failed" in done.stdout


def test_a_spec_from_a_pipe_is_kept_with_the_umasks_permissions(toy, tmp_path):
    spec = toy()
    command = f"umask 027; cat {spec} | {sys.executable} -m qeval run /dev/stdin"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = Path("results/toy/spec.yaml")
    assert kept.read_text() == spec.read_text()
    assert kept.stat().st_mode & 0o777 == 0o640


def test_a_job_that_hangs_is_killed_with_its_whole_group(toy):
    spec = toy(tasks="misbehave: {how: hang, timeout: 3}")
    assert run_spec(spec).exit_code == 3
    (record,) = evals()
    assert record.status == "timeout"
    (pid_file,) = Path("results/toy/cells").glob("*/child.pid")
    wait_for(lambda: not alive(int(pid_file.read_text())), seconds=5)


def test_only_what_failed_is_done_again(toy, tmp_path):
    marker = tmp_path / "marker"
    spec = toy(tasks=f"misbehave: {{how: raise, marker: '{marker}'}}; {QUICK}")
    assert run_spec(spec).exit_code == 3
    assert run_spec(spec).exit_code == 0
    assert [r.status for r in evals()] == ["ok", "ok"]
    assert len([r for r in Store("results/toy").read() if r.kind == "eval"]) == 3


def test_a_failed_build_fails_its_row_only_and_leaves_no_artifact(toy, tmp_path):
    spec = toy(quantizations="copy: {fail: true}; copy: {num_bits: 6, die: true}; copy: 4")
    assert run_spec(spec).exit_code == 3
    first, second, third = evals()
    assert first.error == "build failed: this one never works: use another"
    assert (first.status, second.status, third.status) == ("failed", "killed", "ok")
    cached = list((tmp_path / "cache" / "artifacts").glob("[0-9a-f]*"))
    assert len(cached) == 1
    assert not list((tmp_path / "cache" / "artifacts").glob(".building-*"))


def test_a_model_of_nan_is_marked_broken_and_the_table_is_printed(toy, here):
    outcome = run_spec(toy(tasks=PPL, quantizations="copy: 0"))
    (record,) = evals()
    assert record.metrics[0].value is None
    assert record.metrics[0].nonfinite == 1.0
    assert "broken" in render(build_table(outcome.results), "text")
    for line in Path("results/toy/records.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} in strict JSON"))


def test_what_an_engine_cannot_do_is_skipped_with_the_reason(toy):
    assert run_spec(toy(tasks="speed: {}")).exit_code == 0
    (record,) = evals()
    assert record.status == "skipped"
    assert record.error == "the engine ngram offers no generate"


def test_a_skipped_cell_is_not_tried_again(toy):
    spec = toy(quantizations="copy: {simulated: true}")
    for _ in range(2):
        assert run_spec(spec).exit_code == 0
    (record,) = [r for r in Store("results/toy").read() if r.kind == "eval"]
    assert record.status == "skipped"
    assert "simulated weights" in record.error
    assert record.artifact["simulated"]


def test_dry_run_runs_nothing(toy, capsys):
    assert run_spec(toy(), dry_run=True).results is None
    assert not Path("results").exists()
    assert "build, run" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["misbehave", "MISBEHAVE fine", "copy8", "COPY", "* · copy8 · *"])
def test_only_takes_what_the_columns_and_rows_say(toy, here, pattern):
    run_spec(toy(tasks=f"misbehave: {{how: fine}}; {PPL}"), only=[pattern])
    assert "misbehave fine" in [r.cell["task"]["label"] for r in evals()]


def test_only_takes_a_tasks_name(toy, here):
    run_spec(toy(tasks=f"{QUICK}; {PPL}"), only=["perplexity"])
    assert [r.cell["task"]["label"] for r in evals()] == ["gptq/file:text.txt@32"]


def test_only_chooses_cells_by_name(toy, here):
    spec = toy(quantizations="copy: 8; copy: 4")
    run_spec(spec, only=["copy4"])
    assert [r.cell["quantization"]["label"] for r in evals()] == ["copy4"]
    with pytest.raises(UsageError, match="no cell has that"):
        run_spec(spec, only=["copy5"])


def on_hf(spec: Path) -> Path:
    spec.write_text(spec.read_text().replace("{copy: 8}", "none"))
    return spec


def test_without_an_engines_package_nothing_starts(toy, monkeypatch):
    from qeval.core import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    spec = on_hf(toy())
    with pytest.raises(
        PreflightError, match=r"'torch' is not installed: pip install 'qeval\[hf\]'"
    ) as caught:
        run_spec(spec)
    assert caught.value.exit_code == 1
    assert evals() == []


def test_without_a_sandbox_nothing_starts(toy, monkeypatch, tmp_path):
    """No namespaces, and a bwrap that does not work: the run stops before its first job."""

    def refuse(self):
        raise SandboxError("kernel: unshare: Operation not permitted")

    monkeypatch.setattr("qeval.sandbox.kernel.KernelSandbox.__init__", refuse)
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    spec = on_hf(toy(tasks=f"{QUICK}; humaneval: {{limit: 1}}"))
    with pytest.raises(
        PreflightError, match=r"no sandbox to run generated code in.*allow-weak-sandbox"
    ):
        run_spec(spec)
    assert evals() == []
    assert run_spec(spec, allow_weak_sandbox=True, dry_run=True).exit_code == 0
    without = toy(tasks=f"{QUICK}; humaneval: {{limit: 1}}")  # an engine that generates nothing
    assert run_spec(without).exit_code == 0


def test_without_its_problems_nothing_starts(toy, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    spec = on_hf(toy(tasks=f"{QUICK}; mbpp: {{limit: 1}}"))
    with pytest.raises(
        PreflightError, match=r"'mbpp' not found.*has none of mbpp/mbpp\.jsonl.*HF_HUB_OFFLINE"
    ):
        run_spec(spec, data_dir=tmp_path)
    assert evals() == []


def test_a_text_shorter_than_a_window(toy, tmp_path):
    spec = toy(tasks=PPL)
    (tmp_path / "text.txt").write_text("short")
    said = "are not enough for a window of 32: use a longer text or a smaller seq_len"
    with pytest.raises(PreflightError, match=said):
        run_spec(spec)
    assert evals() == []


def test_an_empty_text(toy, tmp_path):
    spec = toy(tasks=PPL)
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(PreflightError, match="is empty"):
        run_spec(spec)
    assert evals() == []


@pytest.mark.parametrize("file", ["config.json", "tokenizer", "model.safetensors"])
def test_a_model_folder_with_a_part_missing_stops_before_any_job(toy, tiny_llama, tmp_path, file):
    import shutil

    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    for path in broken.glob(f"{file}*"):
        path.unlink()
    spec = toy()
    spec.write_text(spec.read_text().replace(str(tiny_llama), str(broken)))
    with pytest.raises(PreflightError, match=r"no (config.json|weights|tokenizer)"):
        run_spec(spec)
    assert not Path("results").exists()


def test_a_truncated_model_and_a_missing_one(toy, tiny_llama, tmp_path):
    import shutil

    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    spec = toy()
    text = spec.read_text()
    spec.write_text(text.replace(str(tiny_llama), str(broken)))
    with pytest.raises(PreflightError, match=r"truncated: \d+ bytes of \d+"):
        run_spec(spec)
    spec.write_text(text.replace(str(tiny_llama), "/no/such/model"))
    with pytest.raises(PreflightError, match="/no/such/model: no such model folder"):
        run_spec(spec)


def test_a_folder_that_another_run_uses(toy):
    spec = toy()
    with Store("results/toy").lock(), pytest.raises(StoreError, match="another qeval run"):
        run_spec(spec)


def start(spec: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qeval", "run", str(spec), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # a test run in the background (`&`) hands down an ignored SIGINT, a terminal does not


def wait_for(condition, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def hanging_child() -> int | None:
    found = list(Path("results/toy/cells").glob("*/child.pid"))
    return int(found[0].read_text()) if found and found[0].read_text() else None


def test_ctrl_c_ends_everything_and_keeps_what_is_done(toy):
    spec = toy(tasks=f"{QUICK}; misbehave: {{how: hang}}")
    run = start(spec)
    wait_for(hanging_child)
    child = hanging_child()
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 130
    assert "interrupted; what is finished is kept" in err
    assert "Traceback" not in err
    wait_for(lambda: not alive(child))
    assert [r.status for r in evals()] == ["ok"]


def test_ctrl_c_twice(toy):
    run = start(toy(tasks="misbehave: {how: hang}"))
    wait_for(hanging_child)
    child = hanging_child()
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 130
    assert "Traceback" not in err
    wait_for(lambda: not alive(child))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$Q 2>&1 | head -1; exit ${PIPESTATUS[0]}", 0),
        ("$Q 2>&1 | true; exit ${PIPESTATUS[0]}", 0),
        ("$Q 2>/dev/full", 0),
        ("$Q 2>&-", 0),
        ("$Q >&- 2>&-", 1),  # the table cannot be printed
        ("$Q >/dev/full", 1),
    ],
)
def test_a_run_goes_on_when_its_reader_goes_away(toy, line, code):
    spec = toy(tasks=misbehaving(["ok", "fine"]))
    program = f"{sys.executable} -m qeval run {spec}"
    done = subprocess.run(
        ["bash", "-c", line], env={**os.environ, "Q": program}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert [r.status for r in evals()] == ["ok", "ok"]
    assert "Traceback" not in done.stdout + done.stderr
    if ">/dev/full" in line and "2>" not in line:
        told = "standard output cannot be written (No space left on device); what was measured is kept"
        assert told in done.stderr


def test_a_killed_parent_takes_its_worker_along_and_the_rest_is_done_later(toy):
    """The table after kill -9 and a second run equals that of an unbroken run."""
    spec = toy(
        tasks=f"{QUICK}; misbehave: {{how: hang, marker: 'hung'}}", quantizations="copy: 8; copy: 4"
    )
    run = start(spec)
    wait_for(hanging_child)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=300)
    wait_for(lambda: not alive(hanging_child()))  # what the worker started ends, too
    assert [r.status for r in evals()] == ["ok"]
    with Path("results/toy/records.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "kind": "ev')  # and its last line was torn
    assert run_spec(spec).exit_code == 0
    unbroken = run_spec(spec, Path("unbroken"))
    broken = run_spec(spec)
    assert len(evals()) == len(evals("unbroken")) == 4
    tables = [
        render(build_table(o.results, columns=["steps", "bpw", "weights"]), "json")
        for o in (broken, unbroken)
    ]
    assert tables[0] == tables[1]
