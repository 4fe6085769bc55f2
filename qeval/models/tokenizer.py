"""The model's own tokenizer, the one source of token ids for every engine.

A Hugging Face folder is read by its ``tokenizer.json`` (``tokenizer_file.py`` says how); where it has
none, or the model brings its own code, by its class. A bare ``.gguf`` file has its own vocabulary,
which llama.cpp reads. In a separate environment (`qeval env`) transformers may be older than 5; the ids
are the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qeval.core.artifact import ModelRef
from qeval.core.errors import ModelError, first_line
from qeval.models.tokenizer_file import FileReader, read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Where config.json of a model of several modalities has that of its language model.
LANGUAGE_PARTS = ("text_config", "language_config", "llm_config", "thinker_config", "decoder")


class Tokenizer(Protocol):
    sha256: str  # of the vocabulary, so that two records can be compared
    bos_id: int | None
    eos_ids: tuple[int, ...]  # every id that ends a generation
    adds_bos: bool  # encode() puts BOS first
    has_chat_template: bool
    byte_ids: frozenset[int]  # tokens of one byte each, decoded together with those beside them

    def encode(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids with the tokenizer's default special tokens, or with none (``special=False``).

        ``parse_special``: names of special tokens inside the text become those tokens.
        """
        ...

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued: the special tokens that go before it, and none behind."""
        ...

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = (), special: bool = False) -> str:
        """Text of the ids as they follow ``after``, spaces untouched: decoded alone, they would lose
        the space that many tokenizers drop at the start of a text.

        ``special``: special tokens by their names, else they are left out.
        """
        ...

    def chat(self, messages: list[dict[str, str]]) -> str:
        """What the chat template makes of them, the assistant's turn opened; for
        ``encode(special=False)``."""
        ...

    def notes(self) -> tuple[str, ...]:
        """What a reader of the row must know of how the texts so far were read."""
        ...


def load_tokenizer(model: ModelRef) -> Tokenizer:
    """Of a model that has files here."""
    if model.path.suffix == ".gguf":
        from qeval.models.gguf_tokenizer import GgufTokenizer

        return GgufTokenizer(model.path)
    return HfTokenizer(model)


def vocabulary_hash(vocab: Mapping[str, int]) -> str:
    items = sorted(vocab.items(), key=lambda item: item[1])
    return hashlib.sha256(repr(items).encode()).hexdigest()


class HfTokenizer:
    def __init__(self, model: ModelRef) -> None:
        """Raises ModelError where the folder has no tokenizer that can be read."""
        from transformers.utils import logging

        logging.set_verbosity_error()  # "sequence longer than the model's maximum": that is the point
        try:
            self._reader, self._other, self._class = _readers(model)
        except (OSError, ValueError, KeyError, ImportError) as err:
            raise ModelError(
                f"{model.path}: no usable tokenizer ({first_line(err)}); the folder needs "
                "tokenizer.json or the files of its tokenizer class"
            ) from err
        self._path = model.path
        self._differences = _Differences(self._reader, self._other)
        vocab = self._reader.vocab()
        self.bos_id: int | None = self._named("bos_token", vocab)
        self._before, _ = _around(self._reader)
        self.adds_bos = self.bos_id is not None and self._before[:1] == [self.bos_id]
        self.eos_ids = _eos_ids(self._named("eos_token", vocab), model.path)
        template = getattr(self._class, "chat_template", None)  # or several, by their names
        self.has_chat_template = bool(
            template.get("default") if isinstance(template, dict) else template
        )
        self.byte_ids = frozenset(i for token, i in vocab.items() if _BYTE.fullmatch(token))
        self.sha256 = vocabulary_hash(vocab)

    def encode(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        ids = self._reader.ids(text, special, parse_special)
        self._differences.look(text, parse_special)
        return ids

    def prompt(self, text: str) -> list[int]:
        return [*self._before, *self.encode(text, special=False)]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = (), special: bool = False) -> str:
        context = list(after)
        while context:
            before = self._reader.text(context, special)
            text = self._reader.text([*context, *ids], special)
            if text.startswith(before):
                return text[len(before) :]
            context.pop()  # bytes that are read as one with the first of ``ids``
        return self._reader.text(ids, special)

    def chat(self, messages: list[dict[str, str]]) -> str:
        from qeval.models.chat_template import checked, strftime_now

        # Only where it is used: a class of the model's own may take no further arguments.
        dated = "strftime_now" in str(self._class.chat_template)
        fixed = {"strftime_now": strftime_now} if dated else {}
        text = self._class.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **fixed
        )
        return checked(str(text), self._path)

    def notes(self) -> tuple[str, ...]:
        return self._differences.notes()

    def _named(self, name: str, vocab: Mapping[str, int]) -> int | None:
        """The id of ``bos_token`` or ``eos_token``."""
        token = self._reader.names.get(name) or getattr(self._class, name, None)
        return None if token is None else vocab.get(str(token))


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Reader(Protocol):
    """One way to read a folder's tokenizer."""

    what: str  # for notes
    names: dict[str, str]  # special tokens by ``bos_token`` and the like, as far as the files name them

    def ids(self, text: str, special: bool, parse_special: bool) -> list[int]: ...

    def text(self, ids: Sequence[int], special: bool) -> str: ...

    def vocab(self) -> dict[str, int]: ...


