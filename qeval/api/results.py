"""``qeval.load``: results folders as one object."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from qeval.api.table import Table
from qeval.core.errors import UsageError
from qeval.core.extras import require
from qeval.core.record import Record
from qeval.report.compare import Margins
from qeval.report.describe import describe, pick, picked
from qeval.report.results import read_results
from qeval.report.rows import build_table
from qeval.report.tidy import tidy
from qeval.store.results import failed_cells

if TYPE_CHECKING:
    import pandas as pd

    from qeval.api.comparison import Comparison
    from qeval.decide.gate import Check
    from qeval.decide.need import Kind
    from qeval.decide.recommend import Recommendation
    from qeval.decide.rules import Rule
    from qeval.exports.rows import ExportRow
    from qeval.page.verdict import Wanted

    Folder = str | os.PathLike[str]


def load(*folders: Folder) -> Results:
    """The results in these folders, or in every results folder inside them, merged.

    Rows are named and ordered by the spec that each folder keeps. What had to be left out (a torn line)
    is said on standard error.

    Raises:
        StoreError: a folder is missing, empty, or written by a newer qeval.
    """
    paths = tuple(Path(folder) for folder in folders)
    return Results(tuple(read_results(paths)), paths)


@dataclass(frozen=True)
class Results:
    """What was measured: ``records`` as they are in the folders, and what follows from them.

    Wherever a row is named, that is its label or its method, as in ``--baseline``.
    """

    records: tuple[Record, ...]
    folders: tuple[Path, ...] = ()
    asked: frozenset[str] | None = None  # keys of a run's cells; None: all

    def table(
        self,
        *,
        wide: bool = False,
        columns: Sequence[str] | None = None,
        layout: str = "full",
        baseline: str | None = None,
        sort: str | None = None,
        only: Sequence[str] = (),
        margin: float = 0.01,
        pair: tuple[str, str] | None = None,
    ) -> Table:
        """One row a quantized model, with differences from the baseline.

        Args:
            wide: every kind of memory and the times.
            columns: names or globs (``ppl``, ``ppl*c4*``) of the columns to show.
            layout: ``full``, or a short one's name.
            baseline: the row that differences are from; None: as the spec says.
            sort: the column that orders the rows of a model; ``-COLUMN``: largest first.
            only: rows and columns of cells with one of these in their name, method or task.
            margin: share of a perplexity, points of a share; differences within it are equivalent.
            pair: only these two rows, the second's differences from the first.

        Raises:
            UsageError: a name means nothing in these results.
        """
        made = build_table(
            self.records,
            wide=wide,
            columns=columns,
            layout=layout,
            baseline=baseline,
            sort=sort,
            only=only,
            margins=Margins(margin, margin),
            pair=pair,
        )
        return Table.of(made)

    def tidy(self, *, baseline: str | None = None, margin: float = 0.01) -> list[dict[str, object]]:
        """One metric a line, with its interval, its difference from the baseline, and its conditions
        (docs/library.md has the keys).

        Raises:
            UsageError: no row is called ``baseline``.
        """
        return tidy(self.records, baseline, Margins(margin, margin))

    def to_pandas(self, *, baseline: str | None = None, margin: float = 0.01) -> pd.DataFrame:
        """``tidy`` as a frame.

        Raises:
            MissingExtraError: pandas is not installed.
            UsageError: no row is called ``baseline``.
        """
        require("pandas", "pandas")
        import pandas as pd

        from qeval.report.tidy import FIELDS

        return pd.DataFrame(self.tidy(baseline=baseline, margin=margin), columns=list(FIELDS))

    def recommend(
        self,
        *,
        context: int,
        vram: float | None = None,
        ram: float | None = None,
        batch: int = 1,
        min_speed: float | None = None,
        margin: float = 0.01,
        metric: str | None = None,
        model: str | None = None,
        baseline: str | None = None,
    ) -> Recommendation:
        """Which row to run in so much memory; its ``answer`` is None where nothing fits.

        Args:
            context: tokens of each sequence, prompt and answer together.
            vram: bytes of the GPU; or ``ram``, for a CPU.
            batch: sequences at once.
            min_speed: tokens a second when decoding, of all sequences together.
            metric: the column that says how good a row is.
            model: which one, where the results have several.

        Raises:
            UsageError: not one of ``vram`` and ``ram``; no such metric, model or baseline; nothing
                measures quality.
        """
        from qeval.decide.recommend import Asked, recommend

        if vram is not None and ram is None:
            asked = Asked("vram", vram, context, batch, min_speed, margin)
        elif ram is not None and vram is None:
            asked = Asked("ram", ram, context, batch, min_speed, margin)
        else:
            raise UsageError("recommend: give one of vram and ram, in bytes, as in vram=12 * 2**30")
        return recommend(self.records, asked, metric=metric, model=model, baseline=baseline)

    def gate(
        self, rules: Sequence[Rule], *, baseline: str | None = None, margin: float = 0.01
    ) -> list[Check]:
        """Whether bounds are kept: pass, fail or undecided, for each row and column that a rule means.

        Args:
            rules: of ``qeval.decide.rules``: ``load_rules(path)``, ``every_loss(0.02)``.
            margin: the loss that is still "not worse".

        Raises:
            UsageError: a rule means no row, or its bound is in another unit than its column.
        """
        from qeval.decide.gate import gate

        table = self.table(columns=["*"], baseline=baseline, margin=margin)
        return gate(table, rules, Margins(margin, margin))

    @overload
    def compare(self, a: str, b: str, *, margin: float = ...) -> Comparison: ...
    @overload
    def compare(self, a: Results, *, margin: float = ...) -> Comparison: ...
    def compare(self, a: str | Results, b: str | None = None, *, margin: float = 0.01) -> Comparison:
        """Two rows, ``results.compare("none", "Q8_0")``, by label or method; what two versions or git
        commits of qeval measured, ``results.compare("0.1.0", "3f2a9c1")``; or the rows that these
        results share with others, ``before.compare(after)``. Differences are of the second from the
        first.

        Raises:
            UsageError: there is no such row or version, or no row in common.
        """
        from qeval.api.comparison import Comparison
        from qeval.comparison.compare import compare_sides, compare_within

        margins = Margins(margin, margin)
        if isinstance(a, Results):
            sides = [", ".join(map(str, one.folders)) or "?" for one in (self, a)]
            found = compare_sides(self.records, a.records, sides[0], sides[1], margins)
        else:
            found = compare_within(self.records, a, b or "", margins)
        return Comparison.of(found)

    def report(
        self,
        path: Folder = "report.html",
        *,
        context: int | None = None,
        vram: float | None = None,
        ram: float | None = None,
        batch: int = 1,
        margin: float = 0.01,
        metric: str | None = None,
        baseline: str | None = None,
    ) -> Path:
        """Write one self-contained HTML page; its path. The arguments are those of ``recommend``, as
        the page first shows them: all memories and the usual contexts can be chosen there.

        Raises:
            MissingExtraError: jinja2 or vl-convert is not installed.
            UsageError: both of ``vram`` and ``ram``; no such metric or baseline.
            StoreError: the file cannot be written.
        """
        from qeval.core.files import write_atomic
        from qeval.page.collect import collect
        from qeval.page.write import html

        require("report", "jinja2", "vl_convert")
        wanted = _wanted(vram, ram, context, batch, margin, metric, baseline)
        page = Path(path)
        write_atomic(page, html(collect(self.records, self.folders, wanted, page.name)))
        return page

    def plot(
        self,
        folder: Folder = ".",
        *,
        context: int | None = None,
        vram: float | None = None,
        ram: float | None = None,
        batch: int = 1,
        margin: float = 0.01,
        metric: str | None = None,
        baseline: str | None = None,
    ) -> list[Path]:
        """Draw loss against memory and divergence by certainty as svg and png; the files written.

        Raises:
            MissingExtraError: vl-convert is not installed.
            UsageError: there is nothing to draw; as ``report``.
            StoreError: the folder cannot be written.
        """
        from qeval.page.pictures import write_plots

        wanted = _wanted(vram, ram, context, batch, margin, metric, baseline)
        return write_plots(self.records, Path(folder), wanted)

    def rows(self, *, baseline: str | None = None, margin: float = 0.01) -> list[ExportRow]:
        """The rows with all that is exported of them: records, settings and tidy lines.

        Raises:
            UsageError: no row is called ``baseline``.
        """
        from qeval.exports.rows import export_rows

        return export_rows(self.records, baseline, Margins(margin, margin))

    def export(self, row: str, folder: Folder) -> list[Path]:
        """The weights of a row, copied to a new folder with their card; the files written.

        Raises:
            UsageError: no row is called so, the folder is not empty, or no other program would run what
                was measured.
            StoreError: the weights are no longer here, or the disk.
        """
        from qeval.exports.model import export_model
        from qeval.exports.rows import called

        return export_model(called(self.rows(), row), Path(folder))

    def cell(self, key: str) -> list[Record]:
        """The records of the cell whose key begins with ``key``, newest first: one a folder.

        Raises:
            UsageError: no key does, or several do.
        """
        return pick(self.records, key)

    def cells(self, named: str) -> list[list[Record]]:
        """The records of each cell whose key begins with ``named``, whose row is called so, or whose
        name has it in it; newest first, one a folder.

        Raises:
            UsageError: no cell is; with what is close.
        """
        return picked(self.records, named)

    def show(self, key: str) -> str:
        """All facts of such a cell, in readable lines."""
        return describe(*self.cell(key))

    @property
    def failed(self) -> list[Record]:
        """The newest record of every cell that was asked for and has neither a number nor a reason to
        have none."""
        asked = self.asked
        return failed_cells([r for r in self.records if asked is None or r.key in asked])

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.folders))
        return f"<qeval.Results: {len(self)} records{f' of {where}' if where else ''}>"

    def _repr_html_(self) -> str:
        return self.table().to("html")


def _wanted(
    vram: float | None,
    ram: float | None,
    context: int | None,
    batch: int,
    margin: float,
    metric: str | None,
    baseline: str | None,
) -> Wanted:
    from qeval.page.verdict import Wanted

    if vram is not None and ram is not None:
        raise UsageError("give one of vram and ram, not both")
    kind: Kind | None = "ram" if ram is not None else "vram" if vram is not None else None
    return Wanted(kind, vram if ram is None else ram, context, batch, margin, metric, baseline)
