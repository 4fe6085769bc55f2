"""A model on this machine (ModelRef), and weights that are ready to run (Artifact)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from qeval.core.endpoint import Endpoint

_AMONG_DETAILS = ("identity", "trust_remote_code", "library", "calibration")  # in JSON


@dataclass(frozen=True)
class ModelRef:
    """A model as the spec names it, and where it is on this machine."""

    id: str  # as written in the spec: a hub id or a path
    path: Path  # local folder, or a .gguf file
    identity: str  # content: "hub:<id>@<commit>" or "sha256:<hex>"; enters keys
    dtype: str  # float32 | float16 | bfloat16
    trust_remote_code: bool = False
    endpoint: Endpoint | None = None  # of a model that runs elsewhere: path is its tokenizer's, if any


@dataclass(frozen=True)
class LayerReport:
    """What happened to one quantized linear layer."""

    name: str
    shape: tuple[int, ...]  # [out_features, in_features]
    kind: str  # how it is stored: "int4", "Q5_K", ...
    stored_bytes: int  # with scales, zeros and every other overhead
    mse: float | None = None  # mean squared error of the weights, where the method knows it
    loss: float | None = None  # of the layer's outputs, as the method itself measures it
    relative_loss: float | None = None  # over that of a layer of zeros
    outlier_share: float | None = None  # of its weights, kept in 16 bits
    damping: float | None = None  # of the Hessian, as a share of its mean diagonal
    note: str = ""  # a fall-back: another type than asked, a damping, ...


class CalibrationFacts(TypedDict, total=False):
    """What a method saw."""

    dataset: str
    n_samples: int
    seq_len: int
    seed: int
    n_tokens: int
    text_sha256: str


@dataclass(frozen=True)
class Library:
    """What made an artifact, if not qeval."""

    name: str  # of the distribution
    version: str

    @staticmethod
    def of(distribution: str) -> Library:
        return Library(distribution, version(distribution))


@dataclass(frozen=True)
class Format:
    """A packed format with its numbers. What is not the same for all layers is None."""

    name: str  # its registry name
    extra: str  # the extra of qeval whose packages run it
    modules: tuple[str, ...]  # what must be importable
    label: str  # for the row: "GPTQ W4A16g128 act-order", "NF4 double", "LLM.int8()"
    num_bits: float | None
    group_size: int | None  # inputs that share a scale; -1: one scale per output channel
    symmetric: bool | None
    # Its own facts, as JSON has them; ``mixed``: layers may have other bits than num_bits.
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "modules": list(self.modules)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Format:
        return Format(**{**data, "modules": tuple(data["modules"])})


@dataclass(frozen=True)
class Artifact:
    """Weights ready to run. ``path`` is a folder or a .gguf file."""

    path: Path
    engine: str  # registry name of the engine that runs it
    simulated: bool  # True: float weights that carry the rounding; sizes are accounted, not measured
    weight_bytes: int | None  # stored, everything but the next; None: they are on a server
    embedding_bytes: int | None  # token embeddings and output head, stored
    bpw: float | None  # bits per weight over the quantized linears, every overhead counted
    bpw_file: float | None  # the same over all parameters
    layers: tuple[LayerReport, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)  # for readers: types, losses, ...
    format: Format | None = None  # of a packed folder
    identity: str | None = None  # content of weights that were found, not built; in the artifact's key
    trust_remote_code: bool = False  # run code that comes with it
    library: Library | None = None
    calibration: CalibrationFacts | None = None

    @property
    def stored_bytes(self) -> int:
        """All of it; 0 on a server."""
        return (self.weight_bytes or 0) + (self.embedding_bytes or 0)

    def to_json(self) -> dict[str, object]:
        """JSON has the format and _AMONG_DETAILS among the details, as 0.1.0 wrote them."""
        data = {**asdict(self), "path": str(self.path)}
        del data["format"]
        packed = {"format": self.format.to_json()} if self.format else {}
        own = {name: value for name in _AMONG_DETAILS if (value := data.pop(name))}
        return {**data, "details": {**packed, **data["details"], **own}}

    def summary(self) -> dict[str, Any]:
        """What a Record keeps: everything but the layers (they stay beside the artifact)."""
        data = self.to_json()
        del data["layers"]
        return {**data, "n_layers": len(self.layers)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Artifact:
        details = dict(data["details"])
        packed = details.pop("format", None)
        own = {name: details.pop(name) for name in _AMONG_DETAILS if name in details}
        made_by = own.pop("library", None)
        return Artifact(
            **{
                **data,
                **own,
                "path": Path(data["path"]),
                "layers": tuple(
                    LayerReport(**{**r, "shape": tuple(r["shape"])}) for r in data["layers"]
                ),
                "notes": tuple(data["notes"]),
                "details": details,
                "format": Format.from_json(packed) if packed else None,
                "library": Library(**made_by) if made_by else None,
            }
        )
