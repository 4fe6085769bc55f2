"""`spqr` on models of every shape of linears: better than RTN on the same grid, bytes counted."""

import pytest
from families import SHAPES, build, divergence, one_thread, saved

from qeval.core.errors import UsageError
from qeval.models.linears import linears
from qeval.models.loading import load_model
from qeval.quant.base import METHODS
from qeval.quant.gptq import Gptq, GptqOptions
from qeval.quant.rtn import Rtn, RtnOptions
from qeval.quant.spqr import Spqr, SpqrOptions

_one_thread = pytest.fixture(autouse=True)(one_thread)


@pytest.mark.parametrize("kind", SHAPES)  # the driver is GPTQ's, which is run on every family
def test_predicts_better_than_rtn(kind, tmp_path):
    model = saved(tmp_path / "model", kind)
    rounded = build(Rtn(), RtnOptions(num_bits=3, group_size=16), model, tmp_path / "rtn")
    sparse = build(Spqr(), SpqrOptions(), model, tmp_path / "spqr")
    assert sparse.simulated and sparse.engine == "hf"
    assert sorted(r.name for r in sparse.layers) == sorted(r.name for r in rounded.layers)
    assert divergence(sparse, model) < 0.9 * divergence(rounded, model)
    assert all("% outliers" in r.note for r in sparse.layers)
    assert 0.001 < sparse.details["layers"]["outlier_share"] < 0.1


def test_without_its_additions_it_is_group_gptq(tmp_path):
    model = saved(tmp_path / "model", "opt")
    bare = SpqrOptions(outlier_threshold=None, statistic_bits=None, percdamp=0.01)
    same = GptqOptions(backend="laboratory", num_bits=3, group_size=16, symmetric=False, percdamp=0.01)
    ours = build(Spqr(), bare, model, tmp_path / "spqr")
    theirs = build(Gptq(), same, model, tmp_path / "gptq")
    assert ours.layers == theirs.layers
    for a, b in zip(
        *(linears(load_model(x.path, "float32", "cpu")) for x in (ours, theirs)), strict=True
    ):
        assert a.weight.equal(b.weight)


def test_bits_per_weight(tmp_path):
    model = saved(tmp_path / "model", "llama", num_hidden_layers=1)
    dense = build(Spqr(), SpqrOptions(outlier_threshold=None), model, tmp_path / "dense")
    # 3 a weight, for each group of 16 a scale and a zero of 3, for 16 such groups two ranges of 32
    assert dense.bpw == 3 + 2 * 3 / 16 + 2 * 32 / 256
    assert dense.details["layers"]["outlier_share"] == 0
    kept = build(Spqr(), SpqrOptions(), model, tmp_path / "kept")
    n_weights = sum(r.shape[0] * r.shape[1] for r in kept.layers)
    pointers = sum(32 * (r.shape[0] + 1) for r in kept.layers) / n_weights
    share = kept.details["layers"]["outlier_share"]
    assert kept.bpw == pytest.approx(dense.bpw + 32 * share + pointers)


def test_preflight_options_labels(tmp_path):
    model = saved(tmp_path / "model", "llama", intermediate_size=90)
    with pytest.raises(UsageError, match="spqr: group_size 16 needs inputs that are multiples of 16"):
        Spqr().preflight(SpqrOptions(), model)
    with pytest.raises(ValueError):
        SpqrOptions(outlier_threshold=0)
    assert METHODS["spqr"].Options is SpqrOptions
    assert Spqr().label(SpqrOptions()) == "SpQR W3A16g16"
    more = SpqrOptions(num_bits=4, act_order=True, outlier_threshold=None)
    assert Spqr().label(more) == "SpQR W4A16g16 act-order no outliers"
