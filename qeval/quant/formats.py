"""Packed checkpoint formats: recognised from their configuration, accounted from their headers (torch-free)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qeval.errors import ModelError
from qeval.quant.base import Artifact, LayerReport
from qeval.weights import Tensor, read_tensors


@dataclass(frozen=True)
class Format:
    name: str
    extra: str
    modules: tuple[str, ...]
    label: str
    num_bits: float | None
    group_size: int | None
    symmetric: bool | None
    details: dict[str, Any] = field(default_factory=dict)


def recognise(folder: Path) -> Format | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    q = config.get("quantization_config")
    if not q:
        return None
    name = q.get("quant_method")
    if name not in ("gptq", "awq"):
        raise ModelError(f"{folder}/config.json: quant_method {name!r} is not known (gptq, awq)")
    bits, group = q.get("bits", 4), q.get("group_size", q.get("q_group_size", 128))
    label = f"{name.upper()} W{bits}A16{'' if group == -1 else f'g{group}'}"
    return Format(name, "gptqmodel", ("gptqmodel",), label, bits, group, q.get("sym"))


def describe_packed(folder: Path) -> Artifact:
    found = recognise(folder)
    assert found is not None
    groups: dict[str, dict[str, Tensor]] = {}
    tensors = read_tensors(folder) or []
    for t in tensors:
        prefix, _, last = t.name.rpartition(".")
        if last in ("qweight", "qzeros", "scales", "g_idx"):
            groups.setdefault(prefix, {})[last] = t
    layers = []
    for name, parts in groups.items():
        rows, columns = parts["qweight"].shape
        per = int(32 // found.num_bits) if found.num_bits != 3 else None
        if found.name == "gptq":
            shape = (columns, rows * 32 // int(found.num_bits or 4))
        else:
            shape = (columns * (per or 1), rows)
        size = sum(t.n_bytes for t in parts.values())
        layers.append(LayerReport(name, shape, f"int{int(found.num_bits or 4)}", size))
    total = sum(t.n_bytes for t in tensors)
    embedding = sum(t.n_bytes for t in tensors if t.is_embedding)
    n_linear = sum(r.shape[0] * r.shape[1] for r in layers)
    linear = sum(r.stored_bytes for r in layers)
    others = sum(t.n_elements for t in tensors if t.name.rpartition(".")[0] not in groups)
    return Artifact(
        folder,
        "hf",
        False,
        total - embedding,
        embedding,
        8 * linear / n_linear,
        8 * total / (n_linear + others),
        tuple(layers),
        (),
        {"format": asdict(found)},
    )
