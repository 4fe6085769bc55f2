"""`-q Q4_K_M,gptq:4:g128,awq -t perplexity:c4`: entries of a spec as people write them in one line.

A quantization is ``METHOD[:VALUE][:WORD]...``, or in place of METHOD a name that says more. VALUE is
that of ``- METHOD: VALUE`` in a spec. A WORD is ``g128`` (group_size), ``a8`` (activations), ``kv4``
(kv_cache), ``sym`` or ``asym`` (symmetric), the name of an option that is true or false
(``act_order``), or a value that just one option takes (``laboratory``). ``@vllm`` at the end is the
engine. What no word says is written as in a spec: ``{gptq: {num_bits: 4, percdamp: 0.1}}``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import yaml

from qeval.core.errors import UsageError, short
from qeval.core.options import Options
from qeval.engines.base import ENGINES
from qeval.formats.gguf import TYPES
from qeval.plan.validate import members
from qeval.quant.base import METHODS
from qeval.tasks.base import TASKS

_NUMBERS = {"g": "group_size", "a": "activations", "kv": "kv_cache"}
_SCHEMES = {"gguf": "type", "compressed-tensors": "scheme", "torchao": "scheme"}
_TEXT = "wikitext2"  # of a task that needs one and is given none
_MOST_CLOSE = 3


def split(text: str) -> list[str]:
    """The items between commas, but for commas in brackets."""
    items, depth = [""], 0
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and not depth:
            items.append("")
        else:
            items[-1] += c
    return [item.strip() for item in items if item.strip()]


def quantization(item: str) -> str:
    """An entry of a spec's ``quantizations``, as YAML.

    Raises:
        UsageError: it is none; with what is close to it.
    """
    return _as_in_a_spec(item) if item.startswith("{") else written(_row(item))


def _row(item: str) -> object:
    bare, at, engine = item.rpartition("@")
    if at and engine in ENGINES:
        entry = _row(bare)
        return {**(entry if isinstance(entry, dict) else {entry: None}), "engine": engine}
    if at and "/" not in item:
        raise UsageError(f"no engine is called {engine!r}{_close(engine, ENGINES)}")
    if is_server(item):
        return {"endpoint": server(item)}
    head, colon, rest = item.partition(":")
    if head == "checkpoint" and rest:
        return {"checkpoint": rest}
    if "/" in item or item.endswith(".gguf"):
        return {"checkpoint": item}
    return _entry(*_head(head), rest.split(":") if colon else [])


def is_server(item: str) -> bool:
    return item.startswith(("http://", "https://"))


def server(address: str) -> dict[str, object]:
    """``http://localhost:8000/v1#NAME``: a model behind a server."""
    url, _, name = address.partition("#")
    if not name:
        raise UsageError(f"name the server's model: {url}#NAME")
    return {"base_url": url, "model": name}


def task(item: str) -> str:
    """An entry of a spec's ``tasks``, of its name or ``NAME:DATASET``, as YAML.

    Raises:
        UsageError: it is none; with what is close to it.
    """
    if item.startswith("{"):
        return _as_in_a_spec(item)
    name, _, text = item.partition(":")
    if name not in TASKS:
        raise UsageError(f"no task is called {short(name)!r}{_close(name, TASKS)}")
    field = TASKS[name].Options.model_fields.get("dataset")
    if text and field is None:
        raise UsageError(f"{name} reads no text of your choice: leave :{text} out")
    if text or (field is not None and field.is_required()):
        return written({name: {"dataset": text or _TEXT}})
    return name


def written(entry: object) -> str:
    """As YAML: each key of a mapping on a line of its own, all else in one line."""
    if isinstance(entry, dict):
        return "\n".join(
            f"{key}:{'' if value is None else ' ' + _flow(value)}" for key, value in entry.items()
        )
    return _flow(entry)


def _flow(value: object) -> str:
    if isinstance(value, str) and re.match(
        r"[-+]?\.?(\d|inf|nan)", value, re.I
    ):  # YAML 1.1 and ours differ in numbers
        return json.dumps(value, ensure_ascii=False)
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()


def names() -> dict[str, tuple[str, dict[str, object]]]:
    """What stands for a method with options, in lower case: GGUF's types, schemes, and what people call
    things."""
    found: dict[str, tuple[str, dict[str, object]]] = {
        "nf4": ("bitsandbytes", {"num_bits": 4, "type": "nf4"}),
        "fp4": ("bitsandbytes", {"num_bits": 4, "type": "fp4"}),
        "int8": ("bitsandbytes", {"num_bits": 8}),
    }
    for method, option in _SCHEMES.items():
        found |= {value.lower(): (method, {option: value}) for value in _scheme_values(method)}
    quantized = [name for name, kind in TYPES.items() if kind.block > 1]
    found |= {f"{t.lower()}+imatrix": ("gguf", {"type": t, "imatrix": True}) for t in quantized}
    return found


