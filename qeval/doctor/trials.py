"""What `qeval doctor` tries of each library: a real quantized linear layer, made and run by itself.

``python -m qeval.doctor.trials NAME FILE`` tries one and writes a Trial as JSON to FILE. Each has a
process of its own: importing one of them changes another (GPTQModel patches transformers), and one that
was built for another processor dies of a signal. Nothing is downloaded, and nothing compiled for
minutes (libraries.py sets the variables that forbid it).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from qeval.core.files import write_atomic
from qeval.doctor.probe import (
    GROUP,
    IN,
    OUT,
    TOKENS,
    Array,
    Candidate,
    FloatLayer,
    Layer,
    TorchLayer,
    first_line,
    problem,
    tried,
)

COMPILED = ("marlin", "exllama")  # GPTQModel's kernels that are compiled for minutes on first use


@dataclass(frozen=True)
class Trial:
    """What came of trying one library."""

    layers: list[Layer]
    device: str  # "cpu", "cuda"
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def torch_() -> Trial:
    """The float layer itself, for comparison with the others' times."""
    import torch

    source = FloatLayer()
    layer = Candidate("float", 16, lambda: source.with_layer(source.linear(source.device)))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = torch.version.cuda if gpus else None
    facts = {"cuda": cuda, "gpus": gpus}
    return Trial([tried(layer)], source.device.type, _gpu_notes(cuda, gpus), facts)


def _gpu_notes(cuda: str | None, gpus: list[str]) -> list[str]:
    """``2 x NVIDIA H100``, ``CUDA 13.0``; or that there is none, and whether there should be."""
    if gpus:
        counted = [f"{n} x {name}" if n > 1 else name for name, n in Counter(gpus).items()]
        return [*counted, f"CUDA {cuda}"]
    if _the_driver_sees_one():
        return ["this torch sees no GPU, nvidia-smi does: a CPU build, or too old a driver"]
    return ["no GPU"]


def _the_driver_sees_one() -> bool:
    program = shutil.which("nvidia-smi")
    if not program:
        return False
    return subprocess.run([program, "-L"], capture_output=True, text=True).stdout.startswith("GPU")


def gptqmodel() -> Trial:
    """The kernels that load a 4-bit GPTQ layer here, each by name."""
    from qeval.formats.gptqmodel import BACKENDS, import_gptqmodel
    from qeval.formats.limits import KERNELS

    source = FloatLayer()
    library = import_gptqmodel(1, source.device)
    order = KERNELS[source.device.type]

    def candidate(kernel: str) -> Candidate:
        backend = getattr(library.BACKEND, BACKENDS["gptq"][kernel])
        return Candidate(kernel, 4, lambda: source.with_layer(_gptq_layer(backend, source)))

    layers = [tried(candidate(kernel)) for kernel in order if kernel not in COMPILED]
    left = [kernel for kernel in order if kernel in COMPILED]
    note = f"not tried, compiled for minutes on first use: {', '.join(left)}"
    return Trial(layers, source.device.type, [note] if left else [], {"not_tried": left})


def _gptq_layer(backend: Any, source: FloatLayer) -> Any:
    import torch
    from gptqmodel.models._const import DEVICE
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils.importer import select_quant_linear

    from qeval.formats.affine import fit_grid

    scheme = {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
    kind = select_quant_linear(
        **scheme,
        device=DEVICE(source.device.type),
        backend=backend,
        format=FORMAT.GPTQ,
        quant_method=METHOD.GPTQ,
        pack_dtype=torch.int32,
    )
    layer = kind(**scheme, in_features=IN, out_features=OUT, bias=False, pack_dtype=torch.int32)
    grid = fit_grid(source.weight, 4, GROUP, symmetric=False)
    # Writes zero points as they are (format 2), which every kernel here takes. Its hf_pack believes
    # that they were less one (format 1), and adds one where format 2 is asked for.
    layer.pack_original(source.linear().float(), grid.scale, grid.zero_point)
    layer.scales = layer.scales.to(source.dtype)
    layer = layer.to(source.device).eval()
    layer.post_init()
    return layer


def compressed_tensors() -> Trial:
    """Compressed as a checkpoint is, and run as transformers runs it: unpacked by the first call."""
    importlib.import_module("llmcompressor")  # imports much, and is pinned to narrow versions
    source = FloatLayer()
    layer = Candidate("W4A16_ASYM", 4, lambda: source.with_layer(_compressed_layer(source)))
    notes = [f"llmcompressor {version('llmcompressor')}"]
    return Trial([tried(layer)], source.device.type, notes)


def _compressed_layer(source: FloatLayer) -> Any:
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    linear = source.linear(source.device)
    model = torch.nn.Sequential(linear)
    scheme = preset_name_to_scheme("W4A16_ASYM", ["Linear"])
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}))
    groups = linear.weight.unflatten(1, (-1, GROUP))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    linear.weight_scale.data.copy_(scale)
    linear.weight_zero_point.data.copy_(zero)
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    return model


