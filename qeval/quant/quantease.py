"""`quantease`: QuantEase (arXiv 2309.01885), dense or with outliers; simulated, or dense and packed.

Coordinate descent on each layer's output error, from round to nearest or from act-order GPTQ
(``init: gptq``, the best of them). The result is float weights that carry the rounding, with the packed
size accounted; outliers as 16-bit values with their places (solvers/base.py has the format). With
``format: gptq`` it is packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field, model_validator

from qeval.core.artifact import Artifact
from qeval.core.options import Options
from qeval.quant.base import BuildContext
from qeval.quant.laboratory.base import CalibratedMethod, Format, PackableOptions, gptq_config
from qeval.quant.laboratory.method import LaboratoryOptions, build

if TYPE_CHECKING:
    from qeval.quant.laboratory.driver import Solve


class QuantEaseOptions(LaboratoryOptions, PackableOptions):
    sweeps: int = Field(default=30, ge=1, le=10_000)  # over all columns
    relax: bool = True  # every third sweep does not round
    init: Literal["rtn", "gptq"] = "rtn"  # gptq: with act_order, groups stay consecutive inputs
    percdamp: float = Field(default=0.01, gt=0, lt=1)  # of init: gptq
    outliers: float = Field(default=0.0, ge=0, le=0.5)  # share of the weights kept in 16 bits
    structured: bool = False  # outliers are whole input columns
    format: Format = "simulated"

    @model_validator(mode="after")
    def _fitting(self) -> QuantEaseOptions:
        if self.structured and not self.outliers:
            raise ValueError("structured: says which outliers; give their share: outliers: 0.01")
        if self.format == "gptq" and self.outliers:
            raise ValueError("outliers: format: gptq holds none; leave one of the two out")
        return self


@final
class QuantEase(CalibratedMethod[QuantEaseOptions]):
    name: ClassVar[str] = "quantease"
    version: ClassVar[int] = 2  # 2: symmetric grids as GPTQ's authors have them
    Options: ClassVar[type[Options]] = QuantEaseOptions
    scalar: ClassVar[str | None] = "num_bits"

    def label(self, options: QuantEaseOptions) -> str:
        start = "GPTQ+" if options.init == "gptq" else ""
        kind = "outlier columns" if options.structured else "outliers"
        kept = f" +{options.outliers * 100:g}% {kind}" if options.outliers else ""
        packed = " packed" if options.format == "gptq" else ""
        return f"{start}QuantEase {options.grid_label()}{kept}{packed}"

    def build(self, options: QuantEaseOptions, context: BuildContext) -> Artifact:
        """Raises BuildError for an unknown architecture and for activations that are not finite."""
        return build(context, solver(options), options, gptq=gptq_config(options))


def solver(options: QuantEaseOptions) -> Solve:
    """What the options ask for, as a function of a layer's weight and Hessian."""
    from functools import partial

    from qeval.quant.laboratory.solvers.base import GridRules
    from qeval.quant.laboratory.solvers.outliers import Outliers, quantease_outliers
    from qeval.quant.laboratory.solvers.quantease import Descending, gptq_quantease, quantease

    rules = GridRules(options.num_bits, options.group_size, options.symmetric)
    how = Descending(options.sweeps, options.relax)
    percdamp = options.percdamp if options.init == "gptq" else None
    if options.outliers:
        kept = Outliers(options.outliers, options.structured)
        return partial(quantease_outliers, rules=rules, how=how, outliers=kept, percdamp=percdamp)
    if percdamp is not None:
        return partial(gptq_quantease, rules=rules, how=how, percdamp=percdamp)
    return partial(quantease, rules=rules, how=how)
