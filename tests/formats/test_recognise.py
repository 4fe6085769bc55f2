"""Packed formats: recognised, and accounted to the byte. The checkpoints are made by the libraries
themselves on the spot; those of GPTQ, AWQ and auto-round are tensors in their layouts."""

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from math import prod
from pathlib import Path

import pytest

from qeval.core.artifact import ModelRef
from qeval.core.errors import MissingExtraError, ModelError, UsageError
from qeval.formats.describe import describe_folder, describe_packed
from qeval.formats.recognise import check_float, check_runs, recognise, rounds_activations
from qeval.models.weights import read_tensors, weight_files

REPO = Path(__file__).parents[2]
LINEARS = {"q_proj": (128, 128), "k_proj": (64, 128), "v_proj": (64, 128), "o_proj": (128, 128)} | {
    "gate_proj": (256, 128),
    "up_proj": (256, 128),
    "down_proj": (128, 256),
}
HEAD = 2 * 512 * 128 * 2  # embeddings and head of 512 tokens in float16

MADE = {  # folder: label, bits, group, kind, bits per weight of a [256, 128] linear
    "bnb-int8": ("LLM.int8()", 8, -1, "int8", 8 + 32 / 128 + 8 / 2**15),  # SCB float32 a row, a byte
    "bnb-nf4": ("NF4", 4, 64, "nf4", 4 + 32 / 64 + 8 * (16 * 4 + 79) / 2**15),  # absmax, map, JSON
    "bnb-fp4-double": ("FP4 double", 4, 64, "fp4", None),
    "quanto-qint8": ("quanto W8A16", 8, -1, "int8", 8 + 16 / 128 + 32 / 2**15),  # two scalar scales
    "quanto-qint4": ("quanto W4A16g128", 4, 128, "int4", 4 + 32 / 128 + 32 / 2**15),
    "quanto-qfloat8_e4m3fn": ("quanto FP8 W8A16", 8, -1, "fp8", 8 + 16 / 128 + 32 / 2**15),
    "hqq-3": ("HQQ W3A16g64", 3, 64, "int3", None),  # ten in a word of 32 bits, rows rounded up
    "hqq-4": ("HQQ W4A16g64", 4, 64, "int4", 4 + 32 / 64),
    "torchao-int8wo": ("torchao int8wo", 8, -1, "int8", 8 + (32 + 8) / 128),  # float32 scale, zero
    "torchao-int8dyn": ("torchao int8dyn", 8, -1, "int8", 8 + (32 + 8) / 128),
    "torchao-fp8wo": ("torchao fp8wo", 8, -1, "fp8", 8 + 32 / 128),
    "torchao-bin": ("torchao int8wo", 8, -1, "int8", 8 + (32 + 8) / 128),
    "ct-W4A16": ("compressed-tensors W4A16g128", 4, 128, "int4", 4 + 16 / 128 + 128 / 2**15),
    "ct-W4A16_ASYM": ("compressed-tensors W4A16g128 asym", 4, 128, "int4", 4 + 20 / 128 + 128 / 2**15),
    "ct-W8A8": ("compressed-tensors W8A8", 8, -1, "int8", 8 + 16 / 128),
    "ct-FP8_DYNAMIC": ("compressed-tensors FP8 W8A8", 8, -1, "fp8", 8 + 16 / 128),
    "ct-FP8_BLOCK": ("compressed-tensors FP8 W8A8 128x128", 8, None, "fp8", 8 + 2 * 16 / 2**15),
    "ct-MXFP4A16": ("compressed-tensors MXFP4 W4A16", 4, 32, "fp4", 4 + 8 / 32),
    "ct-NVFP4A16": ("compressed-tensors NVFP4 W4A16", 4, 16, "fp4", 4 + 8 / 16 + 32 / 2**15),
}


