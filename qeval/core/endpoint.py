"""An endpoint: a model behind a server that speaks OpenAI's completions API, as a spec describes it.

The key that a server asks for is in an environment variable, and only the variable's name is here: what
this class holds may be written into records, job files and logs.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from qeval.core.errors import UsageError
from qeval.core.options import Options

NO_FILES = Path(os.devnull)
"""The path of a model of which there is no file here."""
SERVER = "server"
"""The device of what runs behind an endpoint."""

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # no key looks like that
_OURS = frozenset(
    {"model", "prompt", "messages", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream"}
    | {"echo", "logprobs"}
)
_LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


class Endpoint(Options):
    """``identity`` is what decides the numbers; the rest says how the server is asked."""

    model_config = ConfigDict(hide_input_in_errors=True)  # somebody may have put a key there

    base_url: str = Field(min_length=1)  # up to and with /v1
    model: str = Field(min_length=1)  # the name by which the server knows it
    api: Literal["completions", "chat"] = "completions"
    prompts: Literal["auto", "ids", "text"] = "auto"  # auto: token ids where the server takes them
    tokenizer: str | None = None  # a folder, a .gguf file or a hub id; not in a row
    api_key_env: str | None = None  # the environment variable that has the key
    concurrency: int = Field(default=16, ge=1, le=1024)  # requests at once
    samples_per_request: int = Field(default=8, ge=1, le=128)  # of one prompt, where it knows `n`
    timeout: float = Field(default=120.0, gt=0, le=86_400)  # seconds, of one request
    max_retries: int = Field(default=6, ge=0, le=100)  # of one request
    max_seq_len: int | None = Field(default=None, ge=2)  # tokens; None: as the server says
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)  # further keys of every request
    label: str | None = None  # the row's name; None: model@host

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="before")
    @classmethod
    def _no_key(cls, data: Any) -> Any:
        if isinstance(data, dict) and "api_key" in data:
            raise ValueError(
                "api_key: keys are not written in a spec: put it into an environment variable, and the "
                "variable's name into api_key_env"
            )
        return data

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = parts = None
        if not host or parts is None or parts.scheme not in ("http", "https") or value != value.strip():
            raise ValueError("must be the address of a server, like http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "has a user or password before the host: take it out; a key goes into an environment "
                "variable, whose name goes into api_key_env"
            )
        if parts.query or parts.fragment:
            raise ValueError("must end with its path (usually /v1), without ? and #")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _a_variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError(
                "must be the name of an environment variable, in capitals (what stands there is not "
                "shown: it may be the key itself)"
            )
        return value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(_OURS & value.keys()):
            raise ValueError(f"{', '.join(taken)}: set by qeval from the task's options: take it out")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Endpoint:
        if self.api == "chat" and self.prompts != "auto":
            raise ValueError("prompts: a chat request has text: leave it out, or take api: completions")
        if self.api == "chat" and self.tokenizer is not None:
            raise ValueError(
                "tokenizer: of no use with api: chat, where the server's own template and tokenizer "
                "read the request: leave it out"
            )
        return self

    @property
    def host(self) -> str:
        """With the port, where the address has one."""
        return urlsplit(self.base_url).netloc

    @property
    def name(self) -> str:
        return self.label or f"{self.model}@{self.host}"

    @property
    def is_near(self) -> bool:
        """Whether the host is this machine or one of a private network, as far as its name says."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return "." not in host or host.endswith(_LOCAL_NAMES)
        return address.is_private or address.is_loopback or address.is_link_local

    @property
    def warning(self) -> str | None:
        """One line where everybody on the way to the server can read what goes there."""
        if self.base_url.startswith("https:") or self.is_near:
            return None
        what = "prompts and the key" if self.api_key_env else "prompts"
        return f"{self.host} is asked over plain http: who is on the way can read {what}; use https"

    def key(self) -> str | None:
        """The key itself; None where none is asked for.

        Raises:
            UsageError: the environment variable is not set.
        """
        if self.api_key_env is None:
            return None
        found = os.environ.get(self.api_key_env, "").strip()
        if not found:
            raise UsageError(
                f"{self.name}: the environment variable {self.api_key_env} (api_key_env) is not set: "
                "export it with the server's key"
            )
        if not found.isascii() or not found.isprintable():
            raise UsageError(f"{self.name}: {self.api_key_env} holds characters that no key has")
        return found

    def mark(self, *, tokenizer: bool) -> str:
        """The part of a protocol's id that says how prompts are asked; nothing where the server is
        asked as an engine here is: token ids, or text of which a ``tokenizer`` here knows the ids."""
        if self.api == "chat":
            return "chat"
        return "" if tokenizer else "text"

    def identity(self) -> dict[str, object]:
        """Who is asked, and what: not the key, nor how fast."""
        told = {"prompts": self.prompts} if self.prompts != "auto" else {}
        more = {"extra_body": self.extra_body} if self.extra_body else {}
        return {"base_url": self.base_url, "model": self.model, "api": self.api, **told, **more}
