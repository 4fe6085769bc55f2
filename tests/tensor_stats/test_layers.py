"""Statistics as tables, from rows made here."""

import csv
import io
import json

import pytest

from qeval.core.errors import DataError
from qeval.tensor_stats.layers import lines, render
from qeval.tensor_stats.rows import Statistics, TensorRow, read, write

ABOUT = {
    "model": "org/model",
    "dtype": "bfloat16",
    "dataset": "pydoc",
    "seq_len": 512,
    "windows": 8,
    "bits": {"weights": 4, "group_size": -1, "activations": 8, "kv_cache": 4},
}


def row(kind="weight", layer=0, name="mlp.up_proj", **numbers):
    given = {
        "count": 1000,
        "nonfinite": 0,
        "absmax": 1.5,
        "mean": 0.0,
        "std": 0.25,
        "kurtosis": 3.0,
        "outlier": 1.25,
        "channel": 7,
        "channels": 64,
        "top_channels": ((7, 1.5), (3, 1.25)),
        "sqnr_db": 20.0,
        **numbers,
    }
    return TensorRow(kind, layer, name, (f"model.layers.{layer}.{name}",), **given)


ROWS = (
    row("weight", None, "project_in", kurtosis=None),
    row(),
    row(name="mlp.down_proj", kurtosis=40.0, sqnr_db=14.25),
    row("input", name="mlp.down_proj", absmax=12345.678, std=1e-5, sqnr_db=9.5, outlier=812.0),
    row("key", 1, "", sqnr_db=None, outlier=None, channel=None),
)
ONE = Statistics(ABOUT, ROWS)


def order(**options):
    return [line.any.where for line in lines([ONE], **options)]


def test_the_models_own_order_unless_sorted_with_the_worst_first():
    assert order() == [
        "weight project_in",
        "0 weight mlp.up_proj",
        "0 weight mlp.down_proj",
        "0 input mlp.down_proj",
        "1 key",
    ]
    assert order(sort="sqnr", top=2) == ["0 input mlp.down_proj", "0 weight mlp.down_proj"]
    assert order(sort="sqnr")[-1] == "1 key"  # no value comes last
    assert order(sort="kurtosis", top=1) == ["0 weight mlp.down_proj"]
    assert order(sort="kurtosis")[-1] == "weight project_in"
    assert order(sort="absmax", kinds=["weight", "key"])[0] == "weight project_in"
    assert order(kinds=["key"]) == ["1 key"]


def test_text():
    shown = lines([ONE])
    assert render("text", [ONE], shown).splitlines() == [
        "org/model, bfloat16: 8 windows of 512 tokens of pydoc",
        "",
        "layer  tensor                AbsMax       std  kurtosis  outlier  channel  SQNR dB",
        "─" * 82,
        "    –  weight project_in       1.50     0.250         –     1.25        7     20.0",
        "    0  weight mlp.up_proj      1.50     0.250      3.00     1.25        7     20.0",
        "    0  weight mlp.down_proj    1.50     0.250      40.0     1.25        7     14.2",
        "    0  input mlp.down_proj    12346  1.00e-05      3.00      812        7      9.5",
        "    1  key                     1.50     0.250      3.00        –        –        –",
        "",
        "input: what the named linears read; key, value: as the cache gets them",
        "kurtosis: mean of ((x - mean) / std)^4; a normal distribution has 3",
        "outlier: AbsMax of the largest channel over that of the median channel",
        "channel: which one is the largest",
        "SQNR: power of a channel over that of its rounding error, mean over channels; less hurts more",
        "  weights to 4 bits per output channel, inputs to 8 bits per token, KV cache to 4 bits per "
        "token and head",
    ]


def test_markdown_csv_and_json():
    shown = lines([ONE], sort="sqnr", top=2)
    page = render("markdown", [ONE], shown).splitlines()
    assert page[0] == "**org/model, bfloat16: 8 windows of 512 tokens of pydoc**"
    assert page[2].startswith("| layer | tensor | AbsMax |")
    assert page[4] == "| 0 | input mlp.down_proj | 12346 | 1.00e-05 | 3.00 | 812 | 7 | 9.5 |"
    assert page[-1].startswith("- weights to 4 bits")
    table = list(csv.DictReader(io.StringIO(render("csv", [ONE], shown))))
    assert table[0]["layer"] == "0" and table[0]["kind"] == "input"
    assert float(table[0]["absmax"]) == 12345.678 and table[0]["channel"] == "7"
    data = json.loads(render("json", [ONE], shown))
    assert data["about"] == ABOUT
    assert data["rows"][1]["modules"] == ["model.layers.0.mlp.down_proj"]
    assert data["rows"][1]["sqnr_db"] == 14.25


def test_two_models_side_by_side_with_what_moved_first():
    other = Statistics(
        {**ABOUT, "model": "quantized"},
        (
            row(absmax=1.65, kurtosis=6.0),
            row(name="mlp.down_proj", kurtosis=38.0, sqnr_db=15.25),
            row(name="mlp.extra"),
        ),
    )
    shown = lines([ONE, other], sort="kurtosis")
    assert [line.any.name for line in shown[:2]] == ["mlp.up_proj", "mlp.down_proj"]
    assert len(shown) == 6 and shown[-1].rows[0] is None
    page = render("text", [ONE, other], shown, "kurtosis").splitlines()
    assert page[0].count("→") == 1 and page[2].endswith("change of kurtosis")
    cells = "0 weight mlp.up_proj 1.50 → 1.65 0.250 → 0.250 3.00 → 6.00 1.25 → 1.25 20.0 → 20.0 +100.0%"
    assert " ".join(page[4].split()) == cells
    by_noise = lines([ONE, other], sort="sqnr")
    assert by_noise[0].change("sqnr") == 1.0
    assert render("text", [ONE, other], by_noise[:1], "sqnr").splitlines()[4].endswith("+1.0 dB")
    extra = render("csv", [ONE, other], shown).splitlines()[-1].split(",")
    assert extra[:4] == ["0", "weight", "mlp.extra", ""] and extra[-2] == "1000"
    pairs = json.loads(render("json", [ONE, other], shown))
    assert [one["model"] for one in pairs["about"]] == ["org/model", "quantized"]
    assert pairs["rows"][-1][0] is None and pairs["rows"][0][1]["kurtosis"] == 6.0


def test_what_is_not_finite_is_said_and_strict_in_json():
    broken = Statistics(ABOUT, (row(absmax=float("inf"), nonfinite=3),))
    shown = lines([broken])
    assert "(1 tensors, first 0 weight mlp.up_proj)" in render("text", [broken], shown)
    assert json.loads(render("json", [broken], shown))["rows"][0]["absmax"] is None


def test_a_file_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "layers.jsonl"
    write(file, ONE)
    assert read(file) == ONE
    assert len(file.read_text().splitlines()) == 6


@pytest.mark.parametrize("text", ["", "{}", '{"format": "other"}\n{}', "not json", "[]"])
def test_another_file_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "other.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=r"other\.jsonl: not the statistics of a model: give a layers"):
        read(file)
    with pytest.raises(DataError, match=r"nope\.jsonl: cannot be read"):
        read(tmp_path / "nope.jsonl")
