"""What a model's files tell before anything is loaded, for checks before the first job. Nothing here
imports torch or transformers. None: only code can tell (a class of the model's own, a default).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from qeval.core.artifact import ModelRef
from qeval.core.endpoint import NO_FILES
from qeval.core.errors import ModelError
from qeval.models.config import read_json
from qeval.models.tokenizer import LANGUAGE_PARTS, vocabulary_hash

_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_CHARS = 8  # of a text, for each token that it should have: usually enough at the first try
_EDGE = 8  # tokens that a cut through the text may make of fewer

Encode = Callable[[str], list[int]]


def told_limit(model: ModelRef) -> int | None:
    """The longest sequence that the model takes, as ``loading.model_limit`` has it."""
    if model.endpoint is not None and model.endpoint.max_seq_len:
        return model.endpoint.max_seq_len
    if model.path.suffix == ".gguf":
        from qeval.llama.gguf_file import read_header

        found = read_header(model.path).get("context_length")
        return int(found) if found else None
    config = _json(model, "config.json")
    if "auto_map" in config and model.trust_remote_code:
        return None
    part = next((config[key] for key in LANGUAGE_PARTS if isinstance(config.get(key), dict)), config)
    values = (part.get(key) for key in _LIMITS)
    return next((value for value in values if type(value) is int and value > 0), None)


def told_vocabulary(model: ModelRef) -> int | None:
    """How many tokens the model's predictions are over."""
    if model.path.suffix == ".gguf":
        from qeval.llama.gguf_file import read_header

        header = read_header(model.path)
        table = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
        width = header.get("embedding_length")
        return math.prod(table.shape) // int(width) if table and width else None
    config = _json(model, "config.json")
    part = next((config[key] for key in LANGUAGE_PARTS if isinstance(config.get(key), dict)), config)
    size = part.get("vocab_size", config.get("vocab_size"))
    return size if type(size) is int and size > 0 else None


def told_heads(model: ModelRef) -> tuple[int, int] | None:
    """How many attention heads the model has, and how many for keys and values."""
    if model.path.suffix == ".gguf":
        return None
    config = _json(model, "config.json")
    part = next((config[key] for key in LANGUAGE_PARTS if isinstance(config.get(key), dict)), config)
    heads = next((part[key] for key in _HEADS if type(part.get(key)) is int and part[key] > 0), None)
    if heads is None:
        return None
    keys = part.get("num_key_value_heads")
    return heads, keys if type(keys) is int and keys > 0 else heads


def has_chat_template(model: ModelRef) -> bool | None:
    if model.endpoint is not None and (model.endpoint.api == "chat" or model.path == NO_FILES):
        return model.endpoint.api == "chat"
    if model.path.suffix == ".gguf":
        from qeval.llama.gguf_file import read_header

        return bool(read_header(model.path).metadata.get("tokenizer.chat_template"))
    told = _json(model, "tokenizer_config.json").get("chat_template")
    if isinstance(told, str) and told:
        return True
    others = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    if told or any((model.path / name).exists() for name in others) or not _by_file(model):
        return None  # several of them, or an empty one
    return False


def encoder(model: ModelRef, *, special: bool = True) -> Encode | None:
    """The ids that ``load_tokenizer`` gives, with special tokens and with their names in the text, or
    without both."""
    if not _by_file(model):
        return None
    try:
        from qeval.models.tokenizer_file import FileReader

        reader = FileReader(model.path)
    except (ImportError, ValueError):  # the engine's packages are asked for; the job says what is wrong
        return None
    return lambda text: reader.ids(text, special=special, parse_special=special)


def vocabulary_sha256(model: ModelRef) -> str | None:
    """That of its tokenizer: equal in models of one family."""
    if not _by_file(model):
        return None
    try:
        from qeval.models.tokenizer_file import FileReader

        return vocabulary_hash(FileReader(model.path).vocab())
    except (ImportError, ValueError):
        return None


def count_up_to(encode: Encode, text: str, enough: int) -> int:
    """Tokens of a text, or ``enough`` where it has more: only as much is read of it as that takes."""
    size = _CHARS * enough
    while size < len(text):
        if len(encode(text[:size])) >= enough + _EDGE:
            return enough
        size *= 4
    return min(len(encode(text)), enough)


def _by_file(model: ModelRef) -> bool:
    """Whether tokenizer.json decides, and no code that comes with the model."""
    folder = model.path
    return (folder / "tokenizer.json").is_file() and "auto_map" not in _json(
        model, "tokenizer_config.json"
    )


def _json(model: ModelRef, name: str) -> dict[str, Any]:
    try:
        return read_json(model.path / name)
    except ModelError:  # the job that needs it says what is wrong
        return {}
