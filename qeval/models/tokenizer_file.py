"""``tokenizer.json`` as transformers 4 and the reference programs read it, in every environment.

The model was trained with this file. Classes of transformers 5 may build another tokenizer from its
vocabulary (a byte-level file that is labelled ``LlamaTokenizerFast`` loses its spaces); here the file
decides. These also count, as in transformers 4:

- tokens that ``tokenizer_config.json`` (or the older ``special_tokens_map.json`` and
  ``added_tokens.json``) adds or describes differently, and its ``add_prefix_space``;
- ``add_bos_token`` and ``add_eos_token``, where the file has no template of special tokens or the class
  is one that always went by them (``FLAGGED``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeval.models import config as config_files

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import PostProcessor

_LONGEST = 2**28  # bytes of a tokenizer.json, which holds the vocabulary and its merges

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class Flagged:
    """What transformers 4 takes for a class where tokenizer_config.json is silent."""

    bos: str
    eos: str
    adds_bos: bool = True


FLAGGED = {
    "LlamaTokenizer": Flagged("<s>", "</s>"),
    "CodeLlamaTokenizer": Flagged("<s>", "</s>"),
    "GemmaTokenizer": Flagged("<bos>", "<eos>"),
    "CohereTokenizer": Flagged("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "GPTNeoXTokenizer": Flagged("<|endoftext|>", "<|endoftext|>", adds_bos=False),
}
"""The classes whose ``add_bos_token`` and ``add_eos_token`` go before the file's template."""


class FileReader:
    """Ids and texts by the folder's ``tokenizer.json``."""

    what = "tokenizer.json"

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where a file is not what it should be."""
        from tokenizers import Tokenizer

        try:
            self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as err:  # the library has no class of its own
            raise ValueError(f"tokenizer.json: {err}") from err
        self.backend.no_truncation()
        self.backend.no_padding()
        config = _config(folder)
        _add_tokens(self.backend, config, read_json(folder / "added_tokens.json"))
        flagged = FLAGGED.get(str(config.get("tokenizer_class")).removesuffix("Fast"))
        default = {} if flagged is None else {"bos_token": flagged.bos, "eos_token": flagged.eos}
        self.names = {**default, **{key: _content(config[key]) for key in NAMED if config.get(key)}}
        _set_prefix_space(self.backend, config)
        _set_template(self.backend, config, self.names, flagged)

    def ids(self, text: str, special: bool, parse_special: bool) -> list[int]:
        self.backend.encode_special_tokens = not parse_special
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def text(self, ids: Sequence[int], special: bool) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=not special))

    def vocab(self) -> dict[str, int]:
        return dict(self.backend.get_vocab(with_added_tokens=True))


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; before transformers 4.34 the tokens' descriptions were in a separate file,
    which counts where ``added_tokens_decoder`` is missing."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json")
    return config


def _add_tokens(backend: Tokenizer, config: Mapping[str, Any], older: Mapping[str, int]) -> None:
    """As both transformers do: what the configuration describes differently from the file, by id, then
    special tokens that are not added tokens yet. Not those without an id anywhere: the model has no
    such token, and a new id would be outside its vocabulary."""
    special = list(_special_tokens(config))
    described = {int(i): t for i, t in config.get("added_tokens_decoder", {}).items()}
    if not described:
        described = {
            i: {"content": t, "special": t in map(_content, special)} for t, i in older.items()
        }
    known = [_state(token) for token in backend.get_added_tokens_decoder().values()]
    new = [_added(described[i]) for i in sorted(described)]
    backend.add_tokens([token for token in new if _state(token) not in known])
    names = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = {_content(token): token for token in special if _content(token) not in names}
    known_ids = [token for name, token in missing.items() if backend.token_to_id(name) is not None]
    backend.add_special_tokens([_added(token, special=True) for token in known_ids])


def _special_tokens(config: Mapping[str, Any]) -> Iterator[object]:
    yield from (config[key] for key in NAMED if config.get(key))
    for key in EXTRA:
        extra = config.get(key) or []
        yield from extra.values() if isinstance(extra, dict) else extra


def _content(token: object) -> str:
    """A token is written as its text or as a table with its text in it."""
    return str(token["content"] if isinstance(token, dict) else token)


def _added(token: object, *, special: bool = False) -> AddedToken:
    from tokenizers import AddedToken

    flags = dict(token) if isinstance(token, dict) else {}
    flags = {key: bool(flags[key]) for key in _FLAGS if key in flags}
    special = special or flags.get("special", False)
    return AddedToken(_content(token), **{"normalized": not special, **flags, "special": special})


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def _state(token: AddedToken) -> tuple[object, ...]:
    return (token.content, *(getattr(token, flag) for flag in _FLAGS))


def _set_prefix_space(backend: Tokenizer, config: Mapping[str, Any]) -> None:
    """transformers 4 follows the configuration here; where it is silent, the file."""
    from tokenizers import pre_tokenizers

    asked = config.get("add_prefix_space")
    if isinstance(asked, bool) and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer.add_prefix_space = asked


def _set_template(
    backend: Tokenizer, config: Mapping[str, Any], names: Mapping[str, str], flagged: Flagged | None
) -> None:
    """Which special tokens go before and behind a text, where that is not for the file to say."""
    from tokenizers.processors import TemplateProcessing

    told = {key: config[key] for key in ("add_bos_token", "add_eos_token") if _is_flag(config.get(key))}
    in_file = _names_special_tokens(backend.post_processor)
    if in_file and not (flagged and told):
        return
    if not told and flagged is None:
        return
    adds_bos = told.get("add_bos_token", flagged is not None and flagged.adds_bos)
    before = _known(backend, names.get("bos_token")) if adds_bos else []
    behind = _known(backend, names.get("eos_token")) if told.get("add_eos_token") else []
    backend.post_processor = TemplateProcessing(
        single=[*before, "$A", *behind],
        special_tokens=[(token, backend.token_to_id(token)) for token in {*before, *behind}],
    )


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _known(backend: Tokenizer, token: str | None) -> list[str]:
    return [token] if token is not None and backend.token_to_id(token) is not None else []


def _names_special_tokens(post_processor: PostProcessor | None) -> bool:
    if post_processor is None:
        return False
    state = json.loads(post_processor.__getstate__())
    return any(
        part["type"] in ("BertProcessing", "RobertaProcessing")
        or any("SpecialToken" in piece for piece in part.get("single", ()))
        for part in state.get("processors", [state])
    )


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none. Raises ModelError for anything else."""
    return config_files.read_json(path, _LONGEST) if path.is_file() else {}
