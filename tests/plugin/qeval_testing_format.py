"""A third party's packed format, `offset8`: a weight of a linear is a byte, an output channel has an
offset and a step. NAME.levels uint8 [out, in]; NAME.offset, NAME.step float16 [out];
w = offset + step * level. It is imported without torch, as every format is."""

from __future__ import annotations

from qeval.core.errors import ModelError, UsageError
from qeval.formats.base import HF, Candidate, Library, PackedFormat, Trial, whole_number


class Offset8(PackedFormat):
    name = "offset8"
    extra = "hf"
    modules = HF
    quant_methods = ("offset8",)
    suffixes = (".levels",)
    unmistakable = (".levels",)
    library = Library("offset8", "qeval-testing", "hf", (*HF, "qeval_testing_format"))

    def read(self, file, config):
        version = whole_number(file, config, "version")
        if version != 1:
            raise ModelError(f"{file}: quantization_config.version is {version}: only 1 is known")
        return self.found("Offset W8A16", 8, -1, False, {"version": version})

    def linear(self, module):
        levels = module.parts["levels"]
        if module.floats("offset").shape != module.floats("step").shape:
            raise ValueError("offset and step are of different widths")
        return levels.shape, "byte"

    def check_model(self, found, model):
        if model.dtype == "float16":
            raise UsageError(f"{found.label}: its steps overflow in float16: set dtype: bfloat16")

    def load(self, artifact, settings, device):
        import torch
        from safetensors.torch import load_file

        from qeval.models.loading import empty_model

        model = empty_model(artifact.path, settings.dtype)
        state = load_file(artifact.path / "model.safetensors")
        for layer in artifact.layers:
            parts = [state.pop(f"{layer.name}.{part}") for part in ("levels", "offset", "step")]
            model.set_submodule(layer.name, offset_linear(*parts, getattr(torch, settings.dtype)))
        dtype = getattr(torch, settings.dtype)
        model.load_state_dict({k: t.to(dtype) for k, t in state.items()}, strict=False, assign=True)
        return model.to(device).eval()

    def trial(self, source):
        import torch

        def make():
            parts = pack(source.weight)
            return offset_linear(*parts, source.dtype).to(source.device)

        def forgets_its_offset():
            levels, offset, step = pack(source.weight)
            return offset_linear(levels, torch.zeros_like(offset), step, source.dtype)

        return Trial(
            [Candidate("byte", 8, make), Candidate("no offset", 8, forgets_its_offset)],
            notes=["made up"],
        )


def pack(weight):
    """levels, offset and step of a float weight [out, in]."""
    import torch

    low, high = weight.float().aminmax(dim=1)
    offset, step = low.half(), ((high - low) / 255).half()
    levels = (weight.float() - offset.float()[:, None]) / step.float()[:, None]
    return levels.round().clamp(0, 255).to(torch.uint8), offset, step


def unpack(levels, offset, step):
    return offset.float()[:, None] + step.float()[:, None] * levels.float()


def offset_linear(levels, offset, step, dtype):
    import torch

    class OffsetLinear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out_features, self.in_features = levels.shape
            self.register_buffer("levels", levels)
            self.register_buffer("offset", offset)
            self.register_buffer("step", step)

        def forward(self, x):
            weight = unpack(self.levels, self.offset, self.step).to(dtype)
            return torch.nn.functional.linear(x, weight)

    return OffsetLinear()
