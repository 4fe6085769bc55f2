"""`qeval stats`: which layers quantization will hurt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qeval.cli.shared import FOLDER, FORMATS, command
from qeval.core.console import echo, say
from qeval.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

BITS = click.IntRange(2, 8)
DTYPES = ("float32", "float16", "bfloat16")
KINDS = ("weight", "input", "key", "value")  # tensor_stats/rows.py has both; a test compares
STATISTICS = ("absmax", "std", "kurtosis", "outlier", "sqnr")


@command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL]")
@click.option("--dataset", default="pydoc", show_default=True, help="`qeval data list`, or file:PATH.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=8, show_default=True, help="First N windows."
)
@click.option(
    "--seq-len", type=click.IntRange(min=2), help="Tokens of a window [default: 2048, or the model's]."
)
@click.option("--weight-bits", type=BITS, default=4, show_default=True, help="Of the weights' SQNR.")
@click.option(
    "--group-size",
    type=int,
    default=-1,
    show_default=True,
    help="Weights' inputs that share a scale; -1: all.",
)
@click.option("--activation-bits", type=BITS, default=8, show_default=True, help="Of the inputs' SQNR.")
@click.option("--kv-bits", type=BITS, default=4, show_default=True, help="Of keys' and values' SQNR.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the model."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--data-dir", type=FOLDER, help="Datasets on disk [default: QEVAL_DATA_DIR].")
@click.option("--cache-dir", type=FOLDER, help="[default: QEVAL_CACHE_DIR, ~/.cache/qeval].")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@click.option("--format", "fmt", type=FORMATS, default="text", show_default=True)
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Only these tensors (repeat)."
)
@click.option(
    "--sort", type=click.Choice(STATISTICS), help="The worst first; of two models what moved."
)
@click.option("--top", type=click.IntRange(min=1), help="First N tensors.")
@click.option("--png", type=FOLDER, help="Draw layers x tensors, coloured by --sort [default: sqnr].")
@click.option(
    "--save", type=FOLDER, help="Keep the statistics: a .jsonl that stands for the model later."
)
def stats(models: tuple[str, ...], **options: Any) -> None:
    """Statistics of every layer's weights, inputs, keys and values: which will quantization hurt?

    MODEL is a model folder, a hub id, or a .jsonl that --save kept (or that a run left in its cells).
    Two models, such as a float model and its quantized version, are shown side by side.
    """
    echo(model_statistics(models, **options), end="")


def model_statistics(
    models: Sequence[str],
    *,
    fmt: str,
    kinds: Sequence[str],
    sort: str | None,
    top: int | None,
    png: Path | None,
    save: Path | None,
    limit: int,
    dtype: str,
    device: str,
    data_dir: Path | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
    **options: object,
) -> str:
    """The table of one model or of two. ``options`` are those of the task tensor_stats.

    Raises:
        UsageError: no such device; more than two models; a picture or a file of two; no matplotlib
            for a picture.
    """
    from qeval.cli.statistics import How, statistics
    from qeval.core.devices import device_name
    from qeval.core.extras import require
    from qeval.core.settings import EngineSettings
    from qeval.tensor_stats.layers import lines, render

    try:
        device_name(device)
    except ValueError as err:
        raise UsageError(f"--device {device}: {err}") from err
    if len(models) > 2:
        raise UsageError("qeval stats: give one model, or two to compare")
    if len(models) == 2 and (png or save):
        raise UsageError(f"qeval stats: {'--png' if png else '--save'} is for one model")
    if png:
        require("plot", "matplotlib")
    settings = EngineSettings(device, dtype, trust_remote_code=trust_remote_code)
    how = How(options, limit, settings, data_dir, cache_dir)
    found = [statistics(model, how, save) for model in models]
    if png:
        from qeval.tensor_stats.heat_map import draw

        draw(png, found[0], sort or "sqnr")
        say(f"wrote {png}")
    return render(fmt, found, lines(found, kinds=kinds, sort=sort, top=top), sort)
