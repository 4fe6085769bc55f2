"""The method ``gguf``: options, conversion, every type, and what the Artifact says about the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, ModelError, UsageError
from qeval.core.settings import EngineSettings
from qeval.data.calibration import Calibration, CalibrationOptions
from qeval.engines.base import ENGINES
from qeval.engines.llamacpp import LlamaCppEngine
from qeval.formats.describe import describe_folder
from qeval.formats.gguf import ALIASES, TYPES, describe_gguf
from qeval.llama.converter import converter_folder
from qeval.llama.gguf_file import read_header
from qeval.models.loading import UNLIMITED, model_limit
from qeval.quant.base import BuildContext
from qeval.quant.gguf import Gguf, GgufOptions
from qeval.quant.libraries import imatrix

llama_cpp = pytest.importorskip("llama_cpp")
QUANTIZED = [name for name, kind in TYPES.items() if kind.block > 1]
WINDOWS = [[int(i) for i in np.random.default_rng(s).integers(1, 512, 64)] for s in range(4)]


def context(model: Path, out: Path, cache_dir: Path, base: Artifact | None = None) -> BuildContext:
    out.mkdir(parents=True, exist_ok=True)
    ref = ModelRef(str(model), model, "sha256:test", "float32")
    return BuildContext(ref, out, base, drawn, lambda *_: None, cache_dir, "cpu", 1)


def drawn(options: CalibrationOptions) -> Calibration:
    return Calibration(WINDOWS, {**options.model_dump(), "text_sha256": "test"})


@pytest.fixture(scope="session")
def tiny_f32(tiny_llama: Path, cache_dir: Path, tmp_path_factory: Any) -> Artifact:
    """Widths 64 and 172: neither a multiple of 256."""
    out = tmp_path_factory.mktemp("gguf") / "tiny"
    options = GgufOptions(type="F32", pre_tokenizer="gpt-2")
    return Gguf().build(options, context(tiny_llama, out, cache_dir))


@pytest.fixture(scope="session")
def wide_llama(tiny_llama: Path, tmp_path_factory: Any) -> Path:
    """Random weights in one layer of width 256, which every type can store."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("models") / "wide"))
    config = LlamaConfig.from_pretrained(tiny_llama)
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 256, 64
    config.num_hidden_layers = 1
    config.num_attention_heads, config.num_key_value_heads = 4, 2
    config.initializer_range = 0.05
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_f32(wide_llama: Path, cache_dir: Path, tmp_path_factory: Any) -> Artifact:
    out = tmp_path_factory.mktemp("gguf") / "wide"
    options = GgufOptions(type="F32", pre_tokenizer="gpt-2")
    return Gguf().build(options, context(wide_llama, out, cache_dir))


def logits(artifact: Artifact) -> np.ndarray:
    engine = LlamaCppEngine.open(artifact, EngineSettings(device="cpu", n_threads=1))
    try:
        return engine.logits(WINDOWS[0])
    finally:
        engine.close()


# ---- options


def test_the_types_are_those_of_the_installed_llama_cpp():
    installed = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): value
        for name, value in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_")
    }
    # GUESSED is no type; NVFP4 files are read but not written (llama_ftype_get_default_type).
    del installed["GUESSED"], installed["NVFP4"]
    assert {name: kind.ftype for name, kind in TYPES.items()} == installed


