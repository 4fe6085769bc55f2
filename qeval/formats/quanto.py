"""quanto checkpoints (safetensors and quanto_qmap.json), by the library's ``requantize``.

Three traps of optimum-quanto 0.2.7 are mended here. On the CPU its int8 kernel crashes on tensors of
a mapped file in bfloat16 (a segmentation fault), which are copied first, and refuses inputs that do not
lie one behind the other (Mamba's): they are copied, too. And int4 and int2 weights cannot be used in
torch's inference mode ("Cannot set version_counter"): the model leaves it while it runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qeval.core.artifact import Artifact
from qeval.core.errors import EngineError
from qeval.core.settings import EngineSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(artifact: Artifact, settings: EngineSettings, device: torch.device) -> PreTrainedModel:
    """Raises EngineError where a weight is missing or left over."""
    import torch
    from optimum.quanto import QModuleMixin, requantize
    from safetensors import safe_open

    from qeval.models.loading import empty_model
    from qeval.models.weights import weight_files

    state: dict[str, Any] = {}
    for file in weight_files(artifact.path):
        with safe_open(file, "pt") as tensors:
            state |= {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
    kinds = json.loads((artifact.path / "quanto_qmap.json").read_text(encoding="utf-8"))
    model = empty_model(artifact.path, settings.dtype, settings.trust_remote_code)
    requantize(model, state, kinds, device=torch.device(device))
    model.tie_weights()
    held = model.state_dict().keys()
    left, missing = sorted(state.keys() - held), sorted(held - state.keys() - _tied(model))
    for what, names in (("unexpected keys", left), ("missing keys", missing)):
        if names:
            raise EngineError(f"{artifact.path}: {len(names)} {what}, first {names[0]}")
    model.requires_grad_(False)
    if model.dtype != getattr(torch, settings.dtype):
        model.to(getattr(torch, settings.dtype))
    for module in model.modules():
        if isinstance(module, QModuleMixin):
            module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    model.forward = _outside_inference_mode(model.forward)
    return model.to(device).eval()


def _tied(model: PreTrainedModel) -> set[str]:
    """The names that share another one's weight, of which a file holds one."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return set(tied)


def _outside_inference_mode(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return forward(*args, **kwargs)

    return run
