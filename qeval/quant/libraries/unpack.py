"""The float weights that packed GPTQ and AWQ tensors stand for, and a float twin of such a checkpoint.

Layouts as AutoGPTQ and AutoAWQ write them (and everyone since reads them):

- GPTQ: ``qweight`` int32 [in * bits / 32, out], 32 values along the inputs in ``bits`` words, lowest
  bits first; ``qzeros`` int32 [groups, out * bits / 32] likewise along the outputs, stored less one
  (format "gptq"; "gptq_v2" stores them as they are); ``scales`` [groups, out]; ``g_idx`` [in] the group
  of each input. weight = scale * (q - zero).
- AWQ (GEMM): ``qweight`` int32 [in, out / 8], 8 outputs in a word in the order 0 2 4 6 1 3 5 7;
  ``qzeros`` int32 [groups, out / 8] likewise, not shifted; ``scales`` [groups, out].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where output i of a word lies among its 4-bit fields


def unpack_ints(words: Tensor, num_bits: int) -> Tensor:
    """int32 [n * num_bits / 32, m] -> int64 [n, m]: 32 values in num_bits words, lowest bits first."""
    n_words, columns = words.shape
    shifts = torch.arange(32, device=words.device)
    bits = (words.long()[:, None, :] >> shifts[None, :, None]) & 1  # [words, 32, m]
    fields = bits.reshape(n_words * 32 // num_bits, num_bits, columns)
    weights = (1 << torch.arange(num_bits, device=words.device))[None, :, None]
    return (fields * weights).sum(1)


def gptq_weight(parts: dict[str, Tensor], num_bits: int, zeros_offset: int = 1) -> Tensor:
    """float32 [out_features, in_features] of one GPTQ linear (keys qweight, qzeros, scales, g_idx)."""
    q = unpack_ints(parts["qweight"], num_bits)  # [in, out]
    zeros = unpack_ints(parts["qzeros"].T.contiguous(), num_bits).T + zeros_offset  # [groups, out]
    groups = parts["scales"].shape[0]
    index = parts.get("g_idx")
    if index is None:
        index = torch.arange(q.shape[0], device=q.device) // (q.shape[0] // groups)
    index = index.long()
    return (parts["scales"].float()[index] * (q - zeros[index])).T.contiguous()


def awq_weight(parts: dict[str, Tensor]) -> Tensor:
    """float32 [out_features, in_features] of one 4-bit AWQ linear (keys qweight, qzeros, scales)."""
    q, zeros = _awq_ints(parts["qweight"]), _awq_ints(parts["qzeros"])
    group = q.shape[0] // zeros.shape[0]
    index = torch.arange(q.shape[0], device=q.device) // group
    return (parts["scales"].float()[index] * (q - zeros[index])).T.contiguous()


def _awq_ints(words: Tensor) -> Tensor:
    """int32 [rows, out / 8] -> int64 [rows, out]."""
    shifts = torch.tensor([4 * place for place in _AWQ_ORDER], device=words.device)
    return ((words.long()[:, :, None] >> shifts) & 15).flatten(1)


def float_twin(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model of a GPTQ or AWQ folder with its weights unpacked into plain linears, in ``dtype``.

    Its logits are what every kernel approximates. For checkpoints without operations that float models
    lack (AWQ's scaled activations).
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.from_pretrained(folder)
    scheme = config.quantization_config
    del config.quantization_config
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file, device=str(device))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last == "qweight":
            parts = {k: tensors[f"{prefix}.{k}"] for k in ("qweight", "qzeros", "scales")}
            if scheme["quant_method"] == "awq":
                state[f"{prefix}.weight"] = awq_weight(parts)
                continue
            if f"{prefix}.g_idx" in tensors:
                parts["g_idx"] = tensors[f"{prefix}.g_idx"]
            offset = 0 if scheme.get("checkpoint_format") == "gptq_v2" else 1
            weight = gptq_weight(parts, scheme["bits"], offset)
            transposed = isinstance(model.get_submodule(prefix), Conv1D)
            state[f"{prefix}.weight"] = weight.T if transposed else weight
        elif last not in ("qzeros", "scales", "g_idx"):
            state[name] = value
    missing, left = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if left or set(missing) - tied:
        raise KeyError(f"{folder}: {json.dumps([*missing, *left][:4])}: not the float model's tensors")
    return model.eval()
