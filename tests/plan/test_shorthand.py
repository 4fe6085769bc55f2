"""What people write in one line: every method has a form; what is wrong is told with what is close."""

from __future__ import annotations

import pytest
import yaml

from qeval.core.errors import UsageError
from qeval.formats.gguf import TYPES
from qeval.plan.shorthand import names, quantization, split, task
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS


def row(item: str) -> object:
    return yaml.safe_load(quantization(item))


@pytest.mark.parametrize(
    ("item", "entry"),
    [
        ("none", "none"),
        ("Q4_K_M", {"gguf": "Q4_K_M"}),
        ("q4_k_m", {"gguf": "Q4_K_M"}),
        ("gguf:q8_0", {"gguf": "Q8_0"}),
        ("Q4_K_M+imatrix", {"gguf": {"type": "Q4_K_M", "imatrix": True}}),
        ("gptq:4", {"gptq": 4}),
        ("gptq:4:g128", {"gptq": {"num_bits": 4, "group_size": 128}}),
        ("gptq:g-1", {"gptq": {"group_size": -1}}),
        ("gptq:3:act_order:asym", {"gptq": {"num_bits": 3, "act_order": True, "symmetric": False}}),
        ("gptq:4:laboratory", {"gptq": {"num_bits": 4, "backend": "laboratory"}}),
        ("awq", "awq"),
        ("nf4", {"bitsandbytes": {"num_bits": 4, "type": "nf4"}}),
        ("NF4:double_quant", {"bitsandbytes": {"num_bits": 4, "type": "nf4", "double_quant": True}}),
        ("int8", {"bitsandbytes": 8}),
        ("fp8", {"compressed-tensors": "FP8"}),
        ("w4a16:gptq", {"compressed-tensors": {"scheme": "W4A16", "algorithm": "gptq"}}),
        ("int4wo", {"torchao": "int4wo"}),
        ("quanto:int4", {"quanto": "int4"}),
        ("rtn:4", {"rtn": 4}),
        (
            "rtn:4:g64:a8:kv4",
            {"rtn": {"num_bits": 4, "group_size": 64}, "activations": 8, "kv_cache": 4},
        ),
        ("rtn:4:kv8", {"rtn": 4, "kv_cache": 8}),
        ("none@vllm", {"none": None, "engine": "vllm"}),
        ("gptq:4@vllm", {"gptq": 4, "engine": "vllm"}),
        ("smoothquant:0.5", {"smoothquant": 0.5}),
        ("someone/model-AWQ", {"checkpoint": "someone/model-AWQ"}),
        ("someone/model-GGUF:Q4_K_M", {"checkpoint": "someone/model-GGUF:Q4_K_M"}),
        ("./here", {"checkpoint": "./here"}),
        ("checkpoint:here", {"checkpoint": "here"}),
        ("here.gguf", {"checkpoint": "here.gguf"}),
        (
            "http://localhost:8000/v1#m",
            {"endpoint": {"base_url": "http://localhost:8000/v1", "model": "m"}},
        ),
        ("{gptq: {num_bits: [3, 4]}}", {"gptq": {"num_bits": [3, 4]}}),
    ],
)
def test_a_line_says_what_a_spec_says(item, entry):
    assert row(item) == entry


def test_every_method_and_type_has_a_short_form():
    for name in METHODS.built_in:
        if name not in ("checkpoint", "endpoint"):
            assert row(name) == name
    for kind in TYPES:
        assert row(kind) == {"gguf": kind}
    for word, (method, options) in names().items():
        made = METHODS[method].Options.model_validate(options)  # all that they stand for is possible
        assert METHODS[method]().label(made), word


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("Q4_KM", "no quantization is called 'Q4_KM'; did you mean 'Q4_K_M'"),
        ("gptq4", "no quantization is called 'gptq4'; did you mean gptq:4?"),
        ("gptq-4bit", "did you mean gptq:4?"),
        ("gtpq", "did you mean 'gptq'"),
        ("zzz", "known: a method (`qeval list methods`), a GGUF type (Q4_K_M), or a path"),
        ("gptq:4:128", "gptq has no '128'; a group size is g128"),
        ("gptq:4:act_oder", "gptq has no 'act_oder'; did you mean 'act_order'?"),
        ("torchao:int8wo:sym", "torchao has no 'sym'"),
        ("gptq:4:g64:g128", "'g128': its group_size is given already"),
        ("gptq:4@vlm", "no engine is called 'vlm'; did you mean 'vllm'?"),
        ("http://localhost:8000/v1", "name the server's model: http://localhost:8000/v1#NAME"),
        ("{gptq: [", "not an entry of a spec"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_close(item, message):
    with pytest.raises(UsageError) as caught:
        quantization(item)
    assert message in str(caught.value)


def test_a_folder_without_a_slash_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"a folder is written with a slash: \./mine"):
        quantization("mine")


@pytest.mark.parametrize(
    ("item", "entry"),
    [
        ("perplexity", {"perplexity": {"dataset": "wikitext2"}}),
        ("perplexity:c4", {"perplexity": {"dataset": "c4"}}),
        ("perplexity:file:my text.txt", {"perplexity": {"dataset": "file:my text.txt"}}),
        ("divergence", "divergence"),
        ("humaneval", "humaneval"),
        (
            "{humaneval: {n_samples: 2, temperature: 1}}",
            {"humaneval": {"n_samples": 2, "temperature": 1}},
        ),
    ],
)
def test_tasks(item, entry):
    assert yaml.safe_load(task(item)) == entry


def test_every_task_has_a_short_form():
    for name in TASKS.built_in:
        (found,) = [yaml.safe_load(task(name))]
        options = found[name] if isinstance(found, dict) else {}
        assert TASKS[name].Options.model_validate(options)


@pytest.mark.parametrize("item", ["humanevl", "speed:c4"])
def test_tasks_that_are_none(item):
    with pytest.raises(UsageError, match=r"did you mean 'humaneval'|reads no text"):
        task(item)


def test_commas_in_brackets_belong_to_an_item():
    assert split("Q8_0, {rtn: {num_bits: [4, 8]}} ,awq,") == [
        "Q8_0",
        "{rtn: {num_bits: [4, 8]}}",
        "awq",
    ]
