"""Which modules of a mixture of experts are routers: they say which experts a token goes to, or how
much the shared one counts. They are small, they stay floats under every method, and no bpw counts them
(torch-free; from the names and shapes of a model's weights or of a checkpoint's).

By name where the name says it: ``router`` or ``routing`` in it, or a gate with one output. Else by
place: a module beside experts that is called a gate, or whose outputs are as many as the experts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_ROUTER = re.compile(r"(^|_)rout(er|ing)")
_GATE = re.compile(r"(^|_)gate$")
_GATES = re.compile(r"(moe_)?(gate|gating|wg|switch|classifier)(_(net|network|layer|linear))?")
_EXPERTS = re.compile(r"experts?(?!\w*gate)")
_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
_LEVELS = 3  # from a router's linear up to the module that holds the experts: mlp.gate.net.0

Shapes = Mapping[str, tuple[int, ...]]
"""Weights by name: [out_features, in_features], or the stack of all experts'."""


def routers(shapes: Shapes) -> frozenset[str]:
    """The linears among ``shapes`` that are routers or parts of one, by module (no ``.weight``)."""
    modules = {name.removesuffix(".weight"): shape for name, shape in shapes.items()}
    experts = _experts(modules)
    return frozenset(
        name
        for name, shape in modules.items()
        if len(shape) == 2 and _is_router(name, shape[0], experts, modules)
    )


def _is_router(name: str, n_out: int, experts: Mapping[str, int], modules: Shapes) -> bool:
    parts = name.split(".")
    if any(_ROUTER.search(part) for part in parts) or (n_out == 1 and _GATE.search(parts[-1])):
        return True
    if any(_EXPERTS.search(part) for part in parts[:-1]):
        return False  # of an expert, where expert_selector is none
    for level in range(1, min(_LEVELS, len(parts) - 1) + 1):
        scope = ".".join(parts[:-level])
        named = _GATES.fullmatch(parts[-level]) is not None
        if scope in experts:
            counted = n_out == experts[scope] and not _in_feed_forward(parts, modules)
            return named or counted
        if named and any(s.rpartition(".")[0] == scope and n == n_out for s, n in experts.items()):
            return True  # beside the module that holds the experts
    return False


def _in_feed_forward(parts: list[str], modules: Shapes) -> bool:
    """Whether a linear is one of a feed-forward's, with its others beside it: as wide as there are
    experts by chance."""
    beside = {".".join([*parts[:-1], name]) for name in _FEED_FORWARD - {parts[-1]}}
    return parts[-1] in _FEED_FORWARD and not beside.isdisjoint(modules)


def _experts(modules: Shapes) -> dict[str, int]:
    """The modules that hold experts, and how many; 0 where the names and shapes do not say."""
    found: dict[str, set[int]] = defaultdict(set)
    for name, shape in modules.items():
        for scope, count in _held(name.split("."), shape):
            found[scope].add(count)
    return {scope: max(counts) for scope, counts in found.items()}


def _held(parts: list[str], shape: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """The module that holds the experts of which this is a weight, and how many there are at least."""
    for i, part in enumerate(parts):
        if _EXPERTS.search(part) and "shared" not in part:
            after = parts[i + 1] if i + 1 < len(parts) else ""
            stacked = shape[0] if len(shape) > 2 else 0
            yield ".".join(parts[:i]), int(after) + 1 if after.isdigit() else stacked
            return
    if len(shape) > 2 and len(parts) > 1 and parts[-1].endswith("linear"):  # GraniteMoe, JetMoe
        yield ".".join(parts[:-1]), shape[0]
