"""The command line: one file a command, put together here. Nothing heavy is imported at their tops.

Tables and ``--format json`` go to stdout, progress and warnings to stderr. Exit codes: 0 all ok,
1 error, 2 usage, 3 some cells failed (the table is still printed), a bound is not kept or nothing fits,
130 interrupted.
"""

from __future__ import annotations

import os
import sys

import click

from qeval import __version__
from qeval.cli.cache import cache
from qeval.cli.completion import completion
from qeval.cli.data import data
from qeval.cli.doctor import doctor
from qeval.cli.ending import ending
from qeval.cli.env import env
from qeval.cli.init import init
from qeval.cli.list import list_
from qeval.cli.plan import plan
from qeval.cli.prune import prune
from qeval.cli.results.compare import compare
from qeval.cli.results.convert import convert
from qeval.cli.results.export import export
from qeval.cli.results.gate import gate
from qeval.cli.results.log import log
from qeval.cli.results.recommend import recommend
from qeval.cli.results.report import plot, report
from qeval.cli.results.show import show
from qeval.cli.results.table import table
from qeval.cli.run import run
from qeval.cli.schema import schema
from qeval.cli.score import score
from qeval.cli.shared import Group, debug
from qeval.cli.stats import stats
from qeval.cli.try_ import try_
from qeval.core.console import open_missing


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__)
def cli() -> None:
    """Which quantization of a language model to run, and what it costs.

    \b
    Examples:
      qeval try                                 a first table, of a tiny model
      qeval run ORG/NAME -q Q4_K_M,gptq:4,awq   compare three quantizations
      qeval table results/NAME --wide           print the table again
    """


cli.sections = {
    "Measure": (try_, run, init, plan),
    "Read results": (table, report, plot, compare, recommend, gate, show, export, convert, log),
    "Look closer": (stats, score),
    "This machine": (doctor, data, cache, prune, env),
    "Find words": (list_, schema, completion),
}
for section in cli.sections.values():
    for each in section:
        cli.add_command(each)


def main() -> None:
    """Entry point of the ``qeval`` program."""
    open_missing()
    if "_QEVAL_COMPLETE" in os.environ:  # click's completion for shells
        cli.main(prog_name="qeval")
    # Not cli.main(): it has its own ways with Ctrl-C and with pipes that broke.
    with ending(debug()), cli.make_context("qeval", sys.argv[1:]) as context:
        cli.invoke(context)


if __name__ == "__main__":
    main()
