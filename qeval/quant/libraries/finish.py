"""What the methods that quantize through another library share: what transformers is to leave as it is,
and the finished artifact."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qeval.core.artifact import Artifact, CalibrationFacts, Library, ModelRef
from qeval.core.errors import BuildError, ModelError
from qeval.quant.base import BuildContext


def finish(
    folder: Path, context: BuildContext, distribution: str, calibration: CalibrationFacts | None = None
) -> Artifact:
    """The artifact of a folder that a library has saved: tokenizer and the like beside the weights,
    sizes from the files, the library's version, the facts of the calibration.

    Raises:
        BuildError: nothing in it is quantized (the library skipped linears of an unusual class).
    """
    from qeval.formats.describe import describe_packed
    from qeval.models.side_files import copy_side_files

    copy_side_files(context.model.path, folder)
    try:
        artifact = describe_packed(folder)
    except ModelError as err:
        reason = str(err).removeprefix(f"{folder}: ")
        raise BuildError(f"{distribution} left {context.model.id} as it was: {reason}") from err
    return replace(artifact, library=Library.of(distribution), calibration=calibration)


def left_alone(model: ModelRef) -> list[str] | None:
    """What transformers is to leave as floats while it quantizes a mixture: its routers, and what it
    leaves by itself where it is told nothing; None where there are no routers. It takes a name for the
    beginning of others, so a name with such neighbours becomes a pattern."""
    from transformers.quantizers.base import get_keys_to_not_convert

    from qeval.models.linears import router_names
    from qeval.models.loading import empty_model

    empty = empty_model(model.path, model.dtype, model.trust_remote_code)
    found, names = router_names(empty), [name for name, _ in empty.named_modules()]
    if not found:
        return None
    return sorted([*get_keys_to_not_convert(empty), *(_only(name, names) for name in found)])


def _only(name: str, names: Iterable[str]) -> str:
    """A pattern for ``name`` and its parameters: the name, if no other name begins with it."""
    others = (n for n in names if n != name and not n.startswith(f"{name}."))
    return rf"{re.escape(name)}(\.|$)" if any(re.match(name, n) for n in others) else name
