"""The JSON Schema of a spec says what the parser says, as far as a schema can."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from qeval.core.errors import SpecError
from qeval.plan.schema import spec_schema
from qeval.plan.spec import load_spec
from qeval.plan.yaml_file import YamlFile
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS

jsonschema = pytest.importorskip("jsonschema")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
GOOD = """\
name: t
models: [some/model]
quantizations: [none, {rtn: 4}, {gguf: Q8_0}, {gptq: {num_bits: [3, 4]}}]
tasks: [speed, {perplexity: {datasets: [pydoc, c4]}}]
"""


@pytest.fixture(scope="module")
def validator():
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_that_comes_with_qeval_validates(path, validator):
    assert [e.message for e in validator.iter_errors(YamlFile(path).data)] == []


@pytest.mark.parametrize(
    "change",
    [
        ("name: t\n", ""),
        ("[some/model]", "[]"),
        ("[some/model]", "[{id: 3}]"),
        ("{rtn: 4}", "{rtn: {num_bit: 4}}"),
        ("{rtn: 4}", "{rtn: 99}"),
        ("{rtn: 4}", "rtnn"),
        ("{rtn: 4}", "{rtn: 4, kv_cache: 5}"),
        ("{rtn: 4}", "{rtn: 4, engine: vllmm}"),
        ("{rtn: 4}", "{rtn: 4, hqq: 4}"),
        ("num_bits: [3, 4]", "num_bits: [3, four]"),
        ("num_bits: [3, 4]", "backend: gptqmodell"),
        ("datasets:", "data:"),
        ("speed", "sped"),
        ("speed", "{speed: {repeats: 0}}"),
        ("name: t\n", "name: t\nlimit: 0\n"),
        ("name: t\n", "name: t\nmore: 0\n"),
        ("name: t\n", "name: t\ndtype: float8\n"),
        ("name: t\n", "name: t\ndefaults: {rtn: {bits: 4}}\n"),
    ],
    ids=lambda change: change[1].strip() or "no name",
)
def test_what_the_parser_refuses_the_schema_refuses(change, validator, tmp_path):
    assert validator.is_valid(yaml.safe_load(GOOD))
    (tmp_path / "s.yaml").write_text(GOOD)
    load_spec(tmp_path / "s.yaml")
    wrong = GOOD.replace(*change)
    assert wrong != GOOD
    (tmp_path / "s.yaml").write_text(wrong)
    with pytest.raises(SpecError):
        load_spec(tmp_path / "s.yaml")
    assert not validator.is_valid(yaml.safe_load(wrong))


def test_every_method_and_task_is_in_it(validator):
    text = json.dumps(validator.schema)
    for name in (*METHODS.built_in, *TASKS.built_in):
        assert re.search(rf'"{name}"', text), name