def _scheme_values(method: str) -> list[str]:
    return list(TYPES) if method == "gguf" else _literals(METHODS[method].Options, _SCHEMES[method])


def _head(head: str) -> tuple[str, dict[str, object]]:
    """The method, and the options that its name says.

    Raises:
        UsageError: there is none of that name.
    """
    known = names()
    if head in METHODS:
        return head, {}
    if head.lower() in known:
        method, options = known[head.lower()]
        return method, dict(options)
    run_together = re.fullmatch(r"([a-z]+)[-_ ]?(\d)[-_ ]?(?:bits?)?", head.lower())
    if run_together and run_together[1] in METHODS:
        hint = f"; did you mean {run_together[1]}:{run_together[2]}?"
    elif Path(head).exists():
        hint = f"; a folder is written with a slash: ./{head}"
    else:
        shown = [*METHODS, *(v for m in _SCHEMES for v in _scheme_values(m)), "nf4", "fp4", "int8"]
        hint = _close(head, shown, "a method (`qeval list methods`), a GGUF type (Q4_K_M), or a path")
    raise UsageError(f"no quantization is called {short(head)!r}{hint}")


def _entry(method: str, options: dict[str, object], words: list[str]) -> object:
    cls, scalar = METHODS[method].Options, METHODS[method].scalar
    beside: dict[str, object] = {}
    for i, word in enumerate(words):
        said = _said(cls, word)
        if said is None and i == 0 and scalar is not None and scalar not in options:
            said = scalar, _value(method, word)
        if said is None:
            number = f"; a group size is g{word}" if word.lstrip("-").isdigit() else ""
            hint = number or _close(word, _words(cls))
            raise UsageError(f"{method} has no {short(word)!r}{hint}")
        key, value = said
        if key in options or key in beside:
            raise UsageError(f"{short(word)!r}: its {key} is given already")
        (beside if key in ("activations", "kv_cache") else options)[key] = value
    short_form = options[scalar] if scalar is not None and list(options) == [scalar] else options
    if beside:
        return {method: short_form or None, **beside}
    return {method: short_form} if options else method


def _value(method: str, word: str) -> object:
    """Of the option that ``- METHOD: VALUE`` sets; schemes are also found in lower case."""
    if method in _SCHEMES:
        known = {value.lower(): value for value in _scheme_values(method)}
        return known.get(word.lower(), word)
    return yaml.safe_load(word) if re.fullmatch(r"[\d.]+", word) else word


def _said(cls: type[Options], word: str) -> tuple[str, object] | None:
    """The option that a word means, and its value."""
    number = re.fullmatch(r"(g|a|kv)(-?\d+)", word)
    if number and (_NUMBERS[number[1]] != "group_size" or "group_size" in cls.model_fields):
        return _NUMBERS[number[1]], int(number[2])
    if word in ("sym", "asym") and "symmetric" in cls.model_fields:
        return "symmetric", word == "sym"
    if word in _switches(cls):
        return word, True
    having = [name for name in cls.model_fields if word in _literals(cls, name)]
    return (having[0], word) if len(having) == 1 else None


def _words(cls: type[Options]) -> Iterator[str]:
    """What may stand behind a method, for a hint."""
    yield from ("a8", "kv4")
    yield from ["g128"] if "group_size" in cls.model_fields else []
    yield from ["sym", "asym"] if "symmetric" in cls.model_fields else []
    yield from _switches(cls)
    for name in cls.model_fields:
        yield from _literals(cls, name)


def _switches(cls: type[Options]) -> list[str]:
    return [name for name, info in cls.model_fields.items() if bool in members(info.annotation)]


def _literals(cls: type[Options], name: str) -> list[str]:
    """The texts that an option takes, where it takes only some."""
    kinds = [m for m in members(cls.model_fields[name].annotation) if get_origin(m) is Literal]
    return [value for kind in kinds for value in get_args(kind) if isinstance(value, str)]


def _as_in_a_spec(item: str) -> str:
    """Raises UsageError where it is no YAML."""
    try:
        yaml.compose(item)
    except yaml.YAMLError as err:
        what = "{METHOD: {OPTION: VALUE}}, in quotes for the shell"
        raise UsageError(f"not an entry of a spec: write {what}") from err
    return " ".join(item.split())


def _close(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """``; did you mean 'Q4_K_M' or 'Q4_K_S'?``, else what there is."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=_MOST_CLOSE, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(lower[name]) for name in close)}?"
    return f"; known: {otherwise or ', '.join(sorted(lower.values()))}"
