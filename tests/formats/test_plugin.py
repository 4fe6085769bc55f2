"""A packed format from outside (tests/plugin), through its entry point alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import InProcess

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import ModelError, UsageError
from qeval.core.settings import EngineSettings
from qeval.formats.base import FORMATS
from qeval.formats.describe import describe_folder
from qeval.formats.recognise import check_float, check_runs, recognise, rounds_activations
from qeval.models.weights import read_tensors

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

IDS = [(7 * i) % 512 for i in range(48)]


def pack(source: Path, folder: Path, **config: object) -> tuple[Path, dict]:
    """A packed copy of a float Llama, and the weights that the packed ones stand for."""
    from qeval_testing_format import pack, unpack
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    tensors, floats = {}, load_file(source / "model.safetensors")
    for name, weight in list(floats.items()):
        stem = name.removesuffix(".weight")
        if stem.endswith("_proj"):
            parts = pack(weight)
            tensors |= {
                f"{stem}.{k}": t for k, t in zip(("levels", "offset", "step"), parts, strict=True)
            }
            floats[name] = unpack(*parts)
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((source / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "offset8", "version": 1, **config}
    (folder / "config.json").write_text(json.dumps(written))
    return folder, floats


@pytest.fixture
def packed(plugin, tiny_llama, tmp_path):
    return pack(tiny_llama, tmp_path / "packed")


def test_it_is_recognised_and_every_byte_counted(packed):
    folder, _ = packed
    artifact = describe_folder(folder, "float32")
    found = artifact.format
    assert found == recognise(folder)
    assert (found.name, found.label, found.num_bits) == ("offset8", "Offset W8A16", 8)
    assert not rounds_activations(artifact)
    assert {layer.kind for layer in artifact.layers} == {"byte"}
    for layer in artifact.layers:
        n_out, n_in = layer.shape
        assert layer.stored_bytes == n_out * n_in + 2 * 2 * n_out
    n_weights = sum(layer.shape[0] * layer.shape[1] for layer in artifact.layers)
    assert artifact.bpw == 8 * sum(layer.stored_bytes for layer in artifact.layers) / n_weights
    assert artifact.weight_bytes + artifact.embedding_bytes == sum(
        t.n_bytes for t in read_tensors(folder)
    )
    assert Artifact.from_json(json.loads(json.dumps(artifact.to_json()))) == artifact


def test_it_runs_on_the_hf_engine_as_the_weights_that_it_stands_for(packed, tiny_llama):
    from transformers import AutoModelForCausalLM

    from qeval.engines.hf import HfEngine

    folder, floats = packed
    settings = EngineSettings(device="cpu", dtype="float32")
    lm = HfEngine.open(describe_folder(folder, "float32"), settings)
    twin = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    twin.load_state_dict(floats)
    with torch.inference_mode():
        wanted = twin(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(lm.logits(IDS), wanted, atol=1e-5)
    assert lm.facts()["kernels"] == {"OffsetLinear": 14}


def test_what_it_needs_is_known_before_any_job(packed):
    folder, _ = packed
    artifact = describe_folder(folder, "float32")
    check_runs(artifact, ModelRef("m", folder, "sha256:0", "bfloat16"))
    half = ModelRef("m", folder, "sha256:0", "float16")
    with pytest.raises(UsageError, match="Offset W8A16: its steps overflow in float16"):
        check_runs(artifact, half)
    with pytest.raises(UsageError, match=r"rtn: m is packed already \(Offset W8A16\)"):
        check_float("rtn", half)


def test_its_own_errors_are_told_and_tensors_without_a_configuration_are_known(
    plugin, tiny_llama, tmp_path
):
    folder, _ = pack(tiny_llama, tmp_path / "newer", version=2)
    with pytest.raises(ModelError, match=r"config\.json: quantization_config\.version is 2: only 1"):
        recognise(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"levels is packed, but config\.json has no"):
        describe_folder(folder, "float32")


def test_doctor_tries_it_and_finds_a_layer_that_is_wrong(plugin):
    from qeval.doctor import libraries

    library = next(one for one in libraries.known() if one.name == "offset8")
    (found,) = libraries.examine([library])
    assert (found.version, found.state, found.notes) == ("1", "partly", ("made up",))
    right, wrong = found.layers
    assert (right.name, right.kernel, right.error) == ("byte", "OffsetLinear", "")
    assert 0 < right.deviation < 0.05
    assert wrong.error.startswith("its product is off by ")


def test_without_the_package_its_artifacts_are_refused_by_name(packed, monkeypatch):
    folder, _ = packed
    artifact = describe_folder(folder, "float32")
    with monkeypatch.context() as patch:
        patch.setattr("qeval.core.registry.from_outside", lambda group: {})
        assert "offset8" not in FORMATS
        with pytest.raises(UsageError, match="unknown format 'offset8'"):
            rounds_activations(artifact)
        with pytest.raises(ModelError, match="quant_method 'offset8' is none that qeval runs"):
            recognise(folder)


def test_a_built_in_format_is_asked_first(plugin, monkeypatch, tmp_path):
    """A name or file that qeval knows is not another's to take."""
    from qeval_testing_format import Offset8

    monkeypatch.setattr(Offset8, "quant_methods", ("fp8",))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    assert recognise(tmp_path).name == "fp8"


@pytest.mark.real
def test_a_row_of_a_table_has_its_label_and_the_number_of_its_float_twin(
    packed, tiny_llama, tmp_path, monkeypatch
):
    """In a process of its own, which knows the format by its entry point alone."""
    from safetensors.torch import save_file

    from qeval.cli.run import run_spec
    from qeval.report.rows import build_table

    folder, floats = packed
    twin = shutil.copytree(tiny_llama, tmp_path / "twin")
    save_file(floats, twin / "model.safetensors", {"format": "pt"})
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"name: mine\nmodels: [{tiny_llama}]\ndtype: float32\nn_threads: 1\n"
        f"quantizations: [{{checkpoint: {folder}}}, {{checkpoint: {twin}}}]\n"
        f"tasks: [perplexity: {{dataset: 'file:{tmp_path / 'text.txt'}', seq_len: 32, limit: 2}}]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run_spec(spec, only=["packed"]).exit_code == 0
    monkeypatch.setattr("qeval.jobs.executor.LocalExecutor", InProcess)  # for the twin
    outcome = run_spec(spec)
    assert outcome.exit_code == 0
    found, wanted = (r.metrics[0].values for r in outcome.results if r.kind == "eval")
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    labels = [row.quantization for row in build_table(outcome.results).rows]
    assert labels == ["packed (Offset W8A16)", "twin"]
