"""The LM protocol: what an engine offers and a task may use.

Token ids go in, never text, so that every engine sees identical input. An engine says what it can do
in ``capabilities``; a task names what it ``needs``; what is missing makes a ``skipped`` record.

This module imports neither torch nor llama.cpp: the parent process reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from qeval.core.errors import EngineError
from qeval.core.options import Options
from qeval.core.record import MemoryReport
from qeval.core.registry import Registry
from qeval.core.settings import EngineSettings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from qeval.core.artifact import Artifact, ModelRef

    Logits = NDArray[np.float32] | NDArray[np.float64] | torch.Tensor
    """[n, vocabulary], in memory or on a device."""

Ids = Sequence[int]
Stop = Callable[[list[int]], bool]
"""Called with all new tokens of one sequence after each step; True ends that sequence."""


@dataclass(frozen=True)
class Sampling:
    """How to draw completions. ``temperature`` 0 is greedy (then ``n`` must be 1)."""

    n: int = 1
    samples: tuple[int, ...] | None = None  # their numbers; None: 0 .. n-1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    stop_ids: tuple[int, ...] = ()  # end-of-sequence ids; () never stops at one
    at_once: int | None = None  # sequences generated together; None: EngineSettings.batch_size

    @property
    def numbers(self) -> Sequence[int]:
        """Of the samples of each prompt."""
        return range(self.n) if self.samples is None else self.samples


def seed_of(seed: int, prompt: Ids, sample: int) -> int:
    """31 bits (llama.cpp takes 0xFFFFFFFF for a random seed) for one sample, from the spec's seed, the
    prompt's ids and the sample's number: what else is generated, and when, changes no text."""
    digest = hashlib.sha256(f"{seed}/{sample}/{[int(i) for i in prompt]}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def check_prompts(prompts: Sequence[Ids], max_seq_len: int, path: Path) -> None:
    """Raises EngineError for a prompt that is empty or leaves the model no room for a token."""
    for i, ids in enumerate(prompts):
        if not 0 < len(ids) < max_seq_len:
            raise EngineError(f"prompt {i} has {len(ids)} tokens; {path} takes 1 to {max_seq_len - 1}")


def per_window(first: int | Sequence[int], windows: Sequence[Ids]) -> list[int]:
    """``first`` of ``LM.predictions`` for each window."""
    return [first] * len(windows) if isinstance(first, int) else list(first)


@dataclass(frozen=True)
class Completion:
    """One finished sequence: the new tokens, the stopping id not included."""

    prompt: int  # index into the prompts
    sample: int  # its number, of Sampling.numbers
    ids: list[int]
    # "eos" | "stop" | "length" | "nonfinite": the logits of the next token | "no room" for one
    finish: str
    tokens: int | None = None  # new ones, where ``ids`` are of the text and not of the model


@dataclass(frozen=True)
class Request:
    """One request to a server, as it is seen from outside."""

    seconds: float  # from sending it to the last byte of its answer
    prompt_tokens: int | None  # as the server counts them
    new_tokens: int | None


@dataclass(frozen=True)
class StepTrace:
    """One sequence fed one token at a time through the KV cache (`gptq/benchmark`)."""

    nll: NDArray[np.float32]  # [n - 1]: of tokens 1 .. n-1
    seconds: NDArray[np.float64]  # [n]: wall time of each step
    allocated: int | None  # max over steps of the framework's allocated bytes after the step


class Packed(NamedTuple):
    """A packed format as far as it is known before any job; None: not known, or not the same for all
    layers."""

    name: str  # its registry name
    num_bits: float | None
    symmetric: bool | None


@dataclass(frozen=True)
class Internals:
    """What a task that looks inside is handed. It leaves the model as it was: no changed weight, no
    hook left behind."""

    model: PreTrainedModel  # the transformers model that runs
    new_cache: Callable[[], object]  # an empty cache of keys and values for one call of it


class LM(Protocol):
    """A loaded model. Close it, or use ``contextlib.closing``."""

    name: ClassVar[str]
    version: ClassVar[int]
    packages: ClassVar[tuple[str, ...]] = ()  # whose versions decide its speed
    # of {"nll", "logits", "steps", "generate", "memory", "tensors", "requests"}; "activations" and
    # "kv_cache", where it quantizes them (settings.execution says how)
    capabilities: ClassVar[frozenset[str]]
    Options: ClassVar[type[Options]] = Options  # what `engine: {NAME: {...}}` takes
    # The engines whose weights it runs, too, where a row asks for it by ``engine: NAME``.
    runs: ClassVar[frozenset[str]] = frozenset()
    # The environment (`qeval env`) whose interpreter it needs where its packages are not here.
    environment: ClassVar[str | None] = None
    # A module that imports what every model needs, without a thread or a GPU: one process imports it,
    # and each cell on the CPU is a fork of that (jobs/zygote.py). None: each starts an interpreter.
    shared_imports: ClassVar[str | None] = None
    max_seq_len: int
    vocab_size: int

    @classmethod
    def preflight(cls) -> None:
        """Called in the parent before any job. Raises MissingExtraError for a package that is not
        installed, or that no ``environment`` can have; imports nothing heavy."""
        ...

    @classmethod
    def check(cls, packed: Packed | None, model: ModelRef, device: str | None) -> None:
        """Called in the parent before any job, of an engine that ``runs`` weights of others: whether it
        runs those of this format (None: floats) on ``cpu`` or ``cuda`` (None: not known). Raises
        UsageError with the reason and the fix."""
        return

    @classmethod
    def check_options(cls, options: Mapping[str, object], model: ModelRef, device: str | None) -> None:
        """The same of its own options (``Options``), where a row asks for the engine: whether they fit
        the model and this machine."""
        return

    @classmethod
    def device(cls, asked: str) -> str:
        """Called in the parent: what ``open`` will make of EngineSettings.device, ``cpu`` or
        ``cuda:N``; as asked, where it is not known. Raises EngineError where this machine or the
        installed library has no such device. Imports nothing heavy."""
        return asked

    @classmethod
    def reach(cls, artifact: Artifact) -> None:
        """Called in the parent before any job, with weights that are there. Raises QevalError where
        they are on a server that cannot be used."""
        return

    @classmethod
    def open(cls, artifact: Artifact, settings: EngineSettings) -> LM:
        """Load the artifact. Raises EngineError with one line that names the file and the fix."""
        ...

    def reserve(self, sequences: int, tokens: int) -> None:
        """Told by a task of what it will ask later: so many sequences at once, and the longest of them
        with its new tokens. For engines that lay out their cache before they run."""
        return

    def nll(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[NDArray[np.float32]]:
        """Per window, in order: the negative log-likelihood (nats, float32 log-softmax) of tokens
        ``first`` .. len-1, each given all tokens before it in its window; shape [len - first].
        Not finite values are passed on as they are."""
        ...

    def predictions(
        self, windows: Sequence[Ids], *, first: int | Sequence[int] = 1
    ) -> Iterator[Logits]:
        """Per window, in order: the logits that predict tokens ``first`` .. len-1 of it, as the engine
        has them: [len - first, vocabulary], float32 in memory or the model's dtype on its device.
        Whoever keeps one keeps what it is a view of.

        ``first`` may be another number for each window. No other logits are computed. Neighbours of
        equal length (and ``first``) may run in one batch. A window may be one token longer than
        ``max_seq_len``: nothing follows its last token.

        An engine that does not say otherwise runs them one by one through ``logits``."""
        firsts = [first] * len(windows) if isinstance(first, int) else first
        for ids, start in zip(windows, firsts, strict=True):
            yield self.logits(ids[:-1])[start - 1 :]

    def pieces(self, ids: Sequence[int]) -> list[str] | None:
        """What each token is in the engine's own vocabulary; None where it has none of its own."""
        return None

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits after every position of one window: [len(ids), vocab_size], float32."""
        ...

    def steps(self, ids: Ids) -> StepTrace: ...

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None = None
    ) -> Iterator[Completion]:
        """The samples of every prompt, yielded as they finish, in any order: argmax of the logits at
        temperature 0, else drawn from softmax(logits / temperature), cut to the fewest tokens that have
        ``top_p`` together. Nothing that comes with the model changes that. A sequence is at most as
        long as the model's maximum.

        A text depends only on the seed, its prompt and its number: not on batch_size, the order or what
        else is generated, except for the rounding of logits in another batch."""
        ...

    def requests(self, prompts: Sequence[Ids], new_tokens: int, at_once: int) -> Iterator[Request]:
        """Capability "requests": one a prompt, greedily, so many at once, as they end. An engine
        that lacks it is not asked."""
        raise EngineError(f"the engine {self.name} sends no requests")

    def signature(self) -> dict[str, object]:
        """Of what runs elsewhere and is not in the artifact's key: what says, after ``open``, whether
        it is still the same; empty where there is no such thing."""
        return {}

    def internals(self) -> Internals:
        """Capability "tensors": for tasks that look at weights or listen to layers. An engine that
        lacks it is not asked."""
        raise EngineError(f"the engine {self.name} shows no tensors")

    def tokenize(
        self, text: str, *, special: bool = True, parse_special: bool = True
    ) -> list[int] | None:
        """The engine's own tokenization, to detect drift; None where it has no tokenizer of its own.
        ``special`` and ``parse_special`` as in ``qeval.models.tokenizer.Tokenizer.encode``."""
        ...

    def memory(self, context: int) -> MemoryReport:
        """Weights, KV cache bytes of one sequence of ``context`` tokens, and the framework's peaks so
        far; the worker adds the process's own."""
        ...

    def facts(self) -> dict[str, object]:
        """What ran, and what the engine chose by itself; asked after the task. For the record's
        conditions: ``device`` (``cpu``, ``cuda:0``), ``device_name`` (the GPU's, or the
        CPU's), ``n_threads`` (of the CPU), ``batch_size`` (most sequences computed at once; None:
        nothing was) and ``engine_version`` (of the libraries). What else there is (``kernels``) goes
        into its provenance."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Asked after the task: what a reader of the row must know, one line each."""
        ...

    def close(self) -> None: ...


ENGINES: Registry[type[LM]] = Registry(
    "engine",
    {
        "hf": "qeval.engines.hf:HfEngine",
        "llamacpp": "qeval.engines.llamacpp:LlamaCppEngine",
        "openai": "qeval.engines.openai:OpenAiEngine",
        "vllm": "qeval.engines.vllm:VllmEngine",
    },
)


def environment_of(name: str) -> str | None:
    """The environment (`qeval env`) that an engine runs in; None: this one, which has its packages."""
    engine = ENGINES[name]
    environment: str | None = getattr(engine, "environment", None)
    if environment is None or all(find_spec(package) for package in engine.packages):
        return None
    return environment
