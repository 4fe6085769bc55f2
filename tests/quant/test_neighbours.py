"""The other libraries' methods on the CPU: bitsandbytes, hqq, torchao, quanto, auto-round and
compressed-tensors (llm-compressor), each built, reloaded and scored. The builds are quantized.py's."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import pytest
from pydantic import ValidationError

from qeval.core import extras
from qeval.core.errors import MissingExtraError, UsageError
from qeval.quant.base import METHODS

Bits = Callable[[int, int], float]  # bits a weight of a linear of n weights and so many inputs


@dataclass(frozen=True)
class Built:
    label: str
    kernel: str  # of each linear
    bpw: Bits | None  # None: tables and JSON of a length of their own
    levels: int  # in one group of a row, at most
    error: float | None  # measured: ||Q - W|| / ||W||, the worst linear; None: scales moved out of W
    kld: float  # measured, nats from the float model
    twin: float  # measured: of the kernel's logits from those of the same weights in float32


BUILT = {
    "llama-bnb-8": Built(
        "LLM.int8()",
        "Linear8bitLt",
        lambda n, into: 8 + 32 / into + 8 / n,
        *(255, 0.0076, 4.2e-4, 0.028),  # activations are rounded, too
    ),
    "llama-bnb-4": Built("NF4 double", "Linear4bit", None, 16, 0.0924, 2.7e-2, 0.009),
    "starcoder2-bnb-4": Built("FP4", "Linear4bit", None, 16, 0.1227, 2.8e-2, 0.007),
    "llama-hqq-8": Built(
        "HQQ W8A16g64", "HQQLinear", lambda n, _: 8 + 32 / 64, 64, 0.0071, 2.0e-4, 0.009
    ),
    "llama-hqq-4": Built(
        "HQQ W4A16g64", "HQQLinear", lambda n, _: 4 + 32 / 64, 16, 0.0879, 2.6e-2, 0.009
    ),
    "starcoder2-hqq-3": Built("HQQ W3A16g64", "HQQLinear", None, 8, 0.1859, 5.9e-2, 0.008),
    "llama-torchao-int8wo": Built(
        "torchao int8wo g64",
        "Linear(Int8Tensor)",
        lambda n, _: 8 + (32 + 8) / 64,
        *(64, 0.0063, 1.6e-4, 0.009),
    ),
    "llama-torchao-fp8wo": Built(
        "torchao fp8wo",
        "Linear(Float8Tensor)",
        lambda n, into: 8 + 32 / into,
        *(255, 0.0265, 2.5e-3, 0.009),
    ),
    "starcoder2-torchao-int8dyn": Built(
        "torchao int8dyn",
        "Linear(Int8Tensor)",
        lambda n, into: 8 + (32 + 8) / into,
        *(255, 0.0076, 2.1e-4, 0.020),
    ),
    "llama-quanto-8": Built(
        "quanto W8A16",
        "QLinear(WeightQBytesTensor)",
        lambda n, into: 8 + 16 / into + 32 / n,
        *(255, 0.0083, 2.4e-4, 0.011),
    ),
    "llama-quanto-4": Built(
        "quanto W4A16g128",
        "QLinear(TinyGemmWeightQBitsTensor)",
        lambda n, _: 4 + 32 / 128 + 32 / n,
        *(16, 0.1012, 3.2e-2, 0.017),
    ),
    "starcoder2-quanto-float8": Built(
        "quanto FP8 W8A16",
        "QLinear(WeightQBytesTensor)",
        lambda n, into: 8 + 16 / into + 32 / n,
        *(255, 0.0265, 1.5e-3, 0.008),
    ),
    "llama-ct-4": Built(
        "compressed-tensors W4A16g128",
        "Linear(unpacked)",
        lambda n, _: 4 + 16 / 128 + 128 / n,
        *(16, 0.1529, 3.5e-2, 0.009),
    ),
    "llama-ct-rtn": Built(
        "compressed-tensors W4A16g128",
        "Linear(unpacked)",
        lambda n, _: 4 + 16 / 128 + 128 / n,
        *(16, 0.1120, 4.2e-2, 0.009),
    ),
    "llama-ct-fp8": Built(
        "compressed-tensors FP8 W8A8",
        "Linear(unpacked)",
        lambda n, into: 8 + 16 / into,
        *(255, 0.0266, 4.6e-3, 0.080),
    ),
    "starcoder2-ct-awq": Built(
        "compressed-tensors W4A16g64 asym",
        "Linear(unpacked)",
        lambda n, _: 4 + 20 / 64 + 128 / n,
        *(16, None, 1.6e-2, 0.007),
    ),
    "starcoder2-ct-w8a8": Built(
        "compressed-tensors W8A8",
        "Linear(unpacked)",
        lambda n, into: 8 + 16 / into,
        *(255, None, 2.1e-4, 0.021),
    ),
    "llama-round-4": Built(
        "AutoRound W4A16g128",
        "QuantLinear",
        lambda n, _: 4 + 20 / 128,
        *(16, 0.1045, 3.5e-2, 0.010),
    ),
    "starcoder2-round-4": Built(
        "AutoRound W4A16g64 asym",
        "AwqTorchLinear",
        lambda n, _: 4 + 20 / 64,
        *(16, 0.0921, 1.4e-2, 0.001),
    ),
}
ON_CUDA = {  # what their libraries have no CPU kernel of
    "llama-torchao-int4wo": "torchao int4wo: needs a CUDA GPU of compute capability 8.0, "
    "the CPU has no kernel of it: use scheme: int8wo",
    "llama-torchao-fp8dyn": "torchao fp8dyn: needs a CUDA GPU of compute capability 8.9, "
    "the CPU has no kernel of it: use scheme: fp8wo",
}


@pytest.mark.real
@pytest.mark.parametrize("name", [*BUILT, *ON_CUDA])
def test_it_predicts_as_its_bits_make_it_with_the_weights_of_its_files(quantized, name):
    if name in ON_CUDA:
        pytest.skip(quantized.build_error(name))
    wanted = BUILT[name]
    weights = quantized.weights(name)
    assert len(weights) == (14 if "llama" in name else 12)
    assert all(w["levels"] <= wanted.levels for w in weights.values())
    if wanted.levels <= 16:
        assert all(w["levels"] > wanted.levels / 2 for w in weights.values())
    if wanted.error is not None:
        assert max(w["error"] for w in weights.values()) < 1.2 * wanted.error
    assert quantized.distance(quantized.twin(name), quantized.logits(name)) < 1.5 * wanted.twin
    assert wanted.kld / 2 < quantized.divergence(name) < 1.5 * wanted.kld


@pytest.mark.real
@pytest.mark.parametrize("kind", ["bnb", "hqq", "quanto"])
def test_four_bits_are_farther_from_the_float_model_than_eight(quantized, kind):
    eight, four = (quantized.divergence(f"llama-{kind}-{bits}") for bits in (8, 4))
    assert 0 < 30 * eight < four


@pytest.mark.real
def test_gptq_and_autoround_are_nearer_to_the_float_model_than_rounding_to_nearest(quantized):
    """On one grid, W4A16 in groups of 128: 0.035 and 0.035 against 0.042 nats measured."""
    nearest = quantized.divergence("llama-ct-rtn")
    assert quantized.divergence("llama-ct-4") < 0.95 * nearest
    assert quantized.divergence("llama-round-4") < 0.95 * nearest


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_every_byte_of_the_files_is_counted(quantized, name):
    artifact, bits = quantized.artifact(name), BUILT[name].bpw
    assert artifact.weight_bytes + artifact.embedding_bytes == quantized.data_bytes(name)
    sizes = [(layer.shape[0] * layer.shape[1], layer) for layer in artifact.layers]
    total = sum(layer.stored_bytes for layer in artifact.layers)
    assert artifact.bpw == 8 * total / sum(n for n, _ in sizes)
    for n, layer in sizes if bits else ():
        assert 8 * layer.stored_bytes / n == pytest.approx(bits(n, layer.shape[1]), abs=1e-12)


@pytest.mark.real
@pytest.mark.parametrize("name", BUILT)
def test_the_artifact_says_what_made_it_and_the_engine_what_runs_it(quantized, name):
    artifact, found = quantized.artifact(name), quantized.run(name)
    assert artifact.format.label == BUILT[name].label
    made_by = artifact.library
    assert made_by.version == version(made_by.name)
    assert found["facts"]["kernels"] == {BUILT[name].kernel: len(artifact.layers)}
    assert artifact.notes == ()
    assert (artifact.path / "tokenizer.json").is_file()
    assert [p.name for p in artifact.path.parent.iterdir()] == ["model"]
    before, after = found["resident"]
    stored = artifact.weight_bytes + artifact.embedding_bytes
    if "-ct-" in name:
        (note,) = found["notes"]
        assert note.startswith("its kernel holds 2.") and note.endswith("stored: unpacked in memory")
        assert before < 1.1 * stored < 1.5 * stored < after
    else:
        assert found["notes"] == []
        assert after < 1.1 * stored


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("llama-ct-4", 1024),
        ("starcoder2-ct-awq", 128),
        ("starcoder2-ct-w8a8", 1024),
        ("llama-round-4", 128),
        ("llama-ct-rtn", None),
        ("llama-hqq-4", None),
    ],
)
def test_calibration_is_recorded_where_there_is_one(quantized, name, tokens):
    calibration = quantized.artifact(name).calibration or {}
    assert calibration.get("n_tokens") == tokens


@pytest.mark.real
@pytest.mark.parametrize("name", ON_CUDA)
def test_what_has_no_kernel_on_the_cpu_is_refused_before_the_model_is_loaded(quantized, name):
    assert quantized.build_error(name) == f"BuildError: {ON_CUDA[name]}"


# -- before any job ---------------------------------------------------------------------------

NEEDED = {  # method: the extra, and each package whose absence it must see
    "bitsandbytes": ("bitsandbytes", ("torch", "transformers", "accelerate", "bitsandbytes")),
    "hqq": ("hqq", ("torch", "transformers", "accelerate", "hqq")),
    "torchao": ("torchao", ("torch", "transformers", "accelerate", "torchao")),
    "quanto": ("quanto", ("torch", "transformers", "accelerate", "optimum", "optimum.quanto")),
    "auto-round": ("auto-round", ("torch", "transformers", "accelerate", "auto_round")),
    "compressed-tensors": (
        "compressed-tensors",
        ("torch", "transformers", "accelerate", "compressed_tensors", "llmcompressor"),
    ),
}


@pytest.mark.parametrize(
    ("method", "package"), [(method, p) for method, (_, packages) in NEEDED.items() for p in packages]
)
def test_a_package_that_is_missing_is_named_with_its_command(model_of, monkeypatch, method, package):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else True)
    found = METHODS[method]()
    model = model_of({"model.layers.0.mlp.up_proj": (256, 256)})
    message = rf"{package!r} is not installed: pip install 'qeval\[{NEEDED[method][0]}\]'"
    with pytest.raises(MissingExtraError, match=message) as caught:
        found.preflight(found.Options(), model)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("method", "options", "shapes", "message"),
    [
        (
            "compressed-tensors",
            {},
            {"0.q": (128, 128), "0.d": (128, 192), "1.d": (128, 192)},
            r"compressed-tensors W4A16: group_size 128 needs .* 128; 2 linears are not: "
            r"\{0-1\}\.d \[128, 192\]: group_size 64 fits",
        ),
        (
            "auto-round",
            {},
            {"0.u": (100, 128), "0.d": (128, 96)},
            r"auto-round: group_size 128 needs .* outputs of 32; 2 linears are not: 0\.u \[100, 128\], "
            r"0\.d \[128, 96\]: this format cannot hold them",
        ),
        (
            "hqq",
            {},
            {"0.d": (128, 96), "1.d": (128, 64)},
            r"hqq: group_size 64 needs .* 64; 1 linear is not: 0\.d \[128, 96\]: group_size 32 fits",
        ),
        (
            "hqq",
            {"axis": 0, "num_bits": 4},
            {"0.d": (3, 96)},
            r"hqq needs a number of weights that 64 divides, packed 2 to a byte; .* 0\.d \[3, 96\]",
        ),
        (
            "hqq",
            {"num_bits": 2},
            {"0.d": (3, 64)},
            r"hqq needs .* packed 4 to a byte; .* 0\.d \[3, 64\]: another group_size, or num_bits: 8",
        ),
        (
            "torchao",
            {"scheme": "int8wo", "group_size": 64},
            {"0.d": (8, 96)},
            r"torchao int8wo: group_size 64 needs .* 0\.d \[8, 96\]: group_size 32 fits",
        ),
        (
            "torchao",
            {"scheme": "fp8dyn"},
            {"0.d": (24, 64), "1.d": (32, 64)},
            r"torchao fp8dyn needs widths that are multiples of 16; 1 linear is not: 0\.d .*use fp8wo",
        ),
    ],
)
def test_widths_that_do_not_fit_are_all_named(model_of, monkeypatch, method, options, shapes, message):
    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    found = METHODS[method]()
    with pytest.raises(UsageError, match=message):
        found.preflight(found.Options.model_validate(options), model_of(shapes))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("auto-round", {}, r"auto-round: .*not float32 \(m\): set dtype: bfloat16"),
        (
            "torchao",
            {"scheme": "int4wo"},
            "torchao int4wo: its kernel computes in bfloat16, not float32",
        ),
    ],
)
def test_a_dtype_that_its_kernels_do_not_compute_in(model_of, monkeypatch, method, options, message):
    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    found = METHODS[method]()
    model = model_of({"0.d": (128, 128)}, dtype="float32")
    with pytest.raises(UsageError, match=message):
        found.preflight(found.Options.model_validate(options), model)


@pytest.mark.parametrize("method", NEEDED)
def test_a_gguf_file_is_refused(tmp_path, monkeypatch, method):
    from qeval.core.artifact import ModelRef

    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    found = METHODS[method]()
    with pytest.raises(UsageError, match=f"{method}: m is a .gguf file: it needs the float model's"):
        found.preflight(found.Options(), ModelRef("m", file, "sha256:0", "bfloat16"))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("bitsandbytes", {"num_bits": 8, "type": "nf4"}, "belong to num_bits: 4: drop them"),
        ("bitsandbytes", {"num_bits": 8, "double_quant": True}, "belong to num_bits: 4: drop them"),
        ("bitsandbytes", {"llm_int8_threshold": 6.0}, "belongs to num_bits: 8: drop it"),
        ("bitsandbytes", {"num_bits": 3}, "8 or 4"),
        ("hqq", {"num_bits": 5}, "8, 4, 3, 2 or 1"),
        ("hqq", {"group_size": 4}, "multiple of 8"),
        ("hqq", {"axis": 2}, "0 or 1"),
        ("torchao", {"scheme": "fp8wo", "group_size": 64}, "one scale per output channel: drop"),
        ("torchao", {"scheme": "int4wo", "group_size": 48}, "group_size of int4wo: one of 32, 64"),
        ("torchao", {"scheme": "int8wo", "group_size": 0}, "greater than or equal to 1"),
        ("quanto", {"weights": "int3"}, "'int8', 'int4', 'int2' or 'float8'"),
        ("auto-round", {"group_size": 48}, "multiple of 32 inputs, or -1"),
        ("auto-round", {"iters": -1}, "greater than or equal to 0"),
        ("compressed-tensors", {"scheme": "FP8", "algorithm": "gptq"}, "algorithm of FP8: one of rtn"),
        ("compressed-tensors", {"scheme": "W8A8", "group_size": 128}, "drop group_size"),
        ("compressed-tensors", {"smoothing_strength": 0.5}, r"algorithm: smoothquant\+gptq: drop it"),
        ("compressed-tensors", {"calibration": {}}, "algorithm rtn reads no calibration: drop it"),
        ("compressed-tensors", {"scheme": "W4A4"}, "'W4A16'"),
    ],
)
def test_options_that_cannot_be(method, options, message):
    with pytest.raises(ValidationError, match=message):
        METHODS[method].Options.model_validate(options)


@pytest.mark.parametrize(
    ("method", "written", "meant"),
    [
        ("bitsandbytes", {}, {"type": "nf4"}),
        ("bitsandbytes", {"num_bits": 8}, {"num_bits": 8, "llm_int8_threshold": 6.0}),
        ("torchao", {"scheme": "int4wo"}, {"scheme": "int4wo", "group_size": 128}),
        ("compressed-tensors", {}, {"group_size": 128}),
        (
            "compressed-tensors",
            {"scheme": "W8A8", "algorithm": "smoothquant+gptq"},
            {"scheme": "W8A8", "algorithm": "smoothquant+gptq", "smoothing_strength": 0.5,
             "calibration": {}},
        ),
    ],
)  # fmt: skip
def test_a_default_that_is_written_out_is_the_same_build(method, written, meant):
    options = METHODS[method].Options
    one, two = options.model_validate(written), options.model_validate(meant)
    assert one.identity() == two.identity()
    assert METHODS[method]().label(one) == METHODS[method]().label(two)


def test_labels():
    wanted = {
        ("bitsandbytes", "fp4"): ({"type": "fp4", "double_quant": True}, "FP4 double"),
        ("bitsandbytes", "int8"): ({"num_bits": 8}, "LLM.int8()"),
        ("hqq", ""): ({"num_bits": 3, "axis": 0}, "HQQ W3A16g64 axis 0"),
        ("torchao", ""): ({"scheme": "int4wo"}, "torchao int4wo g128"),
        ("quanto", ""): ({"weights": "float8"}, "quanto FP8 W8A16"),
        ("auto-round", ""): ({"symmetric": False, "group_size": -1}, "AutoRound W4A16 asym"),
        ("compressed-tensors", "a"): (
            {"scheme": "W4A16_ASYM", "algorithm": "awq"},
            "AWQ W4A16g128 asym (llm-compressor)",
        ),
        ("compressed-tensors", "s"): (
            {"scheme": "W8A8", "algorithm": "smoothquant+gptq", "smoothing_strength": 0.8},
            "SmoothQuant 0.8 GPTQ W8A8 (llm-compressor)",
        ),
    }
    for (name, _), (options, label) in wanted.items():
        method = METHODS[name]()
        assert method.label(method.Options.model_validate(options)) == label
