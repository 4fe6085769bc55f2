"""The library: what `qeval.load` and `qeval.run` give is what the command line shows."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_records import pass_at_1, ppl, record

import qeval
from qeval.cli.main import cli
from qeval.core.errors import MissingExtraError, SpecError, StoreError, UsageError
from qeval.core.record import Metric
from qeval.report.tidy import FIELDS

WINDOWS = [3.0, 3.2, 2.8, 3.1, 2.9, 3.3]
HEAVY = {"torch", "pandas", "numpy", "pydantic", "yaml", "rich", "transformers", "click"}


def small():
    worse = [w + 0.1 + 0.001 * i for i, w in enumerate(WINDOWS)]
    made_by = {"qeval": "0.1.0", "git_commit": "abc"}
    tail = Metric("kld_p99", 0.5, "kl/x", "nats", n=6, shown=False)
    return [
        record("none", "perplexity", [ppl(WINDOWS)], provenance=made_by),
        record("none", "humaneval", [pass_at_1([1.0, 0.0] * 10)], limit=20),
        record("Q8_0", "perplexity", [ppl(worse), tail], timing={"end": 1e9}),
        record("Q8_0", "humaneval", status="timeout", error="no result after 60 s", limit=20),
        record("RTN W4", "perplexity", [Metric("ppl", None, "gptq/wikitext2", n=6, nonfinite=0.5)]),
    ]


def test_import_qeval_imports_nothing_heavy_and_every_name_is_there():
    code = (
        "import sys, qeval\n"
        f"found = {HEAVY!r} & set(sys.modules)\n"
        "assert not found, found\n"
        "assert not [m for m in sys.modules if m.startswith('qeval.') and 'core' not in m]\n"
        "for name in qeval.__all__: assert getattr(qeval, name), name\n"
        "import qeval.jobs.runner\n"
        "assert callable(qeval.run), 'a module of this name hides it'\n"
        "assert set(qeval.__all__) <= set(dir(qeval))\n"
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        qeval.lod  # noqa: B018


def test_the_table_is_that_of_the_command_line(keep, capsys):
    folder = keep(small())
    results = qeval.load(folder)
    for form in ("text", "markdown", "csv", "json", "html"):
        with pytest.raises(SystemExit):
            cli(["table", str(folder), "--format", form, "--wide"], standalone_mode=False)
        assert capsys.readouterr().out == results.table(wide=True).to(form)
    assert str(results.table()) + "\n" == results.table().to("text")
    assert [r.key for r in results.failed] == ["org/model-bfloat16-Q8_0-humaneval-20"]
    assert repr(results) == f"<qeval.Results: 5 records of {folder}>"
    with pytest.raises(UsageError, match="no row is called 'Q9'"):
        results.table(baseline="Q9")
    with pytest.raises(StoreError, match="does not exist"):
        qeval.load(folder / "nowhere")


class Tags(HTMLParser):
    """The tags that are open, and the texts of table cells."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_a_notebook_shows_the_table_and_no_text_becomes_markup(keep):
    hostile = record("<script>alert(1)</script>", order=(0, 9, 0), metrics=[ppl(WINDOWS)])
    results = qeval.load(keep([*small(), hostile]))
    page = results._repr_html_()
    assert page == results.table()._repr_html_()
    parser = Tags()
    parser.feed(page)
    assert parser.open == [] and "<script" not in page
    assert "<script>alert(1)</script>" in parser.cells
    assert sum(cell.startswith("21.12") for cell in parser.cells) == 2  # exp of the mean of WINDOWS
    assert 'class="worse' in page and "http" not in page


def test_tidy_has_a_line_for_each_number_and_each_failure(keep):
    lines = qeval.load(keep(small())).tidy()
    assert all(tuple(line) == FIELDS for line in lines)
    found = {(line["row"], line["metric"] or line["task"]): line for line in lines}
    base, worse = found["none", "ppl"], found["Q8_0", "ppl"]
    assert base["difference"] is None and base["baseline"] is True
    assert worse["difference"] == pytest.approx(2.718281828**0.1025 - 1)
    assert worse["difference_low"] < worse["difference"] < worse["difference_high"]
    assert (worse["n"], worse["protocol"], worse["significant"]) == (6, "gptq/wikitext2", True)
    assert worse["measured"] == "2001-09-09T01:46:40+00:00"
    assert (worse["host"], worse["conditions"]) == ("box", "box, 4 threads of a CPU")
    assert (base["qeval"], base["git_commit"]) == ("0.1.0", "abc")
    assert found["Q8_0", "kld_p99"]["value"] == 0.5  # no table shows it
    failed = found["Q8_0", "pass@1"]
    assert (failed["value"], failed["status"]) == (None, "timeout")
    assert failed["notes"] == "timeout: no result after 60 s"
    broken = found["RTN W4", "ppl"]
    assert (broken["value"], broken["status"]) == (None, "broken (50% not finite)")
    assert found["none", "size"]["unit"] == "bytes" and found["none", "size"]["key"] is None
    assert found["RTN W4", "size"]["accounted"] is True
    assert len(lines) == len({(x["row"], x["metric"], x["task"], x["protocol"]) for x in lines})


