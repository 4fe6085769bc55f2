"""A recommendation as text (the candidates, then the answer and why) and as json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from qeval.core.console import aligned
from qeval.core.record import Metric, finite
from qeval.core.units import gib
from qeval.decide.recommend import Candidate, Recommendation, batch_of
from qeval.report.format import difference_text, printed_unit, value_text


def text(found: Recommendation) -> str:
    parts = [found.model, "", *_table(found), "", *_notes(found), "", *sentences(found)]
    return "\n".join(parts) + "\n"


def sentences(found: Recommendation) -> list[str]:
    """What to run, why, and what was not measured; or what is in the way, and what would fit."""
    answer = found.answer
    said = _nothing(found) if answer is None else [_run(found, answer), _why(found, answer)]
    return [*said, _not_measured(found, answer or _smallest(found))]


def _table(found: Recommendation) -> Iterator[str]:
    unit = printed_unit(found.quality)
    title = f"{found.quality.title} {unit}".strip()
    head = ["row", "fits", "needs GiB", "weights", "KV cache", "overhead", title]
    head += ["from the baseline", "rank", "tok/s", "front"]
    rows = [head, *(_line(found, c) for c in found.candidates)]
    first, *rest = aligned(rows, right={2, 3, 4, 5, 8, 9})
    yield first
    yield "─" * max(map(len, (first, *rest)))
    yield from rest


def _line(found: Recommendation, c: Candidate) -> list[str]:
    plain = replace(c.quality, notes=())
    fits = "no" if not c.fits else "yes" if c.fast else "too slow" if c.speed else "speed unknown"
    return [
        c.name,
        fits,
        gib(c.need.total),
        gib(c.need.weights),
        _gib(c.need.kv_cache),
        _gib(c.need.overhead),
        value_text(found.quality, plain),
        difference_text(plain),
        "–" if c.rank is None else str(c.rank),
        "–" if c.speed is None else f"{c.speed:.4g}",
        "not ranked"
        if c.rank is None
        else f"dominated by {c.dominated_by}"
        if c.dominated_by
        else "yes",
    ]


def _gib(n_bytes: float | None) -> str:
    return "?" if n_bytes is None else gib(n_bytes)


def _notes(found: Recommendation) -> Iterator[str]:
    asked = found.asked
    yield (
        f"needs: weights, embeddings and head; the KV cache of {_contexts(found)}; overhead: the peak "
        "of the row's own process less its weights and its KV cache there; ?: not known, "
        "counted as 0"
    )
    protocol = " ".join(filter(None, (found.quality.protocol, _first(found))))
    yield (
        f"rank: of {found.quality.title} ({protocol}); rows of one rank are not distinguishable "
        f"(paired, Holm's correction for all pairs) or equal within {100 * asked.margin:g}%"
        + (f", of a divergence {_nats(found):.2g} nats" if found.metric.unit == "nats" else "")
    )
    yield "front: no other row is at least as good in rank, memory and speed, and better in one"
    if found.ranks.untested:
        yield "some pairs could not be tested: their numbers alone decide"
    if found.speed is not None:
        n, where = batch_of(found.speed), found.speed.place
        at = f" on {where.words()}" if where else ""
        yield f"tok/s: decoding {_sequences(n)} at once{at}, {found.speed.protocol}"
    for name, why in found.excluded.items():
        yield f"left out: {name}: {why}"


def _nats(found: Recommendation) -> float:
    return math.log1p(found.asked.margin)


def _first(found: Recommendation) -> str:
    return f"[first {found.quality.limit}]" if found.quality.limit else ""


def _sequences(n: int) -> str:
    return "1 sequence" if n == 1 else f"{n} sequences"


def _contexts(found: Recommendation) -> str:
    return f"{_sequences(found.asked.batch)} of {found.asked.context:,} tokens"


def _run(found: Recommendation, answer: Candidate) -> str:
    asked, needed = found.asked, answer.need
    parts = [f"weights {gib(needed.weights)}"]
    parts += [] if needed.kv_cache is None else [f"KV cache {gib(needed.kv_cache)}"]
    parts += [] if needed.overhead is None else [f"overhead {gib(needed.overhead)}"]
    least = "at least " if needed.kv_cache is None or needed.overhead is None else ""
    speed = "" if answer.speed is None else f", and decodes {answer.speed:.4g} tokens a second"
    return (
        f"Run {answer.name}: with {_contexts(found)} it needs {least}{gib(needed.total)} of the "
        f"{gib(asked.budget)} GiB of {asked.kind.upper()} ({', '.join(parts)}){speed}."
    )


def _why(found: Recommendation, answer: Candidate) -> str:
    assert answer.rank is not None
    ranked = [c for c in found.candidates if c.rank is not None and c != answer]
    better = [c for c in ranked if c.rank is not None and c.rank < answer.rank]
    alike = [c for c in ranked if c.rank == answer.rank]
    fit = [c for c in alike if c.eligible]
    worse = [c for c in ranked if c.rank is not None and c.rank > answer.rank]
    parts = [f"in {found.quality.title} no row that can be run there is measurably better"]
    if fit:
        parts.append(
            f"{_names(fit)} {_are(fit)} as good, as far as this run shows, and {_cost(answer, fit)}"
        )
    if worse:
        parts.append(f"{_names(worse)} {_are(worse)} of a lower rank")
    if better:
        parts.append(f"{_names(better)} {_are(better)} better, but {_blocked(better)}")
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}."


def _cost(answer: Candidate, alike: Sequence[Candidate]) -> str:
    need = "needs" if len(alike) == 1 else "need"
    if all(c.need.total > answer.need.total for c in alike):
        return f"{need} more memory"
    return f"{need} no less memory"


def _blocked(rows: Sequence[Candidate]) -> str:
    if all(not c.fits for c in rows):
        return "does not fit" if len(rows) == 1 else "do not fit"
    return "cannot be run within these limits"


def _are(rows: Sequence[Candidate]) -> str:
    return "is" if len(rows) == 1 else "are"


def _names(rows: Sequence[Candidate]) -> str:
    *most, last = [c.name for c in rows]
    return f"{', '.join(most)} and {last}" if most else last


def _smallest(found: Recommendation) -> Candidate | None:
    return min(found.candidates, key=lambda c: (c.need.total, c.name), default=None)


def _nothing(found: Recommendation) -> list[str]:
    asked, smallest = found.asked, _smallest(found)
    assert smallest is not None  # what measures quality is a candidate's
    budget = f"{gib(asked.budget)} GiB of {asked.kind.upper()}"
    fit = [c for c in found.candidates if c.fits]
    if not fit:
        over = smallest.need.total - asked.budget
        first = (
            f"Nothing fits: {smallest.name}, the smallest, needs {gib(smallest.need.total)} GiB with "
        )
        return [
            f"{first}{_contexts(found)}, which is {gib(over)} GiB more than {budget}.",
            _shorter(found),
        ]
    slow = [c for c in fit if not c.fast]
    if slow:
        fastest = max(slow, key=lambda c: (c.speed or 0.0, c.name))
        known = f"{fastest.name} decodes {fastest.speed:.4g}" if fastest.speed else "no speed is known"
        return [
            f"Nothing that fits is known to decode {asked.min_speed:g} tokens a second: {known}.",
            f"{_names(fit)} would fit {budget}.",
        ]
    return [f"What fits {budget} has no {found.quality.title}: {_names(fit)}.", "Measure it first."]


def _shorter(found: Recommendation) -> str:
    """Which rows fit at which context."""
    budget, asked = found.asked.budget, found.asked
    known = [c for c in found.candidates if c.fast and c.rank is not None]
    would = [(c, n) for c in known if (n := c.need.largest_context(budget)) > 0]
    if not would:
        return "No row fits at any context: weights and overhead alone take more."
    each = " each" if asked.batch > 1 else ""
    told = ", ".join(f"{c.name} with up to {n:,} tokens{each}" for c, n in would)
    return f"With a shorter context would fit: {told}."


def _not_measured(found: Recommendation, of: Candidate | None) -> str:
    """The third sentence: of the row that is recommended, or of the one that comes closest."""
    asked = found.asked
    gaps: list[str] = []
    if of is not None:
        gaps += _memory_gaps(found, of)
        if of.speed is None:
            on = "a GPU" if asked.kind == "vram" else "a CPU"
            gaps.append(f"its speed on {on}")
        elif found.speed is not None and batch_of(found.speed) != asked.batch:
            gaps.append(f"its speed with {_sequences(asked.batch)} at once")
    names = sorted({c.title for c in found.beside} - {found.quality.title})
    looked = f"; measured, but not looked at: {', '.join(names)}" if names else ""
    still = _not_ruled_out(found, of) if of is not None and of.rank is not None else ""
    return f"Not measured: {'; '.join(gaps) or 'nothing is missing'}{looked}{still}."


def _not_ruled_out(found: Recommendation, of: Candidate) -> str:
    """How much worse it may be than a row of its rank."""
    lower = found.quality.better == "lower"
    loss = found.ranks.largest_loss(of.row, lower_is_better=lower)
    if not loss:
        return ""
    said = _difference(found.metric, loss)
    return (
        f"; not ruled out: that it is worse in {found.quality.title} than a row of its rank, by {said}"
    )


def _memory_gaps(found: Recommendation, of: Candidate) -> Iterator[str]:
    asked, needed = found.asked, of.need
    if needed.kv_cache is None:
        yield "its KV cache"
    if needed.overhead is None:
        on = "a GPU" if asked.kind == "vram" else "a CPU"
        yield f"overhead (no peak on {on})"
    elif needed.tokens is None or needed.tokens < asked.context or asked.batch > 1:
        tokens = f" with {needed.tokens:,} tokens" if needed.tokens else ""
        yield f"its peak with {_contexts(found)} (the overhead is from {needed.task}{tokens})"


def _difference(metric: Metric, value: float) -> str:
    if metric.change == "difference":
        return f"{value:.2g} {metric.unit}".rstrip()
    return f"{100 * value:.2g}" + ("%" if metric.change == "relative" else " pts")


def json_text(found: Recommendation) -> str:
    asked, answer = found.asked, found.answer
    data = {
        "schema_version": 1,
        "model": found.model,
        "memory": asked.kind,
        "budget_bytes": asked.budget,
        "context": asked.context,
        "batch": asked.batch,
        "min_speed": asked.min_speed,
        "margin": asked.margin,
        "quality": found.quality.id,
        "speed": found.speed.id if found.speed else None,
        "answer": answer.name if answer else None,
        "sentences": sentences(found),
        "candidates": [_row(found, c) for c in found.candidates],
        "excluded": [{"row": name, "reason": why} for name, why in found.excluded.items()],
    }
    return json.dumps(finite(data), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _row(found: Recommendation, c: Candidate) -> dict[str, object]:
    change = c.quality.difference
    return {
        "row": c.name,
        "fits": c.fits,
        "fast_enough": c.fast,
        "needs_bytes": c.need.total,
        "weights_bytes": c.need.weights,
        "kv_cache_bytes": c.need.kv_cache,
        "overhead_bytes": c.need.overhead,
        "overhead_from": c.need.task or None,
        "largest_context": c.need.largest_context(found.asked.budget),
        "quality": c.quality.value,
        "low": c.quality.low,
        "high": c.quality.high,
        "difference": change.value if change else None,
        "difference_low": change.low if change else None,
        "difference_high": change.high if change else None,
        "rank": c.rank,
        "tok_s": c.speed,
        "dominated_by": c.dominated_by,
    }
