"""The reference programs of bench_quantizers.py: asked for, started, and run.

Each runs in a process of its own, because the authors' module names collide (``quant``):

    python scripts/reference_quantizers.py FOLDER    # FOLDER/in.pt -> FOLDER/out.pt

Their files are imported from the user's clone as they are. All that is put in their way:

- without CUDA, ``torch.cuda.synchronize`` does nothing and ``torch.cuda.Event`` measures nothing (the
  gptq and QuantEase files call both);
- llm-awq's CUDA extension is an empty module, and the ``__init__`` that imports its int8 kernels is
  left out; ``state_dict`` of its block hands out copies, which its ``.cpu()`` relies on and which it
  is not for a block that is on the CPU already;
- what they print goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from qeval.core.errors import UsageError

SECONDS = 3600  # that a program may take
WARM_UP = 128  # inputs of the layer that is quantized first, untimed
CLONES = {  # option -> repository and a file that it must have
    "gptq": ("IST-DASLab/gptq", "gptq.py"),
    "quantease": ("linkedin/QuantEase", "method/quantease.py"),
    "spqr": ("Vahe1994/SpQR", "spqr_engine.py"),
    "llm-awq": ("mit-han-lab/llm-awq", "awq/quantize/auto_scale.py"),
}


# --- Asked for and started


@dataclass(frozen=True)
class Reference:
    """A program to compare with. ``name`` is its key in PROGRAMS."""

    name: str
    title: str  # with its version or commit
    source: Path | None  # the clone; None: an installed package

    def ask(self, **told: Any) -> Any:
        """What the program answers in a process of its own, or why it did not: a string."""
        told |= {"program": self.name, "source": self.source and str(self.source.resolve())}
        with tempfile.TemporaryDirectory(prefix="bench-quantizers-") as folder:
            torch.save(told, Path(folder) / "in.pt")
            command = [sys.executable, "-B", __file__, folder]  # -B: nothing is written to the clone
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return f"not done after {SECONDS} s"
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                return f"failed: {said[-1]}"
            return torch.load(Path(folder) / "out.pt")


def references(args: argparse.Namespace) -> dict[str, Reference]:
    """Those that the command line asks for, by name.

    Raises:
        UsageError: a folder that is no clone of the program's repository; a package that is not there.
    """
    found = {}
    for name, (repository, file) in CLONES.items():
        folder = getattr(args, name.replace("-", "_"))
        if folder is None:
            continue
        if not (folder / file).is_file():
            raise UsageError(
                f"--{name}: no {file} in {folder}: give a clone of https://github.com/{repository}"
            )
        found[name] = Reference(name, f"{repository} {commit(folder)}", folder)
    if args.gptqmodel:
        try:
            title = f"GPTQModel {version('gptqmodel')}"
        except PackageNotFoundError as err:
            raise UsageError("--gptqmodel: not installed: pip install 'qeval[gptqmodel]'") from err
        found["gptqmodel"] = Reference("gptqmodel", title, None)
    return found


def commit(folder: Path) -> str:
    """The clone's commit, and whether its Python files were changed since."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)

    head = git("rev-parse", "--short=10", "HEAD")
    if head.returncode or not (folder / ".git").exists():
        return "(no commit: not a git clone)"
    changed = git("diff", "--quiet", "HEAD", "--", "*.py").returncode
    return head.stdout.strip() + (" with changes" if changed else "")


# --- The other process: quantizers of one layer
#
# Each is a function (layer, X^T [1, tokens, in], job) -> run. It has read the inputs when it returns,
# and run() quantizes, which is what is timed; it returns Q [out, in] and the mask of outliers, None
# where there can be none.

Job = Mapping[str, Any]  # num_bits, group_size, symmetric, and the row's own options
Run = Callable[[], tuple[Tensor, Tensor | None]]


def main() -> None:
    folder = Path(sys.argv[1])
    told = torch.load(folder / "in.pt", weights_only=False)  # llm-awq's has a module
    if told["source"]:
        sys.path.insert(0, told["source"])
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.Event = _NoEvent  # type: ignore[misc, assignment]
    with torch.no_grad(), redirect_stdout(sys.stderr):
        results = PROGRAMS[told["program"]](told)
    torch.save(results, folder / "out.pt")


def quantized(
    prepare: Callable[..., Run], told: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor | None, float] | str]:
    """For each job: Q, the outliers and the seconds; or why not."""
    weight, inputs = told["weight"], told["inputs"]  # [out, in], [in, tokens]
    results: list[tuple[Tensor, Tensor | None, float] | str] = []
    for job in told["jobs"]:
        few = warm_up_inputs(weight.shape[1], job["group_size"])
        try:
            timed(prepare, weight[:, :few], inputs[:few], job)
            results.append(timed(prepare, weight, inputs, job))
        except Exception as err:  # a layer that it cannot take, or an option
            results.append(f"failed: {type(err).__name__}: {(str(err).splitlines() or [''])[0]}")
    return results


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


# --- The other process: AWQ's scales of one decoder block


def llm_awq(told: Mapping[str, Any]) -> tuple[dict[str, Tensor], float]:
    """mit-han-lab/llm-awq: awq/quantize/auto_scale.py. The scale [channels] that linears share, by the
    first of them, and the seconds of the search."""
    root = Path(told["source"], "awq")
    for name in ("awq", "awq.quantize"):
        package = ModuleType(name)
        package.__path__ = [str(root / name.partition(".")[2])]
        sys.modules[name] = package
    sys.modules["awq_inference_engine"] = ModuleType("awq_inference_engine")
    from awq.quantize.auto_scale import auto_scale_block

    block = told["block"]
    for module in block.modules():
        module.state_dict = partial(_copied, module.state_dict)
    grid = {"zero_point": True, "q_group_size": told["group_size"]}
    start = clock(next(block.parameters()).device)
    found = auto_scale_block(block, dict(told["kwargs"]), told["num_bits"], grid, told["inputs"])
    seconds = clock(next(block.parameters()).device) - start
    return {readers[0]: scale for _, readers, scale in found}, seconds


def _copied(state_dict: Callable[..., dict[str, Tensor]], *args: Any, **more: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state_dict(*args, **more).items()}


PROGRAMS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "gptq": partial(quantized, gptq),
    "gptqmodel": partial(quantized, gptqmodel),
    "quantease": partial(quantized, quantease),
    "spqr": partial(quantized, spqr),
    "llm-awq": llm_awq,
}

if __name__ == "__main__":
    main()
