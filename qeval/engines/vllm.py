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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, final

from qeval.core import provenance
from qeval.core.cores import threads
from qeval.core.devices import driver_device, gpus
from qeval.core.errors import EngineError, with_class
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
)
from qeval.engines.vllm_limits import VllmOptions, check_packed, check_parallel
from qeval.engines.vllm_running import BLOCK, TOKENS_AT_ONCE, Room, Running

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from qeval.core.artifact import Artifact, ModelRef

_SEQUENCES = {"cpu": 32, "cuda": 256}  # most that are generated at once


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
        self._running: Running | None = None
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
        check_packed(packed, device)

    @classmethod
    def check_options(cls, options: Mapping[str, object], model: ModelRef, device: str | None) -> None:
        check_parallel(VllmOptions.model_validate(dict(options)), model, device)

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
        at_once = max(1, TOKENS_AT_ONCE[self._kind] // longest)
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
        if self._kind == "cpu" and self._options.tensor_parallel_size > 1:
            found.append("peak RAM is that of one process, without those that share the model")
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
    def _run(self, sequences: int, tokens: int) -> Iterator[Running]:
        """vLLM with room for so much, started again where the one that runs has less. What is left
        unfinished is taken back at the end."""
        sequences = self._at_most(sequences)
        self._most = max(self._most, sequences)
        if self._running is None or not self._running.holds(sequences, tokens):
            self.close()
            self._asked.append((sequences, tokens))
            self._running = self._start(Room.of(self._asked))
        running = self._running
        try:
            yield running
        finally:
            running.abort()

    def _start(self, room: Room) -> Running:
        """Raises EngineError with vLLM's reason where it does not take the model."""
        whole = None if self._kv_bytes is None else room.blocks * BLOCK * self._kv_bytes
        pool = None if whole is None else math.ceil(whole * self._kv_share)
        try:
            return Running.start(self._artifact, self._settings, self._options, room, pool)
        except Exception as err:  # its own, torch's, transformers': it has no class for what it refuses
            raise EngineError(f"vLLM cannot run {self._artifact.path}: {_reason(err)}") from err


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