def auto_round() -> Trial:
    """The package's own classes; where GPTQModel is installed, loading a model may prefer that's."""
    importlib.import_module("auto_round")
    source = FloatLayer()
    kernels = ("tritonv2", "torch") if source.device.type == "cuda" else ("torch",)

    def candidate(kernel: str) -> Candidate:
        return Candidate(kernel, 4, lambda: source.with_layer(_auto_round_layer(kernel, source)))

    return Trial([tried(candidate(kernel)) for kernel in kernels], source.device.type)


def _auto_round_layer(kernel: str, source: FloatLayer) -> Any:
    from auto_round.inference.backend import dynamic_import_inference_linear

    from qeval.formats.affine import fit_grid

    scheme = {"bits": 4, "group_size": GROUP, "sym": False}
    kind = dynamic_import_inference_linear(f"auto_round:{kernel}", scheme)
    layer = kind(4, GROUP, IN, OUT, False)
    layer.device = "cpu"  # where it packs, as its export sets it
    grid = fit_grid(source.weight, 4, GROUP, symmetric=False)
    layer.pack(source.linear(), grid.scale, grid.zero_point, None, "cpu")
    layer.scales = layer.scales.to(source.dtype)
    layer = layer.to(source.device).eval()
    layer.post_init()
    return layer


def quanto() -> Trial:
    from optimum.quanto import freeze, qint8, quantize

    source = FloatLayer()

    def make() -> TorchLayer:
        import torch

        model = torch.nn.Sequential(source.linear(source.device))
        quantize(model, weights=qint8)
        freeze(model)
        return source.with_layer(model)

    return Trial([tried(Candidate("int8", 8, make))], source.device.type)


def torchao() -> Trial:
    import torchao.quantization as q

    source = FloatLayer()

    def candidate(name: str, num_bits: int, config: Callable[[], Any]) -> Candidate:
        def make() -> TorchLayer:
            import torch

            model = torch.nn.Sequential(source.linear(source.device))
            q.quantize_(model, config())
            return source.with_layer(model)

        return Candidate(name, num_bits, make)

    candidates = [
        candidate("int8wo", 8, lambda: q.Int8WeightOnlyConfig(granularity=q.PerRow())),
        candidate("int8dyn", 8, q.Int8DynamicActivationInt8WeightConfig),
    ]
    if source.device.type == "cuda":  # the CPU has no kernel of it
        tiled = "tile_packed_to_4d"
        candidates.append(
            candidate("int4wo", 4, lambda: q.Int4WeightOnlyConfig(GROUP, int4_packing_format=tiled))
        )
    return Trial([tried(one) for one in candidates], source.device.type)


def hqq() -> Trial:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    source = FloatLayer()

    def make() -> TorchLayer:
        config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
        how = {"compute_dtype": source.dtype, "device": str(source.device)}
        return source.with_layer(HQQLinear(source.linear(), config, **how))

    return Trial([tried(Candidate("int4", 4, make))], source.device.type)


def bitsandbytes() -> Trial:
    nn: Any = importlib.import_module("bitsandbytes.nn")
    source = FloatLayer()

    def nf4() -> TorchLayer:
        layer = nn.Linear4bit(IN, OUT, bias=False, compute_dtype=source.dtype, quant_type="nf4")
        layer.weight = nn.Params4bit(source.weight.clone(), requires_grad=False, quant_type="nf4")
        return source.with_layer(layer.to(source.device))  # quantizes

    def int8() -> TorchLayer:
        layer = nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = nn.Int8Params(source.weight.clone(), requires_grad=False, has_fp16_weights=False)
        return source.with_layer(layer.to(source.device))

    candidates = (Candidate("nf4", 4, nf4), Candidate("int8", 8, int8))
    return Trial([tried(one) for one in candidates], source.device.type)


