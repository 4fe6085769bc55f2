"""safetensors headers and model folders, read without torch."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from qeval.errors import ModelError
from qeval.models import check_model, identify, resolve_model
from qeval.quant.folder import describe_folder
from qeval.weights import read_header, read_tensors, weight_files


def test_the_header_lists_what_torch_wrote(tiny_llama):
    from safetensors.torch import load_file

    tensors = {t.name: t for t in read_header(tiny_llama / "model.safetensors")}
    loaded = load_file(tiny_llama / "model.safetensors")
    assert {n: t.shape for n, t in tensors.items()} == {n: tuple(x.shape) for n, x in loaded.items()}
    assert all(tensors[n].n_bytes == x.nbytes for n, x in loaded.items())
    embeddings = {n for n, t in tensors.items() if t.is_embedding}
    assert embeddings == {"model.embed_tokens.weight", "lm_head.weight"}


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
    ],
)
def test_a_broken_file_is_one_line(tmp_path, data, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_header(path)


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
    import shutil

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


def test_a_bin_checkpoint_is_sized_by_its_files(tiny_llama, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "bin"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    check_model(folder)
    artifact = describe_folder(folder, "float32")
    assert artifact.weight_bytes == (folder / "pytorch_model.bin").stat().st_size
    assert artifact.bpw is None


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_text("no")
    (tmp_path / "x.txt").write_text("no")
    for name, message in (
        ("x.gguf", "not a GGUF file"),
        ("x.txt", "a model is a folder or a .gguf file"),
        (".", "no config.json"),
        ("gone", "no such model folder"),
    ):
        with pytest.raises(ModelError, match=message):
            resolve_model(str(tmp_path / name), dtype="float32", cache_dir=tmp_path / "cache")


def test_a_hub_model_without_a_hub_is_one_line(tmp_path):
    code = (
        "from pathlib import Path; from qeval.models import resolve_model\n"
        "resolve_model('no-such-org/no-such-model', dtype='float32', cache_dir=Path('c'))"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "no such folder, and the hub did not give it" in done.stderr.splitlines()[-1]
