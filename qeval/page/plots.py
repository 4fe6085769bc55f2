"""The plots as Vega-Lite specifications: one for a page, where a script fills in the rows that a reader
chose, and the same as svg and png.

In a specification a text that begins with ``@`` stands for what is filled in: ``@rows``, ``@domain``.
Colours of a page are names of its style sheet (``var(--front)``), which knows light, dark and print.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from qeval.core.units import GIB
from qeval.page.measured import Certainty
from qeval.page.verdict import Choice, Point, Verdict

Spec = dict[str, object]
Values = list[dict[str, object]]

STATES = ("recommended", "on the front", "dominated", "does not fit", "simulated †")
_SHAPES = ("diamond", "circle", "circle", "cross", "circle")
_NAMES = ("answer", "front", "grey", "grey", "simulated")
SERIES = 8  # colours of rows
SAME_KLD = 1e-7  # nats; less is the rounding of the predictions that are kept

ON_PAGE = {n: f"var(--{n})" for n in ("ink", "quiet", "grid", "paper", *_NAMES)} | {
    f"row{i}": f"var(--row{i})" for i in range(SERIES)
}
ON_PAPER = {
    "ink": "#1b1f24",
    "quiet": "#57606a",
    "grid": "#d9dee3",
    "paper": "#ffffff",
    "answer": "#b84300",
    "front": "#0069a8",
    "grey": "#8a929a",
    "simulated": "#9a2f73",
    **{
        f"row{i}": colour
        for i, colour in enumerate(
            ("#0069a8", "#b84300", "#00775a", "#9a2f73", "#6e5a00", "#4b55c4", "#b3261e", "#57606a")
        )
    },
}
_SYMBOLS = [  # one less than colours: rows of one colour have other shapes
    "circle",
    "square",
    "cross",
    "diamond",
    "triangle-up",
    "triangle-down",
    "triangle-right",
]
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def config(colours: Mapping[str, str]) -> Spec:
    text = {"labelColor": colours["ink"], "titleColor": colours["ink"], "titleFontWeight": 500}
    lines = dict.fromkeys(("gridColor", "domainColor", "tickColor"), colours["grid"])
    return {
        "background": None,
        "font": _FONT,
        "axis": {**text, **lines, "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 260},
        "legend": {**text, "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 260},
        "view": {"stroke": None},
        "title": {"color": colours["ink"], "anchor": "start", "fontSize": 13, "fontWeight": 500},
        "range": {
            "category": [colours[f"row{i}"] for i in range(SERIES)],
            "symbol": _SYMBOLS,
            "heatmap": {"scheme": "cividis"},
        },
    }


# -- loss against memory ------------------------------------------------------------------------


def pareto(verdict: Verdict, colours: Mapping[str, str]) -> Spec:
    """Data: ``points`` (``pareto_values``) and ``memory`` (one value, the GiB there is)."""
    ticks, constant = _ticks(verdict.points)
    unit = f", {verdict.unit}" if verdict.unit else ""
    x = {
        "field": "needs",
        "type": "quantitative",
        "title": f"{verdict.kind.upper()} that it needs, GiB",
        "scale": {"domain": "@domain", "nice": False},
        "axis": {"tickCount": 8},
    }
    y: Spec = {
        "field": "loss",
        "type": "quantitative",
        "title": f"{verdict.title}{unit}",
        "scale": {"type": "symlog", "constant": constant},
        "axis": {"values": ticks, "format": ".4~g"},
    }
    by_state: Spec = {"field": "state", "type": "nominal", "sort": None}
    names = [colours[name] for name in _NAMES]
    filled = [*names[:-1], colours["paper"]]

    def scale(values: Sequence[str]) -> Spec:
        return {**by_state, "title": None, "scale": {"domain": list(STATES), "range": list(values)}}

    tooltip: list[Spec] = [
        {"field": field, "title": title}
        for field, title in (
            ("row", "row"),
            ("state", "state"),
            ("memory", "needs"),
            ("said", verdict.title),
            ("rank", "rank"),
            ("speed", "tok/s"),
        )
    ]
    shared: Spec = {"x": x, "tooltip": tooltip, "description": {"field": "label"}}
    interval: Spec = {
        "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            **shared,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "stroke": {**scale(names), "legend": _LEGEND},
        },
    }
    points: Spec = {
        "mark": {"type": "point", "strokeWidth": 1.8, "opacity": 1},
        "encoding": {
            **shared,
            "y": y,
            "shape": {**scale(_SHAPES), "legend": _LEGEND},
            "fill": {**scale(filled), "legend": _LEGEND},
            "stroke": {**scale(names), "legend": _LEGEND},
            "size": {
                "condition": {"test": "datum.state == 'recommended'", "value": 190},
                "value": 75,
            },
        },
    }
    labels = {
        "transform": [{"filter": "datum.named"}],
        "mark": {
            "type": "text",
            "align": "left",
            "dx": 9,
            "dy": -7,
            "fontSize": 11,
            "color": colours["ink"],
            "aria": False,
            "limit": 180,
        },
        "encoding": {"x": x, "y": y, "text": {"field": "row"}},
    }
    memory = {
        "data": {"name": "memory"},
        "mark": {
            "type": "rule",
            "clip": True,
            "strokeDash": [5, 4],
            "color": colours["quiet"],
            "aria": False,
        },
        "encoding": {"x": {**x, "field": "gib"}},
    }
    return {
        **_head(380),
        "data": {"name": "points"},
        "layer": [memory, interval, points, labels],
    }


def _ticks(points: Sequence[Point]) -> tuple[list[float], float]:
    """Zero and powers of ten, for a scale that is linear around zero and logarithmic far from it; and
    where the one ends."""
    known = [x for p in points for x in (p.loss.value, p.loss.low, p.loss.high) if x is not None]
    sizes = [abs(p.loss.value) for p in points if p.loss.value and not p.baseline]
    most = max(map(abs, known), default=1.0) or 1.0
    constant = 10.0 ** math.floor(math.log10(max(min(sizes, default=most), most / 1e3)))
    powers = [constant * 10.0**k for k in range(8) if constant * 10.0**k <= 1.5 * most]
    negative = [-x for x in powers if -x >= 1.5 * min(known, default=0.0)]
    return [float(f"{x:.6g}") for x in (*reversed(negative), 0.0, *powers)], constant


def pareto_values(verdict: Verdict, choice: Choice, budget: float) -> Values:
    """The page's script makes the same of the same facts (``paretoValues``)."""
    at = max(i for i, n in enumerate(choice.budgets) if n <= budget)
    answer, few, out = choice.answers[at], len(verdict.points) <= SERIES, []
    for point, needs, by in zip(verdict.points, choice.needs, choice.dominated, strict=True):
        state = state_of(point, needs, by, budget, answer)
        least = point.need.overhead is None or point.need.kv_token is None
        memory = f"{'at least ' if least else ''}{needs / GIB:.4g} GiB"
        out.append(
            {
                "row": point.row,
                "needs": needs / GIB,
                "memory": memory,
                "loss": point.loss.value,
                "low": point.loss.value if point.loss.low is None else point.loss.low,
                "high": point.loss.value if point.loss.high is None else point.loss.high,
                "state": state,
                "said": point.said,
                "rank": "–" if point.rank is None else str(point.rank),
                "speed": "–" if point.speed is None else f"{point.speed:.4g}",
                "named": few or state in STATES[:2] or point.baseline,
                "baseline": point.baseline,
                "label": f"{point.row}: {state}, needs {memory}, {point.said}",
            }
        )
    front = [value for value in out if value["state"] == STATES[1]]
    if not few and len(front) > SERIES:  # names would cover each other
        for value in front:
            value["named"] = value["baseline"]
    return out


