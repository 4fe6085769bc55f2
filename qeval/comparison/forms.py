"""A comparison as text and json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from qeval.comparison.compare import Compare, Compared, RowPair
from qeval.comparison.flips import Flip, Flips
from qeval.core.console import aligned
from qeval.core.record import finite
from qeval.report.format import difference_text, printed_unit, value_text
from qeval.report.table import Column, Entry
from qeval.store.samples import Answer


def text(found: Compare, *, shown: int = 3) -> str:
    """Ends in a newline. ``shown``: of how many flips of a task the completions are printed."""
    lines = [f"A: {found.a}", f"B: {found.b}"]
    for pair in found.rows:
        lines += ["", pair.a if pair.a == pair.b else f"A: {pair.a}   B: {pair.b}", ""]
        lines += _numbers(pair)
        lines += _section("only A has", [", ".join(pair.only_a)] if pair.only_a else [])
        lines += _section("only B has", [", ".join(pair.only_b)] if pair.only_b else [])
        rows = [[d.kind, d.what, _short(d.a), "->", _short(d.b)] for d in pair.conditions]
        lines += _section("what else differs, A -> B", aligned(rows) if rows else ["nothing"])
        for flips in pair.flips:
            lines += _flips(flips, shown)
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        lines += [f"rows of {side} alone: {', '.join(names)}"] if names else []
    return "\n".join([*lines, "", *_legend(found)]) + "\n"


def _numbers(pair: RowPair) -> list[str]:
    rows = [["", "A", "B", "B against A"]]
    rows += [
        [
            _heading(one.column),
            value_text(one.column, one.a),
            value_text(one.column, one.b),
            _change(one),
        ]
        for one in pair.metrics
    ]
    return aligned(rows) if pair.metrics else ["no number that both have"]


def _heading(column: Column) -> str:
    first = f"[first {column.limit}]" if column.limit else ""
    parts = (column.title, printed_unit(column), column.protocol, first)
    return " ".join(part for part in parts if part)


def _change(one: Compared) -> str:
    if one.difference is None:
        return f"({one.reason})" if one.reason else "–"
    return difference_text(Entry(difference=one.difference))


def _flips(found: Flips, shown: int) -> list[str]:
    tested = "" if found.p is None else f"; p = {found.p:.2g} (McNemar)"
    lines = [
        "",
        f"{found.task}: {len(found.lost)} lost, {len(found.gained)} gained of {found.n}{tested}",
    ]
    for word, flips in (("lost", found.lost), ("gained", found.gained)):
        lines += [f"  {word}: {', '.join(_named(flip) for flip in flips)}"] if flips else []
    told = 0
    for flip in found.flips:
        if told < shown and (flip.a or flip.b):
            told += 1
            lines += ["", f"  {_named(flip)} ({flip.direction})", *_answers(flip)]
    kept = [flip for flip in found.flips if flip.a or flip.b]
    if len(kept) > told:
        lines += [
            "",
            f"  completions of {len(kept) - told} more: --flips {len(kept)}, or --format json",
        ]
    if found.flips and not kept:
        lines += ["  what was written is not kept beside these records"]
    return lines


def _named(flip: Flip) -> str:
    plain = {flip.share_a, flip.share_b} == {0.0, 1.0}
    return flip.unit if plain else f"{flip.unit} ({flip.share_a:.0%} -> {flip.share_b:.0%})"


def _answers(flip: Flip) -> Iterator[str]:
    for side, answer in (("A", flip.a), ("B", flip.b)):
        yield f"    {side}: {_verdict(answer)}"
        if answer is not None:
            yield from (f"      | {line}" for line in answer.completion.rstrip("\n").split("\n"))


def _verdict(answer: Answer | None) -> str:
    if answer is None:
        return "not kept"
    return f"{answer.verdict or 'verdict unknown'} (sample {answer.sample})"


def _section(title: str, body: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in body)] if body else []


def _short(value: str) -> str:
    return value if len(value) <= 60 else value[:57] + "..."


def _legend(found: Compare) -> Iterator[str]:
    said = [one for pair in found.rows for one in pair.metrics]
    texts = [_change(one) for one in said]
    if any(one.difference and one.difference.p is not None for one in said):
        yield "differences are paired unit by unit, with their 95% interval"
    if any("n.s." in one for one in texts):
        yield "n.s.: may be chance (p >= 0.05, by Holm's correction for the rows compared)"
    if any("equiv." in one for one in texts):
        relative, points = 100 * found.margins.relative, 100 * found.margins.points
        yield f"equiv.: the same within {relative:g}% or {points:g} pts, by two one-sided tests at 5%"
    if any("untested" in one for one in texts):
        yield "untested: too few units, or they do not pair"
    if any(one.column.unit == "bytes" for one in said):
        yield "sizes and peaks in GiB; ×: B is so many times A"


def json_text(found: Compare) -> str:
    """Everything, with every completion of a flip."""
    data = {
        "schema_version": 1,
        "a": found.a,
        "b": found.b,
        "rows": [_row(pair) for pair in found.rows],
        "only_a": found.only_a,
        "only_b": found.only_b,
    }
    return json.dumps(finite(data), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _row(pair: RowPair) -> dict[str, object]:
    return {
        "a": pair.a,
        "b": pair.b,
        "metrics": [
            {
                "id": one.column.id,
                "unit": one.column.unit,
                "better": one.column.better,
                "a": _entry(one.a),
                "b": _entry(one.b),
                "difference": asdict(one.difference) if one.difference else None,
                "reason": one.reason,
            }
            for one in pair.metrics
        ],
        "conditions": [asdict(one) for one in pair.conditions],
        "flips": [
            {
                "task": flips.task,
                "n": flips.n,
                "p": flips.p,
                "flips": [{**asdict(flip), "direction": flip.direction} for flip in flips.flips],
            }
            for flips in pair.flips
        ],
        "only_a": pair.only_a,
        "only_b": pair.only_b,
    }


def _entry(entry: Entry) -> dict[str, object]:
    return {"value": entry.value, "low": entry.low, "high": entry.high, "status": entry.status or "ok"}
