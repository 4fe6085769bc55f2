"""The task in a run and on simulated weights: its record and file; and `qeval stats`."""

import importlib.util
import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from in_process import InProcess

from qeval.cli.main import cli
from qeval.cli.run import run_spec
from qeval.cli.stats import model_statistics
from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import EngineError, MissingExtraError, UsageError
from qeval.core.settings import EngineSettings
from qeval.data.datasets import DataSource
from qeval.engines.hf import HfEngine
from qeval.formats.describe import describe_folder
from qeval.jobs.job import JobResult
from qeval.plan.spec import load_spec
from qeval.quant.base import METHODS, BuildContext
from qeval.store.records import Store, latest
from qeval.tasks.base import TaskContext
from qeval.tasks.tensor_stats import TensorStats, TensorStatsOptions, protocol_id
from qeval.tensor_stats.rows import read

SPEC = """\
name: s
models: [{0}]
dtype: float32
quantizations: [none, {{copy: 8}}]
tasks: [{{tensor_stats: {{dataset: "file:{1}", seq_len: 32, limit: 3}}}}]
device: cpu
n_threads: 1
"""
HOW = {
    "fmt": "text",
    "kinds": (),
    "sort": None,
    "top": None,
    "png": None,
    "save": None,
    "limit": 2,
    "dtype": "float32",
    "device": "cpu",
    "data_dir": None,
    "cache_dir": None,
    "trust_remote_code": False,
    "dataset": "pydoc",
    "seq_len": 32,
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return path


def test_a_run_measures_and_skips_what_no_engine_shows(plugin, tiny_llama, text, tmp_path, monkeypatch):
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)
    spec = tmp_path / "s.yaml"
    spec.write_text(SPEC.format(tiny_llama, text))
    folder = tmp_path / "results"
    assert run_spec(spec, folder).exit_code == 0
    record, unfit = [r for r in latest(Store(folder).read()).values() if r.kind == "eval"]
    assert (unfit.status, unfit.error) == ("skipped", "the engine ngram offers no tensors")
    assert record.status == "ok", record.error
    found = read(folder / record.files["layers"])
    assert len(found.rows) == 26 and found.about["windows"] == 3 and found.about["seq_len"] == 32
    metrics = {m.name: m for m in record.metrics}
    names = ["sqnr_weight", "sqnr_input", "sqnr_kv", "kurtosis_weight", "kurtosis_input"]
    assert list(metrics) == names
    assert {m.protocol for m in metrics.values()} == {"tensor_stats/file:text.txt@32/W4A8KV4"}
    own = [r for r in found.rows if r.kind == "input"]
    assert metrics["kurtosis_input"].value == max(r.kurtosis for r in own)
    assert metrics["sqnr_input"].value == min(r.sqnr_db for r in own)
    assert metrics["sqnr_input"].n == len(own) == 8 and metrics["sqnr_input"].nonfinite == 0
    worst = min(own, key=lambda r: r.sqnr_db)
    assert record.provenance["worst"]["input"][0]["tensor"] == worst.where
    assert any(worst.where in note for note in record.notes)
    assert record.provenance["windows"]["n"] == 3
    before = len(Store(folder).read())
    assert run_spec(spec, folder).exit_code == 0 and len(Store(folder).read()) == before


def test_simulated_weights_are_measured_as_they_are(tiny_llama, tmp_path, text):
    """On their grid already, so little is left to round; what reads them sees other inputs."""
    whole = measured(describe_folder(tiny_llama, "float32"), tmp_path / "whole", tiny_llama, text)
    method, out = METHODS["rtn"](), tmp_path / "rtn"
    out.mkdir()
    ref = ModelRef("tiny", tiny_llama, "sha256:0", "float32")
    built = BuildContext(ref, out, None, list, lambda *_: None, out, device="cpu")
    artifact = method.build(method.Options(num_bits=4), built)
    assert artifact.simulated and TensorStats.on_simulated
    rounded = measured(artifact, tmp_path / "rounded", tiny_llama, text)
    assert whole.keys() == rounded.keys()
    for key, row in whole.items():
        other = rounded[key]
        if key[0] == "weight":
            assert other.sqnr_db is None or other.sqnr_db > row.sqnr_db + 15
        if key[1] == 1 and key[0] != "weight":
            assert other.std != row.std and other.std == pytest.approx(row.std, rel=0.2)


def measured(artifact, out, model, text):
    """The rows of the task on an artifact, by kind, layer and name."""
    ref = ModelRef("tiny", model, "sha256:0", "float32")
    context = TaskContext(ref, DataSource(offline=True), out, lambda *_: None, limit=2)
    options = TensorStatsOptions.model_validate({"dataset": f"file:{text}", "seq_len": 32})
    with closing(HfEngine.open(artifact, EngineSettings("cpu", "float32"))) as lm:
        result = TensorStats().run(lm, options, context)
    rows = read(result.files["layers"]).rows
    return {(row.kind, row.layer, row.name): row for row in rows}


