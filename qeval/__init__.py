"""qeval: which quantization of a language model to run, and what it costs.

As a library (docs/library.md)::

    import qeval

    results = qeval.run("mine.yaml")        # or a dict; only what is missing
    results = qeval.load("results/mine")    # several folders are merged
    results.table(columns=["ppl"])          # prints, and shows itself in a notebook
    results.to_pandas()                     # one metric a line

``import qeval`` is cheap: each name is imported on its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from qeval.core import __version__

if TYPE_CHECKING:
    from qeval.api.comparison import Comparison
    from qeval.api.results import Results, load
    from qeval.api.running import run
    from qeval.api.table import Table
    from qeval.core.errors import QevalError

__all__ = ["Comparison", "QevalError", "Results", "Table", "__version__", "load", "run"]

_HOMES = {
    "Comparison": "qeval.api.comparison",
    "QevalError": "qeval.core.errors",
    "Results": "qeval.api.results",
    "Table": "qeval.api.table",
    "load": "qeval.api.results",
    "run": "qeval.api.running",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
