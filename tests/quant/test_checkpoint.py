"""`checkpoint` and `none`: existing weights as they are, keyed by content."""

import json
import shutil
from pathlib import Path

import pytest
from planned import plan

from qeval.core.errors import ModelError, UsageError
from qeval.models.resolve import resolve_model
from qeval.models.weights import read_tensors
from qeval.plan.spec import load_spec
from qeval.quant.checkpoint import CheckpointOptions


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


def int8(tiny_llama: Path, folder: Path) -> Path:
    """The model as bitsandbytes would store it: int8 and a scale a row."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        tensors[f"{name.removesuffix('.weight')}.SCB"] = tensors[name].abs().amax(1)
        tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_packed_folders_are_sized_as_stored_and_say_what_they_are(tiny_llama, tmp_path):
    folder = int8(tiny_llama, tmp_path / "q")
    none, cell = cells(tmp_path, folder, "none", f"{{checkpoint: {folder}}}")
    for artifact in (none.row.artifact, cell.row.artifact):
        assert artifact.format.label == "LLM.int8()"
        assert 8 < artifact.bpw < 9
        assert artifact.weight_bytes + artifact.embedding_bytes == sum(
            t.n_bytes for t in read_tensors(folder)
        )


def test_the_rows_name_says_the_format(tiny_llama, tmp_path):
    from qeval.core.record import Record
    from qeval.report import build_table, render

    folder = int8(tiny_llama, tmp_path / "q")
    rows = cells(
        tmp_path,
        folder,
        "none",
        f"{{checkpoint: {folder}}}",
        f"{{checkpoint: {{path: {folder}, label: mine}}}}",
        f"{{checkpoint: {{path: {folder}, label: 'my LLM.int8()'}}}}",
    )
    records = [
        Record("eval", c.key + str(i), c.describe(), "ok", artifact=c.row.artifact.summary())
        for i, c in enumerate(rows)
    ]
    table = build_table(records)
    assert [row.quantization for row in table.rows] == [
        "none (LLM.int8())",
        "q (LLM.int8())",
        "mine (LLM.int8())",
        "my LLM.int8()",
    ]
    assert "| q (LLM.int8()) |" in render(table, "markdown")


def test_a_kernel_is_for_gptq_and_awq_and_changes_the_cell_alone(tiny_llama, tmp_path):
    folder = int8(tiny_llama, tmp_path / "q")
    with pytest.raises(UsageError, match=r"kernel: marlin is for GPTQ and AWQ, and this is LLM\.int8"):
        cells(tmp_path, tiny_llama, f"{{checkpoint: {{path: {folder}, kernel: marlin}}}}")
    with pytest.raises(UsageError, match="kernel: torch is for GPTQ and AWQ, and this is float"):
        cells(tmp_path, tiny_llama, f"{{checkpoint: {{path: {tiny_llama}, kernel: torch}}}}")
    auto, torch_ = CheckpointOptions(path="x"), CheckpointOptions(path="x", kernel="torch")
    assert (auto.execution(), torch_.execution()) == ({}, {"kernel": "torch"})
    assert auto.identity() == torch_.identity()


def test_code_that_comes_with_a_model_needs_the_flag(tiny_llama, tmp_path):
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "own"))
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (copy / "config.json").write_text(json.dumps(config))
    cells(tmp_path, tiny_llama, f"{{checkpoint: {copy}}}")  # a Llama: transformers has its own class
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    with pytest.raises(
        ModelError, match=r"config\.json: auto_map: .*trust_remote_code: true"
    ) as caught:
        cells(tmp_path, tiny_llama, f"{{checkpoint: {copy}}}")
    assert "\n" not in str(caught.value)
    (cell,) = cells(tmp_path, tiny_llama, f"{{checkpoint: {{path: {copy}, trust_remote_code: true}}}}")
    assert cell.row.artifact.trust_remote_code is True


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
