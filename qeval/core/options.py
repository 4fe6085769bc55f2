"""Options of methods and tasks: strict, frozen, and part of a cell's key."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _inputs_or_channel(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("must be a positive number of inputs, or -1 (per channel)")
    return value


GroupSize = Annotated[int, AfterValidator(_inputs_or_channel)]
"""Consecutive inputs that share a scale; -1: one scale per output channel."""


class Options(BaseModel):
    """Strict, frozen options of a method or task: an unknown key, a wrong type, infinity and NaN are
    errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def identity(self) -> dict[str, object]:
        """What enters a cell's key. Options that hold a path override this with the content's hash."""
        return self.model_dump(mode="json")

    def execution(self) -> dict[str, object]:
        """The options that change how the weights run and not what they are (a kernel): in the cell's
        key, not in the artifact's. The engine finds them in ``EngineSettings.execution``."""
        return {}
