"""`hf`: any transformers causal LM, on CUDA or the CPU, in float32, float16 or bfloat16.

Runs float models and simulated weights alike: an artifact is a normal Hugging Face folder. Perplexity
forwards one batch of equal windows at a time without a KV cache and scores in float32 pieces, so that
the logits of a long window over a large vocabulary never exist twice. Rows with ``activations`` or
``kv_cache`` run with low_bits.py's roundings, and the latter always through a cache. Generation is in
generation/: by continuous batching, and by transformers' loop for the few families that it does not
fit.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, final

from qeval.core import provenance
from qeval.core.cores import threads
from qeval.core.devices import torch_device
from qeval.core.errors import EngineError
from qeval.core.extras import require
from qeval.core.record import MemoryReport
from qeval.core.settings import EngineSettings
from qeval.engines.base import (
    LM,
    Completion,
    Ids,
    Internals,
    Sampling,
    StepTrace,
    Stop,
    check_prompts,
    per_window,
)
from qeval.models.finite import nonfinite_notes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from qeval.core.artifact import Artifact
    from qeval.engines.generation.batching import Batcher
    from qeval.engines.generation.fewer import Fewer
    from qeval.engines.generation.transformers_loop import Decoder
    from qeval.engines.low_bits import LowBitCache, RoundedCache

_CHUNK_ELEMENTS = 2**25  # float32 logits scored at once: 128 MiB
_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # tokens of a batch of windows
_WORTH_COMPILING = 4e15  # operations: ten seconds of a large GPU, for the few that compiling takes
_TOKENS_CACHED = 4096  # the same, where the keys and values of all layers are kept beside them


@final
class HfEngine(LM):
    name: ClassVar[str] = "hf"
    version: ClassVar[int] = 3  # 2: nothing but the spec decides generation; 3: continuous batching
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    shared_imports: ClassVar[str | None] = "qeval.engines.hf_imports"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"nll", "logits", "steps", "generate", "memory", "tensors", "activations", "kv_cache", "floor"}
    )

    def __init__(
        self,
        model: PreTrainedModel,
        artifact: Artifact,
        settings: EngineSettings,
        low_bit_cache: LowBitCache | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._model = model
        self._artifact = artifact
        self._device: torch.device = model.device
        self._batch_size = settings.batch_size
        self._rounded = bool(settings.execution.to_json())
        self._low_bit_cache = low_bit_cache
        self._notes = notes
        self._largest_batch: int | None = None
        self._is_causal = _is_noisy(settings)  # then `open` has looked before there was noise
        self._decoder: Decoder | Batcher | None = None
        self._fewer: Fewer | None = None
        self._token_nll: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # compiled
        from qeval.models.loading import max_positions

        config = model.config.get_text_config()
        self.max_seq_len = max_positions(model.config)
        self.vocab_size = int(config.vocab_size)
        table = model.get_input_embeddings()  # may have more rows, up to a round number
        self._n_embeddings = int(getattr(table, "num_embeddings", self.vocab_size))

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

        from qeval.models.loading import lean_transformers

        lean_transformers()  # before transformers_loop, which imports model classes
        from qeval.engines.generation.transformers_loop import take_no_advice
        from qeval.formats.load import load, nonfinite
        from qeval.models.linears import device_of

        torch.set_num_threads(threads(settings.n_threads))
        device = device_of(settings.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"device {settings.device}: torch sees no CUDA GPU; use device: cpu")
        model = load(artifact, settings, device)
        take_no_advice(model)
        notes = nonfinite_notes(nonfinite(model))
        asked = settings.execution.running
        if not asked:
            return cls(model, artifact, settings, notes=notes)
        from qeval.engines.low_bits import LowBitCache, add_rounding_noise, round_activations
        from qeval.models.loading import check_causal

        note, cache = None, None
        if asked.activations:
            note = round_activations(model, asked.activations.num_bits, asked.activations.symmetric)
        if _is_noisy(settings):
            check_causal(model)  # now: with noise, every call predicts otherwise
            add_rounding_noise(model)
        if asked.kv_cache:
            cache = LowBitCache.on(model, asked.kv_cache.num_bits, asked.kv_cache.group_size)
        return cls(model, artifact, settings, cache, (*notes, *([note] if note else [])))

    def _check_causal(self) -> None:
        """Once. Raises EngineError where the model is no causal one."""
        from qeval.models.loading import check_causal

        if not self._is_causal:
            check_causal(self._model)
            self._is_causal = True

    def nll(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[NDArray[np.float32]]:
        self._check_causal()
        self._prepare(sum(map(len, windows)))
        started: list[torch.Tensor] = []
        for batch, _ in self._batches(windows, first):
            following = self._score(batch, first)  # a GPU computes them while these are read
            yield from (nll.cpu().numpy() for nll in started)
            started = following
        yield from (nll.cpu().numpy() for nll in started)

    def _prepare(self, n_tokens: int) -> None:
        """Compile what the forwards of so many tokens are worth."""
        import torch

        from qeval.engines.generation.cache import has_triton
        from qeval.engines.generation.fewer import Fewer

        work = 2 * n_tokens * self._model.num_parameters()
        if self._device.type != "cuda" or work <= _WORTH_COMPILING or not has_triton():
            return
        self._fewer = self._fewer or Fewer(self._model)
        self._token_nll = self._token_nll or torch.compile(token_nll, dynamic=True)

    def predictions(
        self, windows: Sequence[Ids], *, first: int | Sequence[int] = 1
    ) -> Iterator[torch.Tensor]:
        self._check_causal()
        self._prepare(sum(map(len, windows)))
        for batch, start in self._batches(windows, first):
            # Nothing follows the last token, so that it is not fed.
            yield from self._forward(self._tensor(batch)[:, :-1], start)

    def pieces(self, ids: Sequence[int]) -> list[str] | None:
        from qeval.core.artifact import ModelRef
        from qeval.models.tokenizer import load_tokenizer

        folder = self._artifact.path
        if not (folder / "tokenizer.json").is_file():
            return None
        own = load_tokenizer(ModelRef(str(folder), folder, "", "float32"))
        return [own.decode([i], special=True) for i in ids]

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            out = self._model(input_ids=self._tensor([ids]), **self._caching()).logits[0]
            result: NDArray[np.float32] = out.float().cpu().numpy()
        return result

    def steps(self, ids: Ids) -> StepTrace:
        import numpy as np
        import torch

        if "past_key_values" not in inspect.signature(self._model.forward).parameters:
            raise self._no_cache()
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
                cache = getattr(out, "past_key_values", None)
                if cache is None:
                    raise self._no_cache()
                if position + 1 < len(ids):
                    following = self._tensor([[ids[position + 1]]])[0]
                    nll.append(token_nll(out.logits[0, -1:], following).item())
        return StepTrace(np.array(nll, np.float32), np.array(seconds), max(allocated, default=None))

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None = None
    ) -> Iterator[Completion]:
        if not prompts:
            return
        check_prompts(prompts, self.max_seq_len, self._artifact.path)
        for ids in prompts:
            self._check(ids)
        if self._decoder is None:
            self._decoder = self._new_decoder(prompts)
        yield from self._decoder.run(prompts, sampling, sampling.at_once or self._batch_size, stop)

    def _new_decoder(self, prompts: Sequence[Ids]) -> Decoder | Batcher:
        """Continuous batching where the model is seen to answer through it as it does alone."""
        from qeval.engines.generation.batching import batcher_for
        from qeval.engines.generation.fewer import Fewer
        from qeval.engines.generation.transformers_loop import Decoder, check_generates

        check_generates(self._model)
        self._fewer = self._fewer or Fewer(self._model)
        rounded = self._rounded or self._artifact.format is not None
        exact = str(self._model.dtype) == "torch.float32" and not rounded
        low_bit = self._new_cache()
        found = batcher_for(
            self._model,
            self.max_seq_len,
            self._new_cache,
            None if low_bit is None else low_bit.rounded,
            prompts,
            exact=exact,
            fewer=self._fewer,
        )
        if not isinstance(found, str):
            return found
        return Decoder(self._model, self.max_seq_len, self._new_cache, why=found, exact=exact)

    def _no_cache(self) -> EngineError:
        kind = self._model.config.model_type
        return EngineError(
            f"{self._artifact.path}: {kind} keeps no cache of keys and values that one token after the "
            "other could go through: take protocol gptq-benchmark off this model"
        )

    def internals(self) -> Internals:
        from transformers import DynamicCache

        def cache() -> object:
            own = self._new_cache()
            return DynamicCache(config=self._model.config) if own is None else own

        return Internals(self._model, cache)

    def tokenize(
        self, text: str, *, special: bool = True, parse_special: bool = True
    ) -> list[int] | None:
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

    def facts(self) -> dict[str, object]:
        import torch
        import transformers

        from qeval.formats.load import kernels

        batches = (self._largest_batch, self._decoder and self._decoder.largest_batch)
        facts: dict[str, object] = {
            **_place(self._device),
            "n_threads": torch.get_num_threads(),
            "batch_size": max((n for n in batches if n), default=None),
            "engine_version": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }
        facts |= {"generation": self._decoder.facts()} if self._decoder else {}
        chosen: dict[str, object] = getattr(self._model, "kernel_facts", {})
        found = kernels(self._model)
        return {**facts, **chosen, "kernels": found} if found else facts

    def notes(self) -> tuple[str, ...]:
        from qeval.formats.load import resident_bytes, unpacked_note

        notes = [*self._notes, *(self._decoder.notes() if self._decoder else ())]
        if not self._artifact.simulated and self._artifact.format is not None:
            unpacked = unpacked_note(self._artifact, resident_bytes(self._model))
            notes += [unpacked] if unpacked else []
        return tuple(notes)

    def close(self) -> None:
        del self._model

    def _tensor(self, rows: Sequence[Ids]) -> torch.Tensor:
        """One forward's input, [len(rows), tokens]; rows of one length."""
        import torch

        for row in rows:
            self._check(row)
        self._largest_batch = max(len(rows), self._largest_batch or 0)
        return torch.tensor(rows, dtype=torch.long, device=self._device)

    def _check(self, ids: Ids) -> None:
        """Raises EngineError for an id that the model has no embedding of."""
        wrong = [i for i in (min(ids), max(ids)) if not 0 <= i < self._n_embeddings]
        if wrong:
            raise EngineError(
                f"token id {wrong[0]} is outside the vocabulary of {self._artifact.path} "
                f"({self._n_embeddings} tokens): it does not belong to this tokenizer"
            )

    def _new_cache(self) -> RoundedCache | None:
        """None: the model makes its own, in its dtype."""
        return None if self._low_bit_cache is None else self._low_bit_cache.new(self._model)

    def _caching(self) -> dict[str, object]:
        """How one forward of whole sequences is called: without a cache, or with one that rounds."""
        cache = self._new_cache()
        return {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}

    def _batches(
        self, windows: Sequence[Ids], first: int | Sequence[int]
    ) -> Iterator[tuple[list[Ids], int]]:
        """Consecutive windows of one length and one ``first``, as many as the token budget and
        batch_size allow: a batch_size meant for generation must not make the logits of 200 long
        windows."""
        pairs = zip(windows, per_window(first, windows), strict=True)
        for (length, start_at), group in groupby(pairs, key=lambda pair: (len(pair[0]), pair[1])):
            equal = [window for window, _ in group]
            tokens = _TOKENS_AT_ONCE[self._device.type]
            if self._low_bit_cache is not None:
                tokens = min(tokens, _TOKENS_CACHED)
            budget = max(1, tokens // length)
            size = min(self._batch_size or budget, budget)
            for start in range(0, len(equal), size):
                yield equal[start : start + size], start_at

    def _score(self, batch: list[Ids], first: int) -> list[torch.Tensor]:
        import torch

        ids = self._tensor(batch)
        windows = zip(self._forward(ids, first)[:, :-1], ids[:, first:], strict=True)
        with torch.inference_mode():
            return [self._window_nll(rows, targets) for rows, targets in windows]

    def _window_nll(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """token_nll; in pieces where it copies the logits."""
        import torch

        if self._token_nll is not None:
            compiled: torch.Tensor = self._token_nll(logits, targets)
            return compiled
        step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
        starts = range(0, len(targets), step)
        return torch.cat([token_nll(logits[i : i + step], targets[i : i + step]) for i in starts])

    def _forward(self, ids: torch.Tensor, first: int) -> torch.Tensor:
        """The logits after tokens ``first`` - 1 .. last of each window, [windows, len - first + 1,
        vocabulary]: a view of what the model gave, nothing is copied."""
        import torch

        keep = ids.shape[1] - first + 1
        with torch.inference_mode():
            with self._fewer.on() if self._fewer else nullcontext():
                logits: torch.Tensor = self._model(
                    input_ids=ids, logits_to_keep=keep, **self._caching()
                ).logits
            return logits[:, -keep:]

    def _kv_bytes(self, context: int) -> int | None:
        """Keys and values of every layer, in the model's dtype or in the row's own bits; None where the
        config names no heads, or keeps a latent state in their place (DeepSeek's attention).

        An upper bound where layers slide a window: transformers' cache of such a layer is shorter.
        """
        from qeval.models.loading import kv_bytes

        if self._low_bit_cache is not None:
            return self._low_bit_cache.n_bytes(context)
        each = kv_bytes(self._model.config, int(self._model.dtype.itemsize))
        return None if each is None else context * each


def _is_noisy(settings: EngineSettings) -> bool:
    floor = settings.execution.running.floor
    return floor is not None and floor.kind == "rounding"


def _place(device: torch.device) -> dict[str, str]:
    """``device`` and ``device_name``, as LM.facts has them."""
    import torch

    if device.type != "cuda":
        return {"device": device.type, "device_name": provenance.cpu_name()}
    index = torch.cuda.current_device() if device.index is None else device.index
    return {"device": f"cuda:{index}", "device_name": torch.cuda.get_device_name(index)}


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log softmax(logits)[targets] in float32: logits [n, vocab], targets [n] -> [n].

    Not by cross_entropy: on the CPU, torch's log-softmax adds the exponentials up one after the other
    and is low by up to 1e-5 nats at 49,152 entries, 5e-5 at 262,144. logsumexp adds pairwise.
    """
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
