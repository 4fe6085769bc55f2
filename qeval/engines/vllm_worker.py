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

    def qeval_listen(self) -> None:
        """From now on keep the logits that the model gives to the sampler and for scores."""
        model = self.model_runner.model
        heard: list[torch.Tensor] = []
        if not hasattr(model, "qeval_heard"):
            ask = model.compute_logits

            def compute_logits(*args: Any, **kwargs: Any) -> Any:
                found = ask(*args, **kwargs)
                if model.qeval_heard is not None and found is not None:
                    model.qeval_heard.append(found.clone())  # scores are made in place
                return found

            model.compute_logits = compute_logits
        model.qeval_heard = heard

    def qeval_heard(self) -> list[torch.Tensor]:
        """These logits, in the order of the calls: [rows, vocabulary] each; in memory where they go to
        another process. None of a worker that has none, or the same as another one. Stops listening."""
        from vllm.distributed.parallel_state import get_tp_group

        model = self.model_runner.model
        heard: list[torch.Tensor] = model.qeval_heard
        model.qeval_heard = None
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
