"""GGUF files for tests: made once, split, and broken copies."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qeval.core.artifact import Artifact, ModelRef
from qeval.data.calibration import Calibration, CalibrationOptions
from qeval.quant.base import BuildContext
from qeval.quant.gguf import Gguf, GgufOptions


def build(model: Path, kind: str, out: Path, cache_dir: Path) -> Artifact:
    out.mkdir()
    ref = ModelRef(str(model), model, "sha256:test", "float32")
    # transformers' from-scratch tokenizer is unknown to the converter, which goes by a hash
    options = GgufOptions(type=kind, pre_tokenizer="gpt-2")
    context = BuildContext(ref, out, None, _no_text, lambda *_: None, cache_dir, "cpu", 1)
    return Gguf().build(options, context)


def _no_text(options: CalibrationOptions) -> Calibration:
    raise AssertionError("these types need no importance matrix")


def split(
    whole: Path, stem: Path, count: int, *, like: Literal["converter", "gguf-split"] = "converter"
) -> list[Path]:
    """A file in ``count`` parts: ``stem-00001-of-0000N.gguf`` and so on.

    As llama.cpp's two programs write them. The converter (--no-tensor-first-split): metadata alone,
    then the tensors. gguf-split: the tensors in all parts, the metadata in the first.
    """
    import gguf

    reader = gguf.GGUFReader(whole)
    holding = count - 1 if like == "converter" else count  # parts with tensors
    size = -(-len(reader.tensors) // holding)
    pieces = [reader.tensors[i * size : (i + 1) * size] for i in range(holding)]
    pieces = [[]] * (count - holding) + pieces
    stem.parent.mkdir(exist_ok=True)
    paths = []
    for number, tensors in enumerate(pieces):
        paths.append(stem.with_name(f"{stem.name}-{number + 1:05d}-of-{count:05d}.gguf"))
        kind = reader.fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(paths[-1], kind)
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(
                    field.name,
                    field.contents(),
                    field.types[0],
                    field.types[1] if len(field.types) > 1 else None,
                )
        if number:
            del writer.kv_data[0]["general.architecture"]
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for t in tensors:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def damaged(kind: str, good: Path, path: Path) -> Path:
    raw = good.read_bytes()
    contents = {
        "empty": b"",
        "text": b"this is not a model\n",
        "header": raw[:100],
        "cut": raw[: len(raw) // 2],
        "architecture": raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxama", 1),
    }
    path.write_bytes(contents[kind])
    return path
