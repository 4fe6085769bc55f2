"""The page says what the table, recommendation and records say, is safe to open, and is small."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html as markup
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

import qeval
from qeval.cli.main import cli
from qeval.core.errors import QevalError
from qeval.core.record import Conditions, Record
from qeval.page import plots
from qeval.page.verdict import Wanted, verdicts
from qeval.page.write import visible
from qeval.report.compare import Margins
from qeval.report.draft import draft_of
from qeval.report.format import value_text
from qeval.report.rows import build_table
from qeval.store.records import Store

pytest.importorskip("vl_convert")


def page_of(*folders, **asked):
    results = qeval.load(*folders)
    path = folders[0].parent / f"{folders[0].name}.html"
    assert results.report(path, **asked) == path
    return path.read_text(encoding="utf-8")


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


class Text(HTMLParser):
    """What a reader sees of the markup: cells of the table, and all elements with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.elements, self._in = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = tag if tag in ("td", "th", "br") else None
        if self._in in ("td", "th"):
            self.cells.append("")
        elif self._in == "br":
            self.cells[-1] += "\n" if self.cells else ""
            self._in = "td"

    def handle_endtag(self, tag):
        self._in = None if tag in ("td", "th") else self._in

    def handle_data(self, text):
        if self._in:
            self.cells[-1] += text


@pytest.fixture(scope="module")
def page(made_results):
    return page_of(made_results, ram=3 * 2**30, context=4096)


# -- it says what the table says ------------------------------------------------------------------


def test_every_number_of_the_table_is_on_the_page_with_its_interval(page, made_results):
    table = qeval.load(made_results).table(columns=["*"])
    seen = {line for cell in Text(page).cells for line in cell.split("\n")}
    texts = {value_text(c, row.entries[c.id]) for row in table.rows for c in table.columns}
    assert len(texts) > 60 and texts <= seen
    assert any(line.startswith("floor: rounding") for line in seen)


def test_the_pareto_plot_has_the_tables_losses_and_recommends_bytes(page, made_results):
    results = qeval.load(made_results)
    (verdict,) = data_of(page)["verdicts"]
    found = results.recommend(ram=3 * 2**30, context=4096)
    table = results.table(columns=[found.quality.id])
    entries = {row.quantization: row.entries[found.quality.id] for row in table.rows}
    assert {p["row"] for p in verdict["points"]} == {n for n in entries if not n.startswith("floor")}
    for point in verdict["points"]:
        entry = entries[point["row"]]
        assert (point["loss"], point["low"], point["high"]) == (entry.value, entry.low, entry.high)
    (choice,) = [c for c in verdict["choices"] if c["context"] == 4096]
    needs = dict(zip([p["row"] for p in verdict["points"]], choice["needs"], strict=True))
    assert {c.name: c.need.total for c in found.candidates}.items() <= needs.items()


def test_whatever_memory_and_context_is_chosen_the_sentences_are_those_of_recommend(made_results):
    records = list(qeval.load(made_results))
    draft = draft_of(records)
    (verdict,) = verdicts(records, draft, build_table(records, columns=["*"]), Wanted(kind="ram"))
    from qeval.decide.recommend import Asked, recommend
    from qeval.decide.recommend_forms import sentences

    seen = set()
    for choice in verdict.choices[::3]:
        for budget, said, answer in zip(choice.budgets, choice.said, choice.answers, strict=True):
            found = recommend(records, Asked("ram", budget, choice.context))
            assert tuple(sentences(found)) == said
            assert answer == (found.answer.name if found.answer else "")
            seen.add(answer)
    assert "" in seen and len(seen) > 2  # nothing fits, and more than one row is an answer


def test_a_loss_of_a_share_or_a_perplexity_is_the_paired_change_and_over_0_is_worse(made_results):
    results = qeval.load(made_results)
    for metric, sign in (("ppl", 1), ("pass@1", -1)):
        table = results.table(columns=[metric])
        draft = draft_of(list(results), None, Margins())
        whole = build_table(list(results), columns=["*"])
        (verdict,) = verdicts(list(results), draft, whole, Wanted(metric=metric))
        changes = {r.quantization: next(iter(r.entries.values())).difference for r in table.rows}
        points = {p.row: p.loss.value for p in verdict.points}
        assert points.pop("none") == 0
        for row, loss in points.items():
            assert loss == pytest.approx(100 * sign * changes[row].value)
        assert max(points.values()) > 0


