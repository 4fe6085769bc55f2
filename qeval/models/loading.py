"""Loading a transformers model whole: float folders here, packed ones through formats/load.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.errors import EngineError, reason
from qeval.models.weights import read_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

UNLIMITED = 2**31
_TOKENS = 8  # of a window that shows whether a model sees what is to come
_LEAK = 0.02  # of the change at the changed token itself; 0 is usual, trained BERTs are far above


def lean_transformers() -> None:
    """Keep transformers from importing hqq and scipy, where they are installed, for classes and losses
    that qeval never uses. Torch's compiler comes with hqq; both took a third of a worker's start. Call
    it before anything else is imported of transformers.
    """
    from transformers import utils

    for module in (utils, utils.import_utils):
        module.is_hqq_available = lambda *_: False
        module.is_scipy_available = lambda: False


def load_model(
    path: Path,
    dtype: str,
    device: torch.device | str,
    trust_remote_code: bool = False,
    quantization_config: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """A transformers causal LM in eval mode, every weight accounted for. generation_config.json is not
    read: it decides nothing here, and may be invalid.

    ``quantization_config`` (transformers' BitsAndBytesConfig, TorchAoConfig) quantizes while it loads.

    Raises:
        EngineError: transformers cannot load it, or weights are missing, left over or misshapen
            (transformers only warns, and computes with random numbers).
    """
    import torch

    lean_transformers()
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    more: dict[str, object] = (
        {"device_map": {"": device}} if torch.device(device).type == "cuda" else {}
    )
    if quantization_config is not None:
        more["quantization_config"] = quantization_config
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below; else it says "look at the above report"
            generation_config=GenerationConfig(),
            **more,
        )
    except Exception as err:  # of whatever a configuration leads it to
        if isinstance(err, torch.OutOfMemoryError | MemoryError):
            raise
        raise EngineError(f"{path}: transformers cannot load it: {reason(err)}") from err
    _refuse_mismatched(path, sorted(info.get("mismatched_keys") or ()))
    wrong = {
        kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys") if info[kind]
    }
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise EngineError(
            f"{path}: {len(names)} {kind.replace('_', ' ')} in its weights, first {names[0]}"
        )
    return model.eval()


def _refuse_mismatched(
    path: Path, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    """Raises EngineError for tensors (name, shape stored, shape wanted) that do not fit the model."""
    if not mismatched:
        return
    name, stored, wanted = mismatched[0]
    more = f", and {len(mismatched) - 1} more do not fit" if len(mismatched) > 1 else ""
    raise EngineError(
        f"{path}: {name} is {list(stored)} in its weights and {list(wanted)} by config.json"
        f"{more}: one of the two is of another model"
    )


def check_shapes(path: Path, dtype: str, trust_remote_code: bool = False) -> None:
    """Raises EngineError where tensors are not of the shapes that config.json gives them, for a library
    that loads the model itself and reports this in its own words. Those that transformers renames on
    loading are left to it."""
    stored = {t.name: t.shape for t in read_tensors(path)}
    wanted = empty_model(path, dtype, trust_remote_code).state_dict()
    both = sorted(stored.keys() & wanted.keys())
    _refuse_mismatched(
        path, [(n, stored[n], tuple(wanted[n].shape)) for n in both if stored[n] != wanted[n].shape]
    )


def empty_model(path: Path, dtype: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A folder's architecture without weights: parameters on torch's meta device, buffers as they are
    (rotary frequencies stay float32). For formats that transformers does not load itself.

    Raises:
        EngineError: transformers does not know the architecture.
    """
    import torch

    lean_transformers()
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
            )
    except Exception as err:  # of whatever a configuration leads it to
        if isinstance(err, torch.OutOfMemoryError | MemoryError):
            raise
        raise EngineError(f"{path}: transformers cannot load it: {reason(err)}") from err
    _keep_in_float32(model, getattr(torch, dtype))
    return model


def _keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give those parameters and buffers of an empty model float32 that ``from_pretrained`` loads so,
    whatever the dtype (the biases of DeepSeek-V3's routers)."""
    import torch
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    pattern, _, _ = build_glob_alternation(list(plan))
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None and pattern.search(f"{name}.{key}"):
                module._parameters[key] = torch.nn.Parameter(p.float(), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None and pattern.search(f"{name}.{key}"):
                module._buffers[key] = buffer.float()


def check_causal(model: PreTrainedModel) -> None:
    """Raises EngineError where another last token changes what a model predicts before it: no causal
    language model, whatever its files say."""
    import torch

    n_vocab = int(model.config.get_text_config().vocab_size)
    row = [(7 * i + 3) % n_vocab for i in range(_TOKENS)]
    other = [*row[:-1], (row[-1] + n_vocab // 2 + 1) % n_vocab]
    ids = torch.tensor([row, other], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits.float()
    change = (logits[1] - logits[0]).abs().amax(-1)  # [tokens]
    before, after = change[:-1].max().item(), change[-1].item()
    if before > _LEAK * after:  # never where one is NaN: broken models are named elsewhere
        raise EngineError(
            f"{model.config.name_or_path}: the last of {_TOKENS} tokens changes what is predicted "
            f"before it ({type(model).__name__}): it is no causal language model"
        )


def max_positions(config: PretrainedConfig) -> int:
    """The longest sequence that a transformers configuration allows; 2^31 where it names none (ALiBi,
    recurrent models). Most call it max_position_embeddings; MPT and BLOOM do not."""
    text = config.get_text_config()
    for key in ("max_position_embeddings", "max_seq_len", "seq_length"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNLIMITED


def sliding_window(config: PretrainedConfig) -> int | None:
    """How many tokens a layer attends to, itself among them, where a transformers configuration has
    any layer slide a window; None: all attend to everything before."""
    text = config.get_text_config()
    window, layers = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    if not window or getattr(text, "use_sliding_window", True) is False:
        return None
    return int(window) if layers is None or any("sliding" in kind for kind in layers) else None


def kv_bytes(config: PretrainedConfig, itemsize: int) -> int | None:
    """Keys and values of one token in all layers, ``itemsize`` bytes a number; None where a
    transformers configuration names no heads, or keeps a latent state (DeepSeek's attention)."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    layers = getattr(text, "num_hidden_layers", None)
    if not heads or not layers or getattr(text, "kv_lora_rank", None):
        return None
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * int(layers) * int(kv_heads) * int(head_dim) * itemsize


def model_limit(path: Path, trust_remote_code: bool = False) -> int:
    """The longest sequence that a model takes, by its configuration or its .gguf file, whatever engine
    runs it."""
    if path.suffix == ".gguf":
        from qeval.llama.gguf_file import read_header

        return int(read_header(path).get("context_length") or UNLIMITED)
    if not (path / "config.json").is_file():
        return UNLIMITED
    from transformers import AutoConfig

    return max_positions(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code))
