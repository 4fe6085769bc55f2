"""HQQ checkpoints (config.json and qmodel.pt) on the library's HQQLinear layers.

Not by the library's ``from_quantized``: that casts the rotary embedding's frequencies to the model's
dtype, which moves every logit of a bfloat16 model, and says nothing of weights that are missing.
"""

from __future__ import annotations

from typing import Any

from qeval.errors import EngineError
from qeval.lm import EngineSettings
from qeval.quant.base import Artifact


def load(artifact: Artifact, settings: EngineSettings, device: Any) -> Any:
    """Raises EngineError where a weight is missing or left over."""
    import torch
    from hqq.core.quantize import HQQLinear

    from qeval.engines.loading import empty_model

    dtype = getattr(torch, settings.dtype)
    model = empty_model(artifact.path, settings.dtype, settings.trust_remote_code)
    modules = dict(model.named_modules())
    file = artifact.path / "qmodel.pt"
    stored = torch.load(file, map_location=device, weights_only=True)
    for name, state in stored.items():
        if name not in modules:
            raise EngineError(f"{file}: unexpected keys, first {name}")
        if "W_q" in state:
            layer = HQQLinear(None, None, compute_dtype=dtype, device=str(device))
            layer.load_state_dict(_in_dtype(state, dtype))
            model.set_submodule(name, layer)
            continue
        for key, tensor in state.items():
            if key not in modules[name]._parameters:
                raise EngineError(f"{file}: unexpected keys, first {name}.{key}")
            parameter = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
            modules[name]._parameters[key] = parameter
    model.tie_weights()
    missing = [name for name, p in model.named_parameters() if p.is_meta]
    if missing:
        raise EngineError(f"{file}: {len(missing)} missing keys, first {missing[0]}")
    return model.to(device).eval()


def _in_dtype(state: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """A layer's state with its scales, zeros and bias in the dtype that the row asks for."""
    floats = ("scale", "zero", "bias")
    cast = {k: state[k].to(dtype) for k in floats if state.get(k) is not None}
    return {**state, **cast, "compute_dtype": dtype}
