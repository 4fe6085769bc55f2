"""An exported row is the weights that were measured, and the programs that it names load it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import ppl, record

import qeval
from qeval.cli.main import cli
from qeval.core.artifact import ModelRef
from qeval.core.errors import StoreError, UsageError
from qeval.quant.base import BuildContext
from qeval.quant.rtn import Rtn, RtnOptions

WINDOWS = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]


def measured(label, artifact, **fields):
    made = record(label, "perplexity", [ppl(WINDOWS)], **fields)
    return replace(made, artifact=artifact.summary() if hasattr(artifact, "summary") else artifact)


@pytest.fixture(scope="module")
def rounded(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("rtn")
    ref = ModelRef("tiny", tiny_llama, "sha256:0", "float32")
    context = BuildContext(ref, out, None, list, lambda *_: None, out)
    return Rtn().build(RtnOptions(num_bits=4, group_size=4), context)


def test_a_folder_loads_in_transformers_and_predicts_as_what_was_measured(
    keep, rounded, tmp_path, capsys
):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    results = keep([measured("RTN W4", rounded)])
    out = tmp_path / "winner"
    cli(["export", "RTN W4", str(out), str(results)], standalone_mode=False)
    assert f"written: {out / 'README.md'}" in capsys.readouterr().err
    card = (out / "README.md").read_text()
    for said in (
        "- method: rtn (num_bits=4)",
        "gptq/wikitext2",
        "stored as floats",
        "vllm serve winner",
    ):
        assert said in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('"winner"', repr(str(out)))
    names = {}
    exec(code, names)
    ids = torch.tensor([names["tokenizer"].encode("the quick brown fox")])
    source = transformers.AutoModelForCausalLM.from_pretrained(rounded.path, dtype="auto")
    with torch.inference_mode():
        assert torch.equal(names["model"](ids).logits, source(ids).logits)
    assert not list(out.rglob("*.partial*")) and not list(tmp_path.glob(".winner*"))


@pytest.mark.real
def test_a_gguf_loads_in_llama_cpp(keep, tiny_f32, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    results = qeval.load(keep([measured("Q8_0", tiny_f32)]))
    files = results.export("gguf", tmp_path / "gg")
    assert [f.suffix for f in files] == [".gguf", ".md"]
    assert files[0].read_bytes() == Path(tiny_f32.path).read_bytes()
    assert f"llama-server -m gg/{files[0].name}" in files[1].read_text()
    model = llama_cpp.Llama(str(files[0]), n_ctx=64, verbose=False)
    assert len(model.create_completion("the", max_tokens=3)["choices"]) == 1
    model.close()


def test_all_parts_of_a_split_file_go_along(keep, tiny_f32, tmp_path):
    pytest.importorskip("gguf")
    from gguf_files import split

    parts = split(Path(tiny_f32.path), tmp_path / "parts" / "m", 3)
    results = qeval.load(keep([measured("Q8_0", replace(tiny_f32, path=parts[0]))]))
    files = results.export("Q8_0", tmp_path / "out")
    assert [f.name for f in files[:-1]] == [part.name for part in parts]


def test_a_model_that_nothing_was_done_to_keeps_its_own_card(keep, rounded, tmp_path):
    (rounded.path / "README.md").write_text("theirs")
    try:
        files = qeval.load(keep([measured("none", rounded)])).export("none", tmp_path / "out")
    finally:
        (rounded.path / "README.md").unlink()
    assert (tmp_path / "out" / "README.original.md").read_text() == "theirs"
    assert files[-1].read_text().startswith("---\n")


def test_what_cannot_be_exported_says_why_and_leaves_nothing(keep, rounded, tmp_path):
    gone = {**rounded.summary(), "path": str(tmp_path / "gone")}
    low = record("W4A8", "perplexity", [ppl(WINDOWS)], order=(0, 8, 0))
    options = {**low.cell["quantization"], "options": {"activations": {"num_bits": 8}}}
    low = replace(low, cell={**low.cell, "quantization": options}, artifact=rounded.summary())
    results = qeval.load(keep([measured("RTN W4", rounded), measured("none", gone), low]))
    with pytest.raises(StoreError, match=r"its weights are not here .*gone"):
        results.export("none", tmp_path / "a")
    with pytest.raises(UsageError, match="W4A8: activations are rounded by qeval"):
        results.export("W4A8", tmp_path / "a")
    with pytest.raises(UsageError, match="no row is called 'Q9'"):
        results.export("Q9", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="full: is there already"):
        results.export("RTN W4", full)
    assert [p.name for p in full.iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        results.export("RTN W4", tmp_path / "file" / "out")
