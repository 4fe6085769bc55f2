"""Keys of cells and artifacts: what changes them and what must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planned import plan

from qeval.cli.run import run_spec
from qeval.core import cores, devices, provenance
from qeval.core.artifact import ModelRef
from qeval.core.errors import PreflightError, UsageError
from qeval.engines.base import ENGINES
from qeval.plan.cells import Cell
from qeval.plan.spec import load_spec
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS

SPEC = """\
name: t
models: [m]
dtype: float32
quantizations:
{rows}
tasks:
  - perplexity: {{dataset: wikitext2, limit: 2}}
"""


def cells(folder: Path, rows: str, **config: object) -> list[Cell]:
    """The cells of a model that is nothing but a configuration."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    shape = {"hidden_size": 96, "num_attention_heads": 2, **config}
    (model / "config.json").write_text(json.dumps(shape))
    path = folder / "t.yaml"
    path.write_text(SPEC.format(rows=rows))
    return plan(load_spec(path), [ModelRef("m", model, "sha256:0", "float32")], folder)


def test_a_gguf_model_has_no_floor_of_another_engine(tiny_f32, tmp_path):
    """Nothing makes it from a .gguf file; the floors that llama.cpp has are there."""
    ENGINES["llamacpp"].preflight()  # else no such floor would be asked for
    text = SPEC.format(rows="  - none").replace(
        "perplexity: {dataset: wikitext2", "divergence: {dataset: ptb"
    )
    (tmp_path / "t.yaml").write_text(text)
    experiment = load_spec(tmp_path / "t.yaml")
    asked = {q.label for q in experiment.quantizations}
    assert "floor: engine (F32 GGUF)" in asked
    model = ModelRef("m", tiny_f32.path, "sha256:0", "float32")
    found = plan(experiment, [model], tmp_path)
    assert [c.row.quantization.label for c in found] == ["none", "floor: repetition"]
    assert {c.row.engine for c in found} == {"llamacpp"}
    assert all(c.describe()["model"]["gguf"] for c in found)


def test_the_key_of_a_known_cell(tmp_path, monkeypatch):
    """That of 0.1.0 at its versions: raising one changes the keys that it is for, nothing else may."""
    for cls in (ENGINES["hf"], TASKS["perplexity"], METHODS["hqq"]):
        monkeypatch.setattr(cls, "version", 1)
    (cell,) = cells(tmp_path, "  - hqq: {num_bits: 4, group_size: 64}")
    assert cell.key[:16] == "a59015fa9c042e62"


def test_the_keys_of_weights_that_are_found(tmp_path, monkeypatch):
    """Those of 0.1.0, as above: the model's own weights, and a checkpoint named by its content."""
    for cls in (ENGINES["hf"], TASKS["perplexity"]):
        monkeypatch.setattr(cls, "version", 1)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    rows = f"  - none\n  - checkpoint: {tmp_path / 'model'}"
    found = [(c.key[:16], c.row.artifact_key[:16]) for c in cells(tmp_path, rows, model_type="llama")]
    assert found == [
        ("481bbe95659f2d3c", "7ea431427de6dfe3"),
        ("945a9c06530340c1", "9d89fa75b08e5094"),
    ]


def test_a_method_of_the_old_kind_is_told_what_to_write(plugin, tmp_path):
    message = r"method old: in_place is no more: give it find\(options, model, cache_dir\) instead of"
    with pytest.raises(UsageError, match=message):
        cells(tmp_path, "  - old")


