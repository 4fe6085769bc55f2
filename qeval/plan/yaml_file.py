"""A YAML file as plain data with the line of every key, read with limits.

A file from elsewhere may be torn, hostile or not a spec at all. It ends in one line that names the file
and the line, within a few seconds and megabytes: the size, the depth and what aliases expand to are
bounded, and no value contains itself.

Plain words and numbers are those of YAML 1.1 with three differences. ``1e-3`` is a number. A date is a
text, and so is ``1:30``, which YAML 1.1 reads as 90. Integers are those that fit into 64 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qeval.core.errors import SpecError, short
from qeval.core.files import read_bytes

MAX_BYTES = 2**18  # PyYAML reads about 0.1 MB a second
MAX_DEPTH = 50
MAX_VALUES = 100_000  # what an alias stands for is counted each time

KeyPath = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_WRONG = (ValueError, LookupError, AttributeError, TypeError, OverflowError)  # of a wrong scalar
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_LONGEST_MESSAGE = 500
_LONGEST_INT = 70  # characters: 64 bits in base 2, with a sign


class YamlFile:
    """``data``: the mapping at the top of the file; ``text``: the file as it is.

    Args:
        holds: its keys, for the message where there is no mapping.
        text: what is read in place of the file.
        said: by line of that text, the words of the command line that it was made of.

    Raises:
        SpecError: it cannot be read, is not YAML or not a mapping, or is over a limit.
    """

    def __init__(
        self,
        path: Path,
        holds: str = "name, models, ...",
        *,
        text: str | None = None,
        said: Mapping[int, str] | None = None,
    ) -> None:
        self.path = path
        self._said = said or {}
        self._lines: dict[KeyPath, int] = {}
        raw = (
            text.encode() if text is not None else read_bytes(path, MAX_BYTES, SpecError, streams=True)
        )
        try:
            self.text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as err:
            line = raw[: err.start].count(b"\n") + 1
            raise SpecError(f"{self._at(line)}: not UTF-8 text: save it as such") from err
        try:
            self.data = self._load()
        except yaml.reader.ReaderError as err:
            line = self.text[: err.position].count("\n") + 1
            what = f"the character U+{err.character:04X}"
            raise SpecError(f"{self._at(line)}: not valid YAML: {what}") from err
        except yaml.MarkedYAMLError as err:
            raise self._invalid(err) from err
        if not isinstance(self.data, dict):
            raise SpecError(f"{path}: the top level must be a mapping with {holds}")

    def _load(self) -> Any:
        loader = _Loader(self.text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            self._walk(loader, root, ())
            return loader.construct_document(root)
        finally:
            loader.dispose()

    def _walk(self, loader: _Loader, node: yaml.Node, where: KeyPath) -> None:
        """Note the line of every key and entry. Raises SpecError for a key that is not text or occurs
        twice, and for a scalar that is not what its tag says."""
        self._lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise SpecError(f"{self._at(line)}: a key must be a plain text")
                if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                    shown = short(key.value)
                    raise SpecError(f"{self._at(line)}: the key {shown!r} is no text: quote it")
                if key.tag == f"{_TAG}str" and (wrong := _wrong(loader, key)):
                    raise self.error(where, f"the key {short(key.value)!r} {wrong}")
                inner = (*where, key.value)
                if inner in self._lines:
                    raise SpecError(f"{self._at(line)}: {short(key.value)!r} stands twice")
                self._lines[inner] = line
                self._walk(loader, value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._walk(loader, value, (*where, i))
        elif isinstance(node, yaml.ScalarNode) and (wrong := _wrong(loader, node)):
            raise self.error(where, f"{short(node.value)!r} {wrong}")

    def _invalid(self, err: yaml.MarkedYAMLError) -> SpecError:
        where = self._at(err.problem_mark.line + 1) if err.problem_mark else str(self.path)
        what = err.problem
        if what == "second occurrence":  # PyYAML says of what in the context
            what = "an anchor stands twice"
        kind = "" if isinstance(err, _OverLimit) else "not valid YAML: "
        return SpecError(f"{where}: {kind}{short(str(what))}")

    def line(self, where: KeyPath) -> int:
        """Of a key, or of the closest one around it that is in the file."""
        known = where
        while known not in self._lines:
            known = known[:-1]
        return self._lines[known]

    def error(self, where: KeyPath, message: str) -> SpecError:
        """An error at a key, or at the closest one around it that is in the file."""
        line, keys = self.line(where), [part for part in where if isinstance(part, str)]
        key = short(".".join(keys[2:] if line in self._said else keys))
        told = short(message, _LONGEST_MESSAGE)  # it may repeat what stands in the file
        return SpecError(f"{self._at(line)}: {key + ': ' if key else ''}{told}")

    def _at(self, line: int) -> str:
        return self._said.get(line, f"{self.path}:{line}")


class _Loader(yaml.SafeLoader):
    """SafeLoader with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._total = 0
        self._sizes: dict[int, int] = {}  # by id of a finished node: the values in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._total  # type: ignore[no-untyped-call]
        if self._depth > MAX_DEPTH:
            raise _OverLimit(f"nested over {MAX_DEPTH} deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._total += 1
            self._sizes[id(node)] = self._total - before
        elif id(node) in self._sizes:
            self._total += self._sizes[id(node)]
        else:
            raise _OverLimit(f"{event.anchor!r} contains itself", event)
        if self._total > MAX_VALUES:
            raise _OverLimit(f"over {MAX_VALUES:,} values, with what aliases stand for", event)
        return node


def _wrong(loader: _Loader, scalar: yaml.ScalarNode) -> str:
    """What is wrong with a scalar; "" where nothing is."""
    if bad := _UNPRINTABLE.search(scalar.value):
        return f"holds the character U+{ord(bad[0]):04X}"
    integer = scalar.tag == f"{_TAG}int"
    if integer and len(scalar.value) > _LONGEST_INT:
        return "does not fit into 64 bits"
    try:
        value = loader.construct_object(scalar)
    except _WRONG:
        return f"is no {scalar.tag.removeprefix(_TAG)}"
    return "does not fit into 64 bits" if integer and not -(2**63) <= value < 2**63 else ""


class _OverLimit(yaml.MarkedYAMLError):
    def __init__(self, what: str, at: yaml.Event) -> None:
        super().__init__(problem=what, problem_mark=at.start_mark)  # type: ignore[arg-type]


_INT = r"^[-+]?(?:0b[0-1_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)$"
_FLOAT = r"""^(?:
    [-+]? (?: [0-9][0-9_]*\.[0-9_]* | \.[0-9][0-9_]* ) (?:[eE][-+]?[0-9]+)?
  | [-+]? [0-9][0-9_]* [eE][-+]?[0-9]+
  | [-+]? \.(?:inf|Inf|INF)
  | \.(?:nan|NaN|NAN)
)$"""
_OWN = {"int", "float", "timestamp", "value"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.removeprefix(_TAG) not in _OWN]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(_INT), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(_FLOAT, re.VERBOSE), list("-+.0123456789"))