def test_series_flips_and_layers_are_those_of_the_records(page, made_results):
    data, results = data_of(page), qeval.load(made_results)
    records = {
        (r.cell["quantization"]["label"], r.cell["task"]["name"]): r
        for r in results
        if r.kind == "eval"
    }
    for one in data["windows"]:
        values = records[one["row"], "perplexity"].metrics[0].values
        assert one["nll"] == pytest.approx(values, abs=1e-5)
    for one in data["certainty"]:
        metrics = records[one["row"], "divergence"].metrics
        known = [m.value for m in metrics if m.name.startswith("kld_top")]
        assert [bucket[2] for bucket in one["buckets"]] == known
    assert {(s["row"], s["batch"]) for s in data["speed"]} >= {("Q8_0", 1), ("Q8_0", 16)}
    for sides in data["flips"]:
        compared = results.compare(sides["baseline"], sides["row"]).rows[0].flips[0]
        assert (sides["lost"], sides["gained"], sides["p"]) == (
            len(compared.lost),
            len(compared.gained),
            compared.p,
        )
        for told, flip in zip(sides["flips"], compared.flips, strict=True):
            assert told["a"]["completion"] == flip.a.completion
            assert (told["b"]["verdict"], told["b"]["detail"]) == (flip.b.verdict, flip.b.detail)
    maps = {m["what"]: m["bands"] for m in data["layers"]}
    assert maps["noise: SQNR of the weights, dB"] == [
        ["self_attn.q_proj", [20.0, 19.0, 18.0]],
        ["mlp.down_proj", [20.0, 19.0, 18.0]],
    ]


def test_downloads_hold_the_spec_and_records_that_load_again(page, made_results, tmp_path):
    files = {f["name"]: unpacked(f) for f in data_of(page)["downloads"]}
    assert files["spec.yaml"] == (made_results / "spec.yaml").read_text()
    again = tmp_path / "again"
    again.mkdir()
    (again / "records.jsonl").write_text(files["records.jsonl"])
    (again / "spec.yaml").write_text(files["spec.yaml"])
    assert qeval.load(again).table().to("csv") == qeval.load(made_results).table().to("csv")
    assert files["table.csv"] == qeval.load(made_results).table(columns=["*"]).to("csv")
    assert f"qeval run {made_results}/spec.yaml --results {made_results}" in files["commands.sh"]


def unpacked(file):
    return gzip.decompress(base64.b64decode(file["gzip"])).decode()


# -- it is safe to open -----------------------------------------------------------------------------


def test_nothing_is_loaded_and_only_the_scripts_of_the_page_may_run(page):
    policy = markup.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and "connect-src" not in rules
    assert not re.search(r"unsafe|https?:|\*", policy)
    bodies = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in bodies]
    assert rules["script-src"].split() == [f"'sha256-{h}'" for h in hashes]
    for tag, attributes in Text(page).elements:
        for name in ("src", "href", "action", "style", "onclick"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)


HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\x00\x1b[31m‮evil⁦ \ud800"


def test_what_a_model_or_a_label_says_never_becomes_markup(tmp_path, made_folder):
    folder = tmp_path / "hostile"
    label = "Q4 </th><script>alert(3)</script>‮"
    made_folder(
        folder,
        [label, "Q8_0"],
        model="org/<b onclick=x>",
        completion=lambda row, i: HOSTILE + "x" * 100_000,
        spec=False,
    )
    page = page_of(folder)
    plain = data_of(page_of_plain(tmp_path, made_folder))
    scripts = [tag for tag, _ in Text(page).elements if tag == "script"]
    assert len(scripts) == 3 and not any(
        "onerror" in a or "onclick" in a for _, a in Text(page).elements
    )
    assert not re.search("[\x00\x1b\u202e\u2066\ud800]", page)
    data = data_of(page)
    told = next(f["a"] for s in data["flips"] for f in s["flips"])
    assert (
        told["completion"].startswith("</script><script>alert(1)")
        and "⟨U+202E⟩evil" in told["completion"]
    )
    assert told["left_out"] == len(HOSTILE) + 100_000 - 8_000
    assert [sorted(s) for s in data["flips"]][:1] == [sorted(s) for s in plain["flips"]][:1]
    assert len(page) < 3_000_000


def page_of_plain(tmp_path, made_folder):
    made_folder(tmp_path / "plain", ["Q8_0"])
    return page_of(tmp_path / "plain")


def test_what_cannot_be_seen_is_spelled_out_and_the_rest_stays():
    assert visible("a\x00b\u202ec\u200b\ufeff") == "a⟨U+0000⟩b⟨U+202E⟩c⟨U+200B⟩⟨U+FEFF⟩"
    assert visible("naïve\tcode\r\n日本 ‘’ 🙂") == "naïve\tcode\r\n日本 ‘’ 🙂"


# -- what is missing, what differs ------------------------------------------------------------------


def test_what_was_not_measured_is_said_with_the_command(tmp_path, made_folder, keep):
    made = made_folder(tmp_path / "whole", ["Q8_0"])
    only = [r for r in made if r.cell["task"]["name"] == "perplexity"]
    folder = keep(only, "few")
    (folder / "spec.yaml").write_text((tmp_path / "whole" / "spec.yaml").read_text())
    page = markup.unescape(page_of(folder))
    assert page.count('class="quiet missing"') == 4
    assert "Add `divergence` to the tasks of the spec, then:" in page
    assert f"<code>qeval run {folder}/spec.yaml --results {folder}</code>" in page
    assert data_of(page)["certainty"] == [] and data_of(page)["verdicts"][0]["points"]


def test_records_without_any_quality_still_make_a_page(keep, made_folder, tmp_path):
    made = made_folder(tmp_path / "whole", ["Q8_0"])
    folder = keep([r for r in made if r.cell["task"]["name"] == "speed"], "fast")
    page = page_of(folder)
    (verdict,) = data_of(page)["verdicts"]
    assert "measure divergence" in verdict["reason"] and verdict["reason"] in markup.unescape(page)


def test_conditions_that_are_not_the_same_are_warned_of(tmp_path, made_folder):
    folder = tmp_path / "mixed"
    made = made_folder(folder, ["Q8_0", "Q5_K_M"])
    assert "is not the same" not in page_of(folder)
    other = replace(
        made[4],
        provenance={**made[4].provenance, "packages": {"torch": "2.12.0"}, "git_dirty": True},
        conditions=Conditions("other", "cpu", "another CPU", n_threads=4, engine_version="1.0"),
        timing={"end": 1_760_100_000.0},
    )
    Store(folder).append(other)
    page = markup.unescape(page_of(folder))
    assert "torch is not the same for all numbers: 2.13.0: none, Q8_0, Q5_K_M; 2.12.0: Q8_0" in page
    assert "host is not the same for all numbers: box: " in page
    assert "changes that are not committed" in page
    assert "Measured 2025-10-09 to 2025-10-10." in page


def test_several_models_have_a_verdict_each(tmp_path, made_folder):
    made_folder(tmp_path / "one", ["Q8_0"])
    made_folder(tmp_path / "two", ["Q8_0"], model="org/other", spec=False)
    data = data_of(page_of(tmp_path / "one", tmp_path / "two"))
    assert [v["model"] for v in data["verdicts"]] == ["org/model, bfloat16", "org/other, bfloat16"]
    assert {w["group"].split(" · ")[0] for w in data["windows"]} == {"org/model", "org/other"}


# -- the plots --------------------------------------------------------------------------------------


def test_the_pictures_are_written(made_results, tmp_path):
    done = CliRunner().invoke(cli, ["plot", str(made_results), "-o", str(tmp_path), "--ram", "3GiB"])
    assert done.exit_code == 0, done.output
    names = [line.rsplit("/", 1)[-1] for line in done.stdout.split()]
    assert names == ["pareto.svg", "pareto.png", "kld.svg", "kld.png"]
    for name in ("pareto", "kld"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "Q5_K_M" in (tmp_path / f"{name}.svg").read_text() and "var(" not in name


def test_states_of_points(made_results):
    records = list(qeval.load(made_results))
    draft, table = draft_of(records), build_table(records, columns=["*"])
    (verdict,) = verdicts(records, draft, table, Wanted(kind="ram", context=4096))
    choice = next(c for c in verdict.choices if c.context == 4096)
    seen = set()
    for budget in choice.budgets:
        for value in plots.pareto_values(verdict, choice, budget):
            seen.add(value["state"])
            if value["state"] == "recommended":
                assert value["needs"] * 2**30 <= budget and value["row"] in choice.answers
            assert (value["state"] == "simulated †") == (value["row"] == "RTN W4")
    assert seen == set(plots.STATES) or seen == set(plots.STATES) - {"dominated"}


# -- sizes and errors -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fifty(tmp_path_factory, made_folder):
    """50 rows of a whole text and a whole benchmark: the records of two, again and again."""
    folder = tmp_path_factory.mktemp("fifty") / "results"
    made = made_folder(
        folder, ["Q4_K_M"], windows=560, problems=164, completion=lambda r, i: f"{r} {i}\n" * 300
    )
    own = [r for r in made if r.cell["quantization"]["label"] == "Q4_K_M"]
    for i in range(48):
        named = {"name": "gguf", "label": f"Q{i}", "options": {"type": f"Q{i}"}}
        for r in own:
            again = replace(r, key=f"{i} {r.key}", cell={**r.cell, "quantization": named})
            Store(folder).append(again)
    return folder


def test_fifty_rows_are_under_8_mb_with_all_that_records_hold(fifty):
    page = page_of(fifty)
    assert len(page.encode()) < 8_000_000
    data = data_of(page)
    assert len(data["windows"]) == 50 and len(data["flips"]) == 49
    assert "would not fit" not in page


def test_what_would_not_fit_is_left_out_and_said(fifty, monkeypatch):
    monkeypatch.setattr("qeval.page.origin.MOST_RECORDS", 1_000_000)
    monkeypatch.setattr("qeval.page.changed.MOST", 10_000)
    page = page_of(fifty)
    data = data_of(page)
    assert "without the values of single windows and problems, which would not fit" in page
    (file,) = [unpacked(f) for f in data["downloads"] if f["name"] == "records.jsonl"]
    assert all(m["values"] == [] for line in file.splitlines() for m in json.loads(line)["metrics"])
    told = [f[side] for s in data["flips"] for f in s["flips"] for side in "ab"]
    assert sum(len(t["completion"]) for t in told) == 10_000 and told[-1]["left_out"] > 0


def test_a_missing_package_and_a_wrong_name_are_one_line(made_results, tmp_path, monkeypatch):
    done = CliRunner().invoke(cli, ["report", str(made_results), "--ram", "1GiB", "--vram", "1GiB"])
    assert "not both" in str(done.exception)
    monkeypatch.setattr("qeval.core.extras.find_spec", lambda name: None)
    with pytest.raises(QevalError, match=r"pip install .*qeval\[report\]"):
        qeval.load(made_results).report(tmp_path / "x.html")


def test_records_of_older_versions_make_a_page(tmp_path):
    from pathlib import Path

    folder = Path(__file__).parents[1] / "report" / "results_0_1_0"
    records = qeval.load(folder)
    path = records.report(tmp_path / "old.html")
    assert Record and data_of(path.read_text())["rows"]


def test_a_metric_that_nobody_has_is_refused_and_another_one_is_drawn(made_results, tmp_path):
    results = qeval.load(made_results)
    with pytest.raises(QevalError, match="'nothing'"):
        results.report(tmp_path / "x.html", metric="nothing")
    results.report(tmp_path / "y.html", metric="pass@1")
    (verdict,) = data_of((tmp_path / "y.html").read_text())["verdicts"]
    assert "loss of pass@1 from none, points" in json.dumps(verdict["spec"])
