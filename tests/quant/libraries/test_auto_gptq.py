"""AutoGPTQ in its own environment: its file, on the kernels of this one, predicts as the float model.

The library quantizes on CUDA only. Where there is none, the test makes it take the CPU for CUDA, so
that the whole path runs; what a user gets there is the error, which is tested, too.
"""

import json
import subprocess
from pathlib import Path

import pytest

from qeval.core.artifact import Artifact, Library, ModelRef
from qeval.core.errors import BuildError
from qeval.models.weights import read_tensors
from qeval.quant.gptq import GptqOptions
from qeval.quant.libraries import archived as library

CPU_AS_CUDA = """
import torch
import auto_gptq.modeling._base as base
torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lambda *a: None
base.CUDA_0 = torch.device("cpu")
"""


def fooled(python: Path, folder: Path) -> Path:
    """The interpreter, but for a CUDA that it takes the CPU for."""
    has_cuda = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([python, "-c", has_cuda]).returncode == 0:
        return python
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(CPU_AS_CUDA)
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{folder}/site" exec {python} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.real
def test_8_bits_predict_as_the_float_model_does(archived):
    """Everything that transformers 4 and 5 say in other words is in this model: a rope_theta that is
    not the default, tied embeddings, biases that are there and biases that are not."""
    python = fooled(archived.python("auto-gptq"), archived.folder)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    archived.make_model(tie_word_embeddings=True, attention_bias=True, rope_parameters=rope)
    options = {"num_bits": 8, "act_order": True, "backend": "auto-gptq"}
    result, steps = archived.build("gptq", python, **options)
    assert (result.status, result.error) == ("ok", None)
    assert steps[-1] == (1, 2, "blocks")
    artifact = Artifact.from_json(result.payload)
    assert len(artifact.layers) == 14
    assert artifact.layers[0].loss is not None and artifact.layers[0].loss > 0
    assert artifact.library == Library("auto-gptq", "0.7.1")
    assert artifact.calibration["n_tokens"] == 8 * 64
    names = {t.name for t in read_tensors(artifact.path) or ()}
    assert "model.layers.0.self_attn.q_proj.bias" in names
    assert "model.layers.0.mlp.up_proj.bias" not in names  # the library adds zeros
    assert "lm_head.weight" not in names  # tied
    config = json.loads((artifact.path / "config.json").read_text())
    assert config["rope_parameters"] == rope
    assert config["quantization_config"]["desc_act"] is True
    # 2.4e-4 nats measured; 4 bits rounded to nearest: 0.03, a rope_theta left at 10000: 0.067
    assert archived.divergence(artifact) < 1e-3


@pytest.mark.real
def test_without_cuda_it_says_what_to_use(archived, monkeypatch):
    archived.make_model()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result, _ = archived.build("gptq", archived.python("auto-gptq"), backend="auto-gptq")
    message = "AutoGPTQ quantizes on CUDA only; use backend: gptqmodel"
    assert (result.status, result.error) == ("failed", message)


def test_an_asymmetric_grid_is_refused():
    """A zero point of zero, stored less one in a few bits, would overwrite its neighbours."""
    with pytest.raises(ValueError, match="AutoGPTQ stores asymmetric zero points wrong; leave it out"):
        GptqOptions(backend="auto-gptq", symmetric=False)


def test_an_unknown_architecture_is_named_with_those_that_are_known(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "starcoder2"}')
    ref = ModelRef("m", tmp_path, "sha256:0", "float16")
    with pytest.raises(
        BuildError,
        match=r"X does not know the architecture starcoder2 \(it knows bloom, llama\): use backend",
    ):
        library.check_architecture("X", ref, iter(["llama", "bloom"]))


def test_rope_parameters_become_words_of_transformers_4(tmp_path):
    def old(**config: object):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return library._old_config(tmp_path)

    assert old(rope_theta=5.0) == {"rope_theta": 5.0}
    plain = {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5}
    assert old(rope_parameters=plain) == {
        "rope_theta": 5.0, "partial_rotary_factor": 0.5, "rope_scaling": None,
    }  # fmt: skip
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}
    assert old(rope_parameters=scaled) == {
        "rope_theta": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }  # fmt: skip
    with pytest.raises(BuildError, match="rope_parameters differ by layer"):
        old(rope_parameters={"full_attention": plain})


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [
        ("auto", "2,3", "2,3"),
        ("cuda", None, None),
        ("cpu", "2,3", ""),
        ("cuda:1", None, "1"),
        ("cuda:1", "2,3", "3"),
    ],
)
def test_the_library_sees_the_asked_device_alone(monkeypatch, device, before, after):
    import os

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    library.use_only(device)
    found = os.environ.get("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert found == after