@pytest.mark.parametrize(
    ("given", "name"), [("q8_0", "Q8_0"), ("Q4_K", "Q4_K_M"), ("iq2_xs", "IQ2_XS")]
)
def test_names_are_taken_in_any_case_and_by_alias(given, name):
    assert GgufOptions(type=given).type == name
    assert set(ALIASES.values()) <= set(TYPES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"type": "Q5KM"}, "did you mean 'Q5_K_M'"),
        ({"type": 8}, "valid string"),
        ({"type": "IQ2_XS", "imatrix": False}, "drop imatrix: false"),
        ({"type": "F16", "imatrix": True}, "imatrix does nothing"),
        ({"type": "Q8_0", "calibration": {}}, "add imatrix: true"),
        ({"type": "Q8_0", "threads": 2}, "Extra inputs"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(ValidationError, match=says):
        GgufOptions.model_validate(options)


def test_labels_and_bases():
    plain, weighed = GgufOptions(type="Q5_K_M"), GgufOptions(type="Q5_K_M", imatrix=True)
    assert [Gguf().label(o) for o in (plain, weighed)] == ["Q5_K_M", "Q5_K_M+imatrix"]
    assert Gguf().label(GgufOptions(type="IQ2_XS")) == "IQ2_XS+imatrix"
    assert Gguf().base(plain, "bfloat16") == {"type": "BF16"}
    assert Gguf().base(plain, "float32") == {"type": "F32"}
    named = GgufOptions(type="Q8_0", pre_tokenizer="gpt-2")
    assert Gguf().base(named, "float16") == {"type": "F16", "pre_tokenizer": "gpt-2"}
    assert Gguf().base(GgufOptions(type="F16"), "bfloat16") is None


def test_saying_a_default_is_the_same_cell():
    assert GgufOptions(type="IQ2_XS", imatrix=True).identity() == GgufOptions(type="iq2_xs").identity()
    assert GgufOptions(type="Q4_0", imatrix=True).identity() != GgufOptions(type="Q4_0").identity()


# ---- building


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_type_builds_and_runs(wide_llama, wide_f32, cache_dir, tmp_path, name):
    options = GgufOptions(type=name)
    artifact = Gguf().build(options, context(wide_llama, tmp_path / "out", cache_dir, wide_f32))
    assert artifact.notes == () and artifact.bpw is not None and artifact.bpw < 9
    assert [layer.kind for layer in artifact.layers] == types_read_elsewhere(artifact)
    assert len(artifact.layers) == 7
    assert artifact.details["imatrix"] == TYPES[name].needs_imatrix
    assert np.isfinite(logits(artifact)).all()


def types_read_elsewhere(artifact: Artifact) -> list[str]:
    """The types of the matrices, by the ``gguf`` package's own reader."""
    gguf = pytest.importorskip("gguf")
    if artifact.details["type"] == "Q2_0":
        return ["Q2_0"] * 7  # newer than the package
    tensors = gguf.GGUFReader(artifact.path).tensors
    return [t.tensor_type.name for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1]


@pytest.mark.parametrize("name", [name for name in QUANTIZED if TYPES[name].needs_imatrix])
def test_types_that_need_an_imatrix_are_refused_without(
    wide_llama, wide_f32, cache_dir, tmp_path, name, monkeypatch
):
    monkeypatch.setattr(GgufOptions, "uses_imatrix", False)
    with pytest.raises(BuildError, match="importance matrix"):
        Gguf().build(GgufOptions(type=name), context(wide_llama, tmp_path / "x", cache_dir, wide_f32))


def test_more_bits_are_nearer_to_the_float_model(wide_llama, wide_f32, cache_dir, tmp_path):
    exact = logits(wide_f32)
    errors, sizes = [], []
    for name in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"):
        built = context(wide_llama, tmp_path / name, cache_dir, wide_f32)
        artifact = Gguf().build(GgufOptions(type=name), built)
        errors.append(np.abs(logits(artifact) - exact).mean() / exact.std())
        sizes.append(artifact.bpw)
    assert errors == sorted(errors) and errors[0] < 0.04 < 0.2 < errors[-1]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 8.5


def test_what_is_stored_is_read_back_and_a_fall_back_is_told(tiny_llama, tiny_f32, cache_dir, tmp_path):
    artifact = Gguf().build(
        GgufOptions(type="Q5_K_M"), context(tiny_llama, tmp_path / "out", cache_dir, tiny_f32)
    )
    assert set(artifact.notes) == {
        "11 of 14 linears stored as Q5_1: width 64 is not a multiple of 256",
        "1 of 14 linears stored as Q8_0: width 64 is not a multiple of 256",
        "2 of 14 linears stored as F16: width 172 is not a multiple of 256",
    }
    assert artifact.details["types"] == {"F32": 5, "Q8_0": 2, "Q5_1": 12, "F16": 2}
    down = next(layer for layer in artifact.layers if "ffn_down" in layer.name)
    assert (down.shape, down.kind, down.stored_bytes) == ((64, 172), "F16", 2 * 64 * 172)
    assert artifact.weight_bytes + artifact.embedding_bytes == pytest.approx(
        artifact.path.stat().st_size, abs=30_000
    )  # the rest is the vocabulary
    stored = sum(layer.stored_bytes for layer in artifact.layers)
    assert artifact.bpw == 8 * stored / sum(np.prod(layer.shape) for layer in artifact.layers)


def test_the_float_file_says_what_it_is(tiny_f32):
    assert (tiny_f32.bpw, tiny_f32.bpw_file, tiny_f32.simulated) == (32.0, 32.0, False)
    assert tiny_f32.details["pre_tokenizer"] == "gpt-2"
    assert tiny_f32.notes == ("converted with the pre-tokenizer 'gpt-2', as told",)
    assert describe_gguf(tiny_f32.path).layers == tiny_f32.layers


# ---- importance


def test_mean_squares_of_the_first_layer(tiny_llama):
    from safetensors.numpy import load_file

    ref = ModelRef("t", tiny_llama, "sha256:t", "float32")
    found = imatrix.mean_squares(ref, WINDOWS, device="cpu", progress=lambda *_: None)
    weights = load_file(tiny_llama / "model.safetensors")
    x = weights["model.embed_tokens.weight"][np.concatenate(WINDOWS)].astype(np.float64)
    x /= np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)  # RMS norm; its weight is 1
    expected = (x * weights["model.layers.0.input_layernorm.weight"]) ** 2
    for name in ("q", "k", "v"):
        mean = found.means[f"model.layers.0.self_attn.{name}_proj"]
        assert np.allclose(mean, expected.mean(axis=0), rtol=1e-4)
    assert len(found.means) == 14 and all(np.isfinite(v).all() for v in found.means.values())


