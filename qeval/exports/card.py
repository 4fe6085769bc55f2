"""The card of a quantized model: what it is, how it was made, what was measured, and how to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import yaml

from qeval.core.units import gib
from qeval.exports.hub import model_index
from qeval.exports.rows import ExportRow, Line


def card(row: ExportRow, *, usage: str = "", with_index: bool = True) -> str:
    """Markdown behind a YAML block of metadata; ends in a newline.

    Args:
        usage: how to run what lies beside the card.
        with_index: the hub's ``model-index``, where huggingface_hub is installed.
    """
    body = [f"# {_title(row)}", "", *_what(row), "", *_numbers(row)]
    body += ["", "## Run it", "", usage.rstrip("\n")] if usage else []
    body += ["", "## Measured again", "", *_again(row)]
    return f"{_metadata(row, with_index)}\n" + "\n".join(body) + "\n"


def _metadata(row: ExportRow, with_index: bool) -> str:
    data: dict[str, object] = {}
    quantized = _method(row) not in ("none", "checkpoint")
    if "/" in _model(row):  # of the hub
        data["base_model"] = _model(row)
        data |= {"base_model_relation": "quantized"} if quantized else {}
    tags = ["qeval", *(["quantized", _method(row)] if quantized else [])]
    data |= {"pipeline_tag": "text-generation", "tags": tags}
    if with_index and find_spec("huggingface_hub") and (index := model_index(row, _title(row))):
        data["model-index"] = index
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _title(row: ExportRow) -> str:
    return f"{_model(row).rpartition('/')[2]} · {row.label}"


def _model(row: ExportRow) -> str:
    """The hub's id; of a local folder or file its name alone: a card is for others, who have no such
    path."""
    name = str(row.records.model.get("id") or row.model).rstrip("/")
    local = name.startswith(("/", ".", "~")) or name.count("/") != 1 or Path(name).exists()
    return name.rpartition("/")[2] if local else name


def _method(row: ExportRow) -> str:
    return str(row.records.quantization.get("name") or "unknown")


def _what(row: ExportRow) -> Iterator[str]:
    asked, made = row.records.quantization, row.records.artifact
    details = made.get("details") or {}
    options = asked.get("options") or {}
    said = ", ".join(f"{k}={_inline(v)}" for k, v in options.items() if v is not None)
    yield f"- model: {_model(row)}" + (f" ({row.records.identity})" if row.records.identity else "")
    yield f"- method: {_method(row)}" + (f" ({said})" if said else "")
    if library := details.get("library"):
        yield f"- made by: {library.get('name')} {library.get('version')}"
    if calibration := details.get("calibration"):
        yield f"- calibration: {', '.join(f'{k} {v}' for k, v in calibration.items())}"
    if (bpw := made.get("bpw")) is not None:
        size = (made.get("weight_bytes") or 0) + (made.get("embedding_bytes") or 0)
        packed = "computed: its weights are stored as floats" if row.records.simulated else "stored"
        yield f"- size: {bpw:.2f} bits a quantized weight, {gib(size)} GiB ({packed})"
    yield from (f"- note: {note}" for note in made.get("notes") or ())


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items() if v is not None) + "}"
    return str(value)


def _numbers(row: ExportRow) -> Iterator[str]:
    """A table; under it what it was measured with."""
    lines = [line for line in row.numbers if line["n"] or line["difference"] is not None]
    if not lines:
        yield "Nothing was measured of it."
        return
    yield "| metric | protocol | value | 95% interval | n | against the float model |"
    yield "|---|---|---:|---|---:|---|"
    for line in lines:
        low, high = line["low"], line["high"]
        interval = f"[{low:.5g}, {high:.5g}]" if low is not None and high is not None else ""
        first = f" [first {line['limit']}]" if line["limit"] else ""
        cells = [
            f"{line['metric']}" + (f" ({line['unit']})" if line["unit"] else ""),
            f"{line['protocol']}{first}",
            f"{line['value']:.5g}",
            interval,
            str(line["n"] or ""),
            _difference(line),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    where = dict.fromkeys(str(line["conditions"]) for line in lines if line["conditions"])
    made = dict.fromkeys(f"qeval {line['qeval']}" for line in lines if line["qeval"])
    engines = dict.fromkeys(str(line["engine_version"]) for line in lines if line["engine_version"])
    yield f"Measured with {'; '.join([*made, *engines, *where]) or 'qeval'}."


def _difference(line: Line) -> str:
    if not isinstance(line["difference"], float):
        return ""
    kind, value = line["difference_kind"], line["difference"]
    if kind in ("ratio", "time"):
        return f"×{value:.3g}"
    scale, unit = {"relative": (100, "%"), "points": (100, " pts")}.get(str(kind), (1, ""))
    ends = [line["difference_low"], line["difference_high"]]
    interval = [f"{scale * end:+.3g}" for end in ends if isinstance(end, float)]
    said = f"{scale * value:+.3g}{unit}" + (f" [{', '.join(interval)}]" if interval else "")
    return said + (" equivalent" if line["equivalent"] else "")


def _again(row: ExportRow) -> Iterator[str]:
    """A spec that asks for this row and what was measured of it."""
    asked = row.records.quantization
    options = {k: v for k, v in (asked.get("options") or {}).items() if v is not None}
    tasks = []
    for record in row.records.evals:
        task = record.cell.get("task") or {}
        given = {k: v for k, v in (task.get("options") or {}).items() if v is not None}
        given |= {"limit": record.cell["limit"]} if record.cell.get("limit") else {}
        asked_for = {str(task.get("name")): given} if given else str(task.get("name"))
        tasks += [] if asked_for in tasks else [asked_for]
    spec = {
        "name": "again",
        "models": [_model(row)],
        **({"dtype": row.records.dtype} if row.records.dtype else {}),
        "quantizations": ["none", {_method(row): options} if options else _method(row)],
        "tasks": tasks,
    }
    yield "```yaml"
    yield yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=1000).rstrip("\n")
    yield "```"
    yield ""
    yield "`qeval run again.yaml`"
