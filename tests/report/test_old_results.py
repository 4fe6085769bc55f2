"""A results folder of 0.1.0 shows the rows that 0.1.0 showed.

``results_0_1_0`` was made by commit 20085dc (2026-11-30, torch and llama.cpp on the CPU) from a random
tiny Llama under none, rtn and gguf, and every task of 0.1.0; files, logs and versions are left out of
its records. ``table.csv`` is what that commit printed: ``qeval table FOLDER --wide --format csv``.
"""

import csv
import io
from pathlib import Path

from qeval.report import build_table, render
from qeval.report.results import read_results

FOLDER = Path(__file__).parent / "results_0_1_0"
INTERVAL = (" ±", " low", " high")  # 0.1.0 took 1.96 standard errors of however few units


def test_every_number_is_the_one_that_0_1_0_printed():
    now = list(
        csv.DictReader(io.StringIO(render(build_table(read_results([FOLDER]), wide=True), "csv")))
    )
    with (FOLDER / "table.csv").open(newline="") as file:
        then = list(csv.DictReader(file))
    assert len(now) == len(then) == 3
    for row, old in zip(now, then, strict=True):
        compared = [name for name in old if not name.endswith(INTERVAL)]
        assert len(compared) == 74
        assert {name: row[name] for name in compared} == {name: old[name] for name in compared}


def test_its_metrics_are_compared_as_today():
    columns = build_table(read_results([FOLDER])).columns
    found = {c.name: (c.title, c.unit, c.better, c.cost) for c in columns if c.kind == "metric"}
    assert found == {
        "ppl": ("PPL", "", "lower", False),
        "step_ms": ("step", "ms", "lower", True),
        "pass@1": ("pass@1", "share", "higher", False),
        "pass@2": ("pass@2", "share", "higher", False),
        "prefill_tok_s": ("prefill", "tok/s", "higher", True),
        "ttft_s": ("first token", "s", "lower", True),
        "decode_tok_s": ("decode", "tok/s", "higher", True),
        "sqnr_weight": ("lowest SQNR of weights", "dB", "higher", False),
        "sqnr_input": ("lowest SQNR of inputs", "dB", "higher", False),
        "sqnr_kv": ("lowest SQNR of K, V", "dB", "higher", False),
        "kurtosis_weight": ("largest kurtosis of weights", "", "lower", False),
        "kurtosis_input": ("largest kurtosis of inputs", "", "lower", False),
    }
