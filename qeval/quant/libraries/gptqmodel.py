"""Quantizing with GPTQModel: the one path of `gptq` and `awq` (imported in the worker only)."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qeval.core.artifact import Artifact, CalibrationFacts, LayerReport
from qeval.core.errors import BuildError, with_class
from qeval.data.calibration import Calibration, CalibrationOptions
from qeval.formats.gptqmodel import import_gptqmodel
from qeval.quant.base import BuildContext

if TYPE_CHECKING:
    from gptqmodel import QuantizeConfig

_SHORTEST = 11  # tokens of a window: quantize()'s own argument for it does nothing (7.6)


def quantize(
    config: Callable[[ModuleType], QuantizeConfig],
    calibration: CalibrationOptions,
    context: BuildContext,
) -> Artifact:
    """Quantize ``context.model`` with the configuration that ``config`` makes of the library.

    Raises:
        BuildError: GPTQModel does not know the architecture, or fails; with its own first line.
    """
    import torch

    from qeval.models.linears import device_of, router_names
    from qeval.models.loading import check_shapes
    from qeval.quant.libraries.finish import finish

    device = device_of(context.device)
    check_shapes(context.model.path, context.model.dtype, context.model.trust_remote_code)
    library = import_gptqmodel(context.n_threads, device)
    drawn = context.calibration(calibration)
    if min(map(len, drawn.windows)) < _SHORTEST:
        raise BuildError(
            f"GPTQModel leaves out calibration windows of fewer than {_SHORTEST} tokens: "
            f"set calibration: {{seq_len: {_SHORTEST}}} or more"
        )
    examples = [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        for ids in drawn.windows
    ]
    folder = context.out / "model"
    made = config(library)
    made.device = device
    on_cpu_awq = made.method.value == "awq" and device.type == "cpu"
    try:
        model = library.GPTQModel.load(
            str(context.model.path),
            made,
            dtype=getattr(torch, context.model.dtype),
            trust_remote_code=context.model.trust_remote_code,
        )
        if type(model) is library.models.BaseQModel:
            # Of an architecture that it has no table for it takes every linear of a block.
            left = router_names(model.model)
            model.quantize_config.dynamic = {f"-:{re.escape(name)}$": {} for name in left} or None
        blocks = int(model.model.config.get_text_config().num_hidden_layers)
        model.layer_callback = _Blocks(context, blocks)
        model.awq_get_modules_for_scaling = _exact_scales(model.awq_get_modules_for_scaling)
        # It writes logs/ wherever it is (looper/loop_processor.py): no argument or variable says where.
        with TemporaryDirectory(dir=context.out) as scratch:
            with chdir(scratch), _errors_of_threads():
                log = model.quantize(
                    examples,
                    batch_size=1,
                    **({"backend": library.BACKEND.AWQ_TORCH} if on_cpu_awq else {}),
                )
            model.save(str(folder))
    except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as err:
        raise BuildError(f"GPTQModel cannot quantize {context.model.id}: {with_class(err)}") from err
    facts, cut = _as_used(drawn, getattr(model.model.config, "max_position_embeddings", None))
    artifact = finish(folder, context, "gptqmodel", facts)
    layers, notes = _with_log(artifact.layers, log, made)
    return replace(artifact, layers=layers, notes=(*artifact.notes, *notes, *cut))


def _as_used(drawn: Calibration, positions: int | None) -> tuple[CalibrationFacts, tuple[str, ...]]:
    """The facts of the calibration, and a note where GPTQModel cut windows to the model's positions."""
    longest = max(map(len, drawn.windows))
    if not positions or longest <= positions:
        return drawn.facts, ()
    tokens = sum(min(len(ids), positions) for ids in drawn.windows)
    note = f"GPTQModel cut the calibration windows of {longest} tokens to the model's {positions}"
    return {**drawn.facts, "n_tokens": tokens}, (note,)


@contextmanager
def _errors_of_threads() -> Iterator[None]:
    """GPTQModel ends the whole process, at once, where one of its threads fails. Here the error is
    raised in the main thread instead, wherever that is. It may be there before the thread calls
    ``_abort_process``, so this one stays in place: a build is the last thing that its process does."""
    from gptqmodel.utils import threadx

    failed: list[BaseException] = []
    over = threading.Event()

    def abort(_: object, err: BaseException) -> None:
        failed.append(err)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def in_main_thread(*_: object) -> None:
        if not over.is_set():
            raise failed[0]

    worker: Any = threadx._DeviceWorker
    worker._abort_process = abort
    signal.signal(signal.SIGUSR1, in_main_thread)
    try:
        yield
    finally:
        over.set()


def _exact_scales(find: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, object]]]:
    """AWQ's scales, but those that GPTQModel 7.6 would move from a linear into another one across an
    activation (StarCoder2's c_fc, GELU, c_proj) or across a product of queries and keys: they change
    what the model computes. Scales commute with attention's values and with a gated MLP's up."""
    from torch import nn

    def commutes(block: nn.Module, before: nn.Module) -> bool:
        if not isinstance(before, nn.Linear):
            return True  # a norm
        name = next((name for name, module in block.named_modules() if module is before), "")
        parent, _, last = name.rpartition(".")
        gate = {"up_proj": "gate_proj", "w3": "w1"}.get(last)
        return last == "v_proj" or (gate is not None and hasattr(block.get_submodule(parent), gate))

    def found(block: nn.Module, *more: object) -> list[dict[str, object]]:
        return [node for node in find(block, *more) if commutes(block, node["prev_op"])]

    return found


class _Blocks:
    """GPTQModel calls ``layer_complete`` twice a block; the second time its linears are done."""

    def __init__(self, context: BuildContext, n: int) -> None:
        self._context, self._n = context, n

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            self._context.progress(min(layer_idx + 1, self._n), self._n, "blocks")


def _with_log(
    layers: tuple[LayerReport, ...], log: dict[str, list[dict[str, Any]]], config: object
) -> tuple[tuple[LayerReport, ...], tuple[str, ...]]:
    """The library's own loss of each linear, and where it did not do what was asked: a linear that
    too few tokens reached is rounded to nearest, a damping that was too small is raised."""
    asked = getattr(config, "damp_percent", None)
    rows = {_module(row): row for rows in log.values() for row in rows if "module" in row}
    reports, fallen, damped = [], 0, 0
    for layer in layers:
        row = next((r for name, r in rows.items() if layer.name.endswith(name)), None)
        loss, note = None, ""
        if row is not None:
            said = str(row.get("loss", "not applicable"))
            if "fallback" in said:  # "fallback(rtn): 0.0012"
                note, fallen = "rounded to nearest: too few calibration tokens", fallen + 1
            elif said == "not applicable":  # AWQ, grouped-query attention: v and o differ in width
                note = "no scale searched"
            else:
                loss = float(said)
            damp = float(row.get("damp") or 0)
            if asked and damp > asked * 1.001:
                note, damped = f"damping raised to {damp:g}", damped + 1
        reports.append(replace(layer, loss=loss, note=note or layer.note))
    n, notes = len(layers), []
    if fallen:
        notes.append(
            f"{fallen} of {n} linears rounded to nearest: too few calibration tokens reached them"
        )
    if damped:
        notes.append(f"{damped} of {n} linears needed a damping above percdamp {asked:g}")
    return tuple(reports), tuple(notes)


def _module(row: dict[str, object]) -> str:
    """``layers.3.mlp.up_proj`` of a log line."""
    return f".{row.get('layer')}.{row['module']}"
