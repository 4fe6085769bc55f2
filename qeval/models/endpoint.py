"""A model behind a server: as a ModelRef, as weights to open, and its tokenizer.

Tasks and engines exchange token ids, a server writes text. Its text gets ids of its own, one for each
byte of UTF-8 from ``FIRST_BYTE`` on, which no vocabulary reaches: what a task decodes is exactly what
the server wrote, whatever its tokenizer. Prompts have the ids of a tokenizer here where there is one,
else such bytes, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.endpoint import NO_FILES, Endpoint
from qeval.core.errors import ModelError
from qeval.models.resolve import tokenizer_of

if TYPE_CHECKING:
    from qeval.models.tokenizer import Tokenizer

FIRST_BYTE = 1 << 24
N_IDS = FIRST_BYTE + 256


def text_ids(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode("utf-8", "surrogatepass")]


def is_text(ids: Sequence[int]) -> bool:
    """Whether ids stand for bytes of a text; none do."""
    return bool(ids) and ids[0] >= FIRST_BYTE


def text_of(ids: Sequence[int]) -> str:
    """Of ids of bytes. A cut through a character leaves a replacement character."""
    data = bytes(i - FIRST_BYTE for i in ids if i >= FIRST_BYTE)
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def endpoint_model(endpoint: Endpoint, name: str, dtype: str, cache_dir: Path) -> ModelRef:
    """The model that a spec names by its endpoint alone; ``dtype`` is not the server's, and decides
    nothing.

    Raises:
        ModelError: its tokenizer is neither here nor on the hub.
    """
    path, content = NO_FILES, None
    if endpoint.tokenizer is not None:
        path, content = tokenizer_of(endpoint.tokenizer, cache_dir)
    told = json.dumps([endpoint.identity(), content], sort_keys=True)
    identity = f"endpoint:{hashlib.sha256(told.encode()).hexdigest()}"
    return ModelRef(name, path, identity, dtype, endpoint=endpoint)


def endpoint_artifact(endpoint: Endpoint, model: ModelRef) -> Artifact:
    """What the engine opens, for a row of ``model``, whose tokenizer makes the ids."""
    warning = endpoint.warning
    has_files = model.path != NO_FILES
    return Artifact(
        path=model.path,
        engine="openai",
        simulated=False,
        weight_bytes=None,
        embedding_bytes=None,
        bpw=None,
        bpw_file=None,
        notes=(warning,) if warning else (),
        details={
            "endpoint": endpoint.model_dump(mode="json"),
            "tokenizer": str(model.path) if has_files and endpoint.api == "completions" else None,
        },
        trust_remote_code=model.trust_remote_code,
    )


def endpoint_of(artifact: Artifact) -> Endpoint | None:
    """What an artifact asks; None for weights that are here."""
    told = artifact.details.get("endpoint")
    return Endpoint.model_validate(told) if isinstance(told, dict) else None


class EndpointTokenizer:
    """A ``tokenizer.Tokenizer`` that also decodes what a server wrote; ``own``: the one that makes
    prompts' ids, None where prompts are text."""

    byte_ids: frozenset[int] = frozenset()

    def __init__(self, endpoint: Endpoint, own: Tokenizer | None) -> None:
        self._chats = endpoint.api == "chat"
        self._own = own = None if self._chats else own
        self._name = endpoint.name
        self.sha256 = own.sha256 if own else hashlib.sha256(b"UTF-8").hexdigest()
        self.bos_id: int | None = own.bos_id if own else None
        self.eos_ids: tuple[int, ...] = own.eos_ids if own else ()
        self.adds_bos = own.adds_bos if own else False
        self.has_chat_template = self._chats or (own is not None and own.has_chat_template)

    def encode(self, text: str, *, special: bool = True, parse_special: bool = True) -> list[int]:
        if self._own is None:
            return text_ids(text)
        return self._own.encode(text, special=special, parse_special=parse_special)

    def prompt(self, text: str) -> list[int]:
        return text_ids(text) if self._own is None else self._own.prompt(text)

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = (), special: bool = False) -> str:
        if self._own is None or is_text(ids):
            return text_of(ids)
        return self._own.decode(ids, after=after, special=special)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """With ``api: chat`` the one message's content, which the server puts into its template."""
        if self._chats:
            (message,) = messages
            return message["content"]
        if self._own is None:
            raise ModelError(f"{self._name}: no tokenizer, so no chat template: take api: chat")
        return self._own.chat(messages)

    def notes(self) -> tuple[str, ...]:
        return self._own.notes() if self._own else ()
