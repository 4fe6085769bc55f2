"""RTN on a whole model: saved, loaded again by transformers, on the grid, sizes accounted."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, MIXTURES, make_model

from qeval.core.artifact import ModelRef
from qeval.core.errors import BuildError
from qeval.formats import affine
from qeval.models.architectures import decoder_blocks
from qeval.models.experts import experts_as_linears
from qeval.models.linears import linears
from qeval.models.loading import load_model
from qeval.quant.base import BuildContext
from qeval.quant.rtn import Rtn, RtnOptions


def build(model: Path, out: Path, dtype: str = "float32", **options):
    out.mkdir(exist_ok=True)
    ref = ModelRef("m", model, "sha256:0", dtype)
    steps = []
    context = BuildContext(ref, out, None, lambda _: [], lambda *p: steps.append(p), out, device="cpu")
    artifact = Rtn().build(RtnOptions(**options), context)
    assert steps[-1][0] == steps[-1][1] == len(artifact.layers)
    return artifact


def test_weights_lie_on_their_grid_and_everything_else_is_untouched(tiny_llama, tmp_path):
    artifact = build(tiny_llama, tmp_path / "a", num_bits=3, group_size=4)
    before = load_model(tiny_llama, "float32", "cpu")
    after = load_model(artifact.path, "float32", "cpu")
    names = {layer.name for layer in linears(after)}
    assert len(names) == 14  # 2 blocks of q k v o gate up down
    old = dict(before.named_parameters())
    for name, new in after.named_parameters():
        if name.removesuffix(".weight") in names:
            groups = new.data.reshape(-1, 4)
            assert all(len(g.unique()) <= 8 for g in groups)
            assert torch.equal(new.data, affine.fake_quantize(old[name].data, 3, 4, False))
        else:
            assert torch.equal(new.data, old[name].data)


def test_sizes_count_every_overhead(tiny_llama, tmp_path):
    artifact = build(tiny_llama, tmp_path / "a", num_bits=4, group_size=4)
    assert artifact.simulated
    # 4 bits a weight, and for each group of 4 a 16-bit scale and a 4-bit zero point: 4 + 20/4
    assert artifact.bpw == pytest.approx(9.0, rel=0.01)
    assert artifact.embedding_bytes == 2 * 512 * 64 * 4  # embeddings and untied head, float32
    n_norms = 5 * 64
    assert artifact.weight_bytes == sum(r.stored_bytes for r in artifact.layers) + n_norms * 4
    assert artifact.layers[0].shape == (64, 64)
    assert artifact.layers[0].kind == "int4"


def test_the_folder_is_complete_and_in_the_dtype_of_the_spec(tiny_llama, tmp_path):
    artifact = build(tiny_llama, tmp_path / "a", dtype="bfloat16", num_bits=8)
    assert (artifact.path / "tokenizer.json").is_file()
    assert load_model(artifact.path, "bfloat16", "cpu").dtype == torch.bfloat16
    assert artifact.embedding_bytes == 2 * 512 * 64 * 2


def test_a_group_that_does_not_divide_stops_the_build(tiny_llama, tmp_path):
    with pytest.raises(
        BuildError, match=r"in_features 172 of model\.layers\.0\.mlp\.down_proj \(and of 1"
    ):
        build(tiny_llama, tmp_path / "a", num_bits=4, group_size=64)


def test_gpt2_conv1d_weights_are_rounded_along_their_inputs(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    artifact = build(tmp_path / "gpt2", tmp_path / "a", num_bits=2, group_size=8)
    model = load_model(artifact.path, "float32", "cpu")
    assert [layer.transposed for layer in linears(model)] == [True] * 4
    for layer, report in zip(linears(model), artifact.layers, strict=True):
        assert report.shape == tuple(layer.weight.shape)
        assert all(len(g.unique()) <= 4 for g in layer.weight.reshape(-1, 8))


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_are_rounded_and_routers_are_not(kind, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path / "model")
    artifact = build(tmp_path / "model", tmp_path / "a", num_bits=3, group_size=16)
    assert artifact.notes == ()  # nothing of the body is left out
    after = load_model(artifact.path, "float32", "cpu")
    reports = {r.name: r for r in artifact.layers}
    with experts_as_linears(model), experts_as_linears(after):
        pairs = zip(linears(model), linears(after), strict=True)
        layers = {old.name: (old.weight, new.weight) for old, new in pairs}
        with torch.no_grad():
            for name, (old, new) in layers.items():
                assert torch.equal(new, affine.fake_quantize(old, 3, 16, False))
                assert reports[name].shape == tuple(new.shape)
                old.copy_(new)
    assert layers.keys() == reports.keys()
    assert sum(name.endswith(".experts.5.down_proj") for name in reports) == (
        2 if kind in ("mixtral", "olmoe") else 1
    )
    for (name, old), new in zip(model.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name  # all that is no linear is as it was
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, after(ids).logits)
    # 3 bits a weight, for each group of 16 a scale of 16 and a zero point of 3, rows filled to bytes
    assert artifact.bpw == pytest.approx(3 + 20 / 16, rel=0.01)
    n_body = sum(p.numel() for p in model.parameters()) - 2 * 256 * 64
    n_quantized = sum(r.shape[0] * r.shape[1] for r in artifact.layers)
    rest = artifact.weight_bytes - sum(r.stored_bytes for r in artifact.layers)
    assert rest == 4 * (n_body - n_quantized)  # each parameter is counted once


def test_the_laboratory_quantizes_the_same_layers():
    """A row of RTN and a row of GPTQ differ by the algorithm alone, in every family."""
    for kind in FAMILIES:
        model = make_model(kind)
        with experts_as_linears(model):
            theirs = [x.name for block in decoder_blocks(model) for x in block.linears]
            ours = [x.name for x in linears(model)]
        assert sorted(ours) == sorted(theirs), kind


def test_experts_in_a_layout_of_another_family(tmp_path):
    """gpt-oss: interleaved, [in, out], with biases; unknown to the laboratory, not to RTN."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_local_experts=4, num_experts_per_tok=2, vocab_size=64,
    )  # fmt: skip
    GptOssForCausalLM(config).save_pretrained(tmp_path / "model")
    artifact = build(tmp_path / "model", tmp_path / "a", num_bits=2)
    assert artifact.notes == () and len(artifact.layers) == 4 + 3 * 4
    experts = load_model(artifact.path, "float32", "cpu").model.layers[0].mlp.experts
    for i in range(4):
        for part in (experts.gate_up_proj[i].T, experts.down_proj[i].T):  # [out, in]
            assert all(2 <= len(row.unique()) <= 4 for row in part)


def test_labels():
    assert Rtn().label(RtnOptions(num_bits=4, group_size=128)) == "RTN W4A16g128"
    assert Rtn().label(RtnOptions(num_bits=8, symmetric=True)) == "RTN W8A16 sym"
