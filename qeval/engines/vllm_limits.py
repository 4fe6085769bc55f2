"""What the engine `vllm` takes: its options, the packed formats, and how many GPUs share a model. Asked
before any job; nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qeval.core.devices import cpu_flags, gpus
from qeval.core.errors import UsageError
from qeval.core.options import Options
from qeval.models.told import told_heads

if TYPE_CHECKING:
    from qeval.core.artifact import ModelRef
    from qeval.engines.base import Packed

_PACKED = {
    "gptq": ("cpu", "cuda"),
    "awq": ("cpu", "cuda"),
    "compressed-tensors": ("cpu", "cuda"),
    "auto-round": ("cpu", "cuda"),
    "fp8": ("cuda",),
    "bitsandbytes": ("cuda",),
}
"""Packed formats that vLLM takes in their own files, and on which devices."""
_FEW_BITS = ("gptq", "awq", "auto-round")  # by one kernel of the CPU's


class VllmOptions(Options):
    tensor_parallel_size: int = Field(default=1, ge=1)  # GPUs that share every layer
    pipeline_parallel_size: int = Field(default=1, ge=1)  # GPUs that have a part of the layers each
    max_model_len: int | None = Field(default=None, ge=2)  # tokens; None: the model's maximum
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    enforce_eager: bool = False  # no compilation and no CUDA graphs; on the CPU there are none
    max_num_seqs: int | None = Field(default=None, ge=1)  # at once; None: what the cache has room for


def check_packed(packed: Packed | None, device: str | None) -> None:
    """Raises UsageError for a packed format that vLLM does not run on ``cpu`` or ``cuda``."""
    if packed is None:
        return
    if packed.name not in _PACKED:
        raise UsageError(
            f"vLLM does not run weights packed by {packed.name}: leave `engine: vllm` out, or take "
            f"one of {', '.join(_PACKED)}"
        )
    if device is not None and device not in _PACKED[packed.name]:
        raise UsageError(f"vLLM runs {packed.name} on CUDA only: leave `engine: vllm` out")
    few = packed.name in _FEW_BITS or packed.num_bits == 4
    if device == "cpu" and few and "avx512f" not in cpu_flags():
        raise UsageError(
            f"vLLM's kernel for {packed.name} in few bits needs AVX-512, which this CPU has not: "
            "leave `engine: vllm` out"
        )
    if packed.name == "gptq" and packed.symmetric is False:
        raise UsageError(
            "vLLM runs GPTQ's format with symmetric grids only: set symmetric: true, or leave "
            "`engine: vllm` out"
        )
    if packed.name == "gptq" and packed.num_bits not in (None, 4, 8):
        raise UsageError(
            f"vLLM runs GPTQ's format with 4 or 8 bits, not {packed.num_bits:g}: leave "
            "`engine: vllm` out"
        )


def check_parallel(options: VllmOptions, model: ModelRef, device: str | None) -> None:
    """Raises UsageError where the model is to be spread over more GPUs than this machine shows, or by
    a number that does not divide its heads (vLLM's QKVParallelLinear: each GPU has whole heads)."""
    tensor, pipeline = options.tensor_parallel_size, options.pipeline_parallel_size
    if device == "cpu" and pipeline > 1:
        raise UsageError("vLLM's build for CPUs has no pipeline: leave pipeline_parallel_size out")
    if device == "cuda" and (wanted := tensor * pipeline) > (here := len(gpus())):
        raise UsageError(
            f"tensor_parallel_size {tensor} x pipeline_parallel_size {pipeline} takes {wanted} GPUs, "
            f"and this machine shows {here}: take a product of {here} at the most"
        )
    found = told_heads(model)
    if tensor == 1 or found is None:
        return
    heads, kv_heads = found
    fitting = [n for n in range(1, heads + 1) if _divides(n, heads, kv_heads)]
    if tensor not in fitting:
        of_keys = f" and {kv_heads} of keys and values" if kv_heads != heads else ""
        raise UsageError(
            f"tensor_parallel_size {tensor} does not divide the model's {heads} heads{of_keys}: take "
            f"{', '.join(map(str, fitting[:-1]))}{' or ' if fitting[1:] else ''}{fitting[-1]}"
        )


def _divides(n: int, heads: int, kv_heads: int) -> bool:
    """Heads of keys and values are repeated where there are fewer than GPUs."""
    return heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
