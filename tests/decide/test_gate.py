"""Bounds and their verdicts, and what a gate says of results."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from made_records import pass_at_1, ppl, record
from program import qeval

from qeval.cli.main import cli
from qeval.core.errors import SpecError
from qeval.core.record import MemoryReport, Metric
from qeval.decide.bounds import Bound, not_worse, parse
from qeval.decide.gate import gate
from qeval.decide.gate_forms import Outcome, junit, step_summary, workflow_commands
from qeval.decide.rules import every_loss, load_rules
from qeval.report.rows import build_table
from qeval.store.records import Store

ORDER = ["fail", "undecided", "pass"]
numbers = st.floats(-10, 10, allow_nan=False)


def checks(tmp_path: Path, records, rules: str):
    path = tmp_path / "rules.yaml"
    path.write_text(rules, encoding="utf-8")
    return gate(build_table(records, columns=["*"]), load_rules(path))


# -- laws ---------------------------------------------------------------------------------------


@given(numbers, numbers, numbers, numbers, st.sampled_from(["<=", "<", ">=", ">"]))
def test_a_looser_bound_is_never_a_worse_verdict(a, b, one, other, operator):
    low, high = sorted((a, b))
    tight, loose = sorted((one, other), reverse=operator.startswith(">"))
    bound = Bound(operator, 0.0)
    ranks = [ORDER.index(bound.verdict(low, high, limit)) for limit in (tight, loose)]
    assert ranks == sorted(ranks)


@given(numbers, numbers, st.floats(0, 10), st.floats(0, 10))
def test_a_wider_margin_is_never_a_worse_verdict(a, b, one, other):
    low, high = sorted((a, b))
    ranks = [ORDER.index(not_worse(low, high, margin)) for margin in sorted((one, other))]
    assert ranks == sorted(ranks)


@given(numbers, numbers, numbers, numbers, numbers)
def test_a_sharper_measurement_decides_the_same_or_more(a, b, c, d, limit):
    outer_low, low, high, outer_high = sorted((a, b, c, d))
    wide = Bound("<=", 0.0).verdict(outer_low, outer_high, limit)
    sharp = Bound("<=", 0.0).verdict(low, high, limit)
    assert wide in ("undecided", sharp)


def passes(make, rule, runs: int) -> float:
    """The share of runs in which the one row passes the one rule."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(runs):
        ours, base = make(rng)
        rows = [
            record("none", "t", [base], order=(0, 0, 0)),
            record("Q8_0", "t", [ours], order=(0, 1, 0)),
        ]
        [check] = gate(build_table(rows), [rule])
        passed += check.verdict == "pass"
    return passed / runs


def windows(rng):
    """A perplexity that is truly 2% higher; neighbouring windows are alike."""
    noise = rng.standard_normal(44)
    alike = noise[4:] + 0.6 * noise[3:-1] + 0.3 * noise[2:-2]
    base = 3 + 0.3 * rng.standard_normal(40)
    return ppl(list(base + math.log(1.02) + 0.03 * alike)), ppl(list(base))


def problems(rng):
    """Two problems in a hundred are truly lost, and none gained: where Wald's interval misses."""
    base = (rng.random(164) < 0.5).astype(float)
    return pass_at_1(list(np.where(rng.random(164) < 0.04, 0.0, base))), pass_at_1(list(base))


def samples(rng):
    """The share of 20 samples that pass, truly 2 points lower."""
    rate = rng.beta(1, 1, 164) * 0.94 + 0.04
    base, ours = rng.binomial(20, rate) / 20, rng.binomial(20, rate - 0.02) / 20
    return pass_at_1(list(ours)), pass_at_1(list(base))


@pytest.mark.parametrize("make", [windows, problems, samples])
def test_a_loss_exactly_at_the_bound_passes_in_at_most_five_runs_of_a_hundred(make):
    runs = 800
    rate = passes(make, every_loss(0.02), runs)
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert rate > 0.005  # it is no gate that never opens


def test_a_value_exactly_at_its_bound_passes_in_at_most_five_runs_of_a_hundred():
    """A mean divergence, whose windows are skewed."""
    from qeval.stats.series import mean_in_order

    rng, runs, passed = np.random.default_rng(1), 1000, 0
    for _ in range(runs):
        mean = mean_in_order(rng.gamma(8, 0.02 / 8, 32))
        assert mean is not None
        passed += Bound("<=", 0.02).verdict(*mean.interval(), 0.02) == "pass"
    assert passed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


# -- what it says ---------------------------------------------------------------------------------

WINDOWS = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]