def state_of(point: Point, needs: float, by: str, budget: float, answer: str) -> str:
    if point.why:
        return STATES[4]
    if point.row == answer:
        return STATES[0]
    if needs > budget:
        return STATES[3]
    return STATES[2] if by else STATES[1]


def domain(choice: Choice) -> list[float]:
    """GiB of the axis, with room for names."""
    low, high = (f(choice.needs) / GIB for f in (min, max))
    room = (high - low or high) * 0.06
    return [max(0.0, low - room), high + 3 * room]


# -- series -------------------------------------------------------------------------------------


def certainty(colours: Mapping[str, str]) -> Spec:
    """Data: ``values`` (``certainty_values``)."""
    x: Spec = {
        "field": "bucket",
        "type": "ordinal",
        "sort": None,
        "title": "how sure the baseline was: its largest probability",
        "axis": {"labelAngle": 0},
    }
    y: Spec = {
        "field": "kld",
        "type": "quantitative",
        "title": "mean KLD, nats",
        "scale": {"type": "log"},
        "axis": {"format": "~g", "values": [10.0**n for n in range(-7, 3)]},
    }
    tooltip: list[Spec] = [
        {"field": "row", "title": "row"},
        {"field": "bucket", "title": "largest probability"},
        {"field": "kld", "title": "KLD, nats", "format": ".3g"},
        {"field": "n", "title": "tokens", "format": ","},
    ]
    drawn: Spec = {"transform": [{"filter": f"datum.kld >= {SAME_KLD}"}]}
    return {**_head(300), "data": {"name": "values"}, **drawn, **_lines(x, y, tooltip)}


def certainty_values(found: Sequence[Certainty]) -> Values:
    return [
        {"row": c.row, "bucket": f"{b.low:g}–{b.high:g}", "kld": b.kld, "n": b.n}
        for c in found
        for b in c.buckets
    ]


