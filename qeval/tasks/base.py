"""What a task is (Task), gets (TaskContext) and returns (TaskResult).

A task's module imports no torch, transformers or llama_cpp at its top: the parent reads its options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from qeval.core.artifact import ModelRef
from qeval.core.endpoint import NO_FILES
from qeval.core.options import Options
from qeval.core.progress import Progress
from qeval.core.record import Metric, check
from qeval.core.registry import Registry
from qeval.engines.base import LM
from qeval.models.told import told_limit

if TYPE_CHECKING:
    from qeval.core.endpoint import Endpoint
    from qeval.data.datasets import DataSource
    from qeval.engines.base import Ids, Logits
    from qeval.models.tokenizer import Tokenizer

OptionsT = TypeVar("OptionsT", bound=Options, contravariant=True)


@dataclass(frozen=True)
class TaskResult:
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()  # shown under the table
    files: dict[str, Path] = field(default_factory=dict)  # files inside context.out
    facts: Mapping[str, object] = field(default_factory=dict)  # sha256s, counts: goes into provenance
    context: int | None = None  # longest sequence in tokens: the KV cache number is for it
    # A model's memory columns come from its task with the lowest rank: 0 speed, 1 HumanEval, 2 MBPP,
    # 3 perplexity; None after these.
    memory_rank: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError where a metric says what no table understands."""
        for metric in self.metrics:
            check(metric)


@dataclass(frozen=True)
class Expected:
    """What a run of a task will measure, as far as files tell it before. None: only a run can."""

    unit: str = ""  # what is counted: "windows", "problems"
    n: int | None = None  # units that will be measured
    metrics: tuple[Metric, ...] = ()  # those with a column and paired units, without values
    predicted: int | None = None  # tokens of which the baseline's predictions are kept
    draws: Mapping[str, float] = field(default_factory=dict)
    """By metric, where its units are shares of random draws: the variance that these alone give the
    difference of a unit between two rows, at the most."""


