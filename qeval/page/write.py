"""A page as one HTML file: template, style sheet, two scripts (Vega's and ours) and one JSON block.

Its content policy allows these by their hashes and nothing else: no request leaves the page, and a text
of a model that got among the markup would not run.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from qeval.core import __version__
from qeval.core.errors import StoreError
from qeval.core.extras import require
from qeval.core.files import write_atomic
from qeval.core.record import finite
from qeval.core.settings import default_cache_dir
from qeval.core.units import human_bytes
from qeval.page import plots
from qeval.page.collect import Page
from qeval.page.verdict import Choice, Verdict, short_name
from qeval.report.html import small_print, table_element

PARTS = Path(__file__).parent / "parts"
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {style}; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_GLOBALS = "window.vegaEmbed = vegaEmbed;"
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\ufff9-\ufffb]"
)


def visible(text: str) -> str:
    """With what cannot be seen, or turns the direction of what follows, as ``⟨U+202E⟩``."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def html(page: Page) -> str:
    """The whole file.

    Raises:
        MissingExtraError: jinja2 or vl-convert is not installed.
    """
    require("report", "jinja2", "vl_convert")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_part(name) for name in ("page.css", "page.js"))
    vega = bundle()
    policy = _POLICY.format(scripts=f"{_hash(vega)} {_hash(script)}", style=_hash(style))
    said = _said(page)
    return environment.get_template("page.html.j2").render(
        **said,
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        vega=Markup(vega),
        data=Markup(_json(_data(page))),
        table=Markup(visible(table_element(page.table))),
        small_print=Markup(visible(small_print(page.table))),
    )


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as vl-convert carries them, as one script. Putting it together
    takes 2 seconds, so that it is kept in the cache."""
    import vl_convert

    names = hashlib.sha256(_GLOBALS.encode()).hexdigest()[:8]
    kept = default_cache_dir() / "page" / f"vega-{version('vl-convert-python')}-{names}.js"
    with suppress(OSError, UnicodeDecodeError):
        return kept.read_text(encoding="utf-8")
    code: str = vl_convert.javascript_bundle(_GLOBALS)
    code = code.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with suppress(StoreError):  # a cache that cannot be written is done without
        write_atomic(kept, code)
    return code


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: object) -> str:
    """ASCII, and without ``<``: it ends no script element."""
    text = json.dumps(finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


# -- what the template says ---------------------------------------------------------------------


def _said(page: Page) -> dict[str, object]:
    models = list(dict.fromkeys(v.model for v in page.verdicts))
    rows = sum(not row.floor for row in page.table.rows)
    measured = page.origin.measured
    first = page.verdicts[0] if page.verdicts else Verdict("", "nothing was measured")
    hidden = [c for c in page.table.columns if c.id not in page.first_columns]
    return {
        "title": " and ".join(short_name(model) for model in models[:3])
        + (" and more" if models[3:] else ""),
        "about": f"{rows} quantizations, {len(page.table.columns)} kinds of numbers"
        + (f", measured {measured}" if measured else ""),
        "verdict": _verdict(first),
        "warnings": page.origin.warnings,
        "more_columns": bool(hidden),
        "parts": list(_parts(page)),
        "measured": f"Measured {measured}." if measured else "",
        "facts": [
            {
                "what": fact.what,
                "mixed": fact.mixed,
                "values": [(value, ", ".join(rows)) for value, rows in fact.values],
            }
            for fact in page.origin.facts
        ],
        "commands": page.origin.commands,
        "downloads": [
            {
                "name": d.name,
                "size": human_bytes(len(d.text.encode("utf-8", "replace"))),
                "note": d.note,
            }
            for d in page.downloads
        ],
        "version": __version__,
        "made": measured.rpartition(" ")[2],
    }


def _verdict(verdict: Verdict) -> Sequence[str]:
    if verdict.reason:
        return [verdict.reason]
    choice = _default(verdict)
    return choice.said[choice.budgets.index(verdict.budget)]


def _default(verdict: Verdict) -> Choice:
    return next(c for c in verdict.choices if c.context == verdict.context)


def _parts(page: Page) -> Iterator[dict[str, str]]:
    spec = next((c for c in page.origin.commands if c.startswith("qeval run ")), "qeval run SPEC")

    def part(id: str, title: str, there: object, note: str, what: str, task: str) -> dict[str, str]:
        missing = "" if there else f"{what} Add `{task}` to the tasks of the spec, then:"
        return {"id": id, "title": title, "note": note, "missing": missing, "command": spec}

    yield part(
        "certainty",
        "Divergence by certainty",
        page.certainties,
        "Mean KL divergence of the tokens that the baseline was so sure of. Where it was sure, a large "
        "one means that the row says something else. Under 1e-7 nothing is drawn: it is the same.",
        "Nothing was measured.",
        "divergence",
    )
    yield part(
        "windows",
        "Perplexity window by window",
        page.windows,
        "One point a window of the text, in its order.",
        "Nothing was measured.",
        "perplexity",
    )
    yield part(
        "flips",
        "Problems that changed sides",
        page.sides.sides,
        "From the baseline to the row: what passed and no longer does is lost.",
        "No two rows have the same problems.",
        "humaneval",
    )
    yield part(
        "layers",
        "Layers",
        page.layers,
        "",
        "No statistics of layers are kept beside these records, and the rows' own reports are not in "
        "the cache of this machine.",
        "tensor_stats",
    )
    yield part(
        "speed",
        "Speed by batch",
        page.speeds,
        "Decoding; the bars are the lowest and highest of the repeats.",
        "Nothing was measured.",
        "speed",
    )


# -- what the script reads ----------------------------------------------------------------------


def _data(page: Page) -> dict[str, object]:
    data: dict[str, object] = {
        "config": plots.config(plots.ON_PAGE),
        "states": plots.STATES,
        "series": plots.SERIES,
        "specs": {
            "certainty": plots.certainty(plots.ON_PAGE),
            "windows": plots.windows(plots.ON_PAGE),
            "speed": plots.speed(plots.ON_PAGE),
            "heat": plots.heat(plots.ON_PAGE),
        },
        "verdicts": [_verdict_data(v) for v in page.verdicts],
        "rows": [
            {
                "words": visible(f"{r.model} {r.dtype} {r.quantization} {r.engine} {r.floor}").lower()
                + f" {page.draft.rows[i].quantization.get('name')}",
                "floor": bool(r.floor),
                "simulated": r.marked,
            }
            for i, r in enumerate(page.table.rows)
        ],
        "more_columns": [c.id for c in page.table.columns if c.id not in page.first_columns],
        "first_rows": {
            short_name(v.model): [
                p.row for p, by in zip(v.points, _default(v).dominated, strict=True) if not by
            ]
            for v in page.verdicts
            if v.points
        },
        "baselines": [row.quantization for row in page.table.rows if row.baseline],
        "certainty": [
            {
                "group": _group(page, c.model, c.protocol),
                "row": c.row,
                "buckets": [[b.low, b.high, b.kld, b.n] for b in c.buckets],
            }
            for c in page.certainties
        ],
        "windows": [
            {
                "group": _group(page, w.model, w.protocol),
                "row": w.row,
                "baseline": w.baseline,
                "nll": w.nll,
            }
            for w in page.windows
        ],
        "speed": [
            {
                "group": _group(page, s.model, s.what),
                "row": s.row,
                "batch": s.batch,
                "value": s.value,
                "low": s.low,
                "high": s.high,
            }
            for s in page.speeds
        ],
        "layers": [
            {
                "group": _group(page, m.model, m.row),
                "what": m.what,
                "bands": m.bands,
                "worse": m.worse,
                "logarithmic": m.logarithmic,
            }
            for m in page.layers
        ],
        "flips": [asdict(s) for s in page.sides.sides],
        "tests": page.sides.tests,
        "flips_command": "qeval compare ROW ROW RESULTS --format json",
    }
    # Strings up to here are shown; a file that is downloaded is as it is.
    seen = _visible(data)
    assert isinstance(seen, dict)
    return {**seen, "downloads": [_download(d.name, d.kind, d.text) for d in page.downloads]}


def _group(page: Page, model: str, what: str) -> str:
    several = len({row.model for row in page.table.rows}) > 1
    return f"{model} · {what}" if several else what


def _visible(value: object) -> object:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(k)): _visible(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(v) for v in value]
    return value


def _verdict_data(verdict: Verdict) -> dict[str, object]:
    undrawn = (
        f" Not drawn, without a loss to draw: {', '.join(verdict.undrawn)}." if verdict.undrawn else ""
    )
    simulated = any(p.simulated for p in verdict.points)
    sequences = "1 sequence" if verdict.batch == 1 else f"{verdict.batch} sequences"
    return {
        "model": short_name(verdict.model),
        "reason": verdict.reason,
        "kind": verdict.kind,
        "context": verdict.context,
        "budget": verdict.budget,
        "spec": plots.pareto(verdict, plots.ON_PAGE) if not verdict.reason else None,
        "note": ""
        if verdict.reason
        else f"{verdict.protocol}; bars are 95% intervals. Left and down is better. Weights, KV cache "
        f"of {sequences} and measured overhead; the dashed line is the memory there is. Dominated: "
        "another row is as good in rank, memory and speed, and better in one."
        + (" †: simulated, its bytes are computed and its overhead is not known." if simulated else "")
        + undrawn,
        "points": [
            {
                "row": p.row,
                "loss": p.loss.value,
                "low": p.loss.low,
                "high": p.loss.high,
                "said": p.said,
                "rank": p.rank,
                "speed": p.speed,
                "why": p.why,
                "baseline": p.baseline,
                "least": p.need.overhead is None or p.need.kv_token is None,
            }
            for p in verdict.points
        ],
        "choices": [asdict(c) for c in verdict.choices],
    }


def _download(name: str, kind: str, text: str) -> dict[str, str]:
    packed = gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)
    return {"name": name, "kind": kind, "gzip": base64.b64encode(packed).decode("ascii")}
