"""Specs: grids, defaults, labels, and one clear line for everything that can be wrong."""

from pathlib import Path

import pytest

from qeval.core.errors import SpecError
from qeval.core.execution import ActivationOptions, KvCacheOptions, Running
from qeval.plan.spec import load_spec, parse_spec
from qeval.plan.yaml_file import YamlFile

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
    assert [t.limit for t in load(tmp_path, GOOD, limit=2).tasks] == [2, 2, 2, 2, None]


def test_a_task_that_reads_no_units_has_no_limit(tmp_path):
    """Whatever the spec and the command line say: it is in no key and in no header."""
    benchmark = "  - perplexity: {dataset: wikitext2, protocol: gptq-benchmark, limit: 1}\n"
    text = GOOD.replace("  - speed\n", f"  - speed: {{limit: 4}}\n{benchmark}") + "limit: 7\n"
    assert [t.limit for t in load(tmp_path, text).tasks] == [3, 3, 3, 3, None, None]


def test_two_rows_never_share_a_label(tmp_path):
    text = GOOD.replace("  - gguf: Q8_0", "  - checkpoint: a/model\n  - checkpoint: b/model")
    labels = [q.label for q in load(tmp_path, text).quantizations]
    assert len(set(labels)) == len(labels)


RUNNING = """\
  - none: {kv_cache: [16, 4]}
  - rtn: {num_bits: 4, group_size: 32}
    activations: {num_bits: [16, 8]}
    kv_cache: {num_bits: 2, group_size: 32}
  - bitsandbytes: 4
    activations: {num_bits: 8, granularity: token, symmetric: true}
"""


def test_activations_and_kv_cache_stand_beside_any_method_or_among_its_options(tmp_path):
    experiment = load(tmp_path, GOOD.replace("  - none\n", RUNNING))
    found = experiment.quantizations
    assert [q.label for q in found] == [
        "none",
        "KV4",
        "RTN W4A16KV2g32",
        "RTN W4A8KV2g32",
        "NF4 A8",
        "RTN W4A16g32",
        "RTN W8A16g32",
        "Q8_0",
    ]
    assert found[0].execution.to_json() == {}
    assert found[1].execution.to_json() == {"kv_cache": {"num_bits": 4, "group_size": 128}}
    assert found[4].described() == {
        "num_bits": 4,
        "type": None,
        "double_quant": False,
        "llm_int8_threshold": None,
        "activations": {"num_bits": 8, "granularity": "token", "symmetric": True},
    }
    assert experiment.baseline == "none"


def test_a_list_of_them_holds_numbers_and_mappings(tmp_path):
    rows = "activations: [8, {num_bits: [4, 8], symmetric: true}]"
    text = GOOD.replace("group_size: 32}", "group_size: 32}\n    " + rows)
    found = [q for q in load(tmp_path, text).quantizations if "activations" in q.execution.to_json()]
    asked = [q.execution.to_json()["activations"] for q in found[:3]]
    assert [(a["num_bits"], a["symmetric"]) for a in asked] == [(8, False), (4, True), (8, True)]
    assert len({q.label for q in found}) == len(found)


def test_defaults_of_a_method_may_hold_them_and_an_entry_wins(tmp_path):
    text = GOOD + "defaults:\n  rtn: {kv_cache: 4, activations: 8}\n"
    text = text.replace("group_size: 32}", "group_size: 32}\n    activations: 16")
    labels = [q.label for q in load(tmp_path, text).quantizations]
    assert labels == ["none", "RTN W4A16KV4g32", "RTN W8A16KV4g32", "Q8_0"]


@pytest.mark.parametrize(
    ("weights", "label"),
    [
        ("none", "A8KV4"),
        ("RTN W4A16g64 sym", "RTN W4A8KV4g64 sym"),
        ("QuantEase W3A16 first 2 blocks", "QuantEase W3A8KV4 first 2 blocks"),
        ("NF4 double", "NF4 double A8KV4"),
    ],
)
def test_labels_say_the_bits_of_all_three(weights, label):
    both = Running(ActivationOptions(num_bits=8), KvCacheOptions(num_bits=4))
    assert both.label(weights) == label
    assert Running().label(weights) == weights


