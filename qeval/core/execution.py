"""How weights run, and not what they are: one artifact serves every combination (torch-free).

That is a kernel, which is a method's option, and what stands beside any method: `engine`, with options
of its own, and `activations` and `kv_cache`, the bits of what runs through the weights. 16 bits are the
floats of the model: a row that asks for them is the row that does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from pydantic import Field

from qeval.core.errors import UsageError
from qeval.core.options import Options

Bits = Literal[2, 3, 4, 8, 16]
Kernel = Literal["auto", "machete", "marlin", "exllama", "triton", "aten", "torch"]
"""Of packed GPTQ and AWQ weights. auto: the first that takes the weights: on CUDA marlin, exllama,
triton, torch; on the CPU aten, torch. machete is for Hopper GPUs, and runs where it is named: it needs
the sources of CUTLASS. aten is torch's own int4 product on the CPU; torch unpacks to floats for every
product."""


class ActivationOptions(Options):
    """The input of every linear layer but the output head, rounded as it comes."""

    num_bits: Bits
    granularity: Literal["token"] = "token"  # one scale a token, so that no token depends on others
    symmetric: bool = False


class KvCacheOptions(Options):
    """Keys (after rotary embedding) and values, rounded as they enter the cache, a scale and a zero
    point for each group of each head of each token."""

    num_bits: Bits
    group_size: int = Field(default=128, ge=1)  # along the head dimension, or all of it if smaller


FloorKind = Literal["rounding", "repetition", "engine"]


class FloorOptions(Options):
    """The same model once more, to see what differences mean nothing: with noise of the size of
    bfloat16's rounding, or in batches of another size."""

    kind: Literal["rounding", "repetition"]
    seeds: int = Field(default=3, ge=1, le=100)  # of rounding: independent draws, one pass each


@dataclass(frozen=True)
class Running:
    """What a row asks; None: as the model has it."""

    activations: ActivationOptions | None = None
    kv_cache: KvCacheOptions | None = None
    floor: FloorOptions | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.activations, self.kv_cache, self.floor))

    def to_json(self) -> dict[str, object]:
        """Empty where nothing is asked."""
        asked = {
            "activations": self.activations,
            "kv_cache": self.kv_cache,
            "floor": self.floor,
        }
        return {name: options.model_dump(mode="json") for name, options in asked.items() if options}

    def label(self, weights: str) -> str:
        """A row's name from that of its weights: ``RTN W4A16g64`` -> ``RTN W4A8KV4g64``; ``NF4`` ->
        ``NF4 A8KV4``; ``none`` -> ``A8KV4``."""
        if self.floor:
            return f"floor: {self.floor.kind}" + (f" of {weights}" if weights != "none" else "")
        a = f"A{self.activations.num_bits}" if self.activations else ""
        kv = f"KV{self.kv_cache.num_bits}" if self.kv_cache else ""
        if not a and not kv:
            return weights
        if weights == "none":
            return a + kv
        label, found = re.subn(r"\b(W\d+)(A\d+)", lambda m: f"{m[1]}{a or m[2]}{kv}", weights, count=1)
        return label if found else f"{weights} {a}{kv}"


@dataclass(frozen=True)
class Execution:
    """What a row says on how its weights run: in its cells' keys, not in its artifact's."""

    kernel: Kernel | None = None  # None: the method has no such option
    running: Running = Running()
    own: Mapping[str, object] = field(default_factory=dict)  # of a third party's Options.execution
    engine: Mapping[str, object] = field(default_factory=dict)  # the engine's own options, where asked

    def to_json(self) -> dict[str, object]:
        """For the cell's key, the job and the record; empty where nothing is said."""
        kernel = {} if self.kernel is None else {"kernel": self.kernel}
        engine = {"engine": dict(self.engine)} if self.engine else {}
        return {**kernel, **engine, **self.own, **self.running.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, object]) -> Execution:
        own = {k: v for k, v in data.items() if k not in ("kernel", "engine", *KEYS)}
        activations, kv_cache, floor = (data.get(key) for key in KEYS)
        running = Running(
            ActivationOptions.model_validate(activations) if activations else None,
            KvCacheOptions.model_validate(kv_cache) if kv_cache else None,
            FloorOptions.model_validate(floor) if floor else None,
        )
        engine = cast(Mapping[str, object], data.get("engine", {}))
        return Execution(cast(Kernel | None, data.get("kernel")), running, own, engine)


KEYS: dict[str, type[Options]] = {
    "activations": ActivationOptions,
    "kv_cache": KvCacheOptions,
    "floor": FloorOptions,
}
"""Keys beside a method, or among its options: how its weights run, in an engine that can."""


def kv_group(group_size: int, head_dim: int) -> int:
    """The size of a group along ``head_dim``: all of it where it is smaller than the group asked.

    Raises:
        UsageError: the group does not divide it.
    """
    group = min(group_size, head_dim)
    if head_dim % group:
        fitting = [g for g in (16, 32, 64, 128) if head_dim % g == 0 and g < head_dim]
        fix = " or ".join(map(str, [*fitting, head_dim]))
        raise UsageError(
            f"kv_cache: group_size {group_size} does not divide the head dimension {head_dim}: "
            f"use {fix}"
        )
    return group
