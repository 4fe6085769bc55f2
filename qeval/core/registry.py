"""Names to ``module:attribute``, imported on first use; third parties add theirs by entry points.

A registry lives where its protocol is: METHODS in quant/base.py, ENGINES in engines/base.py, TASKS in
tasks/base.py. What it lists must be importable without torch, transformers or llama_cpp.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Generic, TypeVar, cast

from qeval.core.errors import UsageError, did_you_mean, with_class

T = TypeVar("T")


class Registry(Generic[T]):
    """What is registered of one kind: the built-in names, and those of the entry-point group
    ``qeval.<kind>s``. A built-in name cannot be replaced.

    That a third party's object is a T is taken on trust; mypy checks the built-in ones, which are
    ``@final`` subclasses of their protocols.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str]) -> None:
        self.kind = kind  # one of them, as an error has it: ``method``
        self.built_in = built_in  # name -> "module:attribute"

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets())

    def __contains__(self, name: str) -> bool:
        return name in self._targets()

    def __getitem__(self, name: str) -> T:
        """
        Raises:
            UsageError: no such name; the message suggests the closest one. Or another package's, which
                does not import.
        """
        targets = self._targets()
        if name not in targets:
            raise UsageError(f"unknown {self.kind} {name!r}{did_you_mean(name, targets)}")
        module, _, attribute = targets[name].partition(":")
        try:
            return cast(T, getattr(importlib.import_module(module), attribute))
        except Exception as err:  # whatever another package's code does
            if name in self.built_in:
                raise
            raise UsageError(
                f"{self.kind} {name!r} ({targets[name]}) does not import: {with_class(err)}: mend the "
                "package that registers it, or uninstall it"
            ) from err

    def _targets(self) -> dict[str, str]:
        return {**from_outside(f"qeval.{self.kind}s"), **self.built_in}


@cache
def from_outside(group: str) -> dict[str, str]:
    """The names of an entry-point group with their targets."""
    return {e.name: e.value for e in installed()(group=group)}


@cache
def installed() -> Callable[..., EntryPoints]:
    """Selects among the entry points of all groups: each reading opens a file of every package."""
    return entry_points().select
