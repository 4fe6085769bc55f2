"""quanto checkpoints (safetensors and quanto_qmap.json), by the library's ``requantize``.

Four traps of optimum-quanto 0.2.7 are mended here. A model keeps the dtype of its files, and ``to``
another one leaves the scales behind: the tensors are cast before the library takes them. On the CPU its
int8 kernel crashes on tensors of a mapped file in bfloat16 (a segmentation fault), which are copied
first, and refuses inputs that do not lie one behind the other (Mamba's): they are copied, too. And int4
and int2 weights cannot be used in torch's inference mode ("Cannot set version_counter"): the model
leaves it while it runs.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from qeval.core.artifact import Artifact, Format
from qeval.core.errors import EngineError, ModelError
from qeval.core.settings import EngineSettings
from qeval.formats.base import HF, Candidate, FloatLayer, Library, PackedFormat, Trial, wide
from qeval.formats.tensors import FP8, PackedModule, Stored
from qeval.models.config import read_json
from qeval.models.weights import read_contents

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FILE = "quanto_qmap.json"
_BITS = {
    "qint8": 8,
    "qint4": 4,
    "qint2": 2,
    "qfloat8": 8,
    "qfloat8_e4m3fn": 8,
    "qfloat8_e5m2": 8,
}


@final
class Quanto(PackedFormat):
    name: ClassVar[str] = "quanto"
    extra: ClassVar[str] = "quanto"
    modules: ClassVar[tuple[str, ...]] = ("optimum", "optimum.quanto")
    file: ClassVar[str | None] = _FILE
    suffixes: ClassVar[tuple[str, ...]] = (".weight._scale",)
    library: ClassVar[Library | None] = Library(
        "quanto", "optimum-quanto", "quanto", (*HF, "optimum", "optimum.quanto")
    )

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        layers = [v for v in read_json(file).values() if isinstance(v, dict)]
        kinds = Counter(str(v.get("weights")) for v in layers)
        wrong = [k for k in kinds if k not in _BITS]
        if wrong or not kinds:
            raise ModelError(
                f"{file}: weights {wrong[0] if wrong else None!r}; known: {', '.join(_BITS)}"
            )
        bits = _BITS[next(iter(kinds))] if len(kinds) == 1 else None
        activations = 16 if all(v.get("activations") in (None, "none") for v in layers) else 8
        kind = "FP8 " if all(k.startswith("qfloat") for k in kinds) else ""
        tensors = read_contents(file.parent).tensors
        grouped = {t.shape[1] for t in tensors if t.name.endswith("._data._data")}
        group = next(iter(grouped)) if len(grouped) == 1 else None if grouped else -1
        widths = wide("/".join(str(_BITS[k]) for k in sorted(kinds)), group, activations)
        details = {"weights": dict(kinds), "mixed": bits is None}
        return self.found(f"quanto {kind}{widths}", bits, group, None, details)

    def linear(self, module: PackedModule) -> Stored:
        """weight._data [out, in]; of 4 and 2 bits weight._data._data, groups of inputs as rows, several
        rows in a byte. The shape [out, in] is nowhere then: [groups, group size] stands for it."""
        unpacked = module.parts.get("weight._data")
        if unpacked is not None:
            kind = "fp8" if unpacked.dtype in FP8 else f"int{module.check_bits(8)}"
            return unpacked.shape, kind
        packed, scale = module.parts["weight._data._data"], module.parts["weight._scale"]
        bits = module.check_bits(8 * packed.shape[0] // scale.shape[0])
        return (scale.shape[0], packed.shape[1]), f"int{bits}"

    def load(
        self, artifact: Artifact, settings: EngineSettings, device: torch.device
    ) -> PreTrainedModel:
        """Raises EngineError where a weight is missing or left over."""
        import torch
        from optimum.quanto import QModuleMixin, requantize
        from safetensors import safe_open

        from qeval.models.loading import empty_model
        from qeval.models.weights import weight_files

        state: dict[str, torch.Tensor] = {}
        for file in weight_files(artifact.path):
            with safe_open(file, "pt") as tensors:
                state |= {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
        dtype = getattr(torch, settings.dtype)
        scales = {t.dtype for name, t in state.items() if name.endswith(".weight._scale")}
        state = {name: t.to(dtype) if t.dtype in scales else t for name, t in state.items()}
        kinds = json.loads((artifact.path / _FILE).read_text(encoding="utf-8"))
        model = empty_model(artifact.path, settings.dtype, settings.trust_remote_code)
        requantize(model, state, kinds, device=torch.device(device))
        model.tie_weights()
        held = model.state_dict().keys()
        left, missing = sorted(state.keys() - held), sorted(held - state.keys() - _tied(model))
        for what, names in (("unexpected keys", left), ("missing keys", missing)):
            if names:
                raise EngineError(f"{artifact.path}: {len(names)} {what}, first {names[0]}")
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, QModuleMixin):
                module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
        model.forward = _outside_inference_mode(model.forward)
        return model.to(device).eval()

    def trial(self, source: FloatLayer) -> Trial:
        from optimum.quanto import freeze, qint8, quantize

        def make() -> torch.nn.Module:
            import torch

            model = torch.nn.Sequential(source.linear(source.device))
            quantize(model, weights=qint8)
            freeze(model)
            return model

        return Trial([Candidate("int8", 8, make)])


def _tied(model: PreTrainedModel) -> set[str]:
    """The names that share another one's weight, of which a file holds one."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return set(tied)


def _outside_inference_mode(forward: Callable[..., object]) -> Callable[..., object]:
    import torch

    @functools.wraps(forward)
    def run(*args: object, **kwargs: object) -> object:
        with torch.inference_mode(False), torch.no_grad():
            return forward(*args, **kwargs)

    return run