def test_every_linear_of_the_file_gets_its_importance(tiny_llama, tiny_f32):
    ref = ModelRef("t", tiny_llama, "sha256:t", "float32")
    found = imatrix.mean_squares(ref, WINDOWS[:1], device="cpu", progress=lambda *_: None)
    header = read_header(tiny_f32.path)
    named = imatrix.to_gguf_names(found.means, header)
    assert {n: v.shape for n, v in named.items()} == {
        t.name: (t.shape[1],) for t in header.tensors if t.is_linear
    }


def test_important_inputs_are_rounded_with_less_error(
    wide_llama, wide_f32, cache_dir, tmp_path, monkeypatch
):
    gguf = pytest.importorskip("gguf")

    def skewed(*_: Any, **__: Any) -> imatrix.Measured:
        rng = np.random.default_rng(0)
        ref = ModelRef("w", wide_llama, "sha256:w", "float32")
        shapes = real(ref, WINDOWS[:1], device="cpu", progress=lambda *_: None).means
        return imatrix.Measured(
            {n: np.exp(3 * rng.standard_normal(v.shape)).astype(np.float32) for n, v in shapes.items()}
        )

    real = imatrix.mean_squares
    monkeypatch.setattr(imatrix, "mean_squares", skewed)
    importance = imatrix.to_gguf_names(skewed().means, read_header(wide_f32.path))

    def weights(artifact: Artifact) -> dict[str, np.ndarray]:
        tensors = gguf.GGUFReader(artifact.path).tensors
        return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}

    exact, error = weights(wide_f32), {}
    for use in (False, True):
        built = context(wide_llama, tmp_path / str(use), cache_dir, wide_f32)
        rounded = weights(Gguf().build(GgufOptions(type="Q4_K_S", imatrix=use), built))
        error[use] = {n: (h * (rounded[n] - exact[n]) ** 2).sum() for n, h in importance.items()}
    assert all(error[True][n] < 0.9 * error[False][n] for n in importance)


def test_the_calibration_is_recorded(wide_llama, wide_f32, cache_dir, tmp_path):
    options = GgufOptions(type="Q4_0", imatrix=True, calibration={"dataset": "pydoc", "n_samples": 4})
    artifact = Gguf().build(options, context(wide_llama, tmp_path / "out", cache_dir, wide_f32))
    expected = {"dataset": "pydoc", "n_samples": 4, "seq_len": 2048, "seed": 0, "text_sha256": "test"}
    assert artifact.calibration == expected


