"""Which packed format a model folder is in, from its configuration, and what it takes to store
(torch-free). docs/formats.md is the list.

A format is named by ``quantization_config`` in config.json. AutoGPTQ's older folders have it in
quantize_config.json, quanto's in quanto_qmap.json, and hqq's is in each layer of qmodel.pt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qeval.core.artifact import Artifact, Format, LayerReport, ModelRef
from qeval.core.errors import ModelError, UsageError, did_you_mean, raise_all
from qeval.core.extras import require
from qeval.formats.limits import check_half_precision
from qeval.formats.tensors import PackedLinear, packed_linears
from qeval.models.config import read_json
from qeval.models.tensors import Tensor, is_embedding, is_plausible, unquantized_note
from qeval.models.weights import read_contents, read_tensors

KERNELS_FOR = ("gptq", "awq")
"""Formats that run on GPTQModel's kernels, of which a spec may name one."""
_GPTQ_LAYOUTS = ("gptq", "gptq_v2")
_AUTO_ROUND_LAYOUTS = ("gptq", "auto_gptq", "awq", "auto_awq")
_TORCHAO = {  # class of torchao's configuration -> the name of the scheme, bits
    "Int8WeightOnlyConfig": ("int8wo", 8),
    "Int8DynamicActivationInt8WeightConfig": ("int8dyn", 8),
    "Int4WeightOnlyConfig": ("int4wo", 4),
    "Float8WeightOnlyConfig": ("fp8wo", 8),
    "Float8DynamicActivationFloat8WeightConfig": ("fp8dyn", 8),
}
_NAMED = 3  # layers in a note


def recognise(folder: Path) -> Format | None:
    """The format of a model folder; None where its weights are floats.

    Raises:
        ModelError: a format that is not known, or a configuration that contradicts itself; with the
            file, the key and what is known.
    """
    if (folder / "qmodel.pt").is_file():
        return _hqq(folder)
    if (folder / "quanto_qmap.json").is_file():
        return _quanto(folder)
    file, config = _quantization_config(folder)
    if not config:
        return None
    name = config.get("quant_method")
    if name not in _READERS:
        raise ModelError(
            f"{file}: quant_method {name!r} is none that qeval runs{did_you_mean(str(name), _READERS)}"
        )
    return _READERS[name](file, config)


def rounds_activations(artifact: Artifact) -> bool:
    """Whether the kernels of a packed model quantize activations, too."""
    found = artifact.format
    if found is None:
        return False
    if found.name == "compressed-tensors":
        return bool(found.details["activations"] < 16)
    if found.name == "torchao":
        return "DynamicActivation" in found.details["type"]
    return found.name == "fp8" or found.label == "LLM.int8()"


def describe_packed(folder: Path) -> Artifact:
    """A packed folder as it is stored, from its headers alone: exact bytes, one LayerReport for each
    quantized linear.

    ``bpw`` is over the quantized linears but a packed output head; ``bpw_file`` over all parameters.

    Raises:
        ModelError: see ``recognise``; or the tensors are not those of the format.
    """
    found = recognise(folder)
    if found is None:
        raise ModelError(f"{folder}/config.json: no quantization_config: these are float weights")
    contents = read_contents(folder)
    packed = packed_linears(folder, contents, found.name, found.num_bits, found.details)
    owner = {t.name: p.name for p in packed for t in p.tensors}
    rest = [t for t in contents.tensors if t.name not in owner]
    if false := next((t for t in rest if not is_plausible(t)), None):
        raise ModelError(f"{false.file}: {false.name} is {false.dtype}, and no part of {found.label}")
    total = sum(t.n_bytes for t in contents.tensors)
    embedding = sum(t.n_bytes for t in rest if t.is_embedding)
    embedding += sum(p.n_bytes for p in packed if is_embedding(p.name))
    linears = [p for p in packed if not is_embedding(p.name)] or packed
    n_parameters = sum(t.n_elements for t in rest) + sum(p.n_weights for p in packed)
    return Artifact(
        path=folder,
        engine="hf",
        simulated=False,
        weight_bytes=total - embedding,
        embedding_bytes=embedding,
        bpw=8 * sum(p.n_bytes for p in linears) / sum(p.n_weights for p in linears),
        bpw_file=8 * total / n_parameters,
        layers=tuple(LayerReport(p.name, p.shape, p.kind, p.n_bytes) for p in packed),
        notes=(*_left_as_floats(packed, rest), *_not_linear(packed, rest)),
        format=found,
    )


