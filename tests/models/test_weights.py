"""safetensors headers and model folders, read without torch."""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from qeval.core.artifact import ModelRef
from qeval.core.errors import ModelError
from qeval.formats.describe import describe_folder
from qeval.formats.recognise import check_float
from qeval.models.resolve import check_model, identify, resolve_model
from qeval.models.tensors import Tensor, is_plausible
from qeval.models.torch_file import read_torch_file
from qeval.models.weights import linear_shapes, read_data, read_header, read_tensors, weight_files


def test_the_header_lists_what_torch_wrote(tiny_llama):
    from safetensors.torch import load_file

    tensors = {t.name: t for t in read_header(tiny_llama / "model.safetensors")}
    loaded = load_file(tiny_llama / "model.safetensors")
    assert {n: t.shape for n, t in tensors.items()} == {n: tuple(x.shape) for n, x in loaded.items()}
    assert all(tensors[n].n_bytes == x.nbytes for n, x in loaded.items())
    embeddings = {n for n, t in tensors.items() if t.is_embedding}
    assert embeddings == {"model.embed_tokens.weight", "lm_head.weight"}


def safetensors(tensors: dict[str, tuple], n: int, *replaced: bytes) -> bytes:
    """A file of ``n`` bytes of data, one part of its header ``replaced`` by another."""
    header = json.dumps(
        {k: {"dtype": d, "shape": s, "data_offsets": [a, b]} for k, (d, s, a, b) in tensors.items()}
    ).encode()
    header = header.replace(*replaced) if replaced else header
    return struct.pack("<Q", len(header)) + header + bytes(n)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file"),
        (b"GGUF" * 10, "not a safetensors file"),
        (struct.pack("<Q", 4) + b"oops", "not JSON"),
        (
            struct.pack("<Q", 64)
            + json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})
            .ljust(64)
            .encode(),
            "truncated: 72 bytes of 108",
        ),
        (safetensors({"a": ("F32", [9], 0, 36)}, 40), "4 bytes too long"),
        (safetensors({"a": ("F32", [9], 0, 32)}, 32), r"a F32 \[9\] has 32 bytes: damaged"),
        (
            safetensors({"a": ("F32", [1], 0, 4), "b": ("F32", [1], 8, 12)}, 12),
            "b does not begin where",
        ),
        (safetensors({"a": ("F32", [2], 0, 8), "b": ("F32", [1], 4, 8)}, 8), "b does not begin where"),
        (safetensors({"a": ("F32", [1], 4, 8)}, 8), "a does not begin where"),
        (safetensors({"a": ("F32", [-1, -1], 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [1], 0.0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [True], 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", ["1"], 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [1], 4, 0)}, 4), r"a F32 \[1\] has -4 bytes"),
        (
            safetensors({"a": ("F32", [1], 0, 4), "aa": ("F32", [1], 4, 8)}, 8, b'"aa"', b'"a"'),
            "'a' is .* twice",
        ),
        (
            safetensors({"a": ("F32", [1], 0, 4)}, 4, b'"shape"', b'"dtype":"I32","shape"'),
            "'dtype' is .* twice",
        ),
        (struct.pack("<Q", 12) + b'{"a": ["x"]}', "header is damaged"),
        (struct.pack("<Q", 9) + b'["a", {}]', "header is damaged"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, data, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_header(path)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("label", ["I32", "U32"])
def test_floats_that_are_labelled_integers_are_refused(tiny_llama, tmp_path, name, label):
    """Libraries turn such numbers into floats: one tensor moved a PPL from 12.7 to 18.8."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "false"))
    relabel(folder / "model.safetensors", name, label)
    with pytest.raises(
        ModelError, match=rf"model.safetensors: {name} is {label}, and weights are floats"
    ):
        describe_folder(folder, "float32")
    with pytest.raises(ModelError, match=f"{name} is {label}"):  # before a build of any method
        check_float("rtn", ModelRef("m", folder, "sha256:0", "float32"))


def relabel(file: Path, name: str, label: str) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[name]["dtype"] = label
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "plausible"),
    [
        ("a.weight", "F32", (2, 2), True),
        ("a.weight", "F8_E4M3", (2, 2), True),  # without scales: floats of 8 bits
        ("a.weight", "I64", (2, 2), False),
        ("a.weight", "BOOL", (2, 2), False),
        ("a.weight", "F33", (2, 2), False),
        ("a.bias", "I16", (2,), False),
        ("a.experts.gate_up_proj", "I64", (2, 2, 2), False),
        ("time_decay", "U16", (2,), False),
        ("h.0.attn.bias", "BOOL", (1, 1, 8, 8), True),  # GPT-2's mask
        ("h.0.attn.bias", "U8", (1, 1, 8, 8), True),
        ("embeddings.position_ids", "I64", (1, 8), True),
        ("gate.tid2eid", "I32", (8, 2), True),
        ("norm.num_batches_tracked", "I64", (), True),
    ],
)
def test_weights_are_floats_and_tables_need_not_be(name, dtype, shape, plausible):
    assert is_plausible(Tensor(name, dtype, shape, 0)) == plausible


def test_a_bin_of_integers_is_refused_and_one_with_a_mask_is_not(tiny_llama, tmp_path):
    import torch

    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    masked = as_bin(tiny_llama, tmp_path / "mask", **{"model.layers.0.self_attn.bias": mask})
    check_model(masked)
    describe_folder(masked, "float32")
    whole = {"model.norm.weight": torch.ones(64, dtype=torch.int32)}
    with pytest.raises(ModelError, match=r"pytorch_model.bin: model.norm.weight is I32"):
        describe_folder(as_bin(tiny_llama, tmp_path / "whole", **whole), "float32")


def test_a_tensor_in_two_shards_is_refused(tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "twice"))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lm_head.weight is in a.safetensors and in b.safetensors"):
        read_tensors(folder)


def test_shards_are_read_by_their_index_and_a_missing_one_is_named(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    whole = {t.name: t.shape for t in read_tensors(tiny_llama)}
    assert len(weight_files(tmp_path)) > 2
    assert {t.name: t.shape for t in read_tensors(tmp_path)} == whole
    weight_files(tmp_path)[1].unlink()
    with pytest.raises(ModelError, match="the shard model-00002-of-"):
        weight_files(tmp_path)


def test_identity_is_content_and_not_path(tiny_llama, tmp_path):
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (copy / "README.md").write_text("documentation is not content")
    first = identify(tiny_llama, tmp_path / "cache")
    assert identify(copy, tmp_path / "cache") == first
    assert identify(copy, tmp_path / "cache") == first  # from the remembered hashes
    config = copy / "config.json"
    config.write_text(config.read_text() + " ")
    assert identify(copy, tmp_path / "cache") != first


def test_a_torn_identity_cache_is_made_anew(tiny_llama, tmp_path):
    first = identify(tiny_llama, tmp_path)
    (tmp_path / "identities.json").write_text('{"a": "b')
    assert identify(tiny_llama, tmp_path) == first


def test_float_folders_are_accounted_in_the_dtype_they_are_loaded_in(tiny_llama):
    full, half = describe_folder(tiny_llama, "float32"), describe_folder(tiny_llama, "bfloat16")
    assert full.embedding_bytes == 2 * half.embedding_bytes == 2 * 512 * 64 * 4
    assert full.weight_bytes + full.embedding_bytes == sum(t.n_bytes for t in read_tensors(tiny_llama))
    assert (full.bpw, half.bpw) == (32, 16)
    assert not full.simulated


def as_bin(model: Path, folder: Path, **more: object) -> Path:
    import torch
    from safetensors.torch import load_file

    shutil.copytree(model, folder)
    torch.save({**load_file(folder / "model.safetensors"), **more}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_bin_checkpoint_is_the_same_as_its_safetensors(tiny_llama, tmp_path):
    folder = as_bin(tiny_llama, tmp_path / "bin")
    check_model(folder)
    wanted = {t.name: (t.dtype, t.shape, t.n_bytes) for t in read_tensors(tiny_llama)}
    assert {t.name: (t.dtype, t.shape, t.n_bytes) for t in read_tensors(folder)} == wanted
    assert linear_shapes(folder) == linear_shapes(tiny_llama)
    one, two = describe_folder(tiny_llama, "float32"), describe_folder(folder, "float32")
    assert (one.weight_bytes, one.bpw_file) == (two.weight_bytes, two.bpw_file)


def test_every_dtype_and_view_of_a_torch_file_is_found_where_it_lies(tmp_path):
    import torch

    names = "float32 float16 bfloat16 float64 int8 uint8 int16 int32 int64 bool float8_e4m3fn"
    base = torch.arange(24, dtype=torch.float32)
    tensors = {n: torch.arange(6).reshape(2, 3).to(getattr(torch, n)) for n in names.split()}
    tensors |= {"parameter": torch.nn.Parameter(torch.rand(3)), "scalar": torch.tensor(2.5)}
    tensors |= {"empty": torch.zeros(0), "first": base[:8], "second": base[8:].view(4, 4)}
    tensors |= {"tied": tensors["float32"], "turned": tensors["float64"].T}
    torch.save({"a": tensors, "step": 7}, tmp_path / "x.bin")
    contents = read_torch_file(tmp_path / "x.bin")
    found = {t.name.removeprefix("a."): t for t in contents.tensors}
    assert found.keys() == tensors.keys() - {"tied", "turned"}  # other names of what is there
    assert contents.facts == {"step": 7}
    for name, t in found.items():
        value = tensors[name].detach().contiguous()
        assert (t.shape, t.n_bytes) == (tuple(value.shape), value.nbytes)
        assert read_data(t) == value.view(-1).view(torch.uint8).numpy().tobytes()


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("value", [Evil(), np.float64(1), {1, 2}])
def test_a_bin_with_code_in_it_is_refused_and_does_nothing(tiny_llama, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    folder = as_bin(tiny_llama, tmp_path / "bin", x=value)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: holds code \(.*safetensors"):
        check_model(folder)
    assert not (tmp_path / "hacked").exists()


def zipped(path: Path, data: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"x/data/{name}", content)
    return path


def tensor_pickle(start: int, shape: tuple, stride: tuple, key: str = "k", n: int = 4) -> bytes:
    """{"a": tensor} over the float32 storage ``key`` of ``n`` elements."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, key, "cpu", n) if obj == "S" else None

    import torch

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, ("S", start, shape, stride, False, OrderedDict())

    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "data.pkl is damaged"),
        (b"\x80\x02}", "data.pkl is damaged"),
        (b"\x80\x02\x8a\xff" + b"\xff" * 40 + b".", "data.pkl is damaged"),
        (b"cos\nsystem\n(S'true'\ntR.", r"holds code \(os\.system\)"),
        (b"c__builtin__\neval\n(S'1'\ntR.", r"holds code \((builtins|__builtin__)\.eval\)"),
        (b"ctorch\nload\n(S'/etc/passwd'\ntR.", r"holds code \(torch\.load\)"),
        # state for what a pickle may call: would change it for the next file
        (b"\x80\x02ctorch\nSize\n}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xsb.", "holds code"),
        (b"\x80\x02ctorch\nSize\n)\x81.", "data.pkl is damaged"),  # a new instance of it
        (b"\x80\x02]q\x00h\x00a.", None),  # a list in itself: no tensors
        (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "data.pkl is damaged"),  # a dict in itself
        (tensor_pickle(0, (4,), (1,)), None),
        (tensor_pickle(1, (4,), (1,)), "the data of a is missing or of another size"),
        (tensor_pickle(0, (5,), (1,)), "the data of a is missing or of another size"),
        (tensor_pickle(0, (2, 2), (3, 1)), "the data of a is missing or of another size"),
        (tensor_pickle(0, (4,), (1,), n=5), "the data of a is missing or of another size"),
        (tensor_pickle(0, (4,), (1,), key="gone"), "the data of a is missing or of another size"),
        (tensor_pickle(-1, (4,), (1,)), "data.pkl is damaged"),
        (tensor_pickle(0, (-4, -1), (1, 1)), "data.pkl is damaged"),
        (tensor_pickle(0, (4,), (1, 1)), "data.pkl is damaged"),
        (tensor_pickle(0, ("4",), (1,)), "data.pkl is damaged"),
    ],
)
def test_hostile_and_torn_pickles_are_one_line(tmp_path, data, message):
    path = zipped(tmp_path / "pytorch_model.bin", data, k=bytes(16))
    if message is None:
        read_torch_file(path)
        return
    with pytest.raises(ModelError, match=message) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)


def test_a_tree_in_itself_over_and_over_ends(tmp_path):
    level: object = 1
    for _ in range(40):
        level = {"a": level, "b": level}
    path = zipped(tmp_path / "x.bin", pickle.dumps(level, 2))
    with pytest.raises(ModelError, match="damaged"):
        read_torch_file(path)


def test_torn_and_old_torch_files_are_one_line(tiny_llama, tmp_path):
    import torch

    file = as_bin(tiny_llama, tmp_path / "bin") / "pytorch_model.bin"
    data = file.read_bytes()
    for part in (b"", data[:100], data[: len(data) // 2], data[:-10], b"not a zip" * 9):
        file.write_bytes(part)
        with pytest.raises(ModelError, match="cut off, or no PyTorch file"):
            check_model(file.parent)
    torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"from before 1\.6"):
        check_model(file.parent)


def test_hqqs_file_and_autogptqs_are_weight_files(tmp_path):
    (tmp_path / "qmodel.pt").touch()
    assert weight_files(tmp_path) == [tmp_path / "qmodel.pt"]
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("where", ["snapshot", "local"])
def test_a_corrupted_download_is_named_by_its_checksum(tiny_llama, tmp_path, where):
    """A blob of a hub's cache is named by its sha256; a local download has it in a note."""
    folder = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_llama, folder)
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if where == "snapshot":
        blob = tmp_path / "models--a--b" / "blobs" / digest
        blob.parent.mkdir()
        weights.rename(blob)
        weights.symlink_to(blob)
    else:
        blob = weights
        note = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
        note.parent.mkdir(parents=True)
        note.write_text(f"{'0' * 40}\n{digest}\n{time.time()}\n")
    resolve_model(str(folder), dtype="float32", cache_dir=tmp_path / "cache")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ModelError, match=rf"model\.safetensors: corrupted: .*the hub's {digest}"):
        resolve_model(str(folder), dtype="float32", cache_dir=tmp_path / "cache")
    if where == "local":  # changed since, by its owner: no download any more
        later = time.time() + 1000
        os.utime(weights, (later, later))
        resolve_model(str(folder), dtype="float32", cache_dir=tmp_path / "cache")


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_text("no")
    (tmp_path / "x.txt").write_text("no")
    (tmp_path / "none").mkdir()
    for name, message in (
        ("x.gguf", "not a GGUF file"),
        (".", "x.gguf: not a GGUF file"),
        ("x.txt", "a model is a folder or a .gguf file"),
        ("x.gguf:Q8_0", "is one file, and a type is for folders: leave out :Q8_0"),
        ("none", "no config.json"),
        ("none:Q8_0", "none: no GGUF model in it"),
        ("gone", "no such model folder"),
    ):
        with pytest.raises(ModelError, match=message):
            resolve_model(str(tmp_path / name), dtype="float32", cache_dir=tmp_path / "cache")


