"""Chat templates: the same text whenever and on whichever engine they are rendered.

``render`` is for templates that come without transformers, in a bare ``.gguf`` file; it sets Jinja up
as transformers does. ``strftime_now`` is what both give to templates that ask for the date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qeval.core.errors import ModelError

TODAY = datetime(2024, 7, 26)
"""The date in every prompt, or rows measured on two days would read two. It is the one that Llama 3.1's
template has where it cannot ask."""


MOST = 2**24
"""Characters of a prompt: no model takes that many, and tokenizing a gigabyte takes hours."""


def checked(text: str, path: Path) -> str:
    """What a model's template made. Raises ModelError where it is over MOST characters."""
    if len(text) > MOST:
        raise ModelError(
            f"{path}: its chat template makes a prompt of {len(text):,} characters of one problem, the "
            f"most is {MOST:,}: mend the template, or set mode: base"
        )
    return text


def strftime_now(form: str) -> str:
    return TODAY.strftime(form)


def render(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> str:
    """The messages with the assistant's turn opened. ``tokens`` are ``bos_token`` and the like.

    Raises:
        jinja2.TemplateError: the template is malformed, or refuses these messages.
    """
    return (
        _environment()
        .from_string(template)
        .render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens)
    )


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; the text is the same."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja's own extensions have it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=strftime_now)
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML would misread."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