def llama_cpp() -> Trial:
    """Quantize, load and decode, as the method ``gguf`` and its engine do.

    The model is made so that its logits are one product, the float answer of which is known: its only
    block adds zeros, which leaves the output layer on the normalised embedding of each token.
    """
    from qeval.llama import library as llama

    lib = llama.library()
    device = "cuda" if lib.llama_supports_gpu_offload() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        layer = Candidate("Q4_K", 4, lambda: _LlamaLayer(lib, Path(folder), device))
        return Trial([tried(layer)], device)


class _LlamaLayer:
    """The logits [TOKENS, OUT] of one llama_decode call."""

    def __init__(self, lib: Any, folder: Path, device: str) -> None:
        from qeval.core.errors import BuildError
        from qeval.formats.gguf import TYPES
        from qeval.llama import library as llama
        from qeval.llama.gguf_file import read_header

        source, target = folder / "float.gguf", folder / "quantized.gguf"
        self.wanted = _write_llama(source)
        params = lib.llama_model_quantize_default_params()
        params.ftype = TYPES["Q4_K_M"].ftype
        params.nthread = 1
        params.output_tensor_type = lib.GGML_TYPE_Q4_K
        params.token_embedding_type = lib.GGML_TYPE_F32
        llama.forget_log()
        code = lib.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
        if code != 0:
            raise BuildError(f"llama_model_quantize: {llama.reason(f'code {code}')}")
        self._kind = next(t.kind for t in read_header(target).tensors if t.name == "output.weight")
        self._widest = _widest(lib.llama_print_system_info().decode()) if device == "cpu" else device
        model = llama.Model(target, device=device)
        self._context = llama.Context(model, n_seq=1, seq_len=TOKENS, n_threads=1)

    def run(self) -> Array:
        places = np.arange(TOKENS, dtype=np.int32)
        self._context.clear()
        self._context.decode(places, places, np.zeros(TOKENS, np.int32), np.ones(TOKENS, np.int8))
        return self._context.logits(TOKENS).copy()

    def kernel(self) -> str:
        return f"ggml {self._kind} ({self._widest})"


def _write_llama(path: Path) -> Array:
    """A float Llama of one block that adds nothing, OUT tokens without text; its logits for the tokens
    0, 1, ... (TOKENS of them) in one sequence, [TOKENS, OUT]."""
    import gguf

    eps, narrow = 1e-6, 64  # narrow: so that nearly all the work is the output layer's
    weight, inputs = problem()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(TOKENS)
    writer.add_embedding_length(IN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(narrow)
    writer.add_head_count(1)
    writer.add_key_length(narrow)
    writer.add_value_length(narrow)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_vocab_size(OUT)
    writer.add_tokenizer_model("no_vocab")
    writer.add_tensor("token_embd.weight", np.pad(inputs, ((0, OUT - TOKENS), (0, 0))))
    writer.add_tensor("output.weight", weight)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(IN, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((narrow, IN), np.float32))
    for name in ("attn_output", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((IN, narrow), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    normal = inputs / np.sqrt((inputs**2).mean(1, keepdims=True) + eps)
    wanted: Array = normal @ weight.T
    return wanted


def _widest(system_info: str) -> str:
    """The widest vector instructions it was built for, of ``CPU : AVX2 = 1 | FMA = 1 | ...``."""
    parts = [part.split(":")[-1] for part in system_info.split("|")]
    on = {part.split("=")[0].strip() for part in parts if "= 1" in part}
    return next(
        (name for name in ("AMX_INT8", "AVX512", "AVX2", "AVX", "SVE", "NEON") if name in on), ""
    )


TRIALS: dict[str, Callable[[], Trial]] = {
    "torch": torch_,
    "gptqmodel": gptqmodel,
    "compressed-tensors": compressed_tensors,
    "auto-round": auto_round,
    "quanto": quanto,
    "torchao": torchao,
    "hqq": hqq,
    "bitsandbytes": bitsandbytes,
    "llama.cpp": llama_cpp,
}


def main(argv: Sequence[str]) -> int:
    """Try the library NAME, write the outcome to FILE; exit code 1 where it cannot be tried."""
    name, file = argv
    gc.disable()  # an eighth of the time: imports make a million objects that stay
    try:
        found: dict[str, Any] = asdict(TRIALS[name]())
    except Exception as err:
        found = {"error": first_line(err)}
    write_atomic(Path(file), json.dumps(found, allow_nan=False))
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