def _left_as_floats(packed: list[PackedLinear], rest: Iterable[Tensor]) -> tuple[str, ...]:
    """A note on the linears that a checkpoint left as they were: they are not in bpw."""
    left = [t for t in rest if len(t.shape) == 2 and t.name.endswith(".weight") and not t.is_embedding]
    if not left:
        return ()
    names = ", ".join(t.name.removesuffix(".weight") for t in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    kinds = "/".join(sorted({t.dtype for t in left}))
    n = len(packed) + len(left)
    return (f"{len(left)} of {n} linears left as {kinds}, not counted in bpw: {names}{more}",)


def _not_linear(packed: list[PackedLinear], rest: Iterable[Tensor]) -> tuple[str, ...]:
    body = [t for t in rest if not t.is_embedding]
    n_packed = sum(p.n_weights for p in packed if not is_embedding(p.name))
    n_left = sum(t.n_elements for t in body if len(t.shape) == 2)
    return unquantized_note(n_packed + n_left, n_packed + sum(t.n_elements for t in body))


def check_runs(artifact: Artifact, model: ModelRef) -> None:
    """What a packed artifact needs of this machine and of the spec, before any job.

    Raises:
        MissingExtraError: a package of its format is not installed; with the command.
        UsageError: a dtype that its kernels do not compute in.
    """
    found = artifact.format
    if found is None:
        return

    def check_dtype() -> None:
        if found.name in KERNELS_FOR:
            check_half_precision(found.label, model)

    raise_all(lambda: require(found.extra, *found.modules), check_dtype)


def check_float(method: str, model: ModelRef) -> None:
    """Raises UsageError where a method is to quantize a model that is packed already, ModelError where
    its weights are none that can be quantized."""
    found = recognise(model.path) if model.path.is_dir() else None
    if found is None and model.path.is_dir():
        check_floats(model.path, read_tensors(model.path))
    if found is not None:
        raise UsageError(
            f"{method}: {model.id} is packed already ({found.label}): it needs the float model; "
            "none and checkpoint take packed ones as they are"
        )


# -- where the configuration is ---------------------------------------------------------------


def _quantization_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that has it and its content, {} where there is none. GPTQModel reads
    quantize_config.json before config.json: the two must agree.

    Raises:
        ModelError: the files are not JSON objects, or disagree.
    """
    main, beside = folder / "config.json", folder / "quantize_config.json"
    config = read_json(main)
    inner = config.get("text_config")
    found = config.get("quantization_config") or config.get("compression_config")
    if not found and isinstance(inner, dict):
        found = inner.get("quantization_config")
    found = found or {}
    if not isinstance(found, dict):
        raise ModelError(f"{main}: quantization_config must be a mapping")
    if not beside.is_file():
        return main, found
    other = read_json(beside)
    if not found:
        other.setdefault("quant_method", other.get("quant_method") or "gptq")  # AutoGPTQ wrote no name
        return beside, other
    for key in ("bits", "group_size", "desc_act", "sym", "quant_method", "checkpoint_format"):
        if key in found and key in other and found[key] != other[key]:
            raise ModelError(
                f"{beside}: {key} is {other[key]!r}, but {found[key]!r} in config.json: "
                "delete the one that is wrong"
            )
    return main, {**other, **found}


def _number(file: Path, config: dict[str, Any], *keys: str, known: Iterable[int] | None = None) -> int:
    """The first of ``keys`` that is there, a whole number.

    Raises:
        ModelError: none is, it is no whole number, or not one of ``known``.
    """
    key = next((k for k in keys if config.get(k) is not None), keys[0])
    value = config.get(key)
    if type(value) is not int or (known is not None and value not in known):
        raise ModelError(
            f"{file}: quantization_config.{key} is {value!r}: must be "
            + (f"one of {', '.join(map(str, known))}" if known is not None else "a whole number")
        )
    return value


def _group(file: Path, config: dict[str, Any], *keys: str) -> int:
    value = _number(file, config, *keys)
    if value < 1 and value != -1:
        raise ModelError(f"{file}: quantization_config.{keys[0]} is {value}: must be positive, or -1")
    return value


def _wide(bits: int | str, group: int | None, activations: int = 16) -> str:
    """``W4A16g128``; no group where there is one scale per output channel."""
    return f"W{bits}A{activations}" + (f"g{group}" if group and group > 0 else "")


# -- one reader a format ----------------------------------------------------------------------


def _gptq(file: Path, config: dict[str, Any]) -> Format:
    bits = _number(file, config, "bits", known=(2, 3, 4, 8))
    group = _group(file, config, "group_size")
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if layout not in _GPTQ_LAYOUTS:
        raise ModelError(
            f"{file}: checkpoint_format {layout!r} runs on one kernel only: export it again as gptq "
            f"(known: {', '.join(_GPTQ_LAYOUTS)})"
        )
    order, symmetric = bool(config.get("desc_act")), bool(config.get("sym", True))
    label = "GPTQ " + _wide(bits, group) + " act-order" * order + " asym" * (not symmetric)
    details = {
        "checkpoint_format": layout,
        "act_order": order,
        "lm_head": bool(config.get("lm_head")),
        "mixed": bool(config.get("dynamic")),
    }
    return Format("gptq", "gptqmodel", ("gptqmodel",), label, bits, group, symmetric, details)


def _awq(file: Path, config: dict[str, Any]) -> Format:
    bits = _number(file, config, "bits", "w_bit", known=(4, 8))
    group = _group(file, config, "group_size", "q_group_size")
    layouts = (config.get(key) for key in ("version", "checkpoint_format", "format"))
    layout = str(next(filter(None, layouts), "gemm")).lower()
    if layout != "gemm" or config.get("backend") == "llm-awq":
        raise ModelError(
            f"{file}: AWQ's layout {layout!r} runs on one kernel only: export it again as gemm"
        )
    symmetric = not config.get("zero_point", not config.get("sym", False))
    label = "AWQ " + _wide(bits, group) + " sym" * symmetric
    details = {"layout": layout, "mixed": bool(config.get("dynamic"))}
    return Format("awq", "gptqmodel", ("gptqmodel",), label, bits, group, symmetric, details)


def _auto_round(file: Path, config: dict[str, Any]) -> Format:
    bits = _number(file, config, "bits", known=range(2, 9))
    group = _group(file, config, "group_size")
    packing = str(config.get("packing_format", "auto_round:gptq"))
    layout = packing.rpartition(":")[2]
    if layout not in _AUTO_ROUND_LAYOUTS or config.get("data_type", "int") != "int":
        raise ModelError(
            f"{file}: packing_format {packing!r} of data_type {config.get('data_type')!r}: "
            f"{', '.join(f'auto_round:{x}' for x in _AUTO_ROUND_LAYOUTS)} of int are known"
        )
    symmetric = bool(config.get("sym", True))
    label = "AutoRound " + _wide(bits, group) + " asym" * (not symmetric)
    details = {
        "packing": packing,
        "layout": "awq" if layout.endswith("awq") else "gptq",
        "mixed": bool(config.get("extra_config")),
    }
    return Format("auto-round", "auto-round", ("auto_round",), label, bits, group, symmetric, details)


def _compressed_tensors(file: Path, config: dict[str, Any]) -> Format:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelError(f"{file}: quantization_config.config_groups names no weights")
    layout = str(config.get("format"))
    sparse = (config.get("sparsity_config") or {}).get("format", "dense") not in ("dense", None)
    if sparse or "24" in layout or "sparse" in layout:
        raise ModelError(
            f"{file}: quantization_config.format {layout!r} is sparse: qeval runs dense ones"
        )
    weights = [g.get("weights") or {} for g in groups.values()]
    inputs = [g.get("input_activations") or {} for g in groups.values()]
    bits = sorted({_number(file, w, "num_bits") for w in weights})
    sizes = {_inputs_of_a_scale(w) for w in weights}
    blocks = {"x".join(map(str, w.get("block_structure") or ())) for w in weights}
    kinds = {_float_kind(w) for w in weights}
    symmetric = {bool(w.get("symmetric", True)) for w in weights}
    group = next(iter(sizes)) if len(sizes) == 1 else None
    activations = min((a.get("num_bits") or 16) for a in inputs)
    kind = next(iter(kinds)) if len(kinds) == 1 else "mixed"
    shown = None if kind.startswith(("NV", "MX")) else group  # their groups go with their names
    wide = _wide("/".join(map(str, bits)), shown, activations)
    block = next(iter(blocks)) if len(blocks) == 1 else ""
    label = " ".join(filter(None, ("compressed-tensors", kind, wide, block)))
    details = {
        "layout": layout,
        "bits": bits,
        "activations": activations,
        "act_order": any(w.get("actorder") for w in weights),
        "kv_cache": bool(config.get("kv_cache_scheme")),
        "mixed": len(bits) > 1,
    }
    return Format(
        "compressed-tensors",
        "compressed-tensors",
        ("compressed_tensors",),
        label + " asym" * (symmetric == {False}),
        bits[0] if len(bits) == 1 else None,
        group,
        next(iter(symmetric)) if len(symmetric) == 1 else None,
        details,
    )


def _inputs_of_a_scale(weights: dict[str, Any]) -> int | None:
    """The group size; -1 for a scale an output channel, None for one a block or tensor."""
    if weights.get("strategy") in ("block", "tensor"):
        return None
    return weights.get("group_size") or -1


def _float_kind(weights: dict[str, Any]) -> str:
    """ "" for integers, else FP8, NVFP4, MXFP4, ..."""
    if weights.get("type", "int") != "float":
        return ""
    bits = weights.get("num_bits")
    if bits == 4 or weights.get("group_size") == 32:
        return ("NVFP" if weights.get("group_size") == 16 else "MXFP") + str(bits)
    return f"FP{bits}"


def _bitsandbytes(file: Path, config: dict[str, Any]) -> Format:
    eight, four = bool(config.get("load_in_8bit")), bool(config.get("load_in_4bit"))
    if eight == four:
        both = "both" if eight else "neither"
        raise ModelError(f"{file}: quantization_config has {both} of load_in_4bit and load_in_8bit")
    needs = ("bitsandbytes", "bitsandbytes", ("bitsandbytes",))
    if eight:
        details = {"threshold": config.get("llm_int8_threshold", 6.0)}
        return Format(*needs, "LLM.int8()", 8, -1, True, details)
    kind = config.get("bnb_4bit_quant_type", "fp4")
    double = bool(config.get("bnb_4bit_use_double_quant"))
    if kind not in ("nf4", "fp4"):
        raise ModelError(f"{file}: quantization_config.bnb_4bit_quant_type is {kind!r}: nf4 or fp4")
    label = kind.upper() + " double" * double
    return Format(*needs, label, 4, 64, None, {"type": kind, "double_quant": double})


def _torchao(file: Path, config: dict[str, Any]) -> Format:
    quant_type = config.get("quant_type")
    inner = quant_type.get("default", quant_type) if isinstance(quant_type, dict) else {}
    kind, data = inner.get("_type"), inner.get("_data") or {}
    if not isinstance(kind, str):
        raise ModelError(
            f"{file}: quantization_config.quant_type is {quant_type!r}: from before torchao's "
            "configurations; save the model again with torchao 0.10 or later"
        )
    scheme, bits = _TORCHAO.get(kind, (kind.removesuffix("Config"), None))
    named = data.get("weight_dtype")
    named = named.get("_data", "") if isinstance(named, dict) else ""
    if bits is None and named.startswith(("int", "uint")):
        bits = int(named.lstrip("uint"))
        scheme = f"{scheme} {named}"
    grain = (data.get("granularity") or {}) if isinstance(data.get("granularity"), dict) else {}
    group = data.get("group_size") or (grain.get("_data") or {}).get("group_size") or -1
    label = f"torchao {scheme}" + (f" g{group}" if group > 0 else "")
    details = {"type": kind, "granularity": grain.get("_type")}
    return Format("torchao", "torchao", ("torchao",), label, bits, group, None, details)


def _fp8(file: Path, config: dict[str, Any]) -> Format:
    block = config.get("weight_block_size")
    activations = config.get("activation_scheme", "dynamic")
    label = "FP8 W8A8" + (f" {block[0]}x{block[1]}" if block else "")
    details = {"block": block, "activations": activations}
    return Format("fp8", "hf", ("torch", "transformers", "accelerate"), label, 8, None, True, details)


def _hqq(folder: Path) -> Format:
    """From the layers themselves: nbits and group_size of each are in the file."""
    facts = read_contents(folder).facts

    def all_of(key: str) -> Any:
        values = {v for name, v in facts.items() if name.rpartition(".")[2] == key}
        return next(iter(values)) if len(values) == 1 else None

    bits, group, axis = all_of("nbits"), all_of("group_size"), all_of("axis")
    label = "HQQ " + (_wide(bits, group) if bits else "mixed") + " axis 0" * (axis == 0)
    details = {"axis": axis, "mixed": bits is None}
    return Format("hqq", "hqq", ("hqq",), label, bits, group, False, details)


def _quanto(folder: Path) -> Format:
    file = folder / "quanto_qmap.json"
    layers = [v for v in read_json(file).values() if isinstance(v, dict)]
    kinds = Counter(str(v.get("weights")) for v in layers)
    known = {"qint8": 8, "qint4": 4, "qint2": 2, "qfloat8": 8} | dict.fromkeys(
        ("qfloat8_e4m3fn", "qfloat8_e5m2"), 8
    )
    wrong = [k for k in kinds if k not in known]
    if wrong or not kinds:
        raise ModelError(f"{file}: weights {wrong[0] if wrong else None!r}; known: {', '.join(known)}")
    bits = known[next(iter(kinds))] if len(kinds) == 1 else None
    activations = 16 if all(v.get("activations") in (None, "none") for v in layers) else 8
    kind = "FP8 " if all(k.startswith("qfloat") for k in kinds) else ""
    grouped = {t.shape[1] for t in read_contents(folder).tensors if t.name.endswith("._data._data")}
    group = next(iter(grouped)) if len(grouped) == 1 else None if grouped else -1
    wide = _wide("/".join(str(known[k]) for k in sorted(kinds)), group, activations)
    details = {"weights": dict(kinds), "mixed": bits is None}
    needs = ("quanto", "quanto", ("optimum", "optimum.quanto"))
    return Format(*needs, f"quanto {kind}{wide}", bits, group, None, details)


_READERS: dict[str, Callable[[Path, dict[str, Any]], Format]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,  # as auto-round before 0.3 wrote it
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
    "fp8": _fp8,
}


_PACKED = (".qweight", ".weight_packed", ".W_q", ".SCB", "._weight_qdata", ".weight.absmax")


def check_floats(path: Path, tensors: Sequence[Tensor]) -> None:
    """What a model folder without a quantization_config holds.

    Raises:
        ModelError: packed weights, or weights in a type that is no float: libraries turn such numbers
            into floats, whatever they were.
    """
    for t in tensors:
        if t.name.endswith(_PACKED):
            raise ModelError(
                f"{path}: {t.name} is packed, but config.json has no quantization_config to say how: "
                "take the one that came with these weights"
            )
        if not is_plausible(t):
            raise ModelError(
                f"{t.file}: {t.name} is {t.dtype}, and weights are floats: its header is false, or "
                "config.json lacks the quantization_config that says how they are packed"
            )
