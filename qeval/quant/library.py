"""What the methods that quantize through another library share: the finished artifact."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qeval.errors import BuildError, ModelError
from qeval.quant.base import Artifact, BuildContext


def finish(
    folder: Path, context: BuildContext, distribution: str, calibration: dict[str, Any] | None = None
) -> Artifact:
    """The artifact of a folder that a library has saved: tokenizer and the like beside the weights,
    sizes from the files, the library's version, the facts of the calibration.

    Raises:
        BuildError: nothing in it is quantized (linears of a class of their own, which it passed over).
    """
    from qeval.quant.folder import copy_side_files
    from qeval.quant.formats import describe_packed

    copy_side_files(context.model.path, folder)
    try:
        artifact = describe_packed(folder)
    except ModelError as err:
        reason = str(err).removeprefix(f"{folder}: ")
        raise BuildError(f"{distribution} left {context.model.id} as it was: {reason}") from err
    details = {
        **artifact.details,
        "library": {"name": distribution, "version": version(distribution)},
        **({"calibration": calibration} if calibration else {}),
    }
    return replace(artifact, details=details)
