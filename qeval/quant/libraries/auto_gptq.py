"""AutoGPTQ (archived), for `gptq` with ``backend: auto-gptq``: runs in the environment ``auto-gptq``.

The model is loaded and saved by qeval and quantized by the library's own ``quantize``. The file is in
the GPTQ format (``checkpoint_format: gptq``: zero points stored less one), as the library writes it,
except for the biases of zeros that it adds to linears without a bias.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

from qeval.core.artifact import Artifact, LayerReport
from qeval.core.errors import BuildError
from qeval.quant.base import BuildContext
from qeval.quant.libraries.archived import check_architecture, describe, load, save, use_only


def build(options: Any, context: BuildContext) -> Artifact:
    """Quantize ``context.model`` into ``context.out / "model"`` with the options of `gptq`.

    Raises:
        BuildError: no CUDA, an architecture that AutoGPTQ does not know, or a Hessian without a
            Cholesky factor.
    """
    use_only(context.device)
    import torch

    if not torch.cuda.is_available():
        raise BuildError("AutoGPTQ quantizes on CUDA only; use backend: gptqmodel")
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

    kind = check_architecture("AutoGPTQ", context.model, iter(GPTQ_CAUSAL_LM_MODEL_MAP))
    drawn = context.calibration(options.calibration)
    model = load(context.model, context.out)
    config = BaseQuantizeConfig(
        bits=options.num_bits,
        group_size=options.group_size,
        damp_percent=options.percdamp,
        desc_act=options.act_order,
        static_groups=options.static_groups,
        sym=options.symmetric,
        true_sequential=options.true_sequential,
    )
    wrapped = GPTQ_CAUSAL_LM_MODEL_MAP[kind](model, False, config)
    examples = [
        {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        for ids in drawn.windows
    ]
    bare = [name for name, module in model.named_modules() if getattr(module, "bias", 0) is None]
    log = _Log(context)
    try:
        wrapped.quantize(examples, batch_size=1, cache_examples_on_gpu=False)
    except torch.linalg.LinAlgError as err:  # type: ignore[attr-defined]
        raise BuildError(
            f"no Cholesky factor of a Hessian: raise percdamp ({options.percdamp:g})"
        ) from err
    for name in bare:
        model.get_submodule(name).bias = None
    folder = context.out / "model"
    told = {k: v for k, v in config.to_dict().items() if v is not None}
    del told["is_marlin_format"]  # false; GPTQModel refuses files that have the key
    save(model, {**told, "checkpoint_format": "gptq"}, context.model, folder)
    artifact = describe(folder, "auto-gptq", drawn.facts)
    return replace(artifact, layers=tuple(log.with_loss(layer) for layer in artifact.layers))


class _Log(logging.Handler):
    """Reads the library's log: which block it is at, and each linear's loss (the sum of its outputs'
    squared errors over the number of windows)."""

    _START = re.compile(r"Start quantizing layer (\d+)/(\d+)")
    _LINEAR = re.compile(r"Quantizing (\S+) in layer (\d+)/")
    _LOSS = re.compile(r"avg loss: (\S+)")

    def __init__(self, context: BuildContext) -> None:
        super().__init__(logging.INFO)
        self._context = context
        self._linear = ""
        self._loss: dict[str, float] = {}
        for name in ("modeling._base", "quantization.gptq"):
            logger = logging.getLogger(f"auto_gptq.{name}")
            logger.setLevel(logging.INFO)
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if found := self._START.match(line):
            self._context.progress(int(found[1]) - 1, int(found[2]), "blocks")
        elif found := self._LINEAR.match(line):
            self._linear = f".{int(found[2]) - 1}.{found[1]}"
        elif found := self._LOSS.match(line):
            self._loss[self._linear] = float(found[1])

    def with_loss(self, layer: LayerReport) -> LayerReport:
        loss = next((x for name, x in self._loss.items() if layer.name.endswith(name)), None)
        return replace(layer, loss=loss)