def test_rows_that_differ_in_a_detail_of_them_are_told_apart(tmp_path):
    rows = "  - none: {kv_cache: {num_bits: 4, group_size: [32, 64]}}\n"
    experiment = load(tmp_path, GOOD.replace("  - none\n", rows))
    labels = [q.label for q in experiment.quantizations[:2]]
    assert labels == ["KV4 (kv_cache.group_size=32)", "KV4 (kv_cache.group_size=64)"]
    assert experiment.baseline is None  # a rounded row is no baseline unless the spec names it
    named = load(tmp_path, GOOD.replace("  - none\n", rows) + f"baseline: {labels[1]}\n")
    assert named.baseline == labels[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: t\n", "", "spec.yaml:1: the key 'name' is missing"),
        ("- none\n", "- none: {kv_cach: 4}\n", "kv_cach: unknown key; did you mean 'kv_cache'?"),
        ("- none\n", "- none: {kv_cache: {}}\n", "none.kv_cache: the key 'num_bits' is missing"),
        ("- none\n", "- none: {kv_cache: 5}\n", "spec.yaml:5: quantizations.none.kv_cache.num_bits: "),
        ("- none\n", "- none: {kv_cache: 32}\n", "input should be 2, 3, 4, 8 or 16 (got 32)"),
        (
            "- none\n",
            "- none:\n    activations: 1\n",
            "spec.yaml:6: quantizations.activations.num_bits: ",
        ),
        (
            "- none\n",
            "- none: {kv_cache: {num_bits: 4, group: 8}}\n",
            "kv_cache.group: unknown key; did",
        ),
        (
            "- none\n",
            "- none: {activations: {num_bits: 8, granularity: tensor}}\n",
            "granularity: input",
        ),
        ("- none\n", "- none: {kv_cache: {num_bits: 4, group_size: 0}}\n", "kv_cache.group_size: "),
        ("- none\n", "- none: {kv_cache: 4}\n    kv_cache: 4\n", "kv_cache: stands beside the method"),
        ("- none\n", "- none\n  - none: {kv_cache: 16}\n", "quantizations: entry 2 repeats entry 1"),
        ("- none\n", "- kv_cache: 4\n", "each entry is a name, or one name with its options; beside"),
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
        ("dtype: float32", "timeout: .nan", "spec.yaml:3: timeout: input should be a finite number"),
        ("dtype: float32", "timeout: .inf", "spec.yaml:3: timeout: input should be a finite number"),
        ("dtype: float32", "timeout: 1e300", "spec.yaml:3: timeout: input should be less than"),
        (
            "dtype: float32",
            "device: 'cuda:²'",
            "spec.yaml:3: device: must be auto, cpu, cuda or cuda:N",
        ),
        ("dtype: float32", "device: 'cuda:99999999999'", "spec.yaml:3: device: must be auto, cpu"),
        ("dtype: float32", "n_threads: 100000000000", "spec.yaml:3: n_threads: input should be less"),
        ("dtype: float32", "batch_size: 100000000000", "spec.yaml:3: batch_size: input should be less"),
        ("dtype: float32", "defaults: {rtn: {foo: 1}}", "spec.yaml:3: defaults.rtn.foo: unknown key"),
        ("dtype: float32", "defaults: {speed: {repeat: 1}}", "did you mean 'repeats'?"),
        ("dtype: float32", "limit: 2001-13-45", "limit: input should be a valid integer (got '2001-13"),
        ("models: [some/model]", "models: ['']", "models.id: string should have at least 1 character"),
        (
            "models: [some/model]",
            "models: [{id: 3}]",
            "models.id: input should be a valid string (got 3)",
        ),
        ("name: t", "name: 2.0", "name: input should be a valid string (got 2.0): put it in quotes"),
        ("name: t", f"name: {'a' * 256}", "spec.yaml:1: name: must be a plain name"),
        ("name: t", f"name: {'é' * 128}", "spec.yaml:1: name: must be a plain name"),
        ("name: t", 'name: "a\\nb"', "spec.yaml:1: name: must be a plain name"),
        ("name: t", "name: 'a '", "spec.yaml:1: name: must be a plain name"),
        (
            "  - speed",
            "  - speed: {batch_sizes: [0]}",
            "tasks.speed.batch_sizes: input should be greater",
        ),
        (
            "  - speed",
            "  - speed: {repeats: 1000000000000}",
            "tasks.speed.repeats: input should be less",
        ),
        (
            "  - speed",
            "  - humaneval: {n_samples: 1000000000000, temperature: 0.8}",
            "spec.yaml:10: tasks.humaneval.n_samples: input should be less than or equal to 10000",
        ),
        (
            "  - speed",
            "  - humaneval: {timeout_s: .inf}",
            "tasks.humaneval.timeout_s: input should be a finite number (got inf)",
        ),
        (
            "  - speed",
            "  - humaneval: {n_samples: 2, temperature: 1e-300}",
            "tasks.humaneval: temperature: under 0.001 logits overflow: 0 is greedy",
        ),
        (
            "- gguf: Q8_0",
            "- gptq: {backend: laboratory, calibration: {dataset: pydoc, seedd: 1}}",
            "spec.yaml:7: quantizations.gptq.calibration.seedd: unknown key; did you mean 'seed'?",
        ),
        (
            "- gguf: Q8_0",
            "- gptq: {backend: laboratory, calibration: {num_bits: 1}}",
            "calibration.num_bits: unknown key; known: dataset, n_samples, seed, seq_len",
        ),
        (
            "- gguf: Q8_0",
            "- gptq: {calibration: {n_samples: 1000000000000}}",
            "quantizations.gptq.calibration: n_samples x seq_len is 2,048,000,000,000,000 tokens, the",
        ),
        (
            "- gguf: Q8_0",
            "- gptq: {calibration: {seed: -1}}",
            "quantizations.gptq.calibration.seed: input should be greater than or equal to 0 (got -1)",
        ),
        (
            "[4, 8]",
            f"[{', '.join(['4'] * 2000)}]",
            "spec.yaml:6: quantizations.rtn: a grid of 2,000 combinations, the most is 1,000",
        ),
        (
            "models: [some/model]",
            f"models: [{', '.join(f'm{i}' for i in range(1001))}]",
            "spec.yaml:2: models: over 1,000 entries, each combination of a grid counted",
        ),
        (
            "- gguf: Q8_0",
            f"- gguf: '{'Q' * 5000}'",
            "spec.yaml:7: quantizations.gguf.type: unknown GGUF type 'QQQQQ",
        ),
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
    assert len(text) < 700 + len(str(tmp_path))


def test_a_spec_has_a_bounded_number_of_cells(tmp_path):
    models = ", ".join(f"m{i}" for i in range(1000))
    rows = "rtn: {num_bits: [2, 3, 4, 5, 6, 7, 8], group_size: [8, 16, 32, 64, 128]}"
    with pytest.raises(SpecError, match=r"spec.yaml:1: 190,000 cells, the most is 100,000: split it"):
        load(tmp_path, GOOD.replace("[some/model]", f"[{models}]").replace("gguf: Q8_0", rows))


def test_a_number_may_be_written_with_an_exponent(tmp_path):
    text = GOOD.replace("  - speed", "  - humaneval: {n_samples: 2, temperature: 1, top_p: 1e-3}")
    assert load(tmp_path, text).tasks[-1].options.top_p == 0.001


def test_a_missing_file_and_a_list_at_the_top(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "nope.yaml")
    with pytest.raises(SpecError, match="top level must be a mapping"):
        load(tmp_path, "- a\n")


def test_k_over_n_samples_is_refused(tmp_path):
    text = GOOD.replace("  - speed", "  - humaneval: {n_samples: 5, k: [1, 10], temperature: 0.8}")
    with pytest.raises(SpecError, match=r"spec.yaml:10: tasks.humaneval.*10"):
        load(tmp_path, text)


WRONG = """\
name: t
models: [some/model, {id: 3}]
quantizations:
  - none
  - rtn: {num_bits: 99, symetric: true}
  - gptqq
  - gguf: Q9
tasks:
  - perplexity: {protocol: gptq}
  - speed
defaults:
  rtn: {groups: 8}
limit: 0
nothing: 1
"""


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, WRONG)
    head, *lines = caught.value.lines
    told = [line.removeprefix(f"- {tmp_path}/spec.yaml:").split(": ")[:2] for line in lines]
    assert head == "9 errors:"
    assert told == [
        ["13", "limit"],
        ["14", "nothing"],
        ["2", "models.id"],
        ["12", "defaults.rtn.groups"],
        ["5", "quantizations.rtn.num_bits"],
        ["5", "quantizations.rtn.symetric"],
        ["6", "quantizations"],
        ["7", "quantizations.gguf.type"],
        ["9", "tasks.perplexity"],
    ]


def test_what_is_right_of_a_wrong_spec_can_be_asked_about(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(WRONG)
    found = parse_spec(YamlFile(path)).experiment
    assert found is not None
    assert [m.id for m in found.models] == ["some/model"]
    assert [q.label for q in found.quantizations] == ["none"]
    assert [t.label for t in found.tasks] == ["speed"]
    path.write_text(WRONG.replace("  - speed\n", ""))
    assert parse_spec(YamlFile(path)).experiment is None


def test_an_error_that_many_rows_share_is_told_once(tmp_path):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD + "engine: vllmm\n")
    assert len(caught.value.lines) == 1
