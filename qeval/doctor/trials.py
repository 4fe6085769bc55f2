"""What `qeval doctor` tries of each library: a real quantized linear layer, made and run by itself.

``python -m qeval.doctor.trials NAME FILE`` tries one and writes an Outcome as JSON to FILE. Each has a
process of its own: importing one of them changes another (GPTQModel patches transformers), and one that
was built for another processor dies of a signal. Nothing is downloaded, and nothing compiled for
minutes (libraries.py sets the variables that forbid it).
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qeval.core.errors import with_class
from qeval.core.files import write_atomic
from qeval.doctor.probe import (
    IN,
    OUT,
    TOKENS,
    Array,
    Layer,
    ReferenceLayer,
    TorchLayer,
    problem,
    tried,
)
from qeval.formats.base import Candidate, PackedFormat, formats


@dataclass(frozen=True)
class Outcome:
    """What came of trying one library."""

    layers: list[Layer]
    device: str  # "cpu", "cuda"
    notes: list[str] = field(default_factory=list)
    facts: Mapping[str, object] = field(default_factory=dict)


def torch_() -> Outcome:
    """The float layer itself, for comparison with the others' times."""
    import torch

    source = ReferenceLayer()
    layer = tried("float", 16, lambda: source.with_layer(source.linear(source.device)))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = torch.version.cuda if gpus else None
    facts = {"cuda": cuda, "gpus": gpus}
    return Outcome([layer], source.device.type, _gpu_notes(cuda, gpus), facts)


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


def llama_cpp() -> Outcome:
    """Quantize, load and decode, as the method ``gguf`` and its engine do.

    The model is made so that its logits are one product, the float answer of which is known: its only
    block adds zeros, which leaves the output layer on the normalised embedding of each token.
    """
    from qeval.llama import library as llama

    lib = llama.library()
    device = "cuda" if lib.llama_supports_gpu_offload() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        layer = tried("Q4_K", 4, lambda: _LlamaLayer(lib, Path(folder), device))
        return Outcome([layer], device)


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


def of_format(one: PackedFormat) -> Outcome:
    """The layers that a format's library makes of the float one."""
    source = ReferenceLayer()
    trial = one.trial(source)
    layers = [tried(c.name, c.num_bits, partial(_in_place, c, source)) for c in trial.candidates]
    return Outcome(layers, source.device.type, list(trial.notes), dict(trial.facts))


def _in_place(candidate: Candidate, source: ReferenceLayer) -> TorchLayer:
    return source.with_layer(candidate.make())


OWN: dict[str, Callable[[], Outcome]] = {"torch": torch_, "llama.cpp": llama_cpp}
"""Of what the engines run on; the other libraries are those of the formats."""


def trial_of(name: str) -> Outcome:
    """What comes of the library ``name``."""
    if name in OWN:
        return OWN[name]()
    return of_format(next(one for one in formats() if one.library and one.library.name == name))


def main(argv: Sequence[str]) -> int:
    """Try the library NAME, write the outcome to FILE; exit code 1 where it cannot be tried."""
    name, file = argv
    gc.disable()  # an eighth of the time: imports make a million objects that stay
    try:
        found: dict[str, object] = asdict(trial_of(name))
    except Exception as err:
        found = {"error": with_class(err)}
    write_atomic(Path(file), json.dumps(found, allow_nan=False))
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
