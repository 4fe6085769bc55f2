"""On a GPU: solvers, driver, transforms, mixtures, rounded activations and caches, statistics. All of
them give what they give on the CPU, to float32's rounding: a sum in another order may send a weight to
its other neighbour, and what is behind it makes up for that.

    OMP_NUM_THREADS=1 python -m pytest -n 12 --dist worksteal tests/quant/test_cuda.py
"""

from functools import partial

import numpy as np
import pytest
import torch
from families import FAMILIES, MIXTURES, WINDOWS, drawn, make_model, saved
from transformers import DynamicCache

from qeval.core.artifact import Artifact
from qeval.core.execution import Execution
from qeval.core.settings import EngineSettings
from qeval.engines.base import Internals, Sampling
from qeval.engines.hf import HfEngine
from qeval.formats.describe import describe_folder
from qeval.quant.awq import Awq, AwqOptions
from qeval.quant.base import BuildContext
from qeval.quant.gptq import Gptq, GptqOptions
from qeval.quant.laboratory.driver import quantize_blocks
from qeval.quant.laboratory.solvers.base import GridRules, off_grid
from qeval.quant.laboratory.solvers.gptq import gptq
from qeval.quant.laboratory.solvers.outliers import Outliers, quantease_outliers
from qeval.quant.laboratory.solvers.quantease import gptq_quantease, quantease
from qeval.quant.laboratory.solvers.spqr import spqr
from qeval.quant.quantease import QuantEase, QuantEaseOptions
from qeval.quant.smoothquant import SmoothQuant, SmoothQuantOptions
from qeval.quant.spqr import Spqr, SpqrOptions
from qeval.tensor_stats.collect import Bits, collect

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

SOLVERS = {
    "gptq-4": (gptq, GridRules(4, 64)),
    "gptq-3": (gptq, GridRules(3)),
    "gptq-act-order": (partial(gptq, act_order=True), GridRules(4, 128, symmetric=True)),
    "gptq-static": (partial(gptq, act_order=True, static_groups=True), GridRules(2, 64)),
    "quantease": (quantease, GridRules(4, 64)),
    "gptq-quantease": (gptq_quantease, GridRules(3, 128, symmetric=True)),
    "outliers": (partial(quantease_outliers, outliers=Outliers(0.01)), GridRules(3)),
    "columns": (partial(quantease_outliers, outliers=Outliers(0.02, True)), GridRules(3)),
    "spqr": (spqr, GridRules(3, 16)),
    "spqr-act-order": (partial(spqr, act_order=True), GridRules(4, 32)),
}


@pytest.fixture(scope="module")
def layer():
    """A weight [256, 512] and the H [512, 512] of inputs that hang together."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(512, 512, generator=g) + torch.randn(512, 1, generator=g)
    x = (torch.eye(512) + 0.1 * torch.randn(512, 512, generator=g)) @ noise
    return torch.randn(256, 512, generator=g), x @ x.T / 512


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_lose_what_they_lose_on_the_cpu(name, layer):
    solve, rules = SOLVERS[name]
    there, here = solve(*(x.cuda() for x in layer), rules), solve(*layer, rules)
    assert there.weight.is_cuda and off_grid(there) == 0
    assert there.facts.relative_loss == pytest.approx(here.facts.relative_loss, rel=2e-2)
    assert there.facts.outlier_share == pytest.approx(here.facts.outlier_share, rel=2e-2, abs=0)
    assert there.stored_bytes == pytest.approx(here.stored_bytes, rel=1e-3)
    mean_of_levels = there.grid.scale.mean().item()
    assert mean_of_levels == pytest.approx(here.grid.scale.mean().item(), rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_driver_measures_every_family_as_on_the_cpu(kind, dtype):
    """Losses of the first block's layers, and of all layers where nothing but float32 is rounded."""
    found = []
    for device in ("cuda", "cpu"):
        model = make_model(kind).to(getattr(torch, dtype))
        results = quantize_blocks(
            model,
            WINDOWS,
            partial(gptq, rules=GridRules(4, 16)),
            device=torch.device(device),
            kind="int4",
            progress=lambda *_: None,
        )
        assert all(p.device.type == "cpu" for p in model.parameters())
        found.append(results)
    for there, here in zip(*found, strict=True):
        assert there.report.name == here.report.name
        if dtype == "float32" or ".0." in there.report.name:
            assert there.n_tokens == pytest.approx(here.n_tokens, rel=0.05, abs=2)
            near = pytest.approx(here.facts.relative_loss, rel=0.05 if dtype == "float32" else 0.2)
            assert there.facts.relative_loss == near, there.report.name