def test_how_weights_run_is_in_a_cells_key_and_not_in_its_artifacts(tmp_path):
    rows = "  - rtn: {num_bits: 4}\n    activations: [16, 8]\n    kv_cache: [16, 4]"
    found = cells(tmp_path, rows)
    assert [c.row.quantization.label for c in found] == [
        "RTN W4A16",
        "RTN W4A16KV4",
        "RTN W4A8",
        "RTN W4A8KV4",
    ]
    assert len({c.key for c in found}) == 4
    assert len({c.row.artifact_key for c in found}) == 1
    (plain,) = cells(tmp_path, "  - rtn: {num_bits: 4}")
    assert plain.key == found[0].key


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "  - gguf: Q8_0\n    kv_cache: 4",
            "m · Q8_0 KV4: kv_cache: the engine llamacpp does not quantize it: take kv_cache off this "
            "row, or take a method whose weights run on hf",
        ),
        (
            "  - gguf: Q8_0\n    activations: 8",
            "m · Q8_0 A8: activations: the engine llamacpp does not",
        ),
        (
            "  - rtn: {kv_cache: {num_bits: 4, group_size: 32}}",
            "m · RTN W4A16KV4: kv_cache: group_size 32 does not divide the head dimension 48: use 16 "
            "or 48",
        ),
        (
            "  - bitsandbytes: 8\n    activations: 8",
            r"m · LLM.int8() A8: activations: these weights come with",
        ),
        ("  - torchao: int8dyn\n    activations: 8", "take activations off this row"),
        (
            "  - compressed-tensors: W8A8\n    activations: 4",
            "kernels that quantize activations themselves",
        ),
    ],
)
def test_rows_that_cannot_be_are_refused_before_any_job(tmp_path, rows, message):
    with pytest.raises(UsageError) as caught:
        cells(tmp_path, rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_they_do_not_concern_goes_with_them(tmp_path):
    """Kernels of their own activations with a low-bit cache; a group longer than the head dimension."""
    rows = "  - bitsandbytes: [8, 4]\n    kv_cache: 4\n  - compressed-tensors: W8A8\n    kv_cache: 8"
    labels = [c.row.quantization.label for c in cells(tmp_path, rows, head_dim=64)]
    assert labels == ["LLM.int8() KV4", "NF4 KV4", "W8A8KV8 (llm-compressor)"]


def test_a_packed_checkpoint_that_quantizes_activations_itself(tiny_llama, tmp_path, monkeypatch):
    """Which formats do: tests/formats/test_recognise.py."""
    monkeypatch.setattr(
        "qeval.plan.cells.rounds_activations", lambda artifact: artifact.path == tiny_llama
    )
    path = tmp_path / "t.yaml"
    path.write_text(SPEC.format(rows=f"  - checkpoint: {tiny_llama}\n    activations: 8"))
    with pytest.raises(UsageError, match="A8: activations: these weights come with kernels that"):
        plan(load_spec(path), [ModelRef("m", tiny_llama, "sha256:0", "float32")], tmp_path)


def tasks(
    folder: Path, settings: str = "", rows: str = "  - rtn: {num_bits: 4}\n  - gguf: Q8_0"
) -> list[Cell]:
    """A perplexity and a speed of each row, on a model that is nothing but a configuration."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
    path = folder / "t.yaml"
    path.write_text(SPEC.format(rows=rows) + "  - speed\n" + settings)
    return plan(load_spec(path), [ModelRef("m", model, "sha256:0", "float32")], folder)


@pytest.fixture
def box(monkeypatch):
    """A machine of 8 cores without a GPU, whatever this one is."""
    monkeypatch.setattr(devices, "gpus", lambda: ())
    monkeypatch.setattr(devices, "_torch_build", lambda: "cuda")
    monkeypatch.setattr(devices, "_llama_backends", lambda: frozenset())
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(provenance, "cpu_name", lambda: "a CPU")
    monkeypatch.setenv("QEVAL_HOST", "box")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


def changed(folder: Path, settings: str, change) -> tuple[bool, bool]:
    """Whether perplexity's key of the first row, and speed's, are others after ``change``."""
    before = [c.key for c in tasks(folder)[:2]]
    change()
    after = [c.key for c in tasks(folder, settings)[:2]]
    return before[0] != after[0], before[1] != after[1]


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("settings", "change", "other"),
    [
        ("", nothing, False),
        ("device: cpu\n", nothing, False),  # what auto is here
        ("n_threads: 8\n", nothing, False),  # what is taken anyway
        ("batch_size: 3\n", nothing, False),  # speed has batch sizes of its own
        ("n_threads: 2\n", nothing, True),
        ("", lambda m: m.setenv("QEVAL_HOST", "other"), True),
        ("", lambda m: m.setattr(provenance, "cpu_name", lambda: "another CPU"), True),
        ("", lambda m: m.setattr(provenance, "package_version", lambda name: "99"), True),
        ("", lambda m: m.setattr(devices, "gpus", lambda: ("a GPU",)), True),
    ],
)
def test_where_a_cell_runs_is_in_speeds_key_and_never_in_perplexitys(
    box, tmp_path, settings, change, other
):
    act = nothing if change is nothing else lambda: change(box)
    assert changed(tmp_path, settings, act) == (False, other)


def test_threads_do_not_count_on_a_gpu(box, tmp_path):
    box.setattr(devices, "gpus", lambda: ("a GPU", "another GPU"))
    assert changed(tmp_path, "n_threads: 2\n", nothing) == (False, False)
    assert changed(tmp_path, "device: cuda:1\n", nothing) == (False, True)


def test_a_record_keeps_where_its_cell_was_to_run(box, tmp_path):
    box.setattr(devices, "gpus", lambda: ("a GPU",))
    _, on_gpu, ppl, on_cpu = (c.describe() for c in tasks(tmp_path))
    shown = [
        {k: d["conditions"][k] for k in ("device", "device_name", "n_threads")}
        for d in (on_gpu, on_cpu)
    ]
    assert shown == [
        {"device": "cuda:0", "device_name": "a GPU", "n_threads": None},
        {"device": "cpu", "device_name": "a CPU", "n_threads": 8},
    ]
    assert "conditions" not in ppl
    box.setenv("QEVAL_HOST", "elsewhere")
    moved = tasks(tmp_path)[1]
    assert moved.describe()["key_anywhere"] == on_gpu["key_anywhere"] == moved.key_anywhere


def test_a_gpu_that_is_not_there_stops_a_run_and_no_dry_run(box, tiny_llama, tmp_path, capsys):
    path = tmp_path / "t.yaml"
    spec = SPEC.format(rows="  - none").replace("models: [m]", f"models: [{tiny_llama}]")
    path.write_text(spec + "  - speed\n")
    run_spec(path, tmp_path / "r", dry_run=True, device="cuda")
    assert "speed" in capsys.readouterr().out
    with pytest.raises(
        PreflightError, match=r"device cuda: this machine shows no CUDA GPU .*: use --device cpu"
    ):
        run_spec(path, tmp_path / "r", device="cuda")
    assert not (tmp_path / "r").exists()
