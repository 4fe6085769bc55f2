"""Engine ``llamacpp``: GGUF files through llama.cpp's low-level API, token ids in.

``nll`` must equal llama.cpp's own ``llama-perplexity`` on the same file and windows (same batches, K/V
type f16, flash attention and repacked weights as that program chooses them), and the torch engine on
the same float weights. Several windows are separate sequences of one batch; logits come only for the
positions that score; the log-softmax is float32 on the host, a few rows at a time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from qeval.core.cores import threads
from qeval.core.devices import llama_device
from qeval.core.errors import EngineError
from qeval.core.extras import require
from qeval.core.record import MemoryReport
from qeval.core.settings import EngineSettings
from qeval.engines.base import LM, Completion, Ids, Sampling, StepTrace, Stop, check_prompts, per_window
from qeval.engines.drawing import draw_rows
from qeval.engines.slots import HOLDERS, Lane, Work, run
from qeval.llama import library as llama
from qeval.llama.gguf_file import read_header
from qeval.llama.library import Context, Model
from qeval.models.finite import nonfinite_notes
from qeval.models.gguf_tokenizer import GgufTokenizer

if TYPE_CHECKING:
    from qeval.core.artifact import Artifact

__all__ = ["GgufTokenizer", "LlamaCppEngine"]

_LOGITS_BYTES = 2 * 2**30  # of one llama_decode call, at most: 2,048 rows of a vocabulary of 262,144
_ROWS, _TASK = (
    4,
    64,
)  # rows of a log-softmax, whose 4 x 49,152 floats stay in the cache; of a thread's task
_COMPUTE_BYTES = 2**30  # of a GPU's memory, left for what is not the cache of keys and values
_TWO_LANES = 64  # sequences on a GPU from which on two halves take turns


@final
class LlamaCppEngine(LM):
    name: ClassVar[str] = "llamacpp"
    # 2: samples keyed by prompt and number; logits that are not finite. 3: samples drawn as in ``hf``.
    version: ClassVar[int] = 3
    packages: ClassVar[tuple[str, ...]] = ("llama-cpp-python",)
    capabilities: ClassVar[frozenset[str]] = frozenset({"nll", "logits", "steps", "generate", "memory"})

    def __init__(
        self,
        model: Model,
        settings: EngineSettings,
        notes: tuple[str, ...] = (),
        *,
        max_seq_len: int | None = None,
        sliding_window: int | None = None,
    ) -> None:
        """``max_seq_len`` and ``sliding_window``: of the model that the file was made from, where that
        is known. The converter makes a context up where a configuration has none (BLOOM's is its hidden
        size), and leaves a window out for architectures that llama.cpp has none for."""
        self._model = model
        self._batch_size = settings.batch_size
        self._n_threads = threads(settings.n_threads)
        self._pool = ThreadPoolExecutor(self._n_threads)
        self._largest_batch: int | None = None
        self._ahead = model.device != "cpu"  # there the host is free while the device computes
        self._slots: dict[str, int] | None = None  # of the last call of ``generate``
        self._notes = notes
        self.max_seq_len = max_seq_len or model.max_seq_len
        self._sliding_window = sliding_window
        self._longest = 0  # tokens of a sequence
        self.vocab_size = model.vocab_size

    @classmethod
    def preflight(cls) -> None:
        require("gguf", "llama_cpp")

    @classmethod
    def device(cls, asked: str) -> str:
        return llama_device(asked)

    @classmethod
    def open(cls, artifact: Artifact, settings: EngineSettings) -> LlamaCppEngine:
        """Load the artifact's ``.gguf`` file.

        Raises:
            EngineError: it is not a GGUF file, is truncated, of an unknown architecture, or the device
                is not one that the installed llama.cpp can use.
        """
        model = Model(artifact.path, device=_device(settings.device))
        header, made_from = read_header(artifact.path), artifact.details
        window = made_from.get("sliding_window", header.get("attention.sliding_window"))
        return cls(
            model,
            settings,
            nonfinite_notes(llama.nonfinite(header.tensors)),
            max_seq_len=made_from.get("max_seq_len"),
            sliding_window=window if isinstance(window, int) else None,
        )

    def nll(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[NDArray[np.float32]]:
        n_seq, longest, groups = self._grouped(windows)
        with ExitStack() as stack:
            contexts = [stack.enter_context(self._context(n_seq, longest)) for _ in groups[:1]]
            if self._ahead and len(groups) > 1:  # one is scored while the device computes the other
                with suppress(EngineError):  # no memory for it
                    contexts.append(stack.enter_context(self._context(n_seq, longest)))
            # Left before the contexts are, and not before its work is done.
            threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in contexts]
            under_way: deque[Future[list[NDArray[np.float32]]]] = deque()
            for i, group in enumerate(groups):
                if len(under_way) == len(contexts):
                    yield from under_way.popleft().result()
                which = i % len(contexts)
                under_way.append(threads[which].submit(self._nll, contexts[which], group, first))
            for future in under_way:
                yield from future.result()

    def _nll(
        self, context: Context, group: Sequence[NDArray[np.int32]], first: int
    ) -> list[NDArray[np.float32]]:
        """Of the windows of a group, which ``context`` runs together."""
        context.clear()
        found: list[list[NDArray[np.float32]]] = [[np.empty(0, np.float32)] for _ in group]
        for i, start, logits in self._pieces(context, group, [first] * len(group)):
            targets = group[i][start : start + len(logits)]
            found[i].append(token_nll(logits, targets, self._pool))
        return [np.concatenate(pieces) for pieces in found]

    def predictions(
        self, windows: Sequence[Ids], *, first: int | Sequence[int] = 1
    ) -> Iterator[NDArray[np.float32]]:
        firsts = iter(per_window(first, windows))
        n_seq, longest, groups = self._grouped(windows)
        with ExitStack() as stack:
            for group in groups:
                if group is groups[0]:
                    context = stack.enter_context(self._context(n_seq, longest))
                begin = [next(firsts) for _ in group]
                sizes = [len(ids) - b for ids, b in zip(group, begin, strict=True)]
                found = [np.empty((size, self.vocab_size), np.float32) for size in sizes]
                context.clear()
                for i, start, logits in self._pieces(context, group, begin):
                    found[i][start - begin[i] : start - begin[i] + len(logits)] = logits
                while found:
                    yield found.pop(0)  # not kept here: the caller decides how long they live

    def _grouped(self, windows: Sequence[Ids]) -> tuple[int, int, list[list[NDArray[np.int32]]]]:
        """Sequences and tokens of a context, and the windows by groups that it runs together."""
        longest = max(map(len, windows), default=1)
        # Whole windows only, 1, 2 or 4, ... at once: llama.cpp cuts any other group into other pieces,
        # which moves the tokens of a Q8_0 model by 0.01 nats, and batch_size must not change a number.
        whole = max(1, llama.N_BATCH // longest)
        most = min(self._batch_size or whole, whole, len(windows) or 1, llama.MAX_SEQUENCES)
        n_seq = _power_of_two(most)
        groups, checked = [], [self._checked(window) for window in windows]
        while checked:
            size = min(n_seq, _power_of_two(len(checked)))
            groups.append(checked[:size])
            checked = checked[size:]
        if groups:
            self._largest_batch = max(n_seq, self._largest_batch or 0)
        return n_seq, longest, groups

    def _pieces(
        self, context: Context, arrays: Sequence[NDArray[np.int32]], first: Sequence[int]
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Run windows together: which one, the number of the first token predicted, and the logits that
        predict it and those that follow, [n, vocabulary]: llama.cpp's own buffer, which the next piece
        overwrites."""
        step = self._positions_at_once(context, len(arrays))
        for start in range(0, max(map(len, arrays)) - 1, step):  # nothing follows the last token
            parts = [window[start : min(start + step, len(window) - 1)] for window in arrays]
            scored = [
                max(0, start + len(part) - max(start, f - 1))
                for part, f in zip(parts, first, strict=True)
            ]
            logits = _decode(context, parts, start, scored)
            ends = np.cumsum(scored)
            for i, (part, n, end) in enumerate(zip(parts, scored, ends, strict=True)):
                if n:
                    yield i, start + len(part) - n + 1, logits[end - n : end]

    def pieces(self, ids: Sequence[int]) -> list[str] | None:
        return [self._model.piece(i, special=True).decode("utf-8", "replace") for i in ids]

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        tokens = self._checked(ids)
        rows = np.empty((len(tokens), self.vocab_size), np.float32)
        self._largest_batch = max(1, self._largest_batch or 0)
        with self._context(1, len(tokens)) as context:
            step = self._positions_at_once(context, 1)
            for start in range(0, len(tokens), step):
                part = tokens[start : start + step]
                rows[start : start + step] = _decode(context, [part], start, [len(part)])
        return rows

    def steps(self, ids: Ids) -> StepTrace:
        tokens = self._checked(ids)
        self._largest_batch = max(1, self._largest_batch or 0)
        nll, seconds = np.empty(len(tokens) - 1, np.float32), np.empty(len(tokens))
        with self._context(1, len(tokens)) as context:
            for i in range(len(tokens)):
                begin = time.perf_counter()
                row = _decode(context, [tokens[i : i + 1]], i, [1])
                seconds[i] = time.perf_counter() - begin
                if i + 1 < len(tokens):
                    nll[i] = token_nll(row, tokens[i + 1 : i + 2], self._pool)[0]
        return StepTrace(nll, seconds, None)

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None = None
    ) -> Iterator[Completion]:
        if not prompts:
            return
        self._check_prompts(prompts)
        work = Work(prompts, sampling)
        limit = min(max(map(len, prompts)) + sampling.max_new_tokens, self.max_seq_len)
        with ExitStack() as stack:
            lanes = [
                Lane(context, n_slots, self.max_seq_len, work, self._draw(sampling), ahead)
                for context, n_slots, ahead in self._lanes(work, limit, stack)
            ]
            yield from run(lanes, stop, ahead=self._ahead)

    def _lanes(
        self, work: Work, limit: int, stack: ExitStack
    ) -> list[tuple[Context, int, Executor | None]]:
        """Contexts for slots of ``limit`` tokens, with the slots of each, and what computes them."""
        n_samples = len(work.sampling.numbers)
        holders = HOLDERS if n_samples > 1 else 0
        asked = work.sampling.at_once or self._batch_size
        most = min(len(work.prompts) * n_samples, llama.MAX_SEQUENCES - holders)
        n_slots = min(most, asked or self._room(limit) - holders)
        while True:
            n_slots = max(1, n_slots)
            n_lanes = 2 if self._ahead and n_slots >= _TWO_LANES else 1
            sizes = [n_slots // n_lanes + (i < n_slots % n_lanes) for i in range(n_lanes)]
            with ExitStack() as made:
                try:
                    contexts = [made.enter_context(self._context(n + holders, limit)) for n in sizes]
                except EngineError:
                    if asked or n_slots == 1:
                        raise
                    n_slots //= 2
                    continue
                stack.enter_context(made.pop_all())
            self._largest_batch = max(n_slots, self._largest_batch or 0)
            self._slots = {"slots": n_slots, "lanes": n_lanes, "tokens": limit}
            threads = [
                stack.enter_context(ThreadPoolExecutor(1)) if self._ahead else None for _ in sizes
            ]
            return list(zip(contexts, sizes, threads, strict=True))

    def _room(self, tokens: int) -> int:
        """How many sequences of so many tokens the free memory of the device holds."""
        free = llama.free_memory(self._model.device)
        each = read_header(self._model.path).kv_bytes(llama.padded(tokens))
        usable = int(0.9 * free) - _COMPUTE_BYTES if self._ahead else free // 2
        return max(0, usable) // each if each else llama.MAX_SEQUENCES

    def _draw(self, sampling: Sampling) -> Callable[[NDArray[np.float32], list[float]], list[int]]:
        return lambda logits, u: draw_rows(
            logits, sampling.temperature, sampling.top_p, u, self._pool, self._n_threads
        )

    def _checked(self, ids: Ids) -> NDArray[np.int32]:
        """The ids as an array. Raises EngineError where one is not in the vocabulary."""
        tokens = np.asarray(ids, np.int32)
        wrong = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if wrong.size:
            raise EngineError(
                f"token id {wrong[0]} is outside the vocabulary of {self._model.path} "
                f"({self.vocab_size} tokens): it does not belong to this tokenizer"
            )
        return tokens

    def _check_prompts(self, prompts: Sequence[Ids]) -> None:
        check_prompts(prompts, self.max_seq_len, self._model.path)
        for ids in prompts:
            self._checked(ids)

    def tokenize(
        self, text: str, *, special: bool = True, parse_special: bool = True
    ) -> list[int] | None:
        return self._model.tokenize(text, special=special, parse_special=parse_special)

    def memory(self, context: int) -> MemoryReport:
        header = read_header(self._model.path)
        return MemoryReport(
            weights=header.weight_bytes,
            embeddings=header.embedding_bytes,
            kv_cache=header.kv_bytes(context),
            context=context,
        )

    def facts(self) -> dict[str, object]:
        device, name = llama.place(self._model.device)
        return {
            **({} if self._slots is None else {"generation": self._slots}),
            "device": device,
            "device_name": name,
            "n_threads": self._n_threads,
            "batch_size": self._largest_batch,
            "engine_version": f"llama-cpp-python {llama.library().__version__}",
        }

    def notes(self) -> tuple[str, ...]:
        note = window_note(self._sliding_window or 0, self._model.sliding_window, self._longest)
        return (*self._notes, *([note] if note else []))

    def close(self) -> None:
        self._pool.shutdown()
        self._model.close()

    def _context(self, n_seq: int, seq_len: int) -> Context:
        self._longest = max(seq_len, self._longest)
        return Context(self._model, n_seq=n_seq, seq_len=seq_len, n_threads=self._n_threads)

    def _positions_at_once(self, context: Context, n_seq: int) -> int:
        """How many positions of ``n_seq`` sequences one llama_decode may take: as many as fit its
        batch, fewer where their logits would take too much memory."""
        rows = min(context.n_batch, _LOGITS_BYTES // (4 * self.vocab_size))
        return max(1, rows // n_seq)


def window_note(of_model: int, of_engine: int, longest: int) -> str | None:
    """The line under the table where llama.cpp's attention reaches elsewhere than the model's: the
    sliding window of each in tokens, 0 for none, and the longest sequence that was run."""
    windows = [window for window in (of_model, of_engine) if window]
    if not of_model or of_model == of_engine or longest <= min(windows):
        return None
    theirs = f"{of_engine} tokens" if of_engine else "all tokens"
    return (
        f"sequences of up to {longest} tokens, where the model's sliding window is {of_model} and "
        f"llama.cpp attends to {theirs}: a difference from rows on hf is not the format's alone"
    )


def _power_of_two(n: int) -> int:
    """The largest power of two that is not over n."""
    return 1 << (n.bit_length() - 1)


def _device(asked: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``, resolved against what the installed library can do."""
    has_gpu = bool(llama.library().llama_supports_gpu_offload())
    if asked == "auto":
        return "cuda" if has_gpu else "cpu"
    if asked != "cpu" and not has_gpu:
        raise EngineError(
            f"device {asked}: the installed llama-cpp-python sees no GPU; use --device cpu, or rebuild "
            "it: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-deps llama-cpp-python"
        )
    return asked


def _decode(
    context: Context, parts: Sequence[NDArray[np.int32]], start: int, scored: Sequence[int]
) -> NDArray[np.float32]:
    """Feed ``parts[s]`` to sequence ``s`` from position ``start``; the logits of the last ``scored[s]``
    positions of each, [sum(scored), vocab_size]."""
    sizes = [len(part) for part in parts]
    outputs = [np.arange(size) >= size - n for size, n in zip(sizes, scored, strict=True)]
    context.decode(
        np.concatenate(parts),
        np.concatenate([np.arange(start, start + size, dtype=np.int32) for size in sizes]),
        np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
        np.concatenate(outputs).astype(np.int8),
    )
    return context.logits(sum(scored))


def token_nll(
    logits: NDArray[np.float32], targets: NDArray[np.int32], pool: Executor
) -> NDArray[np.float32]:
    """-log softmax(logits)[targets] in float32: logits [n, vocab], targets [n] -> [n]."""
    nll = np.empty(len(targets), np.float32)

    def rows(start: int) -> None:
        end = min(start + _TASK, len(targets))
        scratch = np.empty((min(_ROWS, end - start), logits.shape[1]), np.float32)
        for i in range(start, end, _ROWS):
            part, ids = logits[i : min(i + _ROWS, end)], targets[i : min(i + _ROWS, end)]
            with np.errstate(all="ignore"):  # NaN and inf are passed on, not warned about
                shifted = np.subtract(part, part.max(axis=1, keepdims=True), out=scratch[: len(part)])
                picked = shifted[np.arange(len(part)), ids]
                nll[i : i + len(part)] = np.log(np.exp(shifted, out=shifted).sum(axis=1)) - picked

    list(pool.map(rows, range(0, len(targets), _TASK)))
    return nll