def test_a_hub_model_without_a_hub_is_one_line(tmp_path):
    code = (
        "from pathlib import Path; from qeval.models.resolve import resolve_model\n"
        "resolve_model('no-such-org/no-such-model', dtype='float32', cache_dir=Path('c'))"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "no such folder, and the hub did not give it" in done.stderr.splitlines()[-1]


@pytest.fixture
def hub_cache(tiny_llama, tmp_path, monkeypatch) -> Path:
    """A hub's cache without a hub: org/model, a commit on the branch main and the tag v1, an older one
    that no name leads to."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--model-v1.0"
    for commit in (NEW, OLD):
        shutil.copytree(tiny_llama, repo / "snapshots" / commit)
    for name in ("main", "v1", "refs/pr/1"):
        (repo / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / name).write_text(NEW)
    return repo


NEW, OLD = "0123456789" * 4, "89abcdef01" * 4


@pytest.mark.parametrize(
    ("revision", "commit"),
    [
        (None, NEW),
        ("main", NEW),
        ("v1", NEW),
        ("refs/pr/1", NEW),
        (NEW, NEW),
        (OLD, OLD),
        ("89abcdef", OLD),
    ],
)
def test_a_revision_in_the_hubs_cache_is_found_without_the_hub(hub_cache, tmp_path, revision, commit):
    ref = resolve_model("org/model-v1.0", dtype="float32", cache_dir=tmp_path, revision=revision)
    assert (ref.path, ref.identity) == (
        hub_cache / "snapshots" / commit,
        f"hub:org/model-v1.0@{commit}",
    )


@pytest.mark.parametrize("revision", ["v2", "f" * 40, "0123", "89abcdee", "*", "../" + NEW])
def test_a_revision_that_is_not_there_is_one_line(hub_cache, tmp_path, revision):
    with pytest.raises(ModelError, match="the hub did not give it") as caught:
        resolve_model("org/model-v1.0", dtype="float32", cache_dir=tmp_path, revision=revision)
    assert "\n" not in str(caught.value)


def test_a_commit_of_which_a_file_is_missing_is_not_taken_for_whole(hub_cache, tmp_path):
    """The listing that huggingface_hub keeps beside its snapshots says which files there are."""
    listing = hub_cache / "trees" / f"{OLD}.json"
    from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

    names = ("config.json", "model.safetensors", "chat_template.jinja", "training_args.bin")
    entries = {
        n: TreeCacheEntry(size=1, blob_id="0", lfs_sha256=None, lfs_size=None, xet_hash=None)
        for n in names
    }
    write_tree_cache(str(hub_cache), OLD, entries)
    assert listing.is_file()
    with pytest.raises(ModelError, match="the hub did not give it"):
        resolve_model("org/model-v1.0", dtype="float32", cache_dir=tmp_path, revision=OLD)
    (hub_cache / "snapshots" / OLD / "chat_template.jinja").touch()
    resolve_model("org/model-v1.0", dtype="float32", cache_dir=tmp_path, revision=OLD)


def header_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header_file(b"[" * 200_000), "header is not JSON"),
        (header_file(b'{"a": ' * 100_000), "header is not JSON"),
        (header_file(b'{"a": ' + b"9" * 5000 + b"}"), "header is not JSON"),
        (header_file(b"\xff" * 100), "header is not JSON"),
        (header_file(b"null"), "header is damaged"),
        (header_file(b'{"__metadata__": 3}'), "header is damaged"),
        (header_file(b'{"__metadata__": [1]}'), "header is damaged"),
        (safetensors({"\ud800": ("F32", [1], 0, 4)}, 4), "header is damaged"),
        (safetensors({"a\x00b": ("F32", [1], 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [1] * 65, 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [2**62] * 100_000, 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [2**64], 0, 4)}, 4), "header is damaged"),
        (safetensors({"a": ("F32", [2**40, 2**40], 0, 4)}, 4), "has 4 bytes: damaged"),
        (header_file(b"{" + b" " * 2**25 + b"}"), r"header of over 32.0 MiB: damaged"),
        (struct.pack("<Q", 2**62) + b"{}", "not a safetensors file, or cut off"),
    ],
)
def test_a_header_of_any_depth_size_and_number_is_one_line(tmp_path, data, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "../part.safetensors"}},
            "'../part.safetensors' is no file of this folder",
        ),
        ({"weight_map": {"a": "../../../etc/passwd"}}, "is no file of this folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd' is no file of this folder"),
        ({"weight_map": {"a": "sub/part.safetensors"}}, "is no file of this folder"),
        ({"weight_map": {"a": ".."}}, "'..' is no file of this folder"),
        ({"weight_map": {"a": ""}}, "'' is no file of this folder"),
        ({"weight_map": {"a": "x\0y"}}, r"'x\x00y' is no file of this folder"),
        ({"weight_map": {"a": "\ud800"}}, r"'\ud800' is no file of this folder"),
        ({"weight_map": {"a": 3}}, "3 is no file of this folder"),
        ({"weight_map": {"a": "."}}, "'.' is no file of this folder"),
        ({"weight_map": {"a": "x" * 256}}, "is no file of this folder"),
        ({"weight_map": {"a": "x"}}, "the shard x named by model.safetensors.index.json is missing"),
        ({"weight_map": {"a": 3, "b": "c"}}, "not an index of shards"),
        ({"weight_map": {"a": ["c"]}}, "not an index of shards"),
        ({"weight_map": {}}, "weight_map names no shard"),
        ({"weight_map": [1]}, "not an index of shards"),
        ({"weight_map": None}, "not an index of shards"),
        ({}, "not an index of shards"),
        ([], "not an index of shards"),
        ("{", "index.json: not JSON ("),
        ("[" * 100_000, "index.json: not JSON (nested too deeply)"),
        ('{"weight_map": ' + "9" * 5000, "index.json: not JSON (a number of more than 4,300 digits)"),
        (b'{"weight_map": "\xff"}', "index.json: not JSON (not UTF-8"),
    ],
)
def test_an_index_names_files_of_its_own_folder(tmp_path, index, message):
    (tmp_path / "part.safetensors").write_bytes(safetensors({"a": ("F32", [1], 0, 4)}, 4))
    folder = tmp_path / "model"
    folder.mkdir()
    text = index if isinstance(index, str | bytes) else json.dumps(index)
    file = folder / "model.safetensors.index.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError) as caught:
        weight_files(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[" * 100_000, "config.json: not JSON (nested too deeply)"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "not JSON (a number of more than 4,300 digits)"),
        (b'{"a": "\xe9"}', "not JSON (not UTF-8"),
        (b"\0" * 100, "not JSON ("),
        (" " * 2**22 + "{}", "config.json: over 4.0 MiB"),
        ("[1]", "config.json: must be a JSON object"),
        ("", "config.json: not JSON ("),
    ],
)
def test_a_configuration_is_read_with_limits(tmp_path, config, message):
    from qeval.models.config import read_json

    file = tmp_path / "config.json"
    file.write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.raises(ModelError) as caught:
        read_json(file)
    assert message in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("code", "damaged"),
    [
        (b"\x80\x02" + b"(" * 20_000 + b".", True),
        (b"\x80\x02" + b"]" * 20_000 + b".", True),
        (b"\x80\x04" + b"\x8f" * 100 + b".", True),  # empty sets
        (b"\x80\x02}(X\x01\x00\x00\x00aK\x01K\x02\x86" + b"2\x86" * 60 + b"u.", False),  # 2^60 leaves
    ],
)
def test_a_pickle_has_a_bounded_number_of_steps_and_its_trees_are_not_walked(
    tmp_path, monkeypatch, code, damaged
):
    import zipfile

    from qeval.models import torch_file

    monkeypatch.setattr(torch_file, "_MAX_STEPS", 10_000)
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", code)
    if damaged:
        with pytest.raises(ModelError, match=r"its data\.pkl is damaged"):
            torch_file.read_torch_file(path)
    else:
        assert torch_file.read_torch_file(path).facts == {}


def test_a_tokenizer_may_be_longer_than_a_configuration(tmp_path):
    from qeval.models.tokenizer_file import read_json

    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": "' + "x" * 2**25 + '"}}')
    assert len(read_json(tmp_path / "tokenizer.json")["model"]["vocab"]) == 2**25


def test_shapes_that_the_configuration_does_not_say_are_refused(tiny_llama, tmp_path):
    """For a library that loads the model itself; what transformers loads is refused alike."""
    from qeval.core.errors import EngineError
    from qeval.models.loading import check_shapes, load_model

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "wide"))
    check_shapes(folder, "float32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 176}))
    for load in (check_shapes, lambda *args: load_model(*args, "cpu")):
        with pytest.raises(EngineError, match=r"down_proj.weight is \[64, 172\] .* and \[64, 176\] by"):
            load(folder, "float32")
