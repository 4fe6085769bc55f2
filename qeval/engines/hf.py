"""`hf`: any transformers causal LM, on CUDA or the CPU, in float32, float16 or bfloat16.

Runs float models and simulated weights alike: an artifact is a normal Hugging Face folder. Perplexity
forwards one batch of equal windows at a time without a KV cache and scores in float32 pieces, so that
the logits of a long window over a large vocabulary never exist twice. Rows with ``activations`` or
``kv_cache`` run with low_bits.py's roundings, and the latter always through a cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from qeval import provenance
from qeval.cores import threads
from qeval.devices import torch_device
from qeval.errors import EngineError
from qeval.extras import require
from qeval.lm import Completion, EngineSettings, Ids, Internals, Sampling, StepTrace, Stop
from qeval.record import MemoryReport

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from qeval.engines.low_bits import LowBitCache, RoundedCache
    from qeval.quant.base import Artifact

_CHUNK_ELEMENTS = 2**25  # float32 logits scored at once: 128 MiB
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # tokens of a batch of windows
_TOKENS_CACHED = 4096  # the same, where the keys and values of all layers are kept beside them
_SEQUENCES = {"cpu": 8, "cuda": 64}  # sequences generated at once


class HfEngine:
    name: ClassVar[str] = "hf"
    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"nll", "logits", "steps", "generate", "memory", "tensors", "activations", "kv_cache"}
    )

    def __init__(
        self,
        model: Any,
        artifact: Artifact,
        settings: EngineSettings,
        low_bit_cache: LowBitCache | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._model = model
        self._artifact = artifact
        self._device: torch.device = model.device
        self._batch_size = settings.batch_size
        self._low_bit_cache = low_bit_cache
        self._notes = notes
        self._largest_batch: int | None = None
        config = model.config.get_text_config()
        self.max_seq_len = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self.vocab_size = int(config.vocab_size)

    @classmethod
    def preflight(cls) -> None:
        require("hf", "torch", "transformers")

    @classmethod
    def device(cls, asked: str) -> str:
        return torch_device(asked)

    @classmethod
    def open(cls, artifact: Artifact, settings: EngineSettings) -> HfEngine:
        """Raises EngineError where transformers cannot load the folder whole, or where its attention
        cannot have the ``kv_cache`` that is asked."""
        import torch

        from qeval.engines.packed import load
        from qeval.quant.linears import device_of

        torch.set_num_threads(threads(settings.n_threads))
        device = device_of(settings.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"device {settings.device}: torch sees no CUDA GPU; use device: cpu")
        model = load(artifact, settings, device)
        asked = artifact.details.get("execution") or {}
        if not asked.keys() & cls.capabilities:
            return cls(model, artifact, settings)
        from qeval.engines.low_bits import LowBitCache, round_activations

        note, cache = None, None
        if how := asked.get("activations"):
            note = round_activations(model, how["num_bits"], how["symmetric"])
        if how := asked.get("kv_cache"):
            cache = LowBitCache.on(model, **how)
        return cls(model, artifact, settings, cache, (note,) if note else ())

    def nll(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[NDArray[np.float32]]:
        for batch in self._batches(windows):
            yield from self._score(batch, first)

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            out = self._model(input_ids=self._tensor([ids]), **self._caching()).logits[0]
            result: NDArray[np.float32] = out.float().cpu().numpy()
        return result

    def steps(self, ids: Ids) -> StepTrace:
        import numpy as np
        import torch

        cache, nll, seconds, allocated = self._new_cache(), [], [], []
        on_gpu = self._device.type == "cuda"
        with torch.inference_mode():
            for position, token in enumerate(ids):
                start = time.perf_counter()
                out = self._model(
                    input_ids=self._tensor([[token]]), past_key_values=cache, use_cache=True
                )
                if on_gpu:
                    torch.cuda.synchronize(self._device)
                    allocated.append(torch.cuda.memory_allocated(self._device))
                seconds.append(time.perf_counter() - start)
                cache = out.past_key_values
                if position + 1 < len(ids):
                    row = out.logits[0, -1].float().log_softmax(-1)
                    nll.append(-row[ids[position + 1]].item())
        return StepTrace(np.array(nll, np.float32), np.array(seconds), max(allocated, default=None))

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None = None
    ) -> Iterator[Completion]:
        size = sampling.at_once or self._batch_size or _SEQUENCES[self._device.type]
        units = [(p, s) for p in range(len(prompts)) for s in range(sampling.n)]
        for start in range(0, len(units), size):
            yield from self._generate_batch(prompts, units[start : start + size], sampling, stop)

    def internals(self) -> Internals:
        from transformers import DynamicCache

        def cache() -> Any:
            own = self._new_cache()
            return DynamicCache(config=self._model.config) if own is None else own

        return Internals(self._model, cache)

    def tokenize(self, text: str, *, special: bool = True) -> list[int] | None:
        return None

    def memory(self, context: int) -> MemoryReport:
        import torch

        on_gpu = self._device.type == "cuda"
        return MemoryReport(
            weights=self._artifact.weight_bytes,
            embeddings=self._artifact.embedding_bytes,
            kv_cache=self._kv_bytes(context),
            context=context,
            vram_allocated=torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
            vram_reserved=torch.cuda.max_memory_reserved(self._device) if on_gpu else None,
        )

    def facts(self) -> dict[str, Any]:
        import torch
        import transformers

        from qeval.engines.packed import kernels

        facts: dict[str, Any] = {
            **_place(self._device),
            "n_threads": torch.get_num_threads(),
            "batch_size": self._largest_batch,
            "engine_version": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }
        chosen: dict[str, Any] = getattr(self._model, "kernel_facts", {})
        found = kernels(self._model)
        return {**facts, **chosen, "kernels": found} if found else facts

    def notes(self) -> tuple[str, ...]:
        from qeval.engines.packed import resident_bytes, unpacked_note

        if self._artifact.simulated or "format" not in self._artifact.details:
            return self._notes
        note = unpacked_note(self._artifact, resident_bytes(self._model))
        return (*self._notes, note) if note else self._notes

    def close(self) -> None:
        del self._model

    def _tensor(self, rows: Sequence[Ids]) -> torch.Tensor:
        """One forward's input, [len(rows), tokens]; rows of one length."""
        import torch

        self._largest_batch = max(len(rows), self._largest_batch or 0)
        return torch.tensor(rows, dtype=torch.long, device=self._device)

    def _new_cache(self) -> RoundedCache | None:
        """None: the model makes its own, in its dtype."""
        return None if self._low_bit_cache is None else self._low_bit_cache.new(self._model)

    def _caching(self) -> dict[str, Any]:
        """How one forward of whole sequences is called: without a cache, or with one that rounds."""
        cache = self._new_cache()
        return {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}

    def _batches(self, windows: Sequence[Ids]) -> Iterator[list[Ids]]:
        """Consecutive windows of one length, as many as the token budget and batch_size allow: a
        batch_size meant for generation must not make the logits of 200 long windows."""
        for length, group in groupby(windows, key=len):
            equal = list(group)
            tokens = _TOKENS_AT_ONCE[self._device.type]
            if self._low_bit_cache is not None:
                tokens = min(tokens, _TOKENS_CACHED)
            budget = max(1, tokens // length)
            size = min(self._batch_size or budget, budget)
            for start in range(0, len(equal), size):
                yield equal[start : start + size]

    def _score(self, batch: list[Ids], first: int) -> Iterator[NDArray[np.float32]]:
        import torch
        from torch.nn.functional import cross_entropy

        ids = self._tensor(batch)
        keep = ids.shape[1] - first + 1  # logits at first-1 .. last; the last one predicts nothing here
        with torch.inference_mode():
            logits = self._model(input_ids=ids, logits_to_keep=keep, **self._caching()).logits
            flat = logits[:, -keep:-1].flatten(0, 1)
            targets = ids[:, first:].flatten()
            step = max(1, _CHUNK_ELEMENTS // flat.shape[1])
            pieces = [
                cross_entropy(flat[i : i + step].float(), targets[i : i + step], reduction="none")
                for i in range(0, len(targets), step)
            ]
            nll = torch.cat(pieces).view(len(batch), -1).cpu().numpy()
        yield from nll

    def _generate_batch(
        self,
        prompts: Sequence[Ids],
        units: list[tuple[int, int]],
        sampling: Sampling,
        stop: Stop | None,
    ) -> Iterator[Completion]:
        """Prompts padded on the left into one batch of transformers' own ``generate``."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        width = max(len(prompts[p]) for p, _ in units)
        pad = sampling.stop_ids[0] if sampling.stop_ids else 0
        rows = [[pad] * (width - len(prompts[p])) + list(prompts[p]) for p, _ in units]
        mask = [[0] * (width - len(prompts[p])) + [1] * len(prompts[p]) for p, _ in units]
        greedy = sampling.temperature == 0
        drawing = (
            {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        )
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not greedy,
            eos_token_id=list(sampling.stop_ids) or None,
            pad_token_id=pad,
            **drawing,
        )
        cache = self._new_cache()
        cached = {} if cache is None else {"past_key_values": cache}
        config.use_cache = True if cached else config.use_cache
        ends = _Ends(width, stop)
        torch.manual_seed(_seed(sampling.seed, units[0]))
        with torch.inference_mode():
            out = self._model.generate(
                self._tensor(rows),
                attention_mask=self._tensor(mask),
                generation_config=config,
                **cached,
                stopping_criteria=StoppingCriteriaList([ends] if stop else []),
            )
        for i, (prompt, sample) in enumerate(units):
            ids, finish = _cut(out[i, width:].tolist(), ends.found.get(i), sampling)
            yield Completion(prompt, sample, ids, finish)

    def _kv_bytes(self, context: int) -> int | None:
        """Keys and values of every layer, in the model's dtype or in the row's own bits; None where the
        config names no heads, or keeps a latent state in their place (DeepSeek's attention).

        An upper bound where layers slide a window: transformers' cache of such a layer is shorter.
        """
        if self._low_bit_cache is not None:
            return self._low_bit_cache.n_bytes(context)
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None)
        layers = getattr(config, "num_hidden_layers", None)
        if not heads or not layers or getattr(config, "kv_lora_rank", None):
            return None
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return (
            2 * int(layers) * int(kv_heads) * int(head_dim) * context * int(self._model.dtype.itemsize)
        )


def _place(device: torch.device) -> dict[str, str]:
    """``device`` and ``device_name``, as LM.facts has them."""
    import torch

    if device.type != "cuda":
        return {"device": device.type, "device_name": provenance.cpu_name()}
    index = torch.cuda.current_device() if device.index is None else device.index
    return {"device": f"cuda:{index}", "device_name": torch.cuda.get_device_name(index)}


class _Ends:
    """transformers stopping criterion: where ``stop`` ended each sequence of a batch."""

    def __init__(self, width: int, stop: Stop | None) -> None:
        self._width = width
        self._stop = stop
        self.found: dict[int, int] = {}  # sequence -> number of new tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        import torch

        new = input_ids[:, self._width :].tolist()
        for i, ids in enumerate(new):
            if i not in self.found and self._stop is not None and self._stop(ids):
                self.found[i] = len(ids)
        done = [i in self.found for i in range(len(new))]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def _cut(ids: list[int], end: int | None, sampling: Sampling) -> tuple[list[int], str]:
    """New tokens up to the first stopping id or stop, and why they ended."""
    for i, token in enumerate(ids[:end]):
        if token in sampling.stop_ids:
            return ids[:i], "eos"
    if end is not None:
        return ids[:end], "stop"
    return ids, "length"


def _seed(seed: int, unit: tuple[int, int]) -> int:
    """One stream of random numbers a batch, fixed by the spec's seed and the batch's first unit."""
    return (seed * 1_000_003 + unit[0] * 10_007 + unit[1]) % 2**63
