"""A started vLLM: what the engine `vllm` asks of it, step by step.

Logits that are not finite, of which vLLM says nothing, are counted where its model gives them to its
sampler (vllm_worker.py). The count is of steps, and a step has many sequences. So what was in flight is
taken back and drawn again one sequence after the other, with the same seeds: the ones during which the
count rises are broken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from typing import TYPE_CHECKING, Any, NamedTuple

from qeval.core.cores import threads
from qeval.core.devices import driver_device
from qeval.core.errors import EngineError
from qeval.core.settings import EngineSettings
from qeval.engines.base import Completion, Ids, Sampling, Stop, seed_of
from qeval.engines.vllm_limits import VllmOptions

if TYPE_CHECKING:
    import torch

    from qeval.core.artifact import Artifact

BLOCK = 128  # tokens: a cache is laid out in blocks of 16 on GPUs, of 128 on the CPU
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # of one step
_TOLD_APART = 1e-2  # nats: more between a score and its logits, and these are not the ones
_ASK_EVERY_S = 0.5  # workers of several GPUs, for what is not finite: they stop for it

Pair = tuple[int, int]
"""Index of a prompt, number of a sample."""


class Room(NamedTuple):
    """What a vLLM has room for: sequences at once, the tokens of the longest, and blocks of tokens."""

    sequences: int
    tokens: int
    blocks: int

    @staticmethod
    def of(asked: Sequence[tuple[int, int]]) -> Room:
        """For any one of these at a time."""
        blocks = max(blocks_of(*each) for each in asked)
        return Room(max(s for s, _ in asked), max(t for _, t in asked), blocks)


def blocks_of(sequences: int, tokens: int) -> int:
    """Each sequence may begin in a block of its own; vLLM keeps one to itself."""
    return sequences * (-(-tokens // BLOCK) + 1) + 1


@dataclass
class Running:
    """A started vLLM. ``pool``: bytes of its cache on each of its ``gpus``, None: a share of them."""

    llm: Any
    room: Room
    pool: int | None
    gpus: int = 1
    _number: int = 0
    _open: set[str] = field(default_factory=set)  # requests that are not finished

    @staticmethod
    def start(
        artifact: Artifact,
        settings: EngineSettings,
        options: VllmOptions,
        room: Room,
        pool: int | None,
    ) -> Running:
        kind = driver_device(settings.device).partition(":")[0]
        gpus = options.tensor_parallel_size * options.pipeline_parallel_size
        _prepare(settings, gpus if kind == "cpu" else 1)
        from vllm import LLM

        own_pool = {"kv_cache_memory_bytes": pool} if pool is not None else {}
        given = options.model_dump(
            include={"tensor_parallel_size", "pipeline_parallel_size", "kv_cache_dtype"},
            exclude_defaults=True,
        )
        llm = LLM(
            model=str(artifact.path),
            skip_tokenizer_init=True,
            generation_config="vllm",  # nothing that comes with the model decides how it is drawn from
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            seed=0,
            max_model_len=room.tokens,
            max_num_seqs=room.sequences,
            max_num_batched_tokens=max(TOKENS_AT_ONCE[kind], room.tokens),
            # Of a prompt in two parts its runner on CPUs cannot draw by a seed.
            enable_chunked_prefill=kind != "cpu",
            enforce_eager=options.enforce_eager or kind == "cpu",
            worker_extension_cls="qeval.engines.vllm_worker.Ear",
            disable_log_stats=True,
            **own_pool,
            **given,
        )
        llm.collective_rpc("qeval_attach")
        return Running(llm, room, pool, gpus)

    def holds(self, sequences: int, tokens: int) -> bool:
        room = self.room
        fits = blocks_of(sequences, tokens) <= room.blocks
        return fits and sequences <= room.sequences and tokens <= room.tokens

    def scores(self, windows: Sequence[Ids]) -> Iterator[list[float]]:
        """Per window, in order: the negative log-likelihood of each of its tokens but the first."""
        done: dict[int, list[float]] = {}
        waiting = iter(enumerate(windows))
        following = 0
        flying: dict[str, int] = {}
        while following < len(windows):
            for i, ids in islice(waiting, 2 * self.room.sequences - len(flying)):
                flying[self._score(ids)] = i
            for output in self._step():
                i = flying.pop(output.request_id)
                done[i] = _nll(output, windows[i])
            while following in done:
                yield done.pop(following)
                following += 1

    def logits(self, ids: Ids) -> torch.Tensor:
        """What predicts tokens 1 .. len-1 of one window, [len - 1, vocabulary], as its model gave it.

        Raises:
            EngineError: they are not those of its scores: this vLLM computes elsewhere.
        """
        import torch

        from qeval.engines.hf import token_nll

        self.llm.collective_rpc("qeval_listen")
        self._score(ids)
        outputs: list[Any] = []
        while not outputs:
            outputs = self._step()
        told: list[list[torch.Tensor]] = self.llm.collective_rpc("qeval_heard")
        heard = next(filter(None, told), [])  # of the worker that has the model's end
        scores = _nll(outputs[0], ids)
        last, *before = heard or [torch.empty(0, 0)]  # the token that is drawn comes first
        missing = len(ids) - 1 - sum(len(part) for part in before)
        if missing not in (0, 1):  # of its two runners one scores the last position twice
            raise EngineError("this vLLM does not hand its logits on as others do: leave engine out")
        rows = torch.cat([*before, last] if missing else before)
        targets = torch.tensor(ids[1:], device=rows.device)
        apart = (token_nll(rows, targets).cpu() - torch.tensor(scores)).abs()
        if bool((apart > _TOLD_APART).any()):
            raise EngineError("the logits that this vLLM handed on are not those of its scores")
        return rows

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None, longest: int
    ) -> Iterator[Completion]:
        asked = _Asked([[int(i) for i in ids] for ids in prompts], sampling, stop, longest)
        # A prompt is shared by the samples of one call, and computed again by the next: `speed` repeats
        # its prompts, and would time a look into the cache.
        self.llm.llm_engine.reset_prefix_cache()
        waiting = product(range(len(prompts)), sampling.numbers)
        while suspects := (yield from self._draw(waiting, asked)):
            for pair in suspects:
                for (p, s), ids in (yield from self._draw([pair], asked)).items():
                    yield Completion(p, s, ids, "nonfinite")

    def _draw(
        self, pairs: Iterable[Pair], asked: _Asked
    ) -> Generator[Completion, None, dict[Pair, list[int]]]:
        """Yields sequences as they end; returns those that it gave up because in some step logits were
        not finite, with their tokens so far where these are told. No more of ``pairs`` is read then."""
        waiting = iter(pairs)
        flying: dict[str, tuple[Pair, list[int]]] = {}
        ended: list[Completion] = []  # since the last look
        before, looked = self._broken(wait=True), time.monotonic()
        while True:
            for p, s in islice(waiting, 2 * self.room.sequences - len(flying)):
                name = self._ask(asked.prompts[p], asked.params(p, s))
                flying[name] = ((p, s), [])
            if not flying:
                return {}
            for output in self._step():
                (p, s), ids = flying[output.request_id]
                finish = _take(ids, output.outputs[0], asked.ends, asked.stop)
                if finish is None:
                    continue
                if not output.finished:
                    self._end(output.request_id)
                del flying[output.request_id]
                ended.append(Completion(p, s, ids, finish))
            soon = time.monotonic() - looked < _ASK_EVERY_S
            if self.gpus > 1 and len(flying) > 1 and soon:
                continue
            looked = time.monotonic()
            if self._broken() > before:
                self.abort()
                self._clear()
                given_up = {(c.prompt, c.sample): c.ids for c in ended} | dict(flying.values())
                # The last token may come from such logits. Where it does not, it is one too few.
                return {pair: ids[:-1] for pair, ids in given_up.items()}
            yield from ended
            ended.clear()

    def _clear(self) -> None:
        """Nothing is left of sequences that are gone: a kernel may multiply by zero what lies behind
        the end of the next one in its block, and of NaN that is NaN."""
        self.llm.llm_engine.reset_prefix_cache()
        self.llm.collective_rpc("qeval_clear")

    def _broken(self, wait: bool = False) -> int:
        """Steps so far whose logits were not finite: those of all tokens that were handed out are
        counted, and with ``wait`` what still runs."""
        counts: list[int] = self.llm.collective_rpc("qeval_broken", args=(wait,))
        return max(counts)

    def memory(self) -> tuple[int | None, int | None]:
        """Peaks of torch's allocator in bytes, allocated and reserved, of all GPUs together."""
        found = [pair for pair in self.llm.collective_rpc("qeval_memory") if pair is not None]
        if not found:
            return None, None
        return sum(a for a, _ in found), sum(r for _, r in found)

    def facts(self) -> dict[str, object]:
        layers = self.llm.collective_rpc("qeval_kernels")[0]
        pool = None if self.pool is None else self.pool * self.gpus
        return {"kv_pool_bytes": pool, "kernels": layers}

    def abort(self) -> None:
        if self._open:
            self.llm.llm_engine.abort_request(list(self._open))
            self._open.clear()

    def stop(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        core = self.llm.llm_engine.engine_core
        with suppress(Exception):  # it ends with the process, too
            core.shutdown()
        del self.llm
        with suppress(Exception):
            cleanup_dist_env_and_memory()

    def _score(self, ids: Ids) -> str:
        """Ask for the scores of a window. Its last token is drawn, from itself alone, so that a window
        may be as long as the model allows; the score is that of all tokens."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,
            logprobs=0,
            allowed_token_ids=[int(ids[-1])],
            ignore_eos=True,
            detokenize=False,
        )
        return self._ask([int(i) for i in ids[:-1]], params)

    def _ask(self, ids: list[int], params: Any) -> str:
        self._number += 1
        name = str(self._number)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, params)
        self._open.add(name)
        return name

    def _step(self) -> list[Any]:
        found = self.llm.llm_engine.step() if self._open else []
        for output in found:
            if output.finished:
                self._open.discard(output.request_id)
        return [output for output in found if output.outputs]

    def _end(self, name: str) -> None:
        self._open.discard(name)
        self.llm.llm_engine.abort_request([name])


@dataclass(frozen=True)
class _Asked:
    """What one call of ``generate`` draws."""

    prompts: list[list[int]]
    sampling: Sampling
    stop: Stop | None
    longest: int  # tokens of a sequence

    @property
    def ends(self) -> tuple[int, ...]:
        return self.sampling.stop_ids

    def params(self, p: int, s: int) -> Any:
        """vLLM's SamplingParams of one sequence."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, ids = self.sampling, self.prompts[p]
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed_of(sampling.seed, ids, s) if sampling.temperature else None,
            max_tokens=min(sampling.max_new_tokens, self.longest - len(ids)),
            stop_token_ids=list(sampling.stop_ids),
            ignore_eos=True,  # what ends a sequence is among stop_ids
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if self.stop else RequestOutputKind.FINAL_ONLY,
        )


def _prepare(settings: EngineSettings, processes: int) -> None:
    """Set what vLLM reads from the environment, before it is imported. ``processes`` share threads."""
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, whose memory is measured
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window has one token more, which is not fed
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of this process, which has asked the driver
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it knows no seed of a sequence
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, threads(settings.n_threads) // processes)),
    }


def _nll(output: Any, ids: Ids) -> list[float]:
    found = [-at[i].logprob for at, i in zip(output.prompt_logprobs[1:], ids[1:], strict=False)]
    return [*found, -output.outputs[0].logprobs[0][ids[-1]].logprob]


def _take(ids: list[int], new: Any, ends: Container[int], stop: Stop | None) -> str | None:
    """Add new tokens to a sequence; how it ended, None where it goes on. The id that ends it is left
    out, and so is what was drawn behind a stop."""
    for token in new.token_ids:
        if token in ends:
            return "eos"
        ids.append(int(token))
        if stop is not None and stop(ids):
            return "stop"
    return None if new.finish_reason is None else "length"
