"""The other process of bench_quantizers.py: one reference program quantizes one layer.

    python scripts/reference_quantizers.py FOLDER    # FOLDER/in.pt -> FOLDER/out.pt

One process a program, because the authors' module names collide (``quant``, ``modelutils``). Their
files are imported from the user's clone as they are. All that is put in their way:

- without CUDA, ``torch.cuda.synchronize`` does nothing and ``torch.cuda.Event`` measures nothing (the
  gptq and QuantEase files call both);
- what they print goes to stderr.

Each program here is a function (layer, X^T [1, tokens, in], job) -> run. It has read the inputs when
it returns, and ``run()`` quantizes, which is what is timed; it returns Q [out, in] and the mask of
outliers [out, in], None where there can be none.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Job = Mapping[str, Any]  # num_bits, group_size, symmetric, and the row's own options
Run = Callable[[], tuple[Tensor, Tensor | None]]
WARM_UP = 128  # inputs of the layer that is quantized first, untimed


def main() -> None:
    folder = Path(sys.argv[1])
    told = torch.load(folder / "in.pt")
    weight, inputs = told["weight"], told["inputs"]  # [out, in], [in, tokens]
    if told["source"]:
        sys.path.insert(0, told["source"])
    if not weight.is_cuda:
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.Event = _NoEvent  # type: ignore[misc]
    with torch.no_grad(), redirect_stdout(sys.stderr):
        prepare, results = PROGRAMS[told["program"]], []
        for job in told["jobs"]:
            few = warm_up_inputs(weight.shape[1], job["group_size"])
            timed(prepare, weight[:, :few], inputs[:few], job)
            results.append(timed(prepare, weight, inputs, job))
    torch.save(results, folder / "out.pt")


def timed(
    prepare: Callable[..., Run], weight: Tensor, inputs: Tensor, job: Job
) -> tuple[Tensor, Tensor | None, float]:
    """Q, the outliers, and the seconds that quantizing took."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    layer.weight.data.copy_(weight)
    run = prepare(layer, inputs.T[None].contiguous(), job)
    start = clock(weight.device)
    quantized, outliers = run()
    return quantized.float(), outliers, clock(weight.device) - start


def clock(device: torch.device) -> float:
    """Seconds: of this process's CPU time on the CPU, where other work makes the wall clock useless; of
    the wall clock on CUDA."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def warm_up_inputs(in_features: int, group_size: int) -> int:
    """How many inputs the warm-up takes: a few whole groups, or all."""
    fits = in_features > WARM_UP and (group_size == -1 or WARM_UP % group_size == 0)
    return WARM_UP if fits else in_features


class _NoEvent:
    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def elapsed_time(self, _: _NoEvent) -> float:
        return 0.0


def gptq(layer: nn.Linear, inputs: Tensor, job: Job) -> Run:
    """IST-DASLab/gptq: gptq.py, quant.py."""
    from gptq import GPTQ
    from quant import Quantizer

    quantizer = Quantizer()
    quantizer.configure(job["num_bits"], perchannel=True, sym=job["symmetric"], mse=False)
    if job.get("rtn"):
        return lambda: (_nearest(layer.weight.data, quantizer, job["group_size"]), None)
    solver = GPTQ(layer)
    solver.quantizer = quantizer
    solver.add_batch(inputs, None)

    def run() -> tuple[Tensor, None]:
        solver.fasterquant(
            percdamp=0.01,
            groupsize=job["group_size"],
            actorder=job.get("act_order", False),
            static_groups=job.get("static_groups", False),
        )
        return layer.weight.data, None

    return run


def _nearest(weight: Tensor, quantizer: Any, group_size: int) -> Tensor:
    """Round to nearest by gptq's quantizer, which sees each group as a row: it has no groups."""
    groups = weight.reshape(-1, weight.shape[1] if group_size == -1 else group_size)
    quantizer.find_params(groups, weight=True)
    rounded: Tensor = quantizer.quantize(groups).reshape(weight.shape)
    return rounded


def gptqmodel(layer: nn.Linear, inputs: Tensor, job: Job) -> Run:
    """GPTQModel's own quantizer; without act_group_aware, its default, which is an order of its own."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # read when it is imported
    from gptqmodel import GPTQConfig
    from gptqmodel.quantization.gptq import GPTQ

    config = GPTQConfig(
        bits=job["num_bits"],
        group_size=job["group_size"],
        sym=job["symmetric"],
        damp_percent=0.01,
        desc_act=job.get("act_order", False),
        static_groups=job.get("static_groups", False),
        act_group_aware=False,
    )
    solver = GPTQ(layer, config)
    solver.quantizer.configure(perchannel=True)
    solver.add_batch(inputs, None)
    solver.finalize_hessian()
    return lambda: (solver.quantize()[0], None)


def quantease(layer: nn.Linear, inputs: Tensor, job: Job) -> Run:
    """linkedin/QuantEase: method/. Its 30 sweeps; groups as they are in the weights (static_groups)."""
    from method.gptq_quantease import GPTQ_QuantEase
    from method.quant import Quantizer
    from method.quantease import QuantEase
    from method.quantease_outlier import QuantEaseOutlier

    outliers = job.get("outliers", 0.0)
    if outliers:
        solver = QuantEaseOutlier(layer, num_iter=30, outlier=outliers, structure_outlier=False)
    else:
        solver = (GPTQ_QuantEase if job.get("after_gptq") else QuantEase)(layer, num_iter=30)
    solver.quantizer = Quantizer()
    solver.quantizer.configure(
        job["num_bits"], perchannel=True, sym=job["symmetric"], mse=False, outlier=outliers
    )
    solver.add_batch(inputs, None)

    def run() -> tuple[Tensor, Tensor | None]:
        order = bool(job.get("after_gptq"))
        solver.fasterquant(
            group_size=job["group_size"], static_groups=job["group_size"] != -1, actorder=order
        )
        return (solver.W + solver.S, solver.S != 0) if outliers else (layer.weight.data, None)

    return run


def spqr(layer: nn.Linear, inputs: Tensor, job: Job) -> Run:
    """Vahe1994/SpQR: spqr_engine.py, with the settings of its script.sh."""
    from spqr_engine import SPQRUtil

    solver = SPQRUtil(layer)
    solver.add_batch(inputs)
    second = job.get("second_level", True)
    order = "act_order" if job.get("act_order") else "identity"

    def run() -> tuple[Tensor, Tensor]:
        done = solver.quantize(
            bits=job["num_bits"],
            groupsize=job["group_size"],
            sym=job["symmetric"],
            percdamp=job.get("percdamp", 1.0),
            outlier_relative_threshold=job.get("outlier_threshold", 0.2),
            permutation_order=order,
            qq_scale_bits=3 if second else None,
            qq_zero_bits=3 if second else None,
            qq_groupsize=16,
            round_zero=not second,  # a zero point that stays whole where nothing else is done to it
            verbose=False,
        )
        return done.weight, done.unstructured_outlier_mask[:, done.perm.argsort()]

    return run


PROGRAMS: dict[str, Callable[..., Run]] = {
    "gptq": gptq,
    "gptqmodel": gptqmodel,
    "quantease": quantease,
    "spqr": spqr,
}

if __name__ == "__main__":
    main()