@pytest.fixture
def results():
    def shifted(by: float, scatter: float = 0.001):
        signs = [1, 1, -1, -1, 1, -1]
        return ppl([w + by + scatter * sign for w, sign in zip(WINDOWS, signs, strict=True)])

    speed = Metric("decode_tok_s", 30.0, "speed/b1", "tok/s", low=25.0, high=31.0, n=3)
    gpu = MemoryReport(vram_process=5 * 2**30, kv_cache=2**27, context=2048, rank=0)
    return [
        record("none", "perplexity", [ppl(WINDOWS)]),
        record("none", "speed", [speed], memory=gpu),
        record("Q8_0", "perplexity", [shifted(0.001)]),
        record("Q8_0", "speed", [speed], memory=gpu),
        record("Q5_K_M", "perplexity", [shifted(0.015, 0.03)]),
        record("Q5_K_M", "speed", status="timeout", error="no result after 60 s"),
        record("RTN W4", "perplexity", [shifted(0.2)]),
    ]


def test_pass_fail_and_undecided_and_numbers_that_are_missing(results, tmp_path):
    found = checks(
        tmp_path,
        results,
        "rules:\n"
        "  - row: all\n"
        "    ppl_increase: <= 2%\n"
        "    ppl: not worse\n"
        "  - {row: Q*, vram: <= 5GiB, decode_tok_s: '>= 26'}\n"
        "  - {row: Q8_0, decode_tok_s: '>= 25', decode_tok_s_loss: <= 1%, humaneval: not worse}\n",
    )
    said = [(c.row, c.what.split()[0], c.bound, c.verdict) for c in found]
    assert said == [
        ("Q8_0", "ppl", "<= 2%", "pass"),
        ("Q5_K_M", "ppl", "<= 2%", "undecided"),
        ("RTN W4", "ppl", "<= 2%", "fail"),
        ("Q8_0", "ppl", "not worse", "pass"),
        ("Q5_K_M", "ppl", "not worse", "undecided"),
        ("RTN W4", "ppl", "not worse", "fail"),
        ("Q8_0", "vram_process", "<= 5GiB", "pass"),
        ("Q5_K_M", "vram_process", "<= 5GiB", "fail"),
        ("Q8_0", "decode_tok_s", ">= 26", "undecided"),
        ("Q5_K_M", "decode_tok_s", ">= 26", "fail"),
        ("Q8_0", "decode_tok_s", ">= 25", "pass"),
        ("Q8_0", "decode_tok_s", "<= 1%", "pass"),
        ("Q8_0", "humaneval", "not worse", "fail"),
    ]
    assert found[9].reason == "timeout: no result after 60 s"
    assert "no column 'humaneval'" in found[-1].reason
    assert found[0].number.startswith("+0.1") and found[6].number == "5.00 GiB"


def test_the_bounds_of_a_change_are_one_sided(results, tmp_path):
    [check] = checks(tmp_path, results, "rules: [{row: Q5_K_M, ppl_increase: <= 2%}]")
    table = build_table(results)
    [change] = [
        d
        for r in table.rows
        if r.quantization == "Q5_K_M"
        for e in r.entries.values()
        if (d := e.difference) and d.kind == "relative"
    ]
    assert (check.low, check.high) == (change.at_least, change.at_most)
    assert change.low < change.at_least < change.value < change.at_most < change.high
    [turned] = checks(tmp_path, results, "rules: [{row: Q5_K_M, ppl_decrease: '>= -2%'}]")
    assert (turned.low, turned.high) == (-check.high, -check.low)
    assert turned.verdict == check.verdict == "undecided"


def test_three_problems_without_a_flip_prove_nothing():
    """Equal answers to three problems are no proof that fewer than 2 in 100 are lost."""
    rows = [
        record("none", "humaneval", [pass_at_1([1.0, 0.0, 1.0])]),
        record("Q8_0", "humaneval", [pass_at_1([1.0, 0.0, 1.0])]),
    ]
    [check] = gate(build_table(rows), [every_loss(0.02)])
    assert check.verdict == "undecided" and check.high == pytest.approx(1 - 0.05 ** (1 / 3), abs=1e-6)


def test_every_loss_has_failed_cells_too(results):
    failed = record("Q8_0", "humaneval", status="oom", error="out of memory")
    found = gate(build_table([*results, failed], columns=["*"]), [every_loss(0.02)])
    said = {c.row: c.reason for c in found if c.what == "humaneval"}
    assert said["Q8_0"] == "oom: out of memory" and said["Q5_K_M"] == "not run yet"


