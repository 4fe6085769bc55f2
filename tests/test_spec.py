"""Specs: grids, defaults, labels, and one clear line for everything that can be wrong."""

from pathlib import Path

import pytest

from qeval.errors import SpecError
from qeval.spec import load_spec

GOOD = """\
name: t
models: [some/model]
dtype: float32
quantizations:
  - none
  - rtn: {num_bits: [4, 8], group_size: 32}
  - gguf: Q8_0
tasks:
  - perplexity: {datasets: [pydoc, wikitext2], protocol: [gptq, llamacpp], limit: 3}
  - speed
"""


def load(tmp_path: Path, text: str, **overrides):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return load_spec(path, overrides)


def test_grids_expand_in_order(tmp_path):
    experiment = load(tmp_path, GOOD)
    assert [q.label for q in experiment.quantizations] == [
        "none",
        "RTN W4A16g32",
        "RTN W8A16g32",
        "Q8_0",
    ]
    assert [t.label for t in experiment.tasks] == [
        "gptq/pydoc",
        "llamacpp/pydoc",
        "gptq/wikitext2",
        "llamacpp/wikitext2",
        "speed",
    ]
    assert [t.limit for t in experiment.tasks] == [3, 3, 3, 3, None]
    assert experiment.baseline == "none"


def test_an_option_that_takes_a_list_is_no_grid(tmp_path):
    text = GOOD.replace("  - speed", "  - humaneval: {n_samples: 20, k: [1, 10], temperature: 0.8}")
    (entry,) = [t for t in load(tmp_path, text).tasks if t.task == "humaneval"]
    assert entry.options.k == [1, 10]


def test_defaults_merge_and_an_entry_wins(tmp_path):
    text = GOOD + "defaults:\n  rtn: {symmetric: true, group_size: 64}\n  perplexity: {limit: 9}\n"
    experiment = load(tmp_path, text)
    assert [q.options.group_size for q in experiment.quantizations[1:3]] == [32, 32]
    assert all(q.options.symmetric for q in experiment.quantizations[1:3])
    assert experiment.tasks[0].limit == 3


def test_a_limit_from_the_command_line_wins(tmp_path):
    assert {t.limit for t in load(tmp_path, GOOD, limit=2).tasks} == {2}


def test_two_rows_never_share_a_label(tmp_path):
    text = GOOD.replace("  - gguf: Q8_0", "  - checkpoint: a/model\n  - checkpoint: b/model")
    labels = [q.label for q in load(tmp_path, text).quantizations]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: t\n", "", "spec.yaml:1: the key 'name' is missing"),
        ("name: t", "name: a/b", "spec.yaml:1: name: must be a plain name"),
        ("dtype: float32", "dtype: float8", "spec.yaml:3: dtype: "),
        ("dtype: float32", "dytpe: float32", "spec.yaml:3: dytpe: unknown key; did you mean 'dtype'?"),
        ("- gguf: Q8_0", "- ggfu: Q8_0", "spec.yaml:7: quantizations: unknown method 'ggfu'"),
        ("- gguf: Q8_0", "- gguf: Q8_1", "spec.yaml:7: quantizations.gguf.type: unknown"),
        ("- gguf: Q8_0", "- [a, b]", "spec.yaml:7: quantizations: each entry is a name"),
        ("[4, 8]", "1", "spec.yaml:6: quantizations.rtn.num_bits: "),
        ("[4, 8]", "17", "spec.yaml:6: quantizations.rtn.num_bits: "),
        ("[4, 8]", '"4"', "spec.yaml:6: quantizations.rtn.num_bits: "),
        ("[4, 8]", "[]", "spec.yaml:6: quantizations.rtn.num_bits: is an empty list"),
        ("group_size: 32", "group_size: 0", "spec.yaml:6: quantizations.rtn.group_size: must be"),
        ("group_size: 32", "groupsize: 32", "groupsize: unknown key; did you mean 'group_size'?"),
        ("  - speed", "  - sped", "spec.yaml:10: tasks: unknown task 'sped'; did you mean 'speed'?"),
        ("limit: 3", "limits: 3", "tasks.perplexity.limits: unknown key; did you mean 'limit'?"),
        ("limit: 3", "limit: 0", "spec.yaml:9: tasks.perplexity.limit: "),
        ("pydoc, wikitext2", "pydoc, wikitxt2", "did you mean 'wikitext2"),
        ("[gptq, llamacpp]", "gtpq", "spec.yaml:9: tasks.perplexity.protocol: "),
        ("- none\n", "- none\n  - none\n", "quantizations: entry 2 repeats entry 1"),
        ("models: [some/model]", "models: []", "spec.yaml:2: models: must name at least one"),
        ("models: [some/model]", "models: [{path: x}]", "spec.yaml:2: models"),
        ("name: t", "name: t\nname: u", "spec.yaml:2: 'name' stands twice"),
        ("name: t", "name: [", "not valid YAML"),
        ("dtype: float32", "baseline: nonne", "baseline: no quantization is called 'nonne'; did you"),
        ("dtype: float32", "defaults: {rnt: {}}", "defaults.rnt: no such method or task; did you"),
        ("dtype: float32", "device: gpu", "spec.yaml:3: device: must be auto, cpu, cuda or cuda:N"),
        ("dtype: float32", "timeout: -1", "spec.yaml:3: timeout: "),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert text.startswith(str(tmp_path / "spec.yaml"))


def test_a_missing_file_and_a_list_at_the_top(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "nope.yaml")
    with pytest.raises(SpecError, match="top level must be a mapping"):
        load(tmp_path, "- a\n")


def test_k_over_n_samples_is_refused(tmp_path):
    text = GOOD.replace("  - speed", "  - humaneval: {n_samples: 5, k: [1, 10], temperature: 0.8}")
    with pytest.raises(SpecError, match=r"spec.yaml:10: tasks.humaneval.*10"):
        load(tmp_path, text)
