"""Weights of the packed formats, read through the kernels of their libraries."""

import importlib.util

import pytest
import torch
from families import WINDOWS, make_model, one_thread

from qeval.core.artifact import ModelRef
from qeval.core.errors import UsageError
from qeval.core.settings import EngineSettings
from qeval.engines.hf import HfEngine
from qeval.models.linears import linears_of_any_format
from qeval.quant.base import METHODS, BuildContext
from qeval.tensor_stats.collect import Bits, collect, read_weight

_one_thread = pytest.fixture(autouse=True)(one_thread)

PACKED = {  # method -> its package, options
    "bitsandbytes": ("bitsandbytes", {"num_bits": 4}),
    "hqq": ("hqq", {"num_bits": 4}),
    "torchao": ("torchao", {"scheme": "int8wo"}),
    "quanto": ("optimum", {"weights": "int8"}),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_models_weights_are_what_its_kernels_multiply_by(name, tmp_path):
    package, options = PACKED[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    make_model("qwen2").to(torch.bfloat16).save_pretrained(tmp_path / "model")  # q, k, v have a bias
    ref = ModelRef("m", tmp_path / "model", "sha256:0", "bfloat16")
    method, out = METHODS[name](), tmp_path / "out"
    out.mkdir()
    try:
        method.check_device(method.Options.model_validate(options), ref, "cpu")
    except UsageError as err:  # bitsandbytes on a CPU with AVX512-BF16 takes other widths only
        pytest.skip(str(err))
    context = BuildContext(ref, out, None, list, lambda *_: None, out, device="cpu")
    artifact = method.build(method.Options.model_validate(options), context)
    lm = HfEngine.open(artifact, EngineSettings("cpu", "bfloat16"))
    rows, notes = collect(lm.internals(), WINDOWS[:1], Bits(), lambda *_: None)
    assert notes == ()
    assert len([r for r in rows if r.kind == "weight"]) == 14
    like = torch.zeros(0, dtype=torch.bfloat16)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    floats = make_model("qwen2")
    with torch.no_grad():
        for part, packed in linears_of_any_format(lm.internals().model):
            if packed.in_features != 64:
                continue
            weight = read_weight(packed, like).float()
            bias = 0 if packed.bias is None else packed.bias.float()
            wanted = x.float() @ weight.T + bias
            assert torch.allclose(packed(x).float(), wanted, rtol=0.03, atol=0.03), part
            own = floats.get_submodule(part).weight
            assert 0.001 < (weight - own).norm() / own.norm() < 0.15, part
