"""The Pareto and the divergence plot as svg and png files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from qeval.core.errors import StoreError, UsageError
from qeval.core.extras import require
from qeval.core.files import disk_message
from qeval.core.record import Record
from qeval.core.units import GIB
from qeval.page import plots
from qeval.page.measured import Certainty, certainties
from qeval.page.verdict import Verdict, Wanted, short_name, verdicts
from qeval.report.compare import Margins
from qeval.report.draft import draft_of
from qeval.report.rows import build_table

SCALE = 2.0  # pixels of a png a unit of its svg


def write_plots(records: Sequence[Record], folder: Path, wanted: Wanted) -> list[Path]:
    """``pareto.svg``, ``pareto.png``, ``kld.svg`` and ``kld.png``, as far as the records have them; of
    several models or protocols each with its name. The files written.

    Raises:
        MissingExtraError: vl-convert is not installed.
        UsageError: the records have neither; no such baseline or metric.
        StoreError: the folder cannot be written.
    """
    require("report", "vl_convert")
    import vl_convert

    found = list(_plots(records, wanted))
    if not found:
        raise UsageError(
            "qeval plot: nothing to draw: measure divergence, perplexity or humaneval beside a baseline"
        )
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, spec in found:
            svg, png = folder / f"{name}.svg", folder / f"{name}.png"
            svg.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
            png.write_bytes(vl_convert.vegalite_to_png(spec, scale=SCALE))
            written += [svg, png]
    except OSError as err:
        raise StoreError(disk_message(folder, err)) from err
    return written


def _plots(records: Sequence[Record], wanted: Wanted) -> Iterator[tuple[str, str]]:
    margins = Margins(wanted.margin, wanted.margin)
    draft = draft_of(records, wanted.baseline, margins)
    table = build_table(records, columns=["*"], baseline=wanted.baseline, margins=margins)
    with_one = [v for v in verdicts(records, draft, table, wanted) if v.points]
    for verdict in with_one:
        yield _named("pareto", short_name(verdict.model), len(with_one)), _pareto(verdict)
    groups: dict[tuple[str, str], list[Certainty]] = {}
    for one in certainties(draft):
        groups.setdefault((one.model, one.protocol), []).append(one)
    for (model, protocol), own in groups.items():
        yield (
            _named("kld", f"{short_name(model)} {protocol}", len(groups)),
            _certainty(model, protocol, own),
        )


def _named(plot: str, what: str, of: int) -> str:
    return plot if of == 1 else f"{plot}-{re.sub(r'[^A-Za-z0-9.]+', '-', what).strip('-')}"


def _pareto(verdict: Verdict) -> str:
    choice = next(c for c in verdict.choices if c.context == verdict.context)
    values = plots.pareto_values(verdict, choice, verdict.budget)
    memory: plots.Values = [{"gib": verdict.budget / GIB}]
    sequences = "1 sequence" if verdict.batch == 1 else f"{verdict.batch} sequences"
    return plots.drawn(
        plots.pareto(verdict, plots.ON_PAPER),
        f"{short_name(verdict.model)}: {verdict.protocol}, {sequences} of {verdict.context:,} tokens",
        {"points": values, "memory": memory},
        {"domain": plots.domain(choice)},
    )


def _certainty(model: str, protocol: str, own: Sequence[Certainty]) -> str:
    return plots.drawn(
        plots.certainty(plots.ON_PAPER),
        f"{short_name(model)}: divergence by certainty, {protocol}",
        {"values": plots.certainty_values(own)},
        {"rows": [one.row for one in own]},
    )
