"""`vllm`: what people deploy on, for every Hugging Face folder that vLLM takes.

vLLM needs versions of its own, so that it runs in the environment `vllm` (`qeval env create vllm`),
unless it is installed beside qeval. It is started when a task asks for the first number, in this
process, with a cache of keys and values that has room for what the task asks (``LM.reserve``) and not
for a share of the GPU: a peak of memory then says what the model needs.

Token ids go in. Scores are vLLM's own prompt log-probabilities. Logits are what its model hands to its
sampler, by its own norm and output head, heard by vllm_worker.py and checked against these scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from pydantic import Field

from qeval.core import provenance
from qeval.core.cores import threads
from qeval.core.devices import cpu_flags, driver_device, gpus
from qeval.core.errors import EngineError, UsageError, with_class
from qeval.core.options import Options
from qeval.core.record import MemoryReport
from qeval.core.settings import EngineSettings
from qeval.engines.base import (
    LM,
    Completion,
    Ids,
    Packed,
    Sampling,
    StepTrace,
    Stop,
    check_prompts,
    per_window,
    seed_of,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from qeval.core.artifact import Artifact, ModelRef

_BLOCK = 128  # tokens: a cache is laid out in blocks of 16 on GPUs, of 128 on the CPU
_SEQUENCES = {"cpu": 32, "cuda": 256}  # most that are generated at once
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # of one step
_TOLD_APART = 1e-2  # nats: more between a score and its logits, and these are not the ones
_PACKED = {
    "gptq": ("cpu", "cuda"),
    "awq": ("cpu", "cuda"),
    "compressed-tensors": ("cpu", "cuda"),
    "auto-round": ("cpu", "cuda"),
    "fp8": ("cuda",),
    "bitsandbytes": ("cuda",),
}
"""Packed formats that vLLM takes in their own files, and on which devices."""
_FEW_BITS = ("gptq", "awq", "auto-round")  # by one kernel of the CPU's


class VllmOptions(Options):
    tensor_parallel_size: int = Field(default=1, ge=1)  # GPUs that share every layer
    pipeline_parallel_size: int = Field(default=1, ge=1)  # GPUs that have a part of the layers each
    max_model_len: int | None = Field(default=None, ge=2)  # tokens; None: the model's maximum
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    enforce_eager: bool = False  # no compilation and no CUDA graphs; on the CPU there are none
    max_num_seqs: int | None = Field(default=None, ge=1)  # at once; None: what the cache has room for


@final
class VllmEngine(LM):
    name: ClassVar[str] = "vllm"
    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("vllm", "torch")
    capabilities: ClassVar[frozenset[str]] = frozenset({"nll", "logits", "generate", "memory"})
    Options: ClassVar[type[Options]] = VllmOptions
    runs: ClassVar[frozenset[str]] = frozenset({"hf"})
    environment: ClassVar[str | None] = "vllm"

    def __init__(self, artifact: Artifact, settings: EngineSettings) -> None:
        """Raises EngineError where transformers does not know the folder's model."""
        from transformers import AutoConfig

        from qeval.models.loading import kv_bytes, max_positions

        self._artifact, self._settings = artifact, settings
        self._options = VllmOptions.model_validate(dict(settings.execution.engine))
        self._device = self.device(settings.device)
        self._kind = self._device.partition(":")[0]
        try:
            config = AutoConfig.from_pretrained(
                artifact.path, trust_remote_code=settings.trust_remote_code
            )
        except (OSError, ValueError) as err:
            raise EngineError(f"{artifact.path}: {with_class(err)}") from err
        text = config.get_text_config()
        self.max_seq_len = min(max_positions(config), self._options.max_model_len or 2**31)
        self.vocab_size = int(text.vocab_size)
        itemsize = 1 if self._options.kv_cache_dtype != "auto" else _ITEMSIZE[settings.dtype]
        self._kv_bytes = kv_bytes(config, itemsize)
        self._kv_share = _kv_share(text, self._options)
        self._asked: list[tuple[int, int]] = []  # sequences and tokens, by `reserve`
        self._running: _Running | None = None
        self._most = 0  # sequences at once

    @classmethod
    def preflight(cls) -> None:
        """Whether it can be had is the environment's business."""

    @classmethod
    def device(cls, asked: str) -> str:
        """Raises EngineError for a device that vLLM would not use: where there is a GPU its build is
        for GPUs, and it counts from the first that it sees."""
        found = driver_device(asked)
        if found == "cpu" and gpus():
            raise EngineError("device cpu: on a machine with a GPU vLLM runs there: leave device out")
        if found not in ("cpu", "cuda:0"):
            number = found.partition(":")[2]
            raise EngineError(
                f"device {asked}: vLLM takes the first GPU that it sees: set CUDA_VISIBLE_DEVICES="
                f"{number} and device: cuda"
            )
        return found

    @classmethod
    def check(cls, packed: Packed | None, model: ModelRef, device: str | None) -> None:
        if packed is None:
            return
        if packed.name not in _PACKED:
            raise UsageError(
                f"vLLM does not run weights packed by {packed.name}: leave `engine: vllm` out, or take "
                f"one of {', '.join(_PACKED)}"
            )
        if device is not None and device not in _PACKED[packed.name]:
            raise UsageError(f"vLLM runs {packed.name} on CUDA only: leave `engine: vllm` out")
        few = packed.name in _FEW_BITS or packed.num_bits == 4
        if device == "cpu" and few and "avx512f" not in cpu_flags():
            raise UsageError(
                f"vLLM's kernel for {packed.name} in few bits needs AVX-512, which this CPU has not: "
                "leave `engine: vllm` out"
            )
        if packed.name == "gptq" and packed.symmetric is False:
            raise UsageError(
                "vLLM runs GPTQ's format with symmetric grids only: set symmetric: true, or leave "
                "`engine: vllm` out"
            )
        if packed.name == "gptq" and packed.num_bits not in (None, 4, 8):
            raise UsageError(
                f"vLLM runs GPTQ's format with 4 or 8 bits, not {packed.num_bits:g}: leave "
                "`engine: vllm` out"
            )

    @classmethod
    def open(cls, artifact: Artifact, settings: EngineSettings) -> VllmEngine:
        return cls(artifact, settings)

    def reserve(self, sequences: int, tokens: int) -> None:
        self._asked.append((self._at_most(sequences), tokens))

    def nll(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[NDArray[np.float32]]:
        import numpy as np

        if not windows:
            return
        longest = max(map(len, windows))
        at_once = max(1, _TOKENS_AT_ONCE[self._kind] // longest)
        with self._run(min(at_once, len(windows)), longest) as running:
            for scores in running.scores(windows):
                yield np.array(scores[first - 1 :], np.float32)

    def predictions(
        self, windows: Sequence[Ids], *, first: int | Sequence[int] = 1
    ) -> Iterator[torch.Tensor]:
        if not windows:
            return
        with self._run(1, max(map(len, windows))) as running:
            for ids, start in zip(windows, per_window(first, windows), strict=True):
                yield running.logits(ids)[start - 1 :]

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        with self._run(1, len(ids) + 1) as running:
            found: NDArray[np.float32] = running.logits([*ids, 0]).float().cpu().numpy()
        return found

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None = None
    ) -> Iterator[Completion]:
        if not prompts:
            return
        check_prompts(prompts, self.max_seq_len, self._artifact.path)
        longest = min(max(map(len, prompts)) + sampling.max_new_tokens, self.max_seq_len)
        chosen = sampling.at_once or self._settings.batch_size or _SEQUENCES[self._kind]
        at_once = min(chosen, len(prompts) * len(sampling.numbers))
        with self._run(at_once, longest) as running:
            yield from running.generate(prompts, sampling, stop, self.max_seq_len)

    def steps(self, ids: Ids) -> StepTrace:
        raise EngineError("the engine vllm does not feed one token after the other")

    def tokenize(
        self, text: str, *, special: bool = True, parse_special: bool = True
    ) -> list[int] | None:
        return None

    def memory(self, context: int) -> MemoryReport:
        peaks = self._running.memory() if self._running else (None, None)
        return MemoryReport(
            weights=self._artifact.weight_bytes,
            embeddings=self._artifact.embedding_bytes,
            kv_cache=None if self._kv_bytes is None else self._kv_bytes * context,
            context=context,
            vram_allocated=peaks[0],
            vram_reserved=peaks[1],
        )

    def facts(self) -> dict[str, object]:
        name = provenance.cpu_name()
        if self._kind == "cuda":  # not of torch, which would take memory of a GPU that workers have
            name = gpus()[int(self._device.partition(":")[2] or 0)]
        found = self._running.facts() if self._running else {}
        return {
            "device": self._device,
            "device_name": name,
            "n_threads": threads(self._settings.n_threads),
            "batch_size": self._most or None,
            "engine_version": ", ".join(f"{p} {_version(p)}" for p in self.packages),
            **found,
        }

    def notes(self) -> tuple[str, ...]:
        found = []
        floor = self._settings.execution.running.floor
        if floor is not None and floor.kind == "repetition":
            found.append("vLLM is given one window after the other, whatever the batch: no floor")
        if self._running is not None and self._running.pool is None and self._kind == "cuda":
            found.append(
                "vLLM took its share of the GPU in advance: the peak is not what the model needs"
            )
        return tuple(found)

    def close(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _at_most(self, sequences: int) -> int:
        return min(sequences, self._options.max_num_seqs or sequences)

    @contextmanager
    def _run(self, sequences: int, tokens: int) -> Iterator[_Running]:
        """vLLM with room for so much, started again where the one that runs has less. What is left
        unfinished is taken back at the end."""
        sequences = self._at_most(sequences)
        self._most = max(self._most, sequences)
        if self._running is None or not self._running.holds(sequences, tokens):
            self.close()
            self._asked.append((sequences, tokens))
            self._running = self._start(_Room.of(self._asked))
        running = self._running
        try:
            yield running
        finally:
            running.abort()

    def _start(self, room: _Room) -> _Running:
        """Raises EngineError with vLLM's reason where it does not take the model."""
        whole = None if self._kv_bytes is None else room.blocks * _BLOCK * self._kv_bytes
        pool = None if whole is None else math.ceil(whole * self._kv_share)
        try:
            return _Running.start(self._artifact, self._settings, self._options, room, pool)
        except Exception as err:  # its own, torch's, transformers': it has no class for what it refuses
            raise EngineError(f"vLLM cannot run {self._artifact.path}: {_reason(err)}") from err


class _Room(NamedTuple):
    """What a vLLM has room for: sequences at once, the tokens of the longest, and blocks of tokens."""

    sequences: int
    tokens: int
    blocks: int

    @staticmethod
    def of(asked: Sequence[tuple[int, int]]) -> _Room:
        """For any one of these at a time."""
        blocks = max(_blocks(*each) for each in asked)
        return _Room(max(s for s, _ in asked), max(t for _, t in asked), blocks)


def _blocks(sequences: int, tokens: int) -> int:
    """Each sequence may begin in a block of its own; vLLM keeps one to itself."""
    return sequences * (-(-tokens // _BLOCK) + 1) + 1


def _kv_share(text: Any, options: VllmOptions) -> float:
    """Of all keys and values those that one of several GPUs keeps: its layers', and its heads', of
    which it has one at the least."""
    heads = (
        getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None) or 1
    )
    layers = getattr(text, "num_hidden_layers", None) or 1
    own_heads = max(1, heads // options.tensor_parallel_size)
    own_layers = math.ceil(layers / options.pipeline_parallel_size)
    return own_heads / heads * own_layers / layers


_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass
class _Running:
    """A started vLLM. ``pool``: bytes of its cache on each of its ``gpus``, None: a share of them."""

    llm: Any
    room: _Room
    pool: int | None
    gpus: int = 1
    _number: int = 0
    _open: set[str] = field(default_factory=set)  # requests that are not finished

    @staticmethod
    def start(
        artifact: Artifact,
        settings: EngineSettings,
        options: VllmOptions,
        room: _Room,
        pool: int | None,
    ) -> _Running:
        kind = driver_device(settings.device).partition(":")[0]
        _prepare(settings)
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
            max_num_batched_tokens=max(_TOKENS_AT_ONCE[kind], room.tokens),
            # Of a prompt in two parts its runner on CPUs cannot draw by a seed.
            enable_chunked_prefill=kind != "cpu",
            enforce_eager=options.enforce_eager or kind == "cpu",
            worker_extension_cls="qeval.engines.vllm_worker.Ear",
            disable_log_stats=True,
            **own_pool,
            **given,
        )
        return _Running(llm, room, pool, options.tensor_parallel_size * options.pipeline_parallel_size)

    def holds(self, sequences: int, tokens: int) -> bool:
        room = self.room
        fits = _blocks(sequences, tokens) <= room.blocks
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
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if stop else RequestOutputKind.FINAL_ONLY
        ends = set(sampling.stop_ids)
        plain = [[int(i) for i in ids] for ids in prompts]
        waiting = ((p, s) for p in range(len(prompts)) for s in sampling.numbers)
        flying: dict[str, tuple[int, int, list[int]]] = {}
        left = len(prompts) * len(sampling.numbers)
        while left:
            for p, s in islice(waiting, 2 * self.room.sequences - len(flying)):
                params = SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=seed_of(sampling.seed, plain[p], s) if sampling.temperature else None,
                    max_tokens=min(sampling.max_new_tokens, longest - len(plain[p])),
                    stop_token_ids=list(sampling.stop_ids),
                    ignore_eos=True,  # what ends a sequence is among stop_ids
                    detokenize=False,
                    output_kind=kind,
                )
                flying[self._ask(plain[p], params)] = (p, s, [])
            for output in self._step():
                p, s, ids = flying[output.request_id]
                finish = _take(ids, output.outputs[0], ends, stop)
                if finish is None:
                    continue
                if not output.finished:
                    self._end(output.request_id)
                del flying[output.request_id]
                left -= 1
                yield Completion(p, s, ids, finish)

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


def _prepare(settings: EngineSettings) -> None:
    """Set what vLLM reads from the environment, before it is imported."""
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, whose memory is measured
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window has one token more, which is not fed
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of this process, which has asked the driver
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it knows no seed of a sequence
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads(settings.n_threads)),
    }


def _nll(output: Any, ids: Ids) -> list[float]:
    found = [-at[i].logprob for at, i in zip(output.prompt_logprobs[1:], ids[1:], strict=False)]
    return [*found, -output.outputs[0].logprobs[0][ids[-1]].logprob]


def _take(ids: list[int], new: Any, ends: set[int], stop: Stop | None) -> str | None:
    """Add new tokens to a sequence; how it ended, None where it goes on. The id that ends it is left
    out, and so is what was drawn behind a stop."""
    for token in new.token_ids:
        if token in ends:
            return "eos"
        ids.append(int(token))
        if stop is not None and stop(ids):
            return "stop"
    return None if new.finish_reason is None else "length"


def _reason(err: Exception) -> str:
    """The first line that says something; pydantic's errors have a heading before it."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    said = [line for line in lines if "validation error" not in line] or lines
    plain = said[0].removeprefix("Value error, ").partition(" [type=")[0] if said else ""
    return plain or with_class(err)


def _version(package: str) -> str:
    """vLLM's build for the CPU is a package of another name."""
    for name in (package, f"{package}-cpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"