def build(method, options, model, out, device: str) -> Artifact:
    out.mkdir()
    context = BuildContext(model, out, None, lambda _: drawn(), lambda *_: None, out, device=device)
    return method.build(options, context)


def nll(artifact: Artifact, device: str, **execution: object) -> np.ndarray:
    settings = EngineSettings(device, "float32", execution=Execution.from_json(execution))
    lm = HfEngine.open(artifact, settings)
    return np.concatenate(list(lm.nll(WINDOWS)))


METHODS = {
    "gptq": (Gptq, GptqOptions, {"backend": "laboratory", "num_bits": 4, "group_size": 16}),
    "awq": (Awq, AwqOptions, {"backend": "laboratory", "group_size": 16}),
    "quantease": (QuantEase, QuantEaseOptions, {"num_bits": 3}),
    "outliers": (QuantEase, QuantEaseOptions, {"num_bits": 3, "outliers": 0.01}),
    "spqr": (Spqr, SpqrOptions, {"num_bits": 3}),
    "smoothquant": (SmoothQuant, SmoothQuantOptions, {}),
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2_moe"])
@pytest.mark.parametrize("name", METHODS)
def test_models_built_on_the_gpu_predict_like_those_of_the_cpu(name, kind, tmp_path):
    method, options, given = METHODS[name]
    model = saved(tmp_path / "model", kind)
    built = {
        device: build(method(), options(**given), model, tmp_path / device, device)
        for device in ("cuda", "cpu")
    }
    whole = nll(describe_folder(model.path, "float32"), "cpu")
    there, here = (nll(built[device], "cpu") for device in ("cuda", "cpu"))
    share = 0.5 if kind in MIXTURES else 0.2  # a router may send a token to another expert
    assert np.abs(there - here).mean() < share * np.abs(here - whole).mean()
    np.testing.assert_allclose(nll(built["cuda"], "cuda"), there, rtol=1e-3, atol=1e-3)
    assert built["cuda"].weight_bytes == pytest.approx(built["cpu"].weight_bytes, rel=1e-2)


RUNNING = {
    "A8": {"activations": {"num_bits": 8, "granularity": "token", "symmetric": False}},
    "A4 sym": {"activations": {"num_bits": 4, "granularity": "token", "symmetric": True}},
    "KV8": {"kv_cache": {"num_bits": 8, "group_size": 16}},
    "KV3": {"kv_cache": {"num_bits": 3, "group_size": 128}},
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", RUNNING)
def test_rounded_activations_and_caches_are_those_of_the_cpu(name, kind, tmp_path):
    """Of a few tokens a value goes to its other neighbour."""
    model = describe_folder(saved(tmp_path / "model", kind).path, "float32")
    whole, there, here = (
        nll(model, "cpu"),
        nll(model, "cuda", **RUNNING[name]),
        nll(model, "cpu", **RUNNING[name]),
    )
    assert np.median(np.abs(there - here)) < 1e-3 + 0.1 * np.median(np.abs(here - whole))
    assert np.abs(there - here).mean() < 0.35 * np.abs(here - whole).mean()


@pytest.mark.parametrize("name", RUNNING)
def test_decoding_on_the_gpu_reads_the_same_cache_as_the_prefill(name, tmp_path):
    model = describe_folder(saved(tmp_path / "model", "llama").path, "float32")
    settings = EngineSettings("cuda", "float32", execution=Execution.from_json(RUNNING[name]))
    lm = HfEngine.open(model, settings)
    together, one_by_one = next(lm.nll(WINDOWS[:1])), lm.steps(WINDOWS[0]).nll
    assert np.median(np.abs(together - one_by_one)) < 1e-3
    assert len(list(lm.generate([WINDOWS[0][:16]], Sampling(max_new_tokens=8)))) == 1


@pytest.mark.parametrize("kind", FAMILIES)
def test_statistics_are_those_of_the_cpu(kind):
    found = []
    for device in ("cuda", "cpu"):
        model = make_model(kind).to(device)
        inside = Internals(model, partial(DynamicCache, config=model.config))
        found.append(collect(inside, WINDOWS, Bits(), lambda *_: None)[0])
    for there, here in zip(*found, strict=True):
        assert (there.layer, there.kind, there.name) == (here.layer, here.kind, here.name)
        assert there.absmax == pytest.approx(here.absmax, rel=1e-4)
        assert there.std == pytest.approx(here.std, rel=1e-4)
        assert there.kurtosis == pytest.approx(here.kurtosis, rel=1e-2)
