"""`spqr`: SpQR (arXiv 2306.03078): small groups, sensitive weights kept in 16 bits; simulated.

``outlier_threshold`` is relative to the weights' sensitivity; the share of outliers that came out is in
each layer's report and, over all, in the artifact's details. Scales and zero points are quantized to
``statistic_bits``, too. The result is float weights that carry the rounding, with the packed size
accounted (solvers/spqr.py, solvers/base.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from pydantic import Field

from qeval.core.artifact import Artifact
from qeval.core.options import GroupSize, Options
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import CalibratedMethod
from qeval.quant.laboratory.method import LaboratoryOptions, build

if TYPE_CHECKING:
    from qeval.quant.laboratory.driver import Solve


class SpqrOptions(LaboratoryOptions):
    num_bits: int = Field(default=3, ge=2, le=8)
    group_size: GroupSize = 16
    outlier_threshold: float | None = Field(default=0.2, gt=0)  # None: no outliers
    statistic_bits: int | None = Field(
        default=3, ge=2, le=8
    )  # of scales and zero points; None: 16, whole
    statistic_group_size: int = Field(default=16, ge=2)  # rows whose scales share a range
    percdamp: float = Field(default=1.0, gt=0)  # of the mean diagonal of H
    act_order: bool = False  # columns by falling diagonal of H; each then needs its group's index


@final
class Spqr(CalibratedMethod[SpqrOptions]):
    name: ClassVar[str] = "spqr"
    version: ClassVar[int] = 3  # 3: zero points unrounded before the second level, as its authors'
    Options: ClassVar[type[Options]] = SpqrOptions
    scalar: ClassVar[str | None] = "num_bits"

    def label(self, options: SpqrOptions) -> str:
        order = " act-order" if options.act_order else ""
        dense = " no outliers" if options.outlier_threshold is None else ""
        return f"SpQR {options.grid_label()}{order}{dense}"

    def build(self, options: SpqrOptions, context: BuildContext) -> Artifact:
        """Raises BuildError for an unknown architecture and for activations that are not finite."""
        return build(context, solver(options), options)


def solver(options: SpqrOptions) -> Solve:
    """What the options ask for, as a function of a layer's weight and Hessian."""
    from functools import partial

    from qeval.quant.laboratory.solvers.base import GridRules
    from qeval.quant.laboratory.solvers.spqr import SecondLevel, spqr

    bits = options.statistic_bits
    return partial(
        spqr,
        rules=GridRules(options.num_bits, options.group_size, options.symmetric),
        outlier_threshold=options.outlier_threshold,
        second_level=SecondLevel(bits, options.statistic_group_size) if bits else None,
        percdamp=options.percdamp,
        act_order=options.act_order,
    )