def test_the_baseline_is_not_meant_by_all_and_its_change_is_none(results, tmp_path):
    assert "none" not in {c.row for c in checks(tmp_path, results, "rules: [{ppl: <= 100}]")}
    [check] = checks(tmp_path, results, "rules: [{row: none, ppl_increase: <= 0%}]")
    assert check.verdict == "pass"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("[]", "must be a mapping with rules"),
        ("rules: {}", "rules.yaml:1: rules: must be a list"),
        ("rules: [{ppl: '<= 3'}]\nrule: 1", "rules.yaml:2: rule: unknown key; did you mean 'rules'"),
        ("rules:\n  - row: all\n    ppl: 12", "rules.yaml:3: rules.ppl: must be a bound"),
        ("rules:\n  - row: all\n    ppl: <= x", "rules.yaml:3: rules.ppl: '<= x' is no bound"),
        ("rules:\n  - row: all\n    ppl: >= 30", "quote a bound that begins with '>'"),
        ("rules:\n  - row: all", "rules.yaml:2: rules: no bound"),
        ("rules: [{row: 3, ppl: '<= 1'}]", "rules.row: must be the name of a row"),
        ("rules: [ppl]", "a rule is a mapping"),
        ("rules: [{row: Q8, ppl: '<= 3'}]", "no row is called 'Q8'; did you mean 'Q8_0'?"),
        ("rules: [{row: Q8_0, ppl: '<= 3%'}]", "write ppl_increase"),
        ("rules: [{row: Q8_0, ppl_increase: '<= 3'}]", "write '<= 2%'"),
        ("rules: [{row: Q8_0, ppl_increase: not worse}]", "write ppl: not worse"),
        ("rules: [{row: Q8_0, vram: '<= 16'}]", "write its unit, as in '<= 16GiB'"),
        ("rules: [{row: Q8_0, decode_tok_s: '<= 3 GiB'}]", "is in tok/s, not in 'GiB'"),
    ],
)
def test_what_is_wrong_in_the_rules_is_said_with_file_line_and_key(rules, message, results, tmp_path):
    with pytest.raises(SpecError) as err:
        checks(tmp_path, results, rules)
    assert message in str(err.value) and "rules.yaml" in str(err.value)


@given(st.text(max_size=30))
def test_any_text_is_a_bound_or_an_error(text):
    try:
        assert parse(text).operator in ("<=", "<", ">=", ">")
    except ValueError as err:
        assert "is no bound" in str(err)


# -- forms ------------------------------------------------------------------------------------------


@pytest.fixture
def found(results, tmp_path):
    rules = "rules:\n  - ppl_increase: <= 2%\n  - {row: Q5_K_M, vram: <= 5GiB}\n"
    results[4] = record("Q5_K_M", "perplexity", results[4].metrics, notes=("50%\n::error:: a|b <i>",))
    return checks(tmp_path, results, rules)


def test_junit_counts_what_it_holds(found):
    for undecided, failures, skipped in (("fail", 3, 0), ("pass", 2, 1)):
        suite = ElementTree.fromstring(junit(Outcome(found, undecided))).find("testsuite")
        assert suite.get("tests") == "4" == str(len(suite.findall("testcase")))
        assert suite.get("failures") == str(failures) == str(len(suite.findall(".//failure")))
        assert suite.get("skipped") == str(skipped) == str(len(suite.findall(".//skipped")))


def test_annotations_are_one_line_each_and_name_the_rule(found):
    lines = list(workflow_commands(Outcome(found, "pass")))
    assert [line.split()[0] for line in lines] == ["::warning", "::error", "::error"]
    assert all("\n" not in line and line.count("::") == 2 for line in lines)
    assert "rules.yaml,line=2,title=Q5_K_M%3A ppl" in lines[0]
    assert "bound <= 2%25" in lines[0]


def test_the_summary_is_a_table_whatever_a_row_is_called(results, tmp_path):
    odd = record("a|b <i>", "perplexity", [ppl(WINDOWS)], order=(0, 9, 0))
    summary = step_summary(Outcome(checks(tmp_path, [*results, odd], "rules: [{ppl: <= 9}]")))
    [line] = [line for line in summary.splitlines() if "a\\|b \\<i>" in line]
    assert line.replace("\\|", "").count("|") == 7


def run(folder: Path, records, *args: str, **env: str):
    store = Store(folder / "r")
    for one in records:
        store.append(one)
    return CliRunner().invoke(cli, ["gate", str(folder / "r"), *args], env=env)


def test_the_command_ends_with_three_and_tells_github(results, tmp_path):
    xml, summary = tmp_path / "gate.xml", tmp_path / "summary.md"
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    args = ("--max-loss", "2%", "--junit", str(xml))
    done = run(tmp_path, results, *args, **env)
    assert done.exit_code == 3, done.output
    assert "gate: fail (1 passed, 1 failed, 1 undecided, which count as failed)" in done.output
    assert done.output.count("::error ") == 2
    assert ElementTree.parse(xml) and "| ❌ fail | RTN W4 |" in summary.read_text()


def test_undecided_may_pass_and_json_is_strict(results, tmp_path):
    args = ("--max-loss", "2%", "--undecided", "pass", "--format", "json")
    done = run(tmp_path, results[:5], *args)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["verdict"] == "pass"
    assert [c["verdict"] for c in data["checks"]] == ["pass", "undecided"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give --rules FILE or --max-loss"),
        (("--max-loss", "much"), "'much' is no percentage over zero"),
        (("--rules", "gone.yaml"), "gone.yaml: no such file"),
    ],
)
def test_bad_input_is_one_line(args, message, tmp_path):
    done = qeval("gate", tmp_path, *args)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
