"""Optional packages: missing ones are found before anything is imported or run."""

from __future__ import annotations

from importlib.util import find_spec

from qeval.core.errors import MissingExtraError


def require(extra: str, *modules: str) -> None:
    """Raises MissingExtraError, with the command that installs it, for the first module that is not
    there. Nothing is imported."""
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(module, extra)
