"""The tokenizer of a bare ``.gguf`` file, run by llama.cpp: ``qeval.tokenizer.Tokenizer`` for models
that come without a Hugging Face folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from qeval.engines._llama import Model
from qeval.errors import ModelError


class GgufTokenizer:
    def __init__(self, path: Path) -> None:
        """Load the vocabulary only. Raises EngineError if the file is not a usable GGUF."""
        self._model = Model(path, vocab_only=True)
        lib, vocab = self._model._lib, self._model.vocab
        bos = int(lib.llama_vocab_bos(vocab))
        self.bos_id: int | None = bos if bos >= 0 else None
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(vocab))
        ids = range(self._model.vocab_size)
        self.eos_ids = tuple(i for i in ids if lib.llama_vocab_is_eog(vocab, i))
        texts = [lib.llama_vocab_get_text(vocab, i).decode("utf-8", "replace") for i in ids]
        self._texts = texts
        self.sha256 = hashlib.sha256(repr(list(zip(texts, ids, strict=True))).encode()).hexdigest()
        self._template = self._model.metadata("tokenizer.chat_template")
        self.has_chat_template = self._template is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        # As a Hugging Face tokenizer: names of special tokens in the text become those tokens.
        return self._model.tokenize(text, special=special, parse_special=True)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.detokenize(ids)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        if self._template is None:
            raise ModelError(f"{self._model.path}: has no chat template (tokenizer.chat_template)")
        text = (
            _environment()
            .from_string(self._template)
            .render(
                messages=messages,
                add_generation_prompt=True,
                bos_token="" if self.bos_id is None else self._texts[self.bos_id],
                eos_token=self._texts[self._model._lib.llama_vocab_eos(self._model.vocab)],
            )
        )
        return self._model.tokenize(text, special=False, parse_special=True)


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
    return environment