class ClassReader:
    """By transformers' class."""

    def __init__(self, tok: Any) -> None:
        from transformers import __version__

        self.tok = tok
        self.names: dict[str, str] = {}
        self.what = f"{type(tok).__name__} (transformers {__version__})"

    def ids(self, text: str, special: bool, parse_special: bool) -> list[int]:
        # Passed only where it is asked for: a class of the model's own may not know it.
        as_text = {} if parse_special else {"split_special_tokens": True}
        return list(self.tok(text, add_special_tokens=special, **as_text)["input_ids"])

    def text(self, ids: Sequence[int], special: bool) -> str:
        text = self.tok.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return str(text)

    def vocab(self) -> dict[str, int]:
        return dict(self.tok.get_vocab())


def _readers(model: ModelRef) -> tuple[Reader, Reader | None, Any]:
    """What decides; what reads the same folder differently; the class, for its chat template."""
    from transformers import __version__

    if not (model.path / "tokenizer.json").is_file():
        by_class = ClassReader(_from_class(model))
        return by_class, None, by_class.tok
    by_file = FileReader(model.path)
    if int(__version__.partition(".")[0]) < 5:
        return by_file, None, _general(by_file, model.path)
    try:
        tok = _from_class(model)
    except Exception:  # whatever it is: only its chat template would have been needed
        return by_file, None, _general(by_file, model.path)
    by_class = ClassReader(tok)
    if type(tok).__module__.startswith("transformers_modules."):
        return by_class, by_file, tok
    same = getattr(tok, "backend_tokenizer", None)
    alike = same is not None and same.to_str() == by_file.backend.to_str()
    return by_file, None if alike else by_class, tok


def _from_class(model: ModelRef) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)


def _general(reader: FileReader, folder: Path) -> object:
    """transformers' general class: for chat templates where the folder's own cannot be loaded."""
    from transformers import PreTrainedTokenizerFast

    template = folder / "chat_template.jinja"
    config = read_json(folder / "tokenizer_config.json")
    return PreTrainedTokenizerFast(
        tokenizer_object=reader.backend,
        chat_template=template.read_text() if template.is_file() else config.get("chat_template"),
        **reader.names,
    )


class _Differences:
    """Where another reading of the folder gives other ids, counted over all texts that were encoded."""

    def __init__(self, reader: Reader, other: Reader | None) -> None:
        self._reader, self._other = reader, other
        self._seen: set[tuple[bytes, bool]] = set()
        self._ours = self._theirs = 0
        self._first: int | None = None  # token of the first text that is read otherwise
        self._failure: str | None = None  # why the other cannot read a text

    def look(self, text: str, parse_special: bool) -> None:
        key = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), parse_special)
        if self._other is None or self._failure or key in self._seen:
            return
        self._seen.add(key)
        ours = self._reader.ids(text, False, parse_special)
        try:
            theirs = self._other.ids(text, False, parse_special)
        except Exception as err:  # tokenizers has no class of its own for these
            self._failure = str(err).strip().partition("\n")[0]
            return
        self._ours, self._theirs = self._ours + len(ours), self._theirs + len(theirs)
        if self._first is None and ours != theirs:
            self._first = first_difference(ours, theirs)

    def notes(self) -> tuple[str, ...]:
        if self._other is None:
            return ()
        what, other = self._reader.what, self._other.what
        if self._failure:
            return (f"tokenizer: read as {what}; {other} cannot read the same texts: {self._failure}",)
        found = []
        if self._first is not None:
            found.append(
                f"tokenizer: read as {what}, {self._ours:,} tokens; {other} would make "
                f"{self._theirs:,} of the same texts, first difference at token {self._first}"
            )
        ours, theirs = (_around(reader) for reader in (self._reader, self._other))
        if self._seen and ours != theirs:
            found.append(
                f"tokenizer: special tokens around a text are {_shown(ours)} by {what} and "
                f"tokenizer_config.json, {_shown(theirs)} by {other}"
            )
        return tuple(found)


def _around(reader: Reader) -> tuple[list[int], list[int]]:
    """The special tokens that go before a text and behind it."""
    plain, whole = reader.ids("a", False, True), reader.ids("a", True, True)
    starts = range(len(whole) - len(plain) + 1)
    at = next((i for i in starts if whole[i : i + len(plain)] == plain), 0)
    return whole[:at], whole[at + len(plain) :]


def _shown(around: tuple[list[int], list[int]]) -> str:
    before, behind = (" ".join(map(str, ids)) for ids in around)
    return f"[{before} ... {behind}]".replace("[ ", "[").replace(" ]", "]")


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def _eos_ids(own: int | None, path: Path) -> tuple[int, ...]:
    """The tokenizer's EOS and the ids that generation_config.json and config.json name: chat models end
    their turn with another one, and any of the three may name it."""
    ids = set() if own is None else {own}
    for name in ("generation_config.json", "config.json"):
        ids.update(_named_eos(read_json(path / name)))
    return tuple(sorted(ids))


def _named_eos(config: PretrainedConfig) -> Iterator[int]:
    """``eos_token_id``, a number or a list of them, of a configuration and of its language model's."""
    if not isinstance(config, dict):
        return
    named = config.get("eos_token_id")
    for value in named if isinstance(named, list) else [named]:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            yield value
    for part in LANGUAGE_PARTS:
        yield from _named_eos(config.get(part))