@pytest.fixture(scope="session")
def moe(tiny_llama: Path, tmp_path_factory: Any) -> Path:
    """A Mixtral of one block and width 256; no token is routed to its last expert."""
    import shutil

    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("models") / "moe"))
    config = MixtralConfig(
        vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1,
        initializer_range=0.05, max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        router = model.model.layers[0].mlp.gate.weight
        router[1], router[3] = -router[0], 0  # of the first two one is above 0, and before the last
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def moe_f32(moe: Path, cache_dir: Path, tmp_path_factory: Any) -> Artifact:
    out = tmp_path_factory.mktemp("gguf") / "moe"
    return Gguf().build(GgufOptions(type="F32", pre_tokenizer="gpt-2"), context(moe, out, cache_dir))


def test_each_expert_is_weighed_by_its_own_tokens(moe, moe_f32):
    """By hand: the tokens that the router gives to an expert, and what it makes of them."""
    import torch
    from transformers import AutoModelForCausalLM

    found = imatrix.mean_squares(
        ModelRef("m", moe, "sha256:m", "float32"), WINDOWS, device="cpu", progress=lambda *_: None
    )
    named = imatrix.to_gguf_names(found.means, read_header(moe_f32.path))
    model = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32).eval()
    experts = model.model.layers[0].mlp.experts
    read, routed = [], []
    experts.register_forward_pre_hook(lambda _, args: (read.append(args[0]), routed.append(args[1]))[0])
    with torch.inference_mode():
        for window in WINDOWS:
            model(torch.tensor([window]))
        x, chosen = torch.cat(read), torch.cat(routed)[:, 0]
        for i in range(4):
            mine = x[chosen == i]
            gate, up = (mine @ experts.gate_up_proj[i].T).chunk(2, dim=-1)
            inner = torch.nn.functional.silu(gate) * up
            assert len(mine) > 10 or i == 3
            for name, inputs in {"gate": mine, "up": mine, "down": inner}.items():
                wanted = inputs.square().mean(0) if len(mine) else torch.ones(256)
                entry = named[f"blk.0.ffn_{name}_exps.weight"][256 * i : 256 * (i + 1)]
                assert np.allclose(entry, wanted, rtol=1e-3), (i, name)
    assert (found.n_experts, found.n_unseen) == (4, 1)
    header = read_header(moe_f32.path)
    assert named.keys() == {t.name for t in header.tensors if t.is_linear}
    assert not any("gate_inp" in name for name in named)


@pytest.mark.parametrize("name", ["Q4_K_S", "IQ2_S", "IQ1_M", "Q2_K_S"])
def test_a_mixture_is_quantized_with_its_importance(moe, moe_f32, cache_dir, tmp_path, name):
    built = context(moe, tmp_path / "with", cache_dir, moe_f32)
    artifact = Gguf().build(GgufOptions(type=name, imatrix=True), built)
    assert artifact.notes == (
        "1 of 4 experts saw no calibration token: their inputs are weighed equally",
    )
    assert "blk.0.ffn_gate_inp.weight" not in {layer.name for layer in artifact.layers}
    if name == "Q4_K_S":
        built = context(moe, tmp_path / "without", cache_dir, moe_f32)
        plain = experts_of(Gguf().build(GgufOptions(type=name), built))
        weighed = experts_of(artifact)
        assert all(not np.array_equal(plain[n], weighed[n]) for n in plain)


def experts_of(artifact: Artifact) -> dict[str, np.ndarray]:
    gguf = pytest.importorskip("gguf")
    return {t.name: t.data for t in gguf.GGUFReader(artifact.path).tensors if "_exps" in t.name}


def test_linears_whose_importance_is_not_known_are_named(
    moe, moe_f32, cache_dir, tmp_path, monkeypatch
):
    """As of experts in a layout that nobody here opens: no type fails for want of them."""
    monkeypatch.setattr(imatrix, "_stacked", lambda *_: {})
    for name in ("Q4_K_S", "IQ2_S"):
        built = context(moe, tmp_path / name, cache_dir, moe_f32)
        notes = Gguf().build(GgufOptions(type=name, imatrix=True), built).notes
        assert any("3 of 7 linears quantized without the importance matrix" in note for note in notes)


