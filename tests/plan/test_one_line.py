"""A spec that the command line says, and how a model is told from a spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from qeval.core.errors import UsageError
from qeval.plan.keys import Spec
from qeval.plan.one_line import Line, is_model, name_of
from qeval.plan.spec import parse_spec


def test_a_line_is_the_spec_that_people_would_write():
    line = Line(
        "Qwen/Qwen2.5-7B", ["Q4_K_M,gptq:4", "rtn:4:kv4"], ["perplexity,humaneval"], more={"limit": 9}
    )
    assert line.text == (
        "name: Qwen2.5-7B\n"
        "models:\n"
        "  - Qwen/Qwen2.5-7B\n"
        "limit: 9\n"
        "quantizations:\n"
        "  - none\n"
        "  - gguf: Q4_K_M\n"
        "  - gptq: 4\n"
        "  - rtn: 4\n"
        "    kv_cache: 4\n"
        "tasks:\n"
        "  - perplexity: {dataset: wikitext2}\n"
        "  - humaneval\n"
    )
    found = parse_spec(line.file())
    assert not found.errors and found.experiment is not None
    labels = [q.label for q in found.experiment.quantizations]
    assert labels == ["none", "Q4_K_M", "GPTQ W4A16g128", "RTN W4A16KV4"]


def test_none_is_always_there_and_the_first():
    assert "  - none\n  - awq\n" in Line("a/b", ["awq"]).text
    assert Line("a/b", ["awq,none"]).text.count("- none") == 1
    assert Line("a/b").text.endswith("  - none\ntasks:\n  - perplexity: {dataset: wikitext2}\n")


def test_an_error_names_the_words_that_are_wrong():
    line = Line("a/b", ["gptq:5,Q9,quanto:int5"], ["perplexity:nope,x"], more={"limit": 2})
    errors = [*map(str, (*line.wrong.told, *parse_spec(line.file()).errors))]
    wrong = ["-q Q9", "-t x", "-q gptq:5", "-q quanto:int5", "-t perplexity:nope"]
    assert [e.split(": ")[0] for e in errors] == wrong
    assert errors[2].startswith("-q gptq:5: num_bits: ")


def test_where_all_are_wrong_no_other_error_hides_that():
    line = Line("a/b", ["none:4"], ["x"])
    errors = [*line.wrong.told, *parse_spec(line.file()).errors]
    assert len([e for e in errors if str(e).startswith("-t x: ")]) == 1


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        ("models/mine/", "mine"),
        ("a/b-GGUF:Q4_K_M", "b-GGUF-Q4_K_M"),
        ("x/model.Q8_0.gguf", "model.Q8_0"),
        ("http://localhost:8000/v1#org/m", "m"),
        ("./.hidden", "hidden"),
        ("a b", "a-b"),
    ],
)
def test_a_spec_is_called_as_its_model(model, name):
    assert name_of(model) == name
    assert Spec(name=name, models=["m"], quantizations=["none"], tasks=["speed"])


def test_the_folder_where_one_is_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert name_of(".") == "here"


def test_a_model_is_told_from_a_spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "done"):
        Path(folder).mkdir()
    for file in ("no_suffix", "spec.yaml", "done/records.jsonl", "x.gguf"):
        Path(file).touch()
    for model in (
        "model",
        "./model",
        "org/name",
        "org/name:Q4_K_M",
        "model:Q8_0",
        "x.gguf",
        "gone.gguf",
    ):
        assert is_model(model), model
    assert is_model("http://localhost:1/v1#m")
    for spec in ("-", "spec.yaml", "gone.yaml", "gone.yml", "no_suffix", "/dev/stdin"):
        assert not is_model(spec), spec
    with pytest.raises(UsageError, match=r"done: a results folder: `qeval table done`"):
        is_model("done")
    with pytest.raises(UsageError, match=r"did you mean 'spec.yaml'"):
        is_model("spec")
    with pytest.raises(UsageError, match=r"neither a spec .* nor a model"):
        is_model("gone")
