"""What ``Results.compare`` gives."""

from __future__ import annotations

from dataclasses import fields
from html import escape

from qeval.comparison import forms
from qeval.comparison.compare import Compare


class Comparison(Compare):
    """``rows``: pairs with their ``metrics``, ``conditions`` that differ, and ``flips`` with both
    completions. Printed it is text."""

    @staticmethod
    def of(found: Compare) -> Comparison:
        return Comparison(**{field.name: getattr(found, field.name) for field in fields(found)})

    def __str__(self) -> str:
        return forms.text(self).rstrip("\n")

    def to_json(self) -> str:
        """As ``qeval compare --format json`` has it."""
        return forms.json_text(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