@pytest.fixture(scope="session")
def float16_llama(tmp_path_factory) -> Path:
    from tiny_models import make_tiny_llama

    folder = tmp_path_factory.mktemp("models") / "llama"
    return make_tiny_llama(folder, dtype="float16", hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="session")
def made(float16_llama, tmp_path_factory) -> Path:
    for package in ("bitsandbytes", "hqq", "torchao", "optimum.quanto", "llmcompressor"):
        pytest.importorskip(package.split(".")[0])
    out = tmp_path_factory.mktemp("packed")
    script = REPO / "tests" / "helpers" / "make_packed.py"
    done = subprocess.run(
        [sys.executable, script, float16_llama, out], capture_output=True, text=True, cwd=out
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def data_bytes(file: Path) -> int:
    """What a weight file holds but its header: from its size, not from its tensors."""
    if file.suffix == ".safetensors":
        (header,) = struct.unpack("<Q", file.read_bytes()[:8])
        return file.stat().st_size - 8 - header
    with zipfile.ZipFile(file) as archive:
        return sum(i.file_size for i in archive.infolist() if "/data/" in i.filename)


@pytest.mark.parametrize("name", MADE)
def test_what_a_library_wrote_is_recognised_and_every_byte_counted(made, name):
    label, bits, group, kind, bpw = MADE[name]
    artifact = describe_packed(made / name)
    found = artifact.format
    assert (found.label, found.num_bits, found.group_size) == (label, bits, group)
    files = sum(data_bytes(f) for f in weight_files(made / name))
    assert artifact.weight_bytes + artifact.embedding_bytes == files
    assert artifact.embedding_bytes == HEAD
    assert {layer.kind for layer in artifact.layers} == {kind}
    linears = {f"model.layers.{i}.{n}" for i in (0, 1) for n in LINEARS}
    short = {
        r.name.replace("self_attn.", "").replace("mlp.", ""): (r.shape, r.stored_bytes)
        for r in artifact.layers
    }
    assert short.keys() == linears
    for layer, (shape, _) in short.items():
        wanted = LINEARS[layer.rsplit(".")[-1]]
        assert prod(shape) == prod(wanted) if name == "quanto-qint4" else shape == wanted
    if bpw is not None:
        assert 8 * short["model.layers.0.up_proj"][1] / (256 * 128) == bpw
    n = sum(prod(s) for s in LINEARS.values()) * 2
    stored = sum(r.stored_bytes for r in artifact.layers)
    assert artifact.bpw == 8 * stored / n
    assert artifact.bpw_file == 8 * files / (n + HEAD // 2 + 5 * 128)
    assert not artifact.simulated
    assert artifact.notes == ()
    own = ("bnb-int8", "torchao-int8dyn", "ct-W8A8", "ct-FP8_DYNAMIC", "ct-FP8_BLOCK")
    assert rounds_activations(artifact) == (name in own)
    json.dumps(artifact.to_json())  # plain data


# -- by hand ----------------------------------------------------------------------------------


def write(folder: Path, tensors: dict, config: dict, **beside: dict) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def ints(*shape: int):
    import torch

    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def gptq(name: str, out: int, into: int, bits: int, group: int, index: bool = True) -> dict:
    import torch

    groups = 1 if group == -1 else into // group
    parts = {
        "qweight": ints(into * bits // 32, out),
        "qzeros": ints(groups, out * bits // 32),
        "scales": torch.rand(groups, out).half(),
        **({"g_idx": torch.arange(into, dtype=torch.int32) // max(group, 1)} if index else {}),
    }
    return {f"{name}.{k}": v for k, v in parts.items()}


def awq(name: str, out: int, into: int, group: int) -> dict:
    import torch

    return {
        f"{name}.qweight": ints(into, out // 8),
        f"{name}.qzeros": ints(into // group, out // 8),
        f"{name}.scales": torch.rand(into // group, out).half(),
    }


def rest(tied: bool = False) -> dict:
    import torch

    head = {} if tied else {"lm_head.weight": torch.rand(64, 128).half()}
    return {
        "model.embed_tokens.weight": torch.rand(64, 128).half(),
        "model.norm.weight": torch.rand(128).half(),
        **head,
    }


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 128), (4, 128), (8, -1)])
@pytest.mark.parametrize(("order", "symmetric"), [(False, True), (True, False)])
def test_gptq(tmp_path, layout, bits, group, order, symmetric):
    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, bits, group), **rest()}
    tensors["model.layers.0.mlp.up_proj.bias"] = tensors["model.norm.weight"].repeat(2)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    config |= {"desc_act": order, "checkpoint_format": layout}
    folder = write(tmp_path / "q", tensors, {"quantization_config": config})
    found = recognise(folder)
    wide = f"W{bits}A16" + ("" if group == -1 else f"g{group}")
    assert found.label == f"GPTQ {wide}" + " act-order" * order + " asym" * (not symmetric)
    assert found.details["checkpoint_format"] == layout
    artifact = describe_packed(folder)
    (layer,) = artifact.layers
    assert (layer.shape, layer.kind) == ((256, 128), f"int{bits}")
    groups = 1 if group == -1 else 128 // group
    assert layer.stored_bytes == 256 * 128 * bits // 8 + groups * 256 * (2 + bits / 8) + 128 * 4
    assert artifact.embedding_bytes == 2 * 64 * 128 * 2
    assert artifact.weight_bytes == layer.stored_bytes + 128 * 2 + 256 * 2  # norm, bias
    assert artifact.weight_bytes + artifact.embedding_bytes == data_bytes(folder / "model.safetensors")


def test_autogptqs_older_folders_have_their_configuration_beside(tmp_path):
    beside = {"bits": 4, "group_size": 128, "desc_act": True, "sym": True, "damp_percent": 0.01}
    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest()}
    folder = write(tmp_path / "q", tensors, {}, quantize_config=beside)
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    assert recognise(folder).label == "GPTQ W4A16g128 act-order"
    assert describe_folder(folder, "float16").format.name == "gptq"


@pytest.mark.parametrize("old", [False, True])
def test_awq(tmp_path, old):
    config = (
        {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
        if old
        else {"bits": 4, "group_size": 64, "sym": False, "checkpoint_format": "gemm"}
    )
    tensors = {**awq("model.layers.0.mlp.up_proj", 256, 128, 64), **rest()}
    config["quant_method"] = "awq"
    folder = write(tmp_path / "q", tensors, {"quantization_config": config})
    artifact = describe_packed(folder)
    assert artifact.format.label == "AWQ W4A16g64"
    assert (artifact.layers[0].shape, artifact.bpw) == ((256, 128), 4 + 20 / 64)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_auto_round(tmp_path, layout):
    name = "model.layers.0.mlp.up_proj"
    tensors = gptq(name, 256, 128, 4, 32, index=False) if layout == "gptq" else awq(name, 256, 128, 32)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": layout == "gptq"}
    config |= {"data_type": "int", "packing_format": f"auto_round:auto_{layout}"}
    folder = write(tmp_path / "q", {**tensors, **rest()}, {"quantization_config": config})
    artifact = describe_packed(folder)
    asym = "" if layout == "gptq" else " asym"
    assert artifact.format.label == f"AutoRound W4A16g32{asym}"
    assert (artifact.layers[0].shape, artifact.bpw) == ((256, 128), 4 + 20 / 32)


def test_fp8_in_blocks(tmp_path):
    import torch

    name = "model.layers.0.mlp.up_proj"
    tensors = {
        f"{name}.weight": torch.zeros(256, 128, dtype=torch.float8_e4m3fn),
        f"{name}.weight_scale_inv": torch.rand(2, 1),
        **rest(),
    }
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    artifact = describe_packed(write(tmp_path / "q", tensors, {"quantization_config": config}))
    assert artifact.format.label == "FP8 W8A8 128x128"
    assert rounds_activations(artifact)
    assert (artifact.layers[0].kind, artifact.layers[0].stored_bytes) == ("fp8", 256 * 128 + 2 * 4)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_torchaos_int4_has_its_shape_beside(made, tmp_path, suffix):
    """Made of its own tensor class: torchao's quantizer to it needs a GPU."""
    name = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    shutil.copy(made / f"torchao-int4{suffix}", tmp_path / name)
    kind = {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}}
    config = {"quantization_config": {"quant_method": "torchao", "quant_type": kind}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    artifact = describe_packed(tmp_path)
    (layer,) = artifact.layers
    assert artifact.format.label == "torchao int4wo g128"
    assert (layer.shape, layer.kind, layer.stored_bytes) == ((256, 128), "int4", 256 * (64 + 4))


GPTQ4 = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def test_a_packed_head_is_head_and_not_in_bpw(tmp_path):
    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest(tied=True)}
    one = describe_packed(write(tmp_path / "a", tensors, {"quantization_config": GPTQ4}))
    tensors |= gptq("lm_head", 64, 128, 4, 128)
    config = {"quantization_config": {**GPTQ4, "lm_head": True}}
    two = describe_packed(write(tmp_path / "b", tensors, config))
    head = next(layer for layer in two.layers if layer.name == "lm_head")
    assert two.embedding_bytes == one.embedding_bytes + head.stored_bytes
    assert (two.weight_bytes, two.bpw) == (one.weight_bytes, one.bpw)


def test_layers_of_other_bits_are_read_from_their_tensors(tmp_path):
    tensors = {
        **gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128),
        **gptq("model.layers.0.mlp.down_proj", 128, 256, 8, 128),
        **rest(),
    }
    mixed = {**GPTQ4, "dynamic": {"+:.*down_proj": {"bits": 8}}}
    folder = write(tmp_path / "a", tensors, {"quantization_config": mixed})
    kinds = {r.name.rsplit(".")[-1]: (r.kind, r.shape) for r in describe_packed(folder).layers}
    assert kinds == {"up_proj": ("int4", (256, 128)), "down_proj": ("int8", (128, 256))}
    folder = write(tmp_path / "b", tensors, {"quantization_config": GPTQ4})
    with pytest.raises(ModelError, match=r"down_proj.*8 bits, where the configuration says 4"):
        describe_packed(folder)


def test_linears_left_as_floats_are_a_note(tmp_path):
    import torch

    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest()}
    tensors["model.layers.0.mlp.gate.weight"] = torch.rand(8, 128).half()
    artifact = describe_packed(write(tmp_path / "q", tensors, {"quantization_config": GPTQ4}))
    assert artifact.notes == (
        "1 of 2 linears left as F16, not counted in bpw: model.layers.0.mlp.gate",
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptqq"}, r"quant_method 'gptqq' .*did you mean 'gptq'"),
        ({"bits": 4}, r"quant_method None .*known: auto-round, awq"),
        ({"quant_method": ["gptq"]}, r"quant_method \['gptq'\] is none that qeval runs"),
        ({**GPTQ4, "bits": 5}, r"quantization_config.bits is 5: must be one of 2, 3, 4, 8"),
        ({**GPTQ4, "bits": "4"}, r"quantization_config.bits is '4'"),
        ({**GPTQ4, "group_size": 0}, r"group_size is 0: must be positive, or -1"),
        ({**GPTQ4, "checkpoint_format": "marlin"}, r"checkpoint_format 'marlin' .*again as gptq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, r"layout 'gemv'"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True},
            r"both of load_in_4bit and load_in_8bit",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False}, r"neither of load_in_4bit"),
        ({"quant_method": "compressed-tensors"}, r"config_groups names no weights"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": 3}},
            r"quantization_config\.num_bits is None",
        ),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, r"save the model again"),
        ({"quant_method": "torchao", "quant_type": {"default": 8}}, r"save the model again"),
        (
            {
                "quant_method": "auto-round",
                "bits": 4,
                "group_size": 32,
                "packing_format": "auto_round:ark",
            },
            r"packing_format 'auto_round:ark'",
        ),
        (["gptq"], r"quantization_config must be a mapping"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(tmp_path, config, message):
    folder = write(tmp_path / "q", rest(), {"quantization_config": config})
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}") as caught:
        recognise(folder)
    assert "\n" not in str(caught.value)


