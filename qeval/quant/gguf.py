"""`gguf`: Hugging Face folder -> GGUF -> quantized, both steps by llama.cpp itself.

The float file comes from llama.cpp's ``convert_hf_to_gguf.py`` in a subprocess, the quantized ones from
``llama_model_quantize`` in process: what ``llama-quantize`` calls, so the files are those a user gets.
The names in ``TYPES`` are those of llama.cpp's ``tools/quantize/quantize.cpp``.

llama.cpp silently stores a tensor as another type where a row is not a multiple of the type's block.
The types are therefore read back from the file; the Artifact says what is really in it.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from pydantic import field_validator, model_validator

from qeval.core.artifact import Artifact, CalibrationFacts, ModelRef
from qeval.core.cores import threads
from qeval.core.errors import BuildError, did_you_mean, raise_all
from qeval.core.options import Options
from qeval.data.calibration import CalibrationOptions
from qeval.formats.gguf import ALIASES, TYPES, describe_gguf
from qeval.formats.limits import check_folder
from qeval.quant.base import BuildContext, Method, Packages

if TYPE_CHECKING:
    from qeval.quant.libraries.imatrix import Measured

_LONGEST_WINDOW = 2048  # of a protocol's own
_FLOAT_OF = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class GgufOptions(Options):
    type: str  # a name in TYPES or ALIASES, in any case
    imatrix: bool | None = None  # None: only where llama.cpp demands one
    calibration: CalibrationOptions | None = None  # of the importance matrix; None: the defaults
    pre_tokenizer: str | None = None  # llama.cpp's name, for a tokenizer its converter does not know

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        name = value.upper()
        if name not in TYPES and name not in ALIASES:
            raise ValueError(f"unknown GGUF type {value!r}{did_you_mean(name, [*TYPES, *ALIASES])}")
        return ALIASES.get(name, name)

    @model_validator(mode="after")
    def _consistent(self) -> GgufOptions:
        if self.imatrix is False and TYPES[self.type].needs_imatrix:
            raise ValueError(f"{self.type} cannot be made without one: drop imatrix: false")
        if self.imatrix and self.is_float:
            raise ValueError(f"{self.type} is not quantized, so imatrix does nothing: drop it")
        if self.calibration is not None and not self.uses_imatrix:
            raise ValueError("calibration does nothing without an importance matrix: add imatrix: true")
        return self

    def identity(self) -> dict[str, object]:
        """With the defaults that are used filled in, so that ``imatrix: true`` on a type that needs one
        is the same cell as nothing said."""
        calibration = (self.calibration or CalibrationOptions()) if self.uses_imatrix else None
        return {
            "type": self.type,
            "calibration": None if calibration is None else calibration.identity(),
            "pre_tokenizer": self.pre_tokenizer,
        }

    @property
    def is_float(self) -> bool:
        return TYPES[self.type].block == 1

    @property
    def uses_imatrix(self) -> bool:
        return TYPES[self.type].needs_imatrix if self.imatrix is None else self.imatrix


@final
class Gguf(Method[GgufOptions]):
    version: ClassVar[int] = 2  # 2: experts are weighed by the importance matrix
    Options: ClassVar[type[Options]] = GgufOptions
    scalar: ClassVar[str | None] = "type"
    engine: ClassVar[str | None] = "llamacpp"

    def label(self, options: GgufOptions) -> str:
        return f"{options.type}+imatrix" if options.uses_imatrix else options.type

    def packages(self, options: GgufOptions) -> tuple[Packages, ...]:
        """llama.cpp's converter imports torch and transformers."""
        return (
            Packages("gguf", ("llama_cpp", "gguf")),
            Packages("hf", ("torch", "transformers")),
        )

    def reads(self, options: GgufOptions) -> CalibrationOptions | None:
        return (options.calibration or CalibrationOptions()) if options.uses_imatrix else None

    def simulates(self, options: GgufOptions) -> bool:
        return False

    def weight_bits(self, options: GgufOptions, dtype: str) -> float:
        found = re.search(r"\d+", options.type)  # Q5_K_M has 5, and a little more
        return float(found[0]) if found else 0.0

    def preflight(self, options: GgufOptions, model: ModelRef) -> None:
        raise_all(lambda: self.check_packages(options), lambda: check_folder("gguf", model))

    def check_tools(self, options: GgufOptions, model: ModelRef, cache_dir: Path) -> None:
        from qeval.llama.converter import check_tokenizer

        if options.pre_tokenizer is None and model.path.is_dir():
            check_tokenizer(model.path, cache_dir)

    def base(self, options: GgufOptions, dtype: str) -> dict[str, object] | None:
        """Quantized types are made from this method's own file in the model's dtype."""
        if options.is_float:
            return None
        named = {} if options.pre_tokenizer is None else {"pre_tokenizer": options.pre_tokenizer}
        return {"type": _FLOAT_OF[dtype], **named}

    def build(self, options: GgufOptions, context: BuildContext) -> Artifact:
        """Write ``model.gguf``.

        Raises:
            BuildError: llama.cpp refuses the model, or its converter cannot be found.
        """
        path = context.out / "model.gguf"
        details: dict[str, object] = {"type": options.type, "pre_tokenizer": options.pre_tokenizer}
        said: list[str] = []
        calibration: CalibrationFacts | None = None
        if options.is_float:
            convert(options, context, path)
        else:
            calibration, said = _quantize(options, context, path)
            details["imatrix"] = options.uses_imatrix
        artifact = describe_gguf(path)
        notes = (*artifact.notes, *said)
        if options.pre_tokenizer is not None:
            notes = (*notes, f"converted with the pre-tokenizer {options.pre_tokenizer!r}, as told")
        more, said = _context(context.model, path)
        details = {**artifact.details, **details, **more}
        return replace(artifact, notes=(*notes, *said), calibration=calibration, details=details)


