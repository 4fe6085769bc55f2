"""What rows decide together: floors, Holm's correction, gains."""

import pytest

from qeval.core.errors import UsageError
from qeval.report.rows import build_table
from qeval.report.verdicts import GAIN


@pytest.fixture
def divergence(record):
    """Rows with a divergence: (label, engine, mean, the kind of floor that it is or nothing)."""
    from qeval.core.record import Metric

    def make(*rows):
        records = []
        for order, (label, engine, value, floor) in enumerate(rows):
            values = tuple(value * x for x in (0.9, 1.0, 1.1, 1.0, 0.9, 1.1))
            metric = Metric(
                "kld",
                value,
                "kl/x",
                "nats",
                low=0.9 * value,
                high=1.1 * value,
                n=6,
                values=values,
                better="lower",
                pairs="window",
                change="difference",
                from_baseline=True,
                heading="KLD",
            )
            made = record(label, "divergence", [metric], order=(0, order, 0))
            made.cell["quantization"] |= {"floor": floor} if floor != "twin" else {"twin": True}
            made.cell["engine"] = {"name": engine}
            records.append(made)
        return records

    return make


ROWS = [
    ("none", "hf", 0.0, ""),
    ("HQQ 8", "hf", 0.0005, ""),
    ("Q8_0", "llamacpp", 0.0021, ""),
    ("Q6_K", "llamacpp", 0.004, ""),
    ("floor: rounding", "hf", 0.0006, "rounding"),
    ("floor: engine", "llamacpp", 0.002, "engine"),
]


def test_a_row_within_its_floor_says_so(divergence):
    table = build_table(divergence(*ROWS))
    [column] = [c.id for c in table.columns if c.name == "kld"]
    at = [row.quantization for row in table.rows if row.entries[column].at_floor]
    assert at == ["HQQ 8", "Q8_0"]  # Q8_0 by the floor of its engine, which HQQ 8 does not run on
    assert [line for line in table.legend if line.startswith("at the floor")]


def test_the_baseline_in_another_engine_is_a_floor_for_its_rows_and_a_row_as_any_other(divergence):
    rows = [
        ("none", "hf", 0.0, ""),
        ("HQQ 8", "hf", 0.001, ""),
        ("none (vllm)", "vllm", 0.001, "twin"),
        ("GPTQ 8 (vllm)", "vllm", 0.0011, ""),
        ("GPTQ 4 (vllm)", "vllm", 0.02, ""),
        ("Q8_0", "llamacpp", 0.001, ""),
    ]
    table = build_table(divergence(*rows))
    [column] = [c.id for c in table.columns if c.name == "kld"]
    at = [row.quantization for row in table.rows if row.entries[column].at_floor]
    assert at == ["GPTQ 8 (vllm)"]  # not itself, nor rows of other engines
    assert not any(row.floor for row in table.rows)


def test_rows_at_the_floor_are_not_ranked(divergence):
    order = [r.quantization for r in build_table(divergence(*ROWS), sort="kld*").rows]
    assert order.index("HQQ 8") < order.index("Q8_0") < order.index("Q6_K")
    swapped = [ROWS[0], ROWS[2], ROWS[1], *ROWS[3:]]
    order = [r.quantization for r in build_table(divergence(*swapped), sort="kld*").rows]
    assert order.index("Q8_0") < order.index("HQQ 8") < order.index("Q6_K")


def test_a_divergence_is_its_own_difference_from_the_baseline(divergence):
    table = build_table(divergence(*ROWS))
    assert all(e.difference is None for row in table.rows for e in row.entries.values())
    other = build_table(divergence(*ROWS), baseline="Q8_0")
    [column] = [c.id for c in other.columns if c.name == "kld"]
    found = {row.quantization: row.entries[column].difference for row in other.rows}
    assert found["Q8_0"] is None and found["Q6_K"].value == pytest.approx(0.0019)
    assert found["Q6_K"].kind == "difference" and found["Q6_K"].significant


def test_a_gain_beyond_its_interval_is_looked_at_twice(record, ppl):
    windows = [2.0, 2.4, 2.2, 2.1, 2.3, 2.5]
    better = [x - 0.05 for x in windows]
    records = [
        record("none", "perplexity", [ppl(windows)], order=(0, 0, 0)),
        record("odd", "perplexity", [ppl(better)], order=(0, 1, 0)),
        record("worse", "perplexity", [ppl([x + 0.05 for x in windows])], order=(0, 2, 0)),
    ]
    table = build_table(records)
    assert GAIN in table.footnotes
    marked = [r.quantization for r in table.rows if any(e.notes for e in r.entries.values())]
    assert marked == ["odd"]


def test_many_rows_need_stronger_evidence(record, pass_at_1):
    """Six problems lost of 20 and none gained: p = 0.031."""
    base, lost = [1.0] * 20, [0.0] * 6 + [1.0] * 14

    def table(n):
        rows = [record("none", "humaneval", [pass_at_1(base)], order=(0, 0, 0))]
        rows += [
            record(f"q{i}", "humaneval", [pass_at_1(lost)], order=(0, i, 0)) for i in range(1, n + 1)
        ]
        return build_table(rows)

    def significant(found):
        entries = [e for row in found.rows[1:] for e in row.entries.values()]
        return [e.difference.significant for e in entries if e.difference]

    assert significant(table(1)) == [True]
    assert significant(table(3)) == [False] * 3
    first = next(e for e in table(3).rows[1].entries.values() if e.difference)
    assert first.difference.p == pytest.approx(2 / 64)
    assert first.difference.adjusted == pytest.approx(6 / 64)


def test_two_rows_are_compared_with_each_other(divergence):
    table = build_table(divergence(*ROWS), pair=("Q8_0", "Q6_K"))
    assert [row.quantization for row in table.rows] == ["Q8_0", "Q6_K"]
    [column] = [c.id for c in table.columns if c.name == "kld"]
    assert table.rows[1].entries[column].difference.value == pytest.approx(0.0019)
    with pytest.raises(UsageError, match=r"no row is called 'Q6'.*Q6_K"):
        build_table(divergence(*ROWS), pair=("Q8_0", "Q6"))


def test_all_items_of_a_row_are_pooled(record, pass_at_1):
    lost = [0.0] * 6 + [1.0] * 14
    records = [
        record(label, task, [pass_at_1(values, protocol)], order=(0, i, j))
        for i, (label, values) in enumerate([("none", [1.0] * 20), ("q", lost)])
        for j, (task, protocol) in enumerate([("humaneval", "humaneval/x"), ("mbpp", "mbpp/x")])
    ]
    [line] = [text for text in build_table(records).legend if text.endswith("(McNemar)")]
    assert line.startswith("q, all 40 items of 2 tasks: 12 lost and 0 gained, p = 0.00049")
    assert not [t for t in build_table(records[::2]).legend if t.endswith("(McNemar)")]
