"""A thin typed layer over llama-cpp-python's low-level API: Model, Context, and llama.cpp's log.

Only what qeval needs of ``llama.h`` (llama.cpp as vendored by llama-cpp-python 0.3.36). Nothing here
knows about tasks, windows or sampling. llama_cpp is imported on first use.

llama.cpp writes to stderr unless told otherwise. ``library()`` installs a callback that prints nothing
and keeps the last warnings and errors, because a failed load returns NULL and tells the reason only
there.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections import deque
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
from numpy.typing import NDArray

from qeval.core import machine, provenance
from qeval.core.errors import EngineError, MissingExtraError
from qeval.llama.gguf_file import GGML_TYPES, GgufTensor

Int32 = NDArray[np.int32]

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ: a compile-time constant of llama.cpp
N_BATCH = 2048  # tokens of one llama_decode call, llama.cpp's own default
_CHECKED_BYTES = 2**24  # of weights at once
_DEVICE_GPU = 1  # enum ggml_backend_dev_type
_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE = 3, 4, 5  # enum ggml_log_level

_log: deque[str] = deque(maxlen=40)
_log_level = 0


def _on_log(level: int, text: bytes, _user_data: object) -> None:
    """llama.cpp's log callback: keep warnings and errors, print nothing."""
    global _log_level
    if level != _LEVEL_CONTINUE:
        _log_level = level
    if _log_level in (_LEVEL_WARN, _LEVEL_ERROR) and text.strip(b" .\n\r"):
        _log.append(text.decode("utf-8", "replace").strip())


_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_on_log)
"""Module-level so that it lives as long as llama.cpp may call it."""


@cache
def library() -> ModuleType:
    """The ``llama_cpp`` module, initialised and silent.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        EngineError: it is, but its shared library does not load.
    """
    try:
        package = importlib.import_module("llama_cpp")
    except ImportError as err:
        raise MissingExtraError("llama-cpp-python", "gguf") from err
    except (RuntimeError, OSError) as err:
        raise EngineError(f"llama-cpp-python does not load ({err}): reinstall it here") from err
    package.llama_log_set(_callback, ctypes.c_void_p(0))
    package.llama_backend_init()
    return package


def place(device: str) -> tuple[str, str]:
    """Where a model asked for ``device`` (``cpu``, ``cuda``, ``cuda:N``) runs, as LM.facts has it:
    ``cuda:0``, or ``cuda:0,1`` where llama.cpp spreads the layers; and the names of these."""
    if device == "cpu":
        return device, provenance.cpu_name()
    names = _gpus()
    used = [int(device.partition(":")[2])] if ":" in device else list(range(len(names)))
    return f"cuda:{','.join(map(str, used))}", ", ".join(dict.fromkeys(names[i] for i in used))


def _ggml() -> ctypes.CDLL:
    """ggml through libllama, which links to it: builds name ggml's own files differently."""
    from llama_cpp import llama_cpp

    found: ctypes.CDLL = llama_cpp._lib
    return found


def _gpus() -> list[str]:
    """The names of the GPUs."""
    libggml = _ggml()
    libggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    libggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    return [libggml.ggml_backend_dev_description(d).decode() for d in _gpu_devices()]


def _gpu_devices() -> list[int]:
    """Of ggml's devices (ggml-backend.h), the GPUs, in the order of ``main_gpu``."""
    libggml = _ggml()
    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    count = libggml.ggml_backend_dev_count()
    devices = [libggml.ggml_backend_dev_get(i) for i in range(count)]
    return [d for d in devices if libggml.ggml_backend_dev_type(d) == _DEVICE_GPU]


def free_memory(device: str) -> int:
    """Bytes that are free on ``device``, on all GPUs together where llama.cpp spreads the layers."""
    if device == "cpu":
        return machine.available_memory()
    libggml = _ggml()
    size = ctypes.POINTER(ctypes.c_size_t)
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    gpus = _gpu_devices()
    used = [gpus[int(device.partition(":")[2])]] if ":" in device else gpus
    found = 0
    for gpu in used:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        libggml.ggml_backend_dev_memory(gpu, ctypes.byref(free), ctypes.byref(total))
        found += free.value
    return found


