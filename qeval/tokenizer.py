"""The model's own tokenizer, the one source of token ids for every engine.

A Hugging Face folder is read with transformers; a bare ``.gguf`` file brings its own vocabulary,
which llama.cpp reads (then there is no second tokenizer to compare it with).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from qeval.errors import ModelError
from qeval.quant.base import ModelRef


class Tokenizer(Protocol):
    sha256: str  # of the vocabulary, so that two records can be compared
    bos_id: int | None
    eos_ids: tuple[int, ...]  # every id that ends a generation
    adds_bos: bool  # encode() puts BOS first
    has_chat_template: bool

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids with the tokenizer's default special tokens, or with none (``special=False``)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out, spaces untouched."""
        ...

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of the chat template with the assistant's turn opened."""
        ...


def load_tokenizer(model: ModelRef) -> Tokenizer:
    if model.path.suffix == ".gguf":
        from qeval.engines.llamacpp import GgufTokenizer

        return GgufTokenizer(model.path)
    return HfTokenizer(model)


class HfTokenizer:
    def __init__(self, model: ModelRef) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()  # "sequence longer than the model's maximum": that is the point
        try:
            self._tok: Any = AutoTokenizer.from_pretrained(
                model.path, trust_remote_code=model.trust_remote_code
            )
        except (OSError, ValueError, KeyError, ImportError) as err:
            first = str(err).strip().splitlines()[0]
            raise ModelError(
                f"{model.path}: no usable tokenizer ({first}); the folder needs tokenizer.json or "
                "the files of its tokenizer class"
            ) from err
        self.bos_id: int | None = self._tok.bos_token_id
        self.adds_bos = self.bos_id is not None and self.encode("a")[0] == self.bos_id
        self.eos_ids = _eos_ids(self._tok, model.path)
        self.has_chat_template = getattr(self._tok, "chat_template", None) is not None
        vocab = sorted(self._tok.get_vocab().items(), key=lambda item: item[1])
        self.sha256 = hashlib.sha256(repr(vocab).encode()).hexdigest()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(self._tok(text, add_special_tokens=special)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tok.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        out = self._tok.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(out["input_ids"])


def _eos_ids(tok: Any, path: Path) -> tuple[int, ...]:
    """The tokenizer's EOS and the ids that generation_config.json names (chat models end their turn
    with another one)."""
    import json

    ids = set() if tok.eos_token_id is None else {int(tok.eos_token_id)}
    config = path / "generation_config.json"
    if config.is_file():
        named = json.loads(config.read_text()).get("eos_token_id")
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return tuple(sorted(ids))
