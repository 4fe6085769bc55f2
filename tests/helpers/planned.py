"""The cells of a spec on models that need not exist."""

from __future__ import annotations

from pathlib import Path

from qeval.core.artifact import ModelRef
from qeval.plan.cells import Cell, ThisMachine, row_cells
from qeval.plan.spec import Experiment


def plan(experiment: Experiment, models: list[ModelRef], cache_dir: Path) -> list[Cell]:
    """Every cell in the order of the spec. Raises as ``row_cells``."""
    this_machine = ThisMachine(experiment.settings, cache_dir)
    return [
        cell
        for m, model in enumerate(models)
        for q, quantization in enumerate(experiment.quantizations)
        for cell in row_cells(experiment, model, quantization, (m, q), cache_dir, this_machine)
    ]