def _context(model: ModelRef, path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the file need not say right, for the engine: the longest sequence that the model takes, and
    its sliding window; a note where the file says less than a protocol's windows."""
    from transformers import AutoConfig

    from qeval.llama.gguf_file import read_header
    from qeval.models.loading import max_positions, sliding_window

    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    limit = max_positions(config)
    facts = {"max_seq_len": limit, "sliding_window": sliding_window(config)}
    said = read_header(path).get("context_length") or limit
    if said >= min(limit, _LONGEST_WINDOW):
        return facts, []
    note = f"the file says a context of {said} tokens, the model none so short: run as the model is"
    return facts, [note]


def convert(options: GgufOptions, context: BuildContext, path: Path) -> None:
    """Run llama.cpp's converter on the model's folder."""
    from qeval.llama.converter import WRAPPER, converter_folder

    model = context.model.path
    check_folder("gguf", context.model)
    folder = converter_folder(context.cache_dir)
    arguments = [str(model), "--outfile", str(path), "--outtype", options.type.lower()]
    wrapper = WRAPPER
    command = [sys.executable, str(wrapper), str(folder), options.pre_tokenizer or "", *arguments]
    context.progress(0, 1, "conversions")
    _run(command, context.cache_dir / "logs" / f"convert-{context.out.name}.log", model)
    context.progress(1, 1, "conversions")


def _run(command: list[str], log: Path, model: Path) -> None:
    """Run the converter; where it fails, its output goes to ``log``, if the disk has room for it."""
    environment = {k: v for k, v in os.environ.items() if k != "NO_LOCAL_GGUF"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False
    )
    if done.returncode == 0:
        return
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(done.stdout)
    said = _said(done.stdout.decode("utf-8", "replace"), done.returncode)
    raise BuildError(f"{model}: llama.cpp's converter failed: {said} (log: {log})")


def _said(output: str, code: int) -> str:
    """Why the converter failed: the last line that is not one about its progress."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return "no space left on the device: free some and run again"
    if any("get_vocab_base_pre" in line for line in lines[-5:]):
        return "it does not know this tokenizer: name the closest it knows with 'pre_tokenizer: gpt-2'"
    told = [line for line in lines if not line.startswith(("INFO:", "DEBUG:")) and "it/s" not in line]
    return told[-1] if told else f"it ended with exit code {code} and no reason"


def _quantize(
    options: GgufOptions, context: BuildContext, path: Path
) -> tuple[CalibrationFacts | None, list[str]]:
    """Quantize the base artifact's file into ``path``; what the importance matrix was measured on, and
    the notes on it."""
    from qeval.llama import library as llama
    from qeval.llama.gguf_file import read_header
    from qeval.quant.libraries import imatrix

    if context.base is None:
        raise BuildError(f"{options.type} is made from a float GGUF and got none")
    lib = llama.library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = TYPES[options.type].ftype
    params.nthread = threads(context.n_threads)
    calibration: CalibrationFacts | None = None
    alive: object = None  # llama.cpp reads the matrix during the call
    source, measured, importance = context.base.path, imatrix.Measured({}), imatrix.Importance()
    if options.uses_imatrix:
        measured, calibration = _measure(options, context)
        header = read_header(source)
        importance = imatrix.to_gguf_names(measured.means, header)
        needed = TYPES[options.type].needs_imatrix
        given = imatrix.with_ones(importance, header) if needed else importance
        params.imatrix, alive = imatrix.as_ctypes(lib, given)
    llama.forget_log()
    code = lib.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    del alive
    if code != 0:
        raise BuildError(f"{source}: llama.cpp cannot make {options.type} of it ({_cause(code)})")
    if not options.uses_imatrix:
        return None, []
    return calibration, imatrix.notes(measured, importance, read_header(path))


def _cause(code: int) -> str:
    from qeval.llama import library as llama

    text = llama.reason(f"code {code}")
    return "the file cannot be written: is the disk full?" if "iostream" in text else text


def _measure(options: GgufOptions, context: BuildContext) -> tuple[Measured, CalibrationFacts]:
    """The importance of every linear's inputs, and the calibration as it is recorded."""
    from qeval.quant.libraries import imatrix

    drawn = context.calibration(options.calibration or CalibrationOptions())
    measured = imatrix.mean_squares(
        context.model, drawn.windows, device=context.device, progress=context.progress
    )
    return measured, drawn.facts
