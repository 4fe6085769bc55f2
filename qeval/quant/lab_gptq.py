"""`gptq` with ``backend: laboratory``: the same options, by qeval's own driver and solver.

For comparing GPTQ with the laboratory's other methods with nothing else changed, on any device, without
a library. Float weights that carry the rounding, in any dtype; with ``format: gptq`` packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeval.quant.base import Artifact, BuildContext
from qeval.quant.export import gptq_config
from qeval.quant.laboratory import build as build_with

if TYPE_CHECKING:
    from qeval.quant.blocks import Solve
    from qeval.quant.gptq import GptqOptions


def build(options: GptqOptions, context: BuildContext) -> Artifact:
    """Raises BuildError for an unknown architecture and for activations that are not finite."""
    return build_with(
        context,
        solver(options),
        options.calibration,
        num_bits=options.num_bits,
        true_sequential=options.true_sequential,
        num_blocks=options.num_blocks,
        gptq=gptq_config(options, options.act_order and not options.static_groups),
    )


def solver(options: GptqOptions) -> Solve:
    """What the options ask for, as a function of a layer's weight and Hessian."""
    from functools import partial

    from qeval.quant.solvers.base import GridRules
    from qeval.quant.solvers.gptq import gptq

    rules = GridRules(options.num_bits, options.group_size, options.symmetric)
    return partial(
        gptq,
        rules=rules,
        percdamp=options.percdamp,
        act_order=options.act_order,
        static_groups=options.static_groups,
    )
