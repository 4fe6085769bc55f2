"""The tokenizer of a bare ``.gguf`` file, run by llama.cpp: a ``tokenizer.Tokenizer`` for models that
come without a Hugging Face folder."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from qeval.core.errors import ModelError
from qeval.llama.library import Model


class GgufTokenizer:
    byte_ids: frozenset[int] = frozenset()  # every token has its own bytes

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
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.sha256 = hashlib.sha256(repr(list(zip(texts, ids, strict=True))).encode()).hexdigest()
        self._template = self._model.metadata("tokenizer.chat_template")
        self.has_chat_template = bool(self._template)

    def encode(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        return self._model.tokenize(text, special=special, parse_special=parse_special)

    def prompt(self, text: str) -> list[int]:
        before = [self.bos_id] if self.adds_bos and self.bos_id is not None else []
        return [*before, *self.encode(text, special=False)]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = (), special: bool = False) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before, own = self._bytes(after, special), self._bytes(ids, special)
        if not before and self._strips_space():
            own = own.removeprefix(b" ")
        decoder.decode(before)
        return decoder.decode(own, final=True)

    def chat(self, messages: list[dict[str, str]]) -> str:
        from qeval.models.chat_template import checked, render

        if self._template is None:
            raise ModelError(f"{self._model.path}: has no chat template (tokenizer.chat_template)")
        text = render(self._template, messages, dict(self._special_tokens()))
        return checked(text, self._model.path)

    def notes(self) -> tuple[str, ...]:
        return ()

    def _bytes(self, ids: Sequence[int], special: bool) -> bytes:
        for i in ids:
            if (i, special) not in self._pieces:
                self._pieces[i, special] = self._model.piece(i, special=special)
        return b"".join(self._pieces[i, special] for i in ids)

    def _strips_space(self) -> bool:
        """Whether tokenizing puts a space before a text, which is not part of it."""
        told = self._model.metadata("tokenizer.ggml.add_space_prefix")
        return self._is_sentencepiece() if told is None else told == "true"

    def _special_tokens(self) -> Iterator[tuple[str, str]]:
        """What transformers hands to a chat template beside the messages. llama.cpp's own ids of a file
        that names none are those of some other vocabulary, unless it is SentencePiece's."""
        lib, vocab = self._model._lib, self._model.vocab
        if self._is_sentencepiece():
            yield "bos_token", self._texts[lib.llama_vocab_bos(vocab)]
            yield "eos_token", self._texts[lib.llama_vocab_eos(vocab)]
        for name, key in _NAMES.items():
            found = self._model.metadata(f"tokenizer.ggml.{key}_token_id")
            if found is not None and int(found) < len(self._texts):
                yield name, self._texts[int(found)]

    def _is_sentencepiece(self) -> bool:
        lib = self._model._lib
        found: bool = lib.llama_vocab_type(self._model.vocab) == lib.LLAMA_VOCAB_TYPE_SPM
        return found


_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # llama.cpp's spelling
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
