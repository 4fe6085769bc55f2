"""`auto-round`: Intel's AutoRound (arXiv 2309.05516): rounding and clipping of each weight tuned by
signed gradient descent, a block at a time, on calibration windows.

Exported in AutoRound's own format (GPTQ's tensors, AWQ's for asymmetric 4 bits), which transformers
loads with the auto-round package.
"""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal, final

from pydantic import Field, field_validator

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.errors import BuildError, first_line, raise_all
from qeval.core.options import Options
from qeval.data.calibration import CalibrationOptions
from qeval.quant.base import BuildContext, Method, Packages

_BATCH = 8  # windows a step, the library's default
_UNREAD = [[0] * 32]  # for iters: 0, which asks for windows and reads none


class AutoRoundOptions(Options):
    num_bits: Literal[2, 3, 4, 8] = 4
    group_size: int = 128  # consecutive inputs that share a scale; -1: one scale per output channel
    symmetric: bool = True
    iters: int = Field(
        default=200, ge=0, le=100_000
    )  # steps of tuning a block; 0: rounded without reading data
    calibration: CalibrationOptions = CalibrationOptions()

    @field_validator("group_size")
    @classmethod
    def _positive_or_channel(cls, value: int) -> int:
        if value != -1 and (value < 32 or value % 32):
            raise ValueError("must be a multiple of 32 inputs, or -1 (per channel)")
        return value


@final
class AutoRound(Method[AutoRoundOptions]):
    version: ClassVar[int] = 2  # 2: routers stay floats; iters: 0 reads no data
    Options: ClassVar[type[Options]] = AutoRoundOptions
    scalar: ClassVar[str | None] = "num_bits"
    engine: ClassVar[str | None] = "hf"

    def label(self, options: AutoRoundOptions) -> str:
        group = "" if options.group_size == -1 else f"g{options.group_size}"
        return f"AutoRound W{options.num_bits}A16{group}" + " asym" * (not options.symmetric)

    def packages(self, options: AutoRoundOptions) -> tuple[Packages, ...]:
        return (Packages("auto-round", ("torch", "transformers", "accelerate", "auto_round")),)

    def reads(self, options: AutoRoundOptions) -> CalibrationOptions | None:
        return options.calibration if options.iters else None

    def simulates(self, options: AutoRoundOptions) -> bool:
        return False

    def weight_bits(self, options: AutoRoundOptions, dtype: str) -> float:
        return options.num_bits

    def preflight(self, options: AutoRoundOptions, model: ModelRef) -> None:
        from qeval.formats.limits import check_half_precision, check_widths

        # The library leaves linears of other widths as they are, without a word.
        raise_all(
            lambda: self.check_packages(options),
            lambda: check_half_precision("auto-round", model),
            lambda: check_widths("auto-round", model, options.group_size, inputs_of=32, outputs_of=32),
        )

    def build(self, options: AutoRoundOptions, context: BuildContext) -> Artifact:
        """Raises BuildError where the library refuses the model."""
        import torch
        from auto_round import AutoRound as Library
        from transformers import AutoTokenizer

        from qeval.models.linears import device_of, router_names
        from qeval.models.loading import load_model
        from qeval.quant.libraries.finish import finish

        source = context.model
        drawn = context.calibration(options.calibration) if options.iters else None
        model = load_model(source.path, source.dtype, "cpu", source.trust_remote_code)
        windows = [
            {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
            for ids in (drawn.windows if drawn else _UNREAD)
        ]
        folder = context.out / "model"
        # It writes its working files wherever it is.
        with TemporaryDirectory(dir=context.out) as scratch, chdir(scratch):
            saved = Path(scratch) / "saved"
            try:
                Library(
                    model,
                    AutoTokenizer.from_pretrained(
                        source.path, trust_remote_code=source.trust_remote_code
                    ),
                    bits=options.num_bits,
                    group_size=options.group_size,
                    sym=options.symmetric,
                    iters=options.iters,
                    disable_opt_rtn=drawn is None,  # which weighs the rounding by the windows' inputs
                    ignore_layers=",".join(sorted(router_names(model))),
                    dataset=windows,
                    nsamples=len(windows),
                    seqlen=options.calibration.seq_len,
                    batch_size=min(_BATCH, len(windows)),
                    seed=options.calibration.seed,
                    device_map=str(device_of(context.device)),
                    enable_torch_compile=False,  # needs a compiler, and its rounding is another one
                ).quantize_and_save(str(saved), format="auto_round")
            except SystemExit as err:  # its answer to windows that it cannot use
                raise BuildError(f"auto-round gave up on {source.id}; the log says why") from err
            except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as err:
                raise BuildError(f"auto-round cannot quantize {source.id}: {first_line(err)}") from err
            # The library names a folder of its own after the model and its scheme.
            next(path.parent for path in sorted(saved.rglob("config.json"))).rename(folder)
        return finish(folder, context, "auto-round", drawn.facts if drawn else None)