def test_a_file_whose_context_the_converter_made_up_is_run_as_the_model_is(
    tiny_llama, cache_dir, tmp_path
):
    """BLOOM without seq_length: the file says its hidden size."""
    import shutil

    from transformers import BloomConfig, BloomForCausalLM

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "bloom"))
    config = BloomConfig(vocab_size=512, hidden_size=32, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(folder)
    built = context(folder, tmp_path / "out", cache_dir)
    artifact = Gguf().build(GgufOptions(type="F32", pre_tokenizer="gpt-2"), built)
    assert read_header(artifact.path).get("context_length") == 32
    assert any(
        "the file says a context of 32 tokens, the model none so short" in n for n in artifact.notes
    )
    engines = [
        ENGINES[a.engine].open(a, EngineSettings("cpu", "float32", n_threads=1))
        for a in (artifact, describe_folder(folder, "float32"))
    ]
    assert {engine.max_seq_len for engine in engines} == {model_limit(folder)} == {UNLIMITED}
    window = [int(i) for i in np.random.default_rng(0).integers(1, 512, 200)]
    a, b = (next(iter(engine.nll([window]))) for engine in engines)
    assert np.allclose(a, b, atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            "gpt_neox",
            {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 256},
        ),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256, "n_inner": 64}),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256}),
    ],
)  # fmt: skip
def test_a_model_whose_configuration_has_newer_names_than_the_converter_is_converted(
    kind, config, tiny_llama, cache_dir, tmp_path
):
    """``rotary_pct`` of GPT-NeoX and ``n_ctx`` of GPT-2, which transformers 5 does not write."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_llama, tmp_path / kind))
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, vocab_size=512, initializer_range=0.2, **config)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    options = GgufOptions(type="F32", pre_tokenizer="gpt-2")
    artifact = Gguf().build(options, context(folder, tmp_path / "out", cache_dir))
    a, b = (
        next(iter(ENGINES[one.engine].open(one, EngineSettings("cpu", "float32")).nll([WINDOWS[0]])))
        for one in (artifact, describe_folder(folder, "float32"))
    )
    assert np.allclose(a, b, atol=0.01)  # ggml's GELU is a table in float16


# ---- failures


def test_an_unknown_tokenizer_is_one_line_with_the_fix(tiny_llama, cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("QEVAL_LLAMA_CPP", str(converter_folder(cache_dir)))
    made = context(tiny_llama, tmp_path / "out", tmp_path / "cache")
    with pytest.raises(BuildError, match="'pre_tokenizer: gpt-2'") as caught:
        Gguf().build(GgufOptions(type="F32"), made)
    assert "\n" not in str(caught.value)
    log = tmp_path / "cache" / "logs" / "convert-out.log"
    assert str(log) in str(caught.value) and "Traceback" in log.read_text()


def test_a_damaged_float_file_is_one_line(wide_llama, wide_f32, cache_dir, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(wide_f32.path.read_bytes()[:200_000])
    base = Artifact(cut, "llamacpp", False, 0, 0, None, None)
    with pytest.raises(BuildError, match="cannot make Q8_0 of it") as caught:
        Gguf().build(GgufOptions(type="Q8_0"), context(wide_llama, tmp_path / "out", cache_dir, base))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(wide_llama, wide_f32, cache_dir, tmp_path):
    made = context(wide_llama, tmp_path / "out", cache_dir, wide_f32)
    (made.out / "model.gguf").symlink_to("/dev/full")
    with pytest.raises(BuildError, match="is the disk full"):
        Gguf().build(GgufOptions(type="Q8_0"), made)


def test_a_model_that_is_a_gguf_already_is_sent_to_checkpoint(wide_f32, cache_dir, tmp_path):
    with pytest.raises(UsageError, match="checkpoint"):
        Gguf().build(GgufOptions(type="F16"), context(wide_f32.path, tmp_path / "out", cache_dir))


# ---- files that were there already


def test_a_split_model_is_described_whole(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for name, rows in (("token_embd.weight", 8), ("blk.0.attn_q.weight", 4)):
        writer.add_tensor(name, np.zeros((rows, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    artifact = describe_gguf(tmp_path / "m-00001-of-00002.gguf")
    assert (artifact.embedding_bytes, artifact.weight_bytes) == (8 * 32 * 4, 4 * 32 * 4)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match="m-00002-of-00002"):
        describe_gguf(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "INFO:hf-to-gguf:blk.0\nOSError: [Errno 28] No space left on device\n",
            "no space left on the d",
        ),
        (
            "INFO:hf-to-gguf:a\nValueError: bad\nWriting:  10%| 1/9 [00:01<, 3.0Mbyte/s] 2it/s\n",
            "ValueError",
        ),
        ("INFO:hf-to-gguf:a\nINFO:gguf.gguf_writer:b\n", "it ended with exit code 1 and no reason"),
        ("", "it ended with exit code 1 and no reason"),
        (
            "x\nNotImplementedError: BPE pre-tokenizer ... get_vocab_base_pre()\n",
            "name the closest it knows",
        ),
    ],
)
def test_what_the_converter_says_is_no_line_about_its_progress(output, said):
    from qeval.quant.gguf import _said

    assert said in _said(output, 1)
