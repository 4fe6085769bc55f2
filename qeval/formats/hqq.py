"""HQQ: config.json and qmodel.pt, which names each layer's bits, loaded into the library's HQQLinear.

Not by the library's ``from_quantized``: that casts the rotary embedding's frequencies to the model's
dtype, which moves every logit of a bfloat16 model, and says nothing of weights that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast, final

from qeval.core.artifact import Artifact, Format
from qeval.core.errors import EngineError
from qeval.core.settings import EngineSettings
from qeval.formats.base import HF, Candidate, FloatLayer, Library, PackedFormat, Trial, wide
from qeval.formats.tensors import PackedModule, Stored
from qeval.models.weights import read_contents

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FILE = "qmodel.pt"


@final
class Hqq(PackedFormat):
    name: ClassVar[str] = "hqq"
    extra: ClassVar[str] = "hqq"
    modules: ClassVar[tuple[str, ...]] = ("hqq",)
    file: ClassVar[str | None] = _FILE
    suffixes: ClassVar[tuple[str, ...]] = (".W_q",)
    unmistakable: ClassVar[tuple[str, ...]] = (".W_q",)
    library: ClassVar[Library | None] = Library("hqq", "hqq", "hqq", (*HF, "hqq"))

    def read(self, file: Path, config: Mapping[str, object]) -> Format:
        """From the layers themselves: nbits and group_size of each are in the file."""
        facts = read_contents(file.parent).facts

        def all_of(key: str) -> int | None:
            values = {v for name, v in facts.items() if name.rpartition(".")[2] == key}
            one = next(iter(values)) if len(values) == 1 else None
            return one if isinstance(one, int) else None

        bits, group, axis = all_of("nbits"), all_of("group_size"), all_of("axis")
        label = "HQQ " + (wide(bits, group) if bits else "mixed") + " axis 0" * (axis == 0)
        return self.found(label, bits, group, False, {"axis": axis, "mixed": bits is None})

    def linear(self, module: PackedModule) -> Stored:
        bits = module.facts[f"{module.name}.nbits"]
        return tuple(cast(Sequence[int], module.facts[f"{module.name}.shape"])), f"int{bits}"

    def load(
        self, artifact: Artifact, settings: EngineSettings, device: torch.device
    ) -> PreTrainedModel:
        """Raises EngineError where a weight is missing or left over."""
        import torch
        from hqq.core.quantize import HQQLinear

        from qeval.models.loading import empty_model

        dtype = getattr(torch, settings.dtype)
        model = empty_model(artifact.path, settings.dtype, settings.trust_remote_code)
        modules = dict(model.named_modules())
        file = artifact.path / _FILE
        stored = torch.load(file, map_location=device, weights_only=True)
        given: set[str] = set()
        for name, state in stored.items():
            if name not in modules:
                raise EngineError(f"{file}: unexpected keys, first {name}")
            if "W_q" in state:
                layer = HQQLinear(None, None, compute_dtype=dtype, device=str(device))
                layer.load_state_dict(_in_dtype(state, dtype))
                model.set_submodule(name, layer)
                continue
            for key, tensor in state.items():
                _place(modules[name], key, tensor, f"{file}: unexpected keys, first {name}.{key}")
                given.add(f"{name}.{key}")
        model.tie_weights()
        missing = [name for name, p in model.named_parameters() if p.is_meta]
        missing += [name for name in _buffers(model) if name not in given]
        if missing:
            raise EngineError(f"{file}: {len(missing)} missing keys, first {missing[0]}")
        return model.to(device).eval()

    def trial(self, source: FloatLayer) -> Trial:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        def make() -> torch.nn.Module:
            config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
            how = {"compute_dtype": source.dtype, "device": str(source.device)}
            layer: torch.nn.Module = HQQLinear(source.linear(), config, **how)
            return layer

        return Trial([Candidate("int4", 4, make)])


def _place(module: torch.nn.Module, key: str, tensor: torch.Tensor, otherwise: str) -> None:
    """Give a module its parameter or saved buffer, in the dtype that it has there."""
    import torch

    if (old := module._parameters.get(key)) is not None:
        module._parameters[key] = torch.nn.Parameter(tensor.to(old.dtype), requires_grad=False)
    elif (kept := module._buffers.get(key)) is not None:
        module._buffers[key] = tensor.to(kept.dtype)
    else:
        raise EngineError(otherwise)


def _buffers(model: PreTrainedModel) -> Iterator[str]:
    """The buffers that a saved model has with it, but for those of HQQ's own layers."""
    from hqq.core.quantize import HQQLinear

    for name, module in model.named_modules():
        if not isinstance(module, HQQLinear):
            for key in module._buffers.keys() - module._non_persistent_buffers_set:
                yield f"{name}.{key}"


def _in_dtype(state: Mapping[str, object], dtype: torch.dtype) -> dict[str, object]:
    """A layer's state with its scales, zeros and bias in the dtype that the row asks for."""
    import torch

    floats = ("scale", "zero", "bias")
    given = {k: v.to(dtype) for k in floats if isinstance(v := state.get(k), torch.Tensor)}
    return {**state, **given, "compute_dtype": dtype}
