"""The colour of a number says which way it differs, and how much."""

from __future__ import annotations

import pytest

from qeval.report.compare import Difference
from qeval.report.sheet import _style
from qeval.report.table import Column, Entry
from qeval.report.text import _STYLES


@pytest.mark.parametrize(
    ("kind", "value", "style"),
    [
        ("relative", 0.004, "worse-slight"),
        ("relative", 0.05, "worse"),
        ("relative", 0.4, "worse-much"),
        ("relative", -0.05, "better"),
        ("points", 0.2, "worse-much"),
        ("ratio", 1.5, "worse"),
    ],
)
def test_the_colour_grows_with_the_difference(kind, value, style):
    column = Column("ppl", "PPL", better="lower")
    entry = Entry(20.0, difference=Difference(kind, value, significant=True))
    assert _style(column, entry) == style and style in _STYLES
    plain = Entry(20.0, difference=Difference(kind, value, significant=False))
    assert _style(column, plain) == ""


def test_what_is_within_the_margin_is_slight_whatever_its_size():
    entry = Entry(1.0, difference=Difference("relative", 0.2, significant=True, equivalent=True))
    assert _style(Column("ppl", "PPL", better="lower"), entry) == "worse-slight"
