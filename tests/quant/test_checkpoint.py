"""`checkpoint` and `none`: existing weights as they are, keyed by content."""

import shutil
from pathlib import Path

import pytest

from qeval.cells import plan
from qeval.errors import ModelError
from qeval.models import resolve_model
from qeval.spec import load_spec
from qeval.weights import read_tensors


def cells(tmp_path: Path, model: Path, *quantizations: str):
    spec = tmp_path / "s.yaml"
    spec.write_text(
        f"name: s\nmodels: [{model}]\ndtype: float32\nquantizations: [{', '.join(quantizations)}]\n"
        "tasks: [{perplexity: {dataset: pydoc}}]\n"
    )
    ref = resolve_model(str(model), dtype="float32", cache_dir=tmp_path)
    return plan(load_spec(spec), [ref], tmp_path)


def test_a_folder_is_opened_where_it_lies(tiny_llama, tmp_path):
    none, same = cells(tmp_path, tiny_llama, "none", f"{{checkpoint: {tiny_llama}}}")
    assert none.row.artifact.path == same.row.artifact.path == tiny_llama.resolve()
    assert (none.row.engine, same.row.engine) == ("hf", "hf")
    assert none.row.artifact.bpw == same.row.artifact.bpw == 32
    assert none.key != same.key
    assert same.row.quantization.label == "tiny-llama"


def test_the_key_follows_the_content_and_not_the_place(tiny_llama, tmp_path):
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    (here,) = cells(tmp_path, tiny_llama, f"{{checkpoint: {tiny_llama}}}")
    (there,) = cells(tmp_path, tiny_llama, f"{{checkpoint: {copy}}}")
    assert here.key == there.key
    config = copy / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    (changed,) = cells(tmp_path, tiny_llama, f"{{checkpoint: {copy}}}")
    assert changed.key != here.key


def test_a_checkpoint_needs_no_tokenizer_of_its_own(tiny_llama, tmp_path):
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "bare"))
    for file in copy.glob("tokenizer*"):
        file.unlink()
    (cell,) = cells(tmp_path, tiny_llama, f"{{checkpoint: {{path: {copy}, label: mine}}}}")
    assert cell.row.quantization.label == "mine"


def test_quantized_folders_are_sized_as_stored(tiny_llama, tmp_path):
    import json

    copy = Path(shutil.copytree(tiny_llama, tmp_path / "q"))
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    (cell,) = cells(tmp_path, tiny_llama, f"{{checkpoint: {copy}}}")
    artifact = cell.row.artifact
    assert artifact.details["quant_method"] == "gptq"
    assert artifact.bpw is None
    assert artifact.weight_bytes + artifact.embedding_bytes == sum(
        t.n_bytes for t in read_tensors(copy)
    )


@pytest.mark.parametrize("content", [b"", b"this is text, not a model"])
def test_a_gguf_that_is_not_one_stops_before_any_job(tiny_llama, tmp_path, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.gguf: not a GGUF file"):
        cells(tmp_path, tiny_llama, f"{{checkpoint: {path}}}")


def test_a_truncated_gguf_stops_before_any_job(tiny_llama, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 10)
    with pytest.raises(ModelError, match="cut off"):
        cells(tmp_path, tiny_llama, f"{{checkpoint: {path}}}")


def test_a_checkpoint_that_is_nowhere(tiny_llama, tmp_path):
    with pytest.raises(ModelError, match="/no/such/folder: no such model folder"):
        cells(tmp_path, tiny_llama, "{checkpoint: /no/such/folder}")