def test_the_protocol_is_part_of_the_column():
    def name(**options):
        return protocol_id(TensorStatsOptions.model_validate(options))

    assert name(dataset="pydoc") == "tensor_stats/pydoc/W4A8KV4"
    assert name(dataset="file:/a/b.txt", seq_len=64) == "tensor_stats/file:b.txt@64/W4A8KV4"
    bits = {"weight_bits": 3, "group_size": 64, "activation_bits": 4, "kv_bits": 2}
    assert name(dataset="wikitext2", **bits) == "tensor_stats/wikitext2/W3g64A4KV2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{dataset: nope}", "nope"),
        ("{dataset: pydoc, group_size: 0}", r"group_size: must be a positive number of inputs, or -1"),
        (
            "{dataset: pydoc, weight_bits: 1}",
            r"weight_bits: input should be greater than or equal to 2",
        ),
    ],
)
def test_options_that_cannot_be_are_errors_of_the_spec(tmp_path, options, message):
    spec = tmp_path / "s.yaml"
    spec.write_text(
        f"name: s\nmodels: [m]\nquantizations: [none]\ntasks: [{{tensor_stats: {options}}}]\n"
    )
    with pytest.raises(UsageError, match=message):
        load_spec(spec)


def test_stats_of_a_model_kept_shown_and_drawn(tiny_llama, tmp_path, capsys):
    """One worker; everything after it reads what it kept."""
    kept = tmp_path / "kept.jsonl"
    page = model_statistics([str(tiny_llama)], **{**HOW, "save": kept})
    assert f"{tiny_llama}, float32: 2 windows of 32 tokens of pydoc" in page
    assert len(re.findall(r"^ +[01]  ", page, re.M)) == 26
    err = capsys.readouterr().err
    assert "qeval: most rounding noise: " in err and "pydoc@32/W4A8KV4 ..." in err

    def stats(*args):
        done = CliRunner().invoke(cli, ["stats", *map(str, args)], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    assert stats(kept) == page
    top = stats(kept, "--sort", "kurtosis", "--top", 3, "--kind", "input", "--format", "csv")
    assert len(top.splitlines()) == 4 and "input,mlp.down_proj" in top.splitlines()[1]
    assert len(json.loads(stats(kept, "--format", "json"))["rows"]) == 26
    assert stats(kept, "--format", "markdown").startswith("**")
    pair = json.loads(stats(kept, kept, "--format", "json", "--top", 1))
    assert pair["rows"][0][0] == pair["rows"][0][1]
    assert "change of AbsMax" in stats(kept, kept)
    with pytest.raises(UsageError, match="--png is for one model"):
        stats(kept, kept, "--png", "a.png")
    with pytest.raises(UsageError, match="give one model, or two"):
        stats(kept, kept, kept)
    if importlib.util.find_spec("matplotlib"):
        assert stats(kept, "--png", tmp_path / "a.png") == page
        assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_picture_without_matplotlib_is_one_line_before_anything_runs(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda m: None if m == "matplotlib" else find(m))
    with pytest.raises(MissingExtraError, match=r"'matplotlib' is not installed: .*qeval\[plot\]"):
        model_statistics(["no/such/model"], **{**HOW, "png": Path("a.png")})


def test_what_a_worker_says_is_one_line(tiny_llama, monkeypatch):
    said = JobResult("failed", "pydoc has 3 tokens, one window takes 32")
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor.run", lambda *_: said)
    with pytest.raises(EngineError, match=r"tiny-llama: pydoc has 3 tokens, one window"):
        model_statistics([str(tiny_llama)], **HOW)


def test_what_cannot_be_measured_is_said_before_a_worker_starts(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "qeval.jobs.executor.LocalExecutor.run", lambda *_: pytest.fail("a worker started")
    )
    with pytest.raises(UsageError, match=r"--dataset: .*nope"):
        model_statistics([str(tiny_llama)], **{**HOW, "dataset": "nope"})
    with pytest.raises(UsageError, match="--group-size: must be"):
        model_statistics([str(tiny_llama)], **{**HOW, "group_size": 0})
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    monkeypatch.setattr(
        "qeval.plan.survey.resolve_model",
        lambda name, **_: ModelRef(name, gguf, "sha256:0", "bfloat16"),
    )
    monkeypatch.setattr(
        "qeval.quant.none.describe_folder",
        lambda *_: Artifact(gguf, "llamacpp", False, 0, 0, 8.0, 8.0),
    )
    with pytest.raises(UsageError, match="the engine llamacpp offers no tensors: give the float"):
        model_statistics([str(gguf)], **HOW)
