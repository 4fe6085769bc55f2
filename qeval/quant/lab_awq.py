"""`awq` with ``backend: laboratory``: AWQ by qeval's own driver, 2 to 8 bits, in any dtype.

The search is in transforms/awq.py, the clipping in solvers/clipping.py. Operations that no scale can go
into (an activation function in between, grouped queries) are left without one and named: AutoAWQ puts
an operation of its own behind a GELU, which makes another architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeval.quant.base import Artifact, BuildContext
from qeval.quant.export import gptq_config
from qeval.quant.laboratory import build as build_with

if TYPE_CHECKING:
    from qeval.quant.awq import AwqOptions


def build(options: AwqOptions, context: BuildContext) -> Artifact:
    """Raises BuildError for an unknown architecture and for activations that are not finite."""
    from functools import partial

    from qeval.quant.solvers.base import GridRules
    from qeval.quant.solvers.clipping import clipped_rtn
    from qeval.quant.transforms.awq import Awq

    rules = GridRules(options.num_bits, options.group_size, options.symmetric)
    return build_with(
        context,
        partial(clipped_rtn, rules=rules),
        options.calibration,
        num_bits=options.num_bits,
        true_sequential=False,
        gptq=gptq_config(options),
        transform=lambda *_: Awq(rules),
    )
