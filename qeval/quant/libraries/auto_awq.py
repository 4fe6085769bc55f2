"""AutoAWQ (archived), for `awq` with ``backend: auto-awq``: runs in the environment ``auto-awq``.

The model is loaded and saved by qeval and quantized by the library's own ``quantize``, with its
defaults (scales from weights and inputs, clipping searched). It runs on the CPU, too. The file is in
AutoAWQ's GEMM format.
"""

from __future__ import annotations

from typing import Any

from qeval.core.artifact import Artifact
from qeval.quant.base import BuildContext
from qeval.quant.libraries.archived import check_architecture, describe, load, save, use_only


def build(options: Any, context: BuildContext) -> Artifact:
    """Quantize ``context.model`` into ``context.out / "model"`` with the options of `awq`.

    Raises:
        BuildError: an architecture that AutoAWQ does not know.
    """
    use_only(context.device)
    from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
    from awq.models.base import TRANSFORMERS_AUTO_MAPPING_DICT
    from awq.quantize.quantizer import AwqQuantizer

    texts = (k for k, v in TRANSFORMERS_AUTO_MAPPING_DICT.items() if v == "AutoModelForCausalLM")
    kind = check_architecture("AutoAWQ", context.model, texts)
    drawn = context.calibration(options.calibration)
    model = load(context.model, context.out)
    model.config.use_cache = False

    class Reporting(AwqQuantizer):  # type: ignore[misc]
        """Calls ``_apply_quant`` once a block, last."""

        done = 0

        def _apply_quant(self, module: object, named_linears: object) -> None:
            super()._apply_quant(module, named_linears)
            self.done += 1
            context.progress(self.done, len(self.modules), "blocks")

    wrapped = AWQ_CAUSAL_LM_MODEL_MAP[kind](model, kind, False, model.config, None, None)
    wrapped.quantize(
        None,
        {
            "w_bit": options.num_bits,
            "q_group_size": options.group_size,
            "zero_point": not options.symmetric,
            "version": "GEMM",
        },
        calib_data=drawn.windows,
        # It joins the samples and cuts them again: with this length into the same windows.
        max_calib_seq_len=options.calibration.seq_len,
        max_calib_samples=len(drawn.windows),
        quantizer_cls=Reporting,
    )
    folder = context.out / "model"
    save(model, wrapped.quant_config.to_transformers_dict(), context.model, folder)
    return describe(folder, "autoawq", drawn.facts)
