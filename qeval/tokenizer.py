"""The model's own tokenizer, the one source of token ids for every engine.

A Hugging Face folder is read with transformers; a bare ``.gguf`` file brings its own vocabulary,
which llama.cpp reads (then there is no second tokenizer to compare it with). In an environment of its
own (`qeval env`) transformers may be older than 5 and not know the classes that 5 writes: there
``tokenizer.json`` itself is read, and the ids are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from qeval.errors import ModelError
from qeval.quant.base import ModelRef
from qeval.quant.formats import read_json

_LONGEST = 2**28  # bytes of a tokenizer.json, which holds the vocabulary and its merges
# Where config.json of a model of several modalities has that of its language model.
_LANGUAGE_PARTS = ("text_config", "language_config", "llm_config", "thinker_config", "decoder")


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
        from transformers import AutoTokenizer, __version__
        from transformers.utils import logging

        logging.set_verbosity_error()  # "sequence longer than the model's maximum": that is the point
        old = int(__version__.partition(".")[0]) < 5 and (model.path / "tokenizer.json").is_file()
        try:
            self._tok: Any = (
                _from_file(model.path)
                if old
                else AutoTokenizer.from_pretrained(
                    model.path, trust_remote_code=model.trust_remote_code
                )
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


def _from_file(folder: Path) -> Any:
    """``tokenizer.json`` as it is, in transformers 4's general class, with the special tokens that
    ``tokenizer_config.json`` names. As in transformers 5, ``tokenizer.json`` alone says which are
    added, and not ``add_bos_token``, which 4 would follow."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    config = _json(folder / "tokenizer_config.json")
    pre_tokenizer = _json(folder / "tokenizer.json").get("pre_tokenizer") or {}
    named = {key: config[key] for key in ("bos_token", "eos_token", "unk_token") if config.get(key)}
    template = folder / "chat_template.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")),
        add_prefix_space=pre_tokenizer.get("add_prefix_space", False),  # else it is set to False
        chat_template=template.read_text() if template.is_file() else config.get("chat_template"),
        **{key: t["content"] if isinstance(t, dict) else str(t) for key, t in named.items()},
    )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, _LONGEST) if path.is_file() else {}


def _eos_ids(tok: Any, path: Path) -> tuple[int, ...]:
    """The tokenizer's EOS and the ids that generation_config.json and config.json name: chat models end
    their turn with another one, and it may stand in any of the three."""
    ids = set() if tok.eos_token_id is None else {int(tok.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        ids.update(_named_eos(_json(path / name)))
    return tuple(sorted(ids))


def _named_eos(config: Any) -> Iterator[int]:
    """``eos_token_id``, a number or a list of them, of a configuration and of its language model's."""
    if not isinstance(config, dict):
        return
    named = config.get("eos_token_id")
    for value in named if isinstance(named, list) else [named]:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            yield value
    for part in _LANGUAGE_PARTS:
        yield from _named_eos(config.get(part))