def nonfinite(tensors: Iterable[GgufTensor]) -> list[str]:
    """The names of tensors of a file whose values or scales are not finite, as ggml finds them. Read
    piece by piece: a mapped file would count in the peak of memory."""
    libggml = _ggml()

    check = libggml.ggml_validate_row_data
    check.argtypes, check.restype = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t], ctypes.c_bool
    number = {kind: n for n, (kind, _, _) in GGML_TYPES.items()}
    block = {kind: n_bytes for kind, _, n_bytes in GGML_TYPES.values()}

    def is_finite(t: GgufTensor) -> bool:
        step = block[t.kind] * max(1, _CHECKED_BYTES // block[t.kind])
        with t.file.open("rb") as file:
            file.seek(t.offset)
            for start in range(0, t.n_bytes, step):
                data = file.read(min(step, t.n_bytes - start))
                if not check(number[t.kind], data, len(data)):
                    return False
        return True

    return [t.name for t in tensors if not is_finite(t)]


def reason(default: str) -> str:
    """Why the last llama.cpp call failed, from its log, without its function names."""
    lines = [line for line in _log if "error" in line.lower() or "fail" in line.lower()] or list(_log)
    _log.clear()
    if not lines:
        return default
    causes = [line for line in lines if "error loading model" in line] or lines
    cause = causes[0].split("error loading model: ")[-1].replace("\n", " ")
    return re.sub(r"^\w+: ", "", cause)


def forget_log() -> None:
    """Drop kept log lines, so that ``reason()`` speaks of what comes next."""
    _log.clear()


class Model:
    """A loaded ``.gguf`` file (``vocab_only``: its vocabulary and metadata, no weights)."""

    def __init__(self, path: Path, *, device: str = "cpu", vocab_only: bool = False) -> None:
        """Load ``path`` for ``device`` (``cpu``, ``cuda`` or ``cuda:N``).

        Raises:
            EngineError: not a GGUF file, truncated, or of an unknown architecture.
        """
        self._lib = library()
        self.path = path
        self.device = device
        _check_magic(path)
        forget_log()
        params, self._keep_alive = _model_params(self._lib, device, vocab_only)
        self.handle = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise EngineError(f"{path}: llama.cpp cannot load it ({reason('no reason given')})")
        self.vocab = self._lib.llama_model_get_vocab(self.handle)
        self.vocab_size = int(self._lib.llama_vocab_n_tokens(self.vocab))
        self.max_seq_len = int(self._lib.llama_model_n_ctx_train(self.handle))
        self.sliding_window = int(self._lib.llama_model_n_swa(self.handle))  # 0: it slides none

    def metadata(self, key: str) -> str | None:
        """A scalar metadata value as text; None where the file has no such key."""
        size = self._lib.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def tokenize(self, text: str, *, special: bool, parse_special: bool = False) -> list[int]:
        """Token ids. ``special``: add what the vocabulary adds (BOS); ``parse_special``: names of
        control tokens inside the text become those tokens."""
        raw = text.encode()
        buffer = (self._lib.llama_token * (len(raw) + 8))()  # no token is shorter than a byte
        args = (self.vocab, raw, len(raw), buffer, len(buffer), special, parse_special)
        count = self._lib.llama_tokenize(*args)
        if count < 0:
            buffer = (self._lib.llama_token * -count)()
            count = self._lib.llama_tokenize(*args[:3], buffer, len(buffer), *args[5:])
        return list(buffer[:count])

    def piece(self, token: int, *, special: bool) -> bytes:
        """The token's own bytes; ``special``: a control token's name, else it has none.

        Not llama_detokenize: for many vocabularies that takes out spaces, so that ``' '.join(x)`` in a
        program becomes ``''.join(x)``.
        """
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def close(self) -> None:
        if self.handle:
            self._lib.llama_model_free(self.handle)
            self.handle = None


class Context:
    """A KV cache and compute buffers for ``n_seq`` sequences of up to ``seq_len`` tokens each.

    The K and V types (f16) and the choice of flash attention are llama.cpp's defaults, the ones that
    llama-perplexity runs with. ``unified``: one buffer for all sequences, whose common prefixes are
    then stored once.
    """

    def __init__(
        self, model: Model, *, n_seq: int, seq_len: int, n_threads: int, unified: bool = False
    ) -> None:
        self._lib = model._lib
        self.model = model
        params = self._lib.llama_context_default_params()
        params.n_ctx = n_seq * padded(seq_len)
        params.n_batch = N_BATCH
        params.n_seq_max = n_seq
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = unified
        params.offload_kqv = params.op_offload = model.device != "cpu"
        forget_log()
        self.handle = self._lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            why = reason("no reason given")
            raise EngineError(
                f"{model.path}: no context of {n_seq} x {seq_len} tokens ({why}); lower batch_size"
            )
        self.memory = self._lib.llama_get_memory(self.handle)
        self.n_batch = int(self._lib.llama_n_batch(self.handle))

    def decode(
        self, tokens: Int32, positions: Int32, sequences: Int32, outputs: NDArray[np.int8]
    ) -> None:
        """Run one batch, all arrays of shape [n_tokens]; ``outputs`` is 1 where logits are wanted.

        Raises:
            EngineError: a token is out of the vocabulary, or the cache is full.
        """
        n = len(tokens)
        lib, int32 = self._lib, ctypes.POINTER(ctypes.c_int32)
        counts = np.ones(n, np.int32)
        pointers = sequences.ctypes.data + 4 * np.arange(n, dtype=np.uint64)  # int32 *[n_tokens]
        batch = lib.llama_batch(
            n,
            tokens.ctypes.data_as(int32),
            None,
            positions.ctypes.data_as(int32),
            counts.ctypes.data_as(int32),
            pointers.ctypes.data_as(ctypes.POINTER(int32)),
            outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        forget_log()
        code = lib.llama_decode(self.handle, batch)
        if code != 0:
            raise EngineError(f"{self.model.path}: llama_decode failed ({reason(f'code {code}')})")

    def logits(self, n_outputs: int) -> NDArray[np.float32]:
        """Logits [n_outputs, vocab_size] of the last batch, in batch order: llama.cpp's own buffer,
        valid (and free to overwrite) until the next ``decode``."""
        pointer = self._lib.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, shape=(n_outputs, self.model.vocab_size))

    def synchronize(self) -> None:
        self._lib.llama_synchronize(self.handle)

    def clear(self) -> None:
        """Forget all sequences, the data too: a NaN left behind would pass through the mask."""
        self._lib.llama_memory_clear(self.memory, True)

    def copy(self, source: int, target: int) -> None:
        """``target`` becomes a copy of sequence ``source``."""
        self._lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def remove(self, sequence: int) -> None:
        self._lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lib.llama_free(self.handle)


def padded(seq_len: int) -> int:
    """llama.cpp rounds the cells of a sequence up to a multiple of 256."""
    return -(-seq_len // 256) * 256


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as err:
        raise EngineError(f"{path}: cannot be read ({err.strerror})") from err
    if magic != b"GGUF":
        what = "is empty" if not magic else "is not a GGUF file"
        raise EngineError(f"{path}: {what}; make one with the method 'gguf' or download it again")


def _model_params(lib: ModuleType, device: str, vocab_only: bool) -> tuple[ctypes.Structure, object]:
    """llama_model_params for a device, and the object they point to."""
    params = lib.llama_model_default_params()
    params.vocab_only = vocab_only
    # A library built for AMX (GGML_NATIVE=ON on such a machine) crashes on quantized weights in AMX
    # buffers. Elsewhere the extra buffers (weights repacked for AVX2/AVX-512) stay on: llama-perplexity
    # uses them too, and Q4_0 or Q4_K are much slower without.
    params.use_extra_bufts = b"AMX_INT8 = 1" not in lib.llama_print_system_info()
    no_devices = (ctypes.c_void_p * 1)(None)
    if device == "cpu":
        params.n_gpu_layers = 0
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        return params, no_devices
    params.n_gpu_layers = -1  # all
    if ":" in device:
        params.main_gpu = int(device.partition(":")[2])
        params.split_mode = lib.LLAMA_SPLIT_MODE_NONE
    return params, None