def test_frames_hold_what_the_table_and_the_lines_hold(keep):
    pytest.importorskip("pandas")
    results = qeval.load(keep(small()))
    frame = results.to_pandas()
    assert list(frame.columns) == list(FIELDS) and len(frame) == len(results.tidy())
    one = frame[(frame.metric == "ppl") & (frame.row == "Q8_0")].iloc[0]
    table = results.table()
    column = next(c for c in table.columns if c.name == "ppl")
    assert one.value == table.rows[1].entries[column.id].value
    wide = table.to_pandas()
    assert list(wide.quantization) == ["none", "Q8_0", "RTN W4"]
    assert wide[column.id][1] == one.value


def test_without_pandas_there_is_one_line(keep, monkeypatch):
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda name: None)
    results = qeval.load(keep(small()))
    for ask in (results.to_pandas, results.table().to_pandas):
        with pytest.raises(MissingExtraError, match=r"'pandas' is not installed: pip .*pandas\]"):
            ask()


def test_show_and_cell_find_a_cell_by_the_start_of_its_key(keep, capsys):
    folder = keep(small())
    results = qeval.load(folder)
    cli(["show", "org/model-bfloat16-Q8_0-p", str(folder)], standalone_mode=False)
    assert capsys.readouterr().out == results.show("org/model-bfloat16-Q8_0-p")
    with pytest.raises(UsageError, match="2 cells' keys start with"):
        results.cell("org/model-bfloat16-none")


def test_recommend_and_gate_are_those_of_the_command_line(keep):
    from qeval.decide.rules import every_loss

    results = qeval.load(keep(small()))
    found = results.recommend(vram=2**40, context=128)
    assert found.answer.name == "none"
    assert results.recommend(ram=1.0, context=128).answer is None
    for wrong in ({}, {"vram": 1.0, "ram": 1.0}):
        with pytest.raises(UsageError, match="one of vram and ram"):
            results.recommend(context=128, **wrong)
    verdicts = {c.row: c.verdict for c in results.gate([every_loss(0.02)]) if "ppl" in c.what}
    assert verdicts["Q8_0"] == "fail"
    loose = {c.row: c.verdict for c in results.gate([every_loss(0.5)]) if "ppl" in c.what}
    assert loose["Q8_0"] == "pass"


def test_run_takes_a_mapping_and_names_what_is_wrong_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = {"name": "x", "models": ["m"], "quantizations": ["none"], "tasks": ["perplexty"]}
    with pytest.raises(SpecError, match=r"^the spec:\d+: .*perplexty.*did you mean 'perplexity'"):
        qeval.run(spec)
    with pytest.raises(SpecError, match=r"^the spec: .*object.*: give text, numbers"):
        qeval.run({**spec, "models": [object()]})
    with pytest.raises(SpecError, match=r"perplexty"):  # and nothing about the path
        qeval.run({**spec, "models": (tmp_path,)})
    assert list(tmp_path.iterdir()) == []


def test_run_measures_and_returns_results(plugin, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = {
        "name": "toy",
        "models": [str(tiny_llama)],
        "dtype": "float32",
        "quantizations": [{"copy": 8}],
        "tasks": [{"misbehave": {"how": "ok"}}, {"misbehave": {"how": "raise"}}],
    }
    results = qeval.run(spec)
    assert results.folders == (Path("results/toy"),)
    assert len(results.table().rows) == 1 and len(results.failed) == 1
    again = qeval.run(spec, only=["ok"])
    assert len(again) == len(results)
    assert (tmp_path / "results/toy/spec.yaml").read_text().startswith("name: toy\n")
    assert qeval.load("results/toy").table().to("csv") == results.table().to("csv")