def windows(colours: Mapping[str, str]) -> Spec:
    """Data: ``values`` with ``row``, ``window`` (from 1), ``ppl``, ``change`` (%) and ``shown``, the
    one that is drawn."""
    x: Spec = {"field": "window", "type": "quantitative", "title": "window of the text"}
    x["axis"] = {"tickMinStep": 1, "format": "d"}
    x["scale"] = {"zero": False, "nice": False}
    y: Spec = {
        "field": "shown",
        "type": "quantitative",
        "title": "@title",
        "scale": {"zero": False},
    }
    tooltip: list[Spec] = [
        {"field": "row", "title": "row"},
        {"field": "window", "title": "window"},
        {"field": "ppl", "title": "PPL", "format": ".5g"},
        {"field": "said", "title": "from the baseline"},
    ]
    return {**_head(300), "data": {"name": "values"}, **_lines(x, y, tooltip, size=18)}


def speed(colours: Mapping[str, str]) -> Spec:
    """Data: ``values`` with ``row``, ``batch``, ``value``, ``low``, ``high``."""
    x: Spec = {
        "field": "batch",
        "type": "ordinal",
        "title": "sequences at once",
        "axis": {"labelAngle": 0},
    }
    y: Spec = {
        "field": "value",
        "type": "quantitative",
        "title": "tokens a second, all sequences",
        "scale": {"zero": True},
    }
    tooltip: list[Spec] = [
        {"field": "row", "title": "row"},
        {"field": "batch", "title": "sequences at once"},
        {"field": "value", "title": "tok/s", "format": ".4~g"},
        {"field": "low", "title": "lowest", "format": ".4~g"},
        {"field": "high", "title": "highest", "format": ".4~g"},
    ]
    found = _lines(x, y, tooltip)
    rule = {
        "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
        "encoding": {
            "x": x,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "color": {**_ROWS, "legend": _LEGEND},
        },
    }
    layers = found["layer"]
    assert isinstance(layers, list)
    return {**_head(300), "data": {"name": "values"}, "layer": [rule, *layers]}


_LEGEND: Spec = {"orient": "top", "columns": "@columns"}
_ROWS: Spec = {
    "field": "row",
    "type": "nominal",
    "sort": None,
    "title": None,
    "scale": {"domain": "@rows"},
}


def _lines(x: Spec, y: Spec, tooltip: Sequence[Spec], size: int = 50) -> Spec:
    """A line and a shape for each row."""
    line = {
        "mark": {"type": "line", "strokeWidth": 1.8, "aria": False},
        "encoding": {"x": x, "y": y, "color": {**_ROWS, "legend": _LEGEND}},
    }
    dots = {
        "mark": {"type": "point", "filled": True, "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "color": {**_ROWS, "legend": _LEGEND},
            "shape": {**_ROWS, "legend": _LEGEND},
            "size": {"value": size},
            "tooltip": list(tooltip),
        },
    }
    return {"layer": [line, dots]}


# -- layers -------------------------------------------------------------------------------------


def heat(colours: Mapping[str, str]) -> Spec:
    """Data: ``values`` with ``layer``, ``tensor`` and ``value``."""
    tooltip: list[Spec] = [
        {"field": "tensor", "title": "tensor"},
        {"field": "layer", "title": "layer"},
        {"field": "value", "title": "value", "format": ".4~g"},
    ]
    return {
        **_head("@height"),
        "data": {"name": "values"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {
                "field": "layer",
                "type": "ordinal",
                "title": "decoder layer",
                "axis": {"labelAngle": 0, "labelOverlap": True},
            },
            "y": {"field": "tensor", "type": "ordinal", "sort": None, "title": None},
            "color": {
                "field": "value",
                "type": "quantitative",
                "title": None,
                "scale": {"type": "@scale", "scheme": "cividis", "reverse": "@reverse"},
                "legend": {"orient": "top", "gradientLength": 220, "format": ".3~g"},
            },
            "tooltip": tooltip,
        },
    }


# -- as files -----------------------------------------------------------------------------------


def _head(height: int | str) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
    }


def filled(spec: Spec, said: Mapping[str, object]) -> Spec:
    """With what ``@name`` stands for."""
    text = json.dumps(spec)
    for name, value in said.items():
        text = text.replace(json.dumps(f"@{name}"), json.dumps(value))
    found: Spec = json.loads(text)
    return found


def drawn(spec: Spec, title: str, datasets: Mapping[str, Values], said: Mapping[str, object]) -> str:
    """A whole specification, on white paper, as JSON."""
    whole = filled(spec, {"columns": 5, **said})
    whole |= {"width": 640, "title": title, "datasets": dict(datasets), "padding": 12}
    return json.dumps({**whole, "config": {**config(ON_PAPER), "background": ON_PAPER["paper"]}})
