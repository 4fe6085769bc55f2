"""What vLLM's own workers do for the engine `vllm`: it mixes this class into theirs.

A worker is this process or, where a model is spread over GPUs, another one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Ear:
    """Methods that ``LLM.collective_rpc`` calls by name."""

    model_runner: Any  # the worker's
    vllm_config: Any
    _heard: list[torch.Tensor] | None = None  # None: not listening
    _count: torch.Tensor | None = None  # on the device: steps with logits that are not finite
    _told: torch.Tensor | None = None  # the same in memory

    def qeval_attach(self) -> None:
        """See from now on all logits that the model gives to the sampler and for scores."""
        model = self.model_runner.model
        ask = model.compute_logits

        def compute_logits(*args: Any, **kwargs: Any) -> Any:
            found = ask(*args, **kwargs)
            if found is not None:
                self._look(found)
                if self._heard is not None:
                    self._heard.append(found.clone())  # scores are made in place
            return found

        model.compute_logits = compute_logits

    def _look(self, logits: torch.Tensor) -> None:
        """Count, and do not wait for the device: the copy is there before the tokens that are drawn
        after it. A step is broken where a row's largest logit is not finite, as in ``decoding``."""
        import torch

        if self._count is None or self._told is None:
            self._count = torch.zeros((), dtype=torch.int64, device=logits.device)
            self._told = torch.zeros((), dtype=torch.int64, pin_memory=logits.is_cuda)
        self._count += ~logits.amax(-1).isfinite().all()
        self._told.copy_(self._count, non_blocking=True)

    def qeval_broken(self, wait: bool) -> int:
        """Steps with logits that are not finite, so far. ``wait``: for what the device still does."""
        import torch

        if self._count is None or self._told is None:
            return 0
        if wait and self._count.is_cuda:
            torch.cuda.synchronize()
        return int(self._told)

    def qeval_clear(self) -> None:
        """Zeros for all keys and values, which no sequence may need."""
        for cache in self.model_runner.kv_caches:
            cache.zero_()

    def qeval_listen(self) -> None:
        """From now on keep these logits."""
        self._heard = []

    def qeval_heard(self) -> list[torch.Tensor]:
        """These logits, in the order of the calls: [rows, vocabulary] each; in memory where they go to
        another process. None of a worker that has none, or the same as another one. Stops listening."""
        from vllm.distributed.parallel_state import get_tp_group

        heard, self._heard = self._heard or [], None
        if get_tp_group().rank_in_group > 0:
            return []
        alone = self.vllm_config.parallel_config.world_size == 1
        return heard if alone else [part.cpu() for part in heard]

    def qeval_memory(self) -> tuple[int, int] | None:
        """Peaks of torch's allocator on this worker's GPU in bytes, allocated and reserved."""
        import torch

        if not torch.cuda.is_available():
            return None
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def qeval_kernels(self) -> dict[str, int]:
        """How its layers are computed: the classes that vLLM chose, with how many layers have each."""
        found: Counter[str] = Counter()
        for layer in self.model_runner.model.modules():
            method = getattr(layer, "quant_method", None)
            if method is not None:
                kernel = getattr(method, "kernel", None) or getattr(layer, "scheme", None) or method
                found[type(kernel).__name__] += 1
        return dict(found)
