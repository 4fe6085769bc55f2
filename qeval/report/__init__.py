"""From records to a table: ``build_table`` (rows, columns, differences) and ``render`` (its forms)."""

from qeval.report.describe import describe, pick
from qeval.report.render import render
from qeval.report.rows import build_table
from qeval.report.table import Table

__all__ = ["Table", "build_table", "describe", "pick", "render"]
