"""Loading a transformers model whole: float folders here, packed ones through engines/packed.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeval.errors import EngineError


def load_model(path: Path, dtype: str, device: Any, trust_remote_code: bool = False) -> Any:
    """A transformers causal LM in eval mode, every weight accounted for.

    Raises:
        EngineError: transformers cannot load it, or weights are missing, left over or misshapen
            (transformers only warns, and computes with random numbers).
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    placement = {"device_map": {"": device}} if torch.device(device).type == "cuda" else {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as err:
        if isinstance(err, torch.OutOfMemoryError):
            raise
        raise EngineError(
            f"{path}: transformers cannot load it: {str(err).strip().splitlines()[0]}"
        ) from err
    wrong = {
        kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys") if info[kind]
    }
    if info.get("mismatched_keys"):
        wrong["mismatched_keys"] = [str(k) for k in info["mismatched_keys"]]
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise EngineError(
            f"{path}: {len(names)} {kind.replace('_', ' ')} in its weights, first {names[0]}"
        )
    return model.eval()