class Predictor(Protocol):
    """What predicts tokens: an engine, or what one predicted before."""

    def predictions(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[Logits]:
        """See LM.predictions."""
        ...


@dataclass(frozen=True)
class TaskContext:
    """``out`` is this cell's own folder under the results folder; what a killed worker left in it
    is still there, and belongs to the same key, so a task may go on from it."""

    model: ModelRef
    data: DataSource
    out: Path
    progress: Progress
    limit: int | None = None  # first units only (windows, problems); recorded and shown
    batch_size: int | None = None
    weak_sandbox: bool = False
    n_threads: int = 1  # of the CPU
    baseline: Predictor | None = None  # what a task that is `against_baseline` compares with
    passes: int = 1  # of the same text: more where the row draws noise, which is another each time
    endpoint: Endpoint | None = None  # what the row asks, where a server runs it

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from qeval.models.endpoint import EndpointTokenizer
        from qeval.models.tokenizer import load_tokenizer

        own = load_tokenizer(self.model) if self.has_files else None
        if self.endpoint is not None:
            return EndpointTokenizer(self.endpoint, own)
        assert own is not None  # only a server runs a model without files
        return own

    @property
    def has_files(self) -> bool:
        """Whether there is a tokenizer here."""
        return self.model.path != NO_FILES

    @property
    def mark(self) -> str:
        """The last part of a protocol's id where prompts do not go in as an engine here takes them."""
        return self.endpoint.mark(tokenizer=self.has_files) if self.endpoint else ""

    @cached_property
    def model_limit(self) -> int:
        """The longest sequence that the model of the row takes, whatever engine and weights it has."""
        from qeval.models.loading import UNLIMITED, model_limit

        if self.model.endpoint is not None:
            return told_limit(self.model) or UNLIMITED
        return model_limit(self.model.path, self.model.trust_remote_code)


class Task(Protocol[OptionsT]):
    """Register it in TASKS. Subclass it, with the class of its options."""

    version: ClassVar[int]  # raise it when the same options give another number
    Options: ClassVar[type[Options]]
    needs: ClassVar[frozenset[str]]  # LM capabilities, of any options
    on_simulated: ClassVar[bool]  # whether its numbers mean anything on simulated weights
    # Whether its numbers depend on the machine. Host, device, threads and the engine's version are then
    # in the keys of its cells, and in the tables' columns. (The number of sequences at once is not: a
    # task whose number depends on that has it among its options.)
    measures_machine: ClassVar[bool] = False
    # Whether its numbers compare a row with its baseline. What the baseline is, is then in the keys of
    # its cells; ``remember`` says what is computed of it once, for all rows.
    against_baseline: ClassVar[bool] = False

    def label(self, options: OptionsT) -> str: ...

    def needs_of(self, options: OptionsT) -> frozenset[str]:
        """What these options need, where not all need the same."""
        return self.needs

    def takes_limit(self, options: OptionsT) -> bool:
        """Whether ``limit`` cuts anything off."""
        return True

    def preflight(self, options: OptionsT, data: DataSource, *, weak_sandbox: bool) -> None:
        """Called in the parent before any job, for each set of options. Raises QevalError for what this
        machine lacks (a package, problems, a sandbox), so that this is not found out after hours."""
        ...

    def preflight_model(self, options: OptionsT, model: ModelRef, data: DataSource) -> None:
        """Called in the parent before any job, for each model that is here. Raises QevalError for what
        the model's files lack (a chat template, room for a window); imports nothing heavy. ``data``
        downloads nothing, and what is missing in it ``preflight`` has said."""
        return

    def expected(
        self, options: OptionsT, limit: int | None, model: ModelRef | None, data: DataSource
    ) -> Expected:
        """Called in the parent before any job, imports nothing heavy. ``model``: None where it is not
        here. ``data`` downloads nothing.

        Raises:
            QevalError: what ``preflight`` and ``preflight_model`` raise, too.
        """
        return Expected()

    def remember(self, lm: LM, options: OptionsT, context: TaskContext) -> tuple[int, Iterator[Logits]]:
        """Of a task that is ``against_baseline``: how many tokens the baseline ``lm`` predicts, and its
        logits of them, window by window. Others have none."""
        return 0, iter(())

    def run(self, lm: LM, options: OptionsT, context: TaskContext) -> TaskResult: ...


TASKS: Registry[type[Task[Options]]] = Registry(
    "task",
    {
        "perplexity": "qeval.tasks.perplexity:Perplexity",
        "lambada": "qeval.tasks.lambada:Lambada",
        "humaneval": "qeval.tasks.coding.humaneval:HumanEval",
        "mbpp": "qeval.tasks.coding.mbpp:Mbpp",
        "speed": "qeval.tasks.speed:Speed",
        "tensor_stats": "qeval.tasks.tensor_stats:TensorStats",
        "divergence": "qeval.tasks.divergence.task:Divergence",
    },
)
"""The options that a task is given are always of its own ``Options``."""


# Classes that do not subclass Task may lack what it has a default for.


def needs_of(task: Task[Options], options: Options) -> frozenset[str]:
    ask = getattr(task, "needs_of", None)
    return task.needs if ask is None else frozenset(ask(options))


def measures_machine(task: Task[Options]) -> bool:
    return getattr(task, "measures_machine", False)


def preflight_model(task: Task[Options], options: Options, model: ModelRef, data: DataSource) -> None:
    if (ask := getattr(task, "preflight_model", None)) is not None:
        ask(options, model, data)


def expected(
    task: Task[Options], options: Options, limit: int | None, model: ModelRef | None, data: DataSource
) -> Expected:
    ask = getattr(task, "expected", None)
    found: Expected = Expected() if ask is None else ask(options, limit, model, data)
    return found


def against_baseline(task: Task[Options]) -> bool:
    return getattr(task, "against_baseline", False)


def takes_limit(task: Task[Options], options: Options) -> bool:
    ask = getattr(task, "takes_limit", None)
    return ask is None or ask(options)
