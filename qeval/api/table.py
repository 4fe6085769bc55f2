"""The table that ``Results.table`` gives: the one of ``qeval table``, with its forms."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from qeval.core.extras import require
from qeval.exports.latex import latex
from qeval.report import table as report
from qeval.report.render import render

if TYPE_CHECKING:
    import pandas as pd


class Table(report.Table):
    """``columns``, ``rows`` (with an ``Entry`` for each column's ``id``), ``footnotes`` and ``legend``.
    Printed it is text; in a notebook it is HTML."""

    @staticmethod
    def of(table: report.Table) -> Table:
        return Table(**{field.name: getattr(table, field.name) for field in fields(table)})

    def to(self, form: str, *, width: int | None = None, color: bool = False) -> str:
        """The table as text that ends in a newline.

        Args:
            form: ``text``, ``markdown``, ``csv``, ``json``, ``html`` (a fragment), or
                ``latex`` (needs booktabs).
            width: columns of the terminal, for text; None where there is none.
            color: ANSI styles, for text.

        Raises:
            UsageError: an unknown form.
        """
        if form == "latex":
            return latex(self)
        return render(self, form, width=width, color=color)

    def __str__(self) -> str:
        return self.to("text").rstrip("\n")

    def _repr_html_(self) -> str:
        return self.to("html")

    def to_pandas(self) -> pd.DataFrame:
        """One row a quantized model, one column a number, in raw units (shares, bytes, seconds).
        Intervals and differences are in ``Results.to_pandas``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        require("pandas", "pandas")
        import pandas as pd

        names = [
            {"model": row.model, "dtype": row.dtype, "quantization": row.quantization}
            for row in self.rows
        ]
        values = [
            {column.id: row.entries[column.id].value for column in self.columns} for row in self.rows
        ]
        return pd.DataFrame([{**name, **value} for name, value in zip(names, values, strict=True)])