def test_two_configurations_must_agree(tmp_path):
    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest()}
    beside = {**GPTQ4, "group_size": 64}
    folder = write(tmp_path / "q", tensors, {"quantization_config": GPTQ4}, quantize_config=beside)
    with pytest.raises(
        ModelError, match=r"quantize_config\.json: group_size is 64, but 128 in config\.json"
    ):
        recognise(folder)


def test_configuration_and_tensors_must_agree(tmp_path):
    folder = write(tmp_path / "a", rest(), {"quantization_config": GPTQ4})
    with pytest.raises(ModelError, match=r"config\.json says gptq, but no tensor is packed so"):
        describe_packed(folder)
    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest()}
    folder = write(tmp_path / "b", tensors, {})
    with pytest.raises(ModelError, match=r"up_proj\.qweight is packed, but config\.json has no"):
        describe_folder(folder, "float16")
    del tensors["model.layers.0.mlp.up_proj.scales"]
    folder = write(tmp_path / "c", tensors, {"quantization_config": GPTQ4})
    with pytest.raises(ModelError, match="up_proj lacks its tensor 'scales'"):
        describe_packed(folder)


def test_gptq_in_a_bin_file_is_the_same_artifact(tmp_path):
    """It is loaded through a copy in safetensors (tests/formats/test_gptqmodel.py)."""
    import torch

    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest()}
    folder = write(tmp_path / "q", tensors, {"quantization_config": GPTQ4})
    before = describe_packed(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert describe_packed(folder) == before


def test_float_weights_are_no_format(tiny_llama):
    assert recognise(tiny_llama) is None
    with pytest.raises(ModelError, match="these are float weights"):
        describe_packed(tiny_llama)


def test_shards_add_up(made, tmp_path):
    """The same checkpoint in several files is the same artifact."""
    from safetensors.torch import load_file, save_file

    whole = made / "bnb-nf4"
    folder = Path(shutil.copytree(whole, tmp_path / "shards"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    one, two = describe_packed(whole), describe_packed(folder)
    assert (one.bpw, one.bpw_file, one.weight_bytes) == (two.bpw, two.bpw_file, two.weight_bytes)
    assert {t.name for t in read_tensors(folder)} == set(tensors)


def test_what_a_format_needs_is_known_before_any_job(made, tmp_path, monkeypatch):
    ref = ModelRef("m", made / "hqq-4", "sha256:0", "float32")
    packed = describe_packed(made / "hqq-4")
    check_runs(packed, ref)
    with pytest.raises(UsageError, match=r"rtn: m is packed already \(HQQ W4A16g64\)"):
        check_float("rtn", ref)
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qeval\[hqq\]'"):
        check_runs(packed, ref)
    tensors = {**gptq("model.layers.0.mlp.up_proj", 256, 128, 4, 128), **rest()}
    artifact = describe_packed(write(tmp_path / "q", tensors, {"quantization_config": GPTQ4}))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="float32"):
        check_runs(artifact, ref)


@pytest.mark.real
def test_quanto_runs_in_another_dtype_than_that_of_its_files(made):
    """The files have float16; a spec's own dtype is bfloat16."""
    half, brain = json.loads((made / "quanto-rounding.json").read_text())
    assert 0 < half < brain < 0.1  # 10 bits of a fraction, and 7
