"""`engine:` beside a quantization, among defaults, or at the top of a spec."""

from pathlib import Path

import pytest
from planned import plan

from qeval.core.artifact import ModelRef
from qeval.core.errors import SpecError, UsageError
from qeval.core.execution import Execution
from qeval.plan import preflight
from qeval.plan.spec import load_spec

SPEC = """\
name: t
models: [m]
dtype: float32
{top}
quantizations:
{rows}
tasks:
  - divergence: {{dataset: pydoc, floors: [rounding]}}
"""


@pytest.fixture
def load(tmp_path: Path):
    def spec(*rows: str, top: str = ""):
        path = tmp_path / "spec.yaml"
        path.write_text(SPEC.format(top=top, rows="\n".join(rows)))
        return load_spec(path)

    return spec


@pytest.fixture
def keys(tiny_llama: Path, tmp_path: Path):
    model = ModelRef("m", tiny_llama, "sha256:0", "float32")
    return lambda experiment: {
        cell.row.quantization.label: cell.key for cell in plan(experiment, [model], tmp_path)
    }


def labels(experiment) -> list[str]:
    return [q.label for q in experiment.quantizations if not q.only]


def test_a_list_is_a_row_for_each_and_the_foreign_one_says_so(load):
    experiment = load(
        "  - none:\n    engine: [hf, vllm]", "  - rtn: {num_bits: 8, group_size: 32, engine: vllm}"
    )
    assert labels(experiment) == ["none", "none (vllm)", "RTN W8A16g32 (vllm)"]
    assert experiment.baseline == "none"
    twins = [q.label for q in experiment.quantizations if q.twin]
    assert twins == ["none (vllm)"]  # the baseline's weights: what the engine alone does


def test_rows_of_one_engine_with_other_options_are_told_apart(load):
    experiment = load(
        "  - none",
        "  - none:\n    engine: [{vllm: {kv_cache_dtype: [auto, fp8]}}]",
    )
    assert labels(experiment)[1:] == [
        "none (vllm) (engine.kv_cache_dtype=auto)",
        "none (vllm) (engine.kv_cache_dtype=fp8)",
    ]


def test_at_the_top_it_is_for_the_rows_that_it_can_run(load):
    experiment = load(
        "  - none", "  - gguf: Q8_0", "  - rtn: {num_bits: 4, group_size: 32}", top="engine: vllm"
    )
    assert labels(experiment) == ["none (vllm)", "Q8_0", "RTN W4A16g32 (vllm)"]
    assert experiment.baseline == "none (vllm)"


def test_an_entry_wins_over_defaults_and_these_over_the_top(load):
    top = "engine: vllm\ndefaults: {rtn: {engine: hf}}"
    rows = (
        "  - none",
        "  - rtn: {num_bits: 8, group_size: 32}",
        "  - rtn: {num_bits: 4, group_size: 32}\n    engine: vllm",
    )
    assert labels(load(*rows, top=top)) == ["none (vllm)", "RTN W8A16g32", "RTN W4A16g32 (vllm)"]


def test_keys_hold_the_engine_and_its_options_and_not_its_defaults(load, keys):
    plain = keys(load("  - none"))["none"]
    both = keys(load("  - none:\n    engine: [hf, vllm]"))
    assert both["none"] == plain  # the row's own engine, named
    written = keys(load("  - none:\n    engine: [hf, {vllm: {tensor_parallel_size: 1}}]"))
    assert written == both
    other = keys(load("  - none:\n    engine: [hf, {vllm: {tensor_parallel_size: 2}}]"))
    assert other["none (vllm)"] not in (plain, both["none (vllm)"])


def test_options_reach_the_engine_by_the_job():
    asked = Execution(engine={"kv_cache_dtype": "fp8"})
    assert Execution.from_json(asked.to_json()) == asked
    assert Execution().to_json() == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "  - gguf: Q8_0\n    engine: vllm",
            "vllm does not run weights of llamacpp: leave `engine` out",
        ),
        (
            "  - rtn: {num_bits: 4, group_size: 32}\n    engine: vlm",
            "unknown engine 'vlm'; did you mean 'vllm'?",
        ),
        (
            "  - rtn: {num_bits: 4, group_size: 32}\n    engine: {vllm: {max_num_seq: 2}}",
            "unknown key; did you mean 'max_num_seqs'?",
        ),
        (
            "  - rtn: {num_bits: 4, group_size: 32}\n    engine: {vllm: {max_num_seqs: 0}}",
            "greater than or equal to 1",
        ),
        (
            "  - rtn: {num_bits: 4, group_size: 32}\n    engine: 3",
            "takes the name of an engine, or one name with its options",
        ),
        ("  - none:\n    engine: [vllm, vllm]", "entry 2 repeats entry 1"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(load, rows, message):
    with pytest.raises(SpecError) as caught:
        load(rows)
    assert message in str(caught.value) and "spec.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_turn_out_to_be_of_another_engine_are_refused(load, tmp_path, tiny_f32):
    model = ModelRef("m", tiny_f32.path, "sha256:0", "float32")
    with pytest.raises(UsageError, match="engine: vllm does not run weights of llamacpp"):
        plan(load("  - none:\n    engine: vllm"), [model], tmp_path)


def test_options_that_fit_no_model_of_this_shape_are_found_before_the_first_job(
    load, tmp_path, tiny_llama
):
    """It has four heads, and two of keys and values."""
    model = ModelRef("m", tiny_llama, "sha256:0", "float32")
    spread = "engine: {vllm: {tensor_parallel_size: [2, 3]}}"
    rows = [f"  - rtn: {{num_bits: 8, group_size: 4}}\n    {spread}", f"  - none:\n    {spread}"]
    cells = plan(load(*rows), [model], tmp_path)
    found = [preflight.row(cell.row, "cpu").problems for cell in cells]
    said = [[problem.message for problem in problems] for problems in found]
    refused = "tensor_parallel_size 3 does not divide the model's 4 heads and 2 of keys and values: "
    assert said[0] == said[2] == []
    assert said[1] == said[3] == [f"{refused}take 1, 2 or 4"]


@pytest.mark.parametrize("key", ["activations", "kv_cache"])
def test_low_bits_are_simulated_on_hf_alone(load, keys, key):
    with pytest.raises(UsageError, match="the engine vllm does not quantize it"):
        keys(load("  - none", f"  - rtn: {{num_bits: 8, group_size: 32, {key}: 8}}\n    engine: vllm"))
