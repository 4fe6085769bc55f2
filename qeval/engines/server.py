"""One server, asked for completions: what it says of itself, what it understands, and its answers.

Imports the `openai` package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qeval.core.endpoint import Endpoint
from qeval.core.errors import EngineError
from qeval.engines.base import Ids, Sampling, seed_of
from qeval.engines.http_client import Client, Json, RefusedError, Reply
from qeval.models.endpoint import is_text, text_ids, text_of
from qeval.models.loading import UNLIMITED

if TYPE_CHECKING:
    from qeval.models.tokenizer import Tokenizer

TRIAL_TEXT = "Once upon a time there was a small house"
REFUSALS = frozenset({400, 404, 405, 413, 415, 422, 500, 501})
"""How servers answer a key that they do not know, or a value that they do not take."""
_NEUTRAL: Json = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "repetition_penalty": 1.0}
"""Other samplers, by the names of vLLM and of llama.cpp's servers, told to leave the logits alone."""
_MANY_STOPS, _FEW_STOPS = 16, 4  # the last: what OpenAI's own server takes
_LIMIT = re.compile(r"maximum context length (?:is|of) (\d+)", re.IGNORECASE)
_PROMPT = re.compile(
    r"(\d+) (?:tokens? )?(?:in|of) (?:your|the) (?:prompt|messages)|(\d+) input tokens"
)
_TOO_LONG = re.compile(r"context.{0,12}(?:length|window|size)", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """What a server was seen to understand."""

    ids: bool = False  # prompts as token ids
    neutral: bool = False  # _NEUTRAL, and with it keys of vLLM and llama.cpp in general
    seed: bool = False
    n: bool = False  # several completions of a prompt
    stops: int = 0  # texts of `stop`
    max_tokens: str = "max_tokens"  # OpenAI's newer models want max_completion_tokens


@dataclass
class Seen:
    """How it answered."""

    model: str | None = None
    fingerprint: str | None = None
    answers: int = 0
    counted: int = 0  # prompts of which the tokens are known here and there
    miscounted: list[tuple[int, int]] = field(default_factory=list)  # tokens of a prompt: here, there


class Server:
    """``introduce`` and ``learn`` come first. ``tokenizer`` loads the one that makes prompts' ids; None
    where they are text."""

    def __init__(
        self, endpoint: Endpoint, client: Client, tokenizer: Callable[[], Tokenizer] | None
    ) -> None:
        self.endpoint, self.client = endpoint, client
        self._load = tokenizer
        self._loaded: Tokenizer | None = None
        self.dialect, self.seen = Dialect(), Seen()
        self.listed: Json = {}  # the model's entry in the server's list
        self.told: Json = {}  # what else it says of itself
        self.max_seq_len = UNLIMITED

    @property
    def has_tokenizer(self) -> bool:
        return self._load is not None and self.endpoint.api == "completions"

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._load is not None
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    # What it is

    async def introduce(self) -> None:
        """Ask for its models, and its version.

        Raises:
            EngineError: it does not answer, refuses the key, or has other models only.
        """
        self.listed, headers = await listed(self.client, self.endpoint)
        self.told = {"server": headers.get("server"), "listed": self.listed}
        root = self.endpoint.base_url.removesuffix("/v1")
        try:
            version = await self.client.get(f"{root}/version", retries=0)
            self.told["version"] = version.data.get("version")
        except EngineError:
            pass  # vLLM has it, others do not
        self.told = {name: value for name, value in self.told.items() if value}
        limit = self.listed.get("max_model_len") or (self.listed.get("meta") or {}).get("n_ctx")
        if self.has_tokenizer:  # else prompts are counted in bytes here
            told = limit if isinstance(limit, int) and limit > 1 else UNLIMITED
            self.max_seq_len = self.endpoint.max_seq_len or told

    def signature(self) -> Json:
        stable = {k: v for k, v in self.listed.items() if k not in ("created", "permission")}
        told = {"listed": stable, "version": self.told.get("version"), "model": self.seen.model}
        return {**told, "system_fingerprint": self.seen.fingerprint}

    def same(self, reply: Reply) -> None:
        """Count an answer. Raises EngineError where another model gives it than before."""
        seen, data = self.seen, reply.data
        seen.answers += 1
        for name, before, now in (
            ("model", seen.model, data.get("model")),
            ("system_fingerprint", seen.fingerprint, data.get("system_fingerprint")),
        ):
            if before is not None and now is not None and now != before:
                raise EngineError(
                    f"{self.endpoint.base_url}: the server changed meanwhile: {name} was {before!r}, "
                    f"is {now!r}: its answers are not those of one model; run again"
                )
        seen.model = seen.model or data.get("model")
        seen.fingerprint = seen.fingerprint or data.get("system_fingerprint")

    # What it understands

    async def learn(self) -> None:
        """Try all at once; where that is refused, one after the other.

        Raises:
            EngineError: not even the simplest request is answered, or ``prompts: ids`` is not.
        """
        wanted = Dialect(self._may_send_ids(), neutral=True, seed=True, n=True, stops=_MANY_STOPS)
        if await self._understands(wanted):
            self.dialect = wanted
            return
        found = await self._least()
        features: tuple[dict[str, Any], ...] = (
            {"neutral": True},
            {"seed": True},
            {"n": True},
            {"stops": _MANY_STOPS},
            {"stops": _FEW_STOPS},
            {"ids": wanted.ids},
        )
        for feature in features:
            richer = replace(found, **feature)
            if richer.stops >= found.stops and richer != found and await self._understands(richer):
                found = richer
        if self.endpoint.prompts == "ids" and not found.ids:
            raise EngineError(
                f"{self.endpoint.base_url}: the server takes no token ids: let prompts be auto or text"
            )
        self.dialect = found

    def _may_send_ids(self) -> bool:
        if self.endpoint.prompts == "ids" and not self.has_tokenizer:
            raise EngineError(f"{self.endpoint.name}: prompts: ids needs a tokenizer: name one")
        return self.endpoint.prompts != "text" and self.has_tokenizer

    async def _least(self) -> Dialect:
        """Raises RefusedError where the server refuses the simplest request."""
        found = Dialect()
        try:
            await self._tried(found)
        except RefusedError as err:
            if "max_completion_tokens" not in err.said:
                raise
            found = replace(found, max_tokens="max_completion_tokens")
            await self._tried(found)
        return found

    async def _understands(self, dialect: Dialect) -> bool:
        try:
            n_prompt, reply = await self._tried(dialect)
        except RefusedError as err:
            if err.status not in REFUSALS:
                raise
            return False
        other_prompt = dialect.ids and prompt_tokens(reply) not in (None, n_prompt)
        return not other_prompt and len(reply.data["choices"]) == 1 + dialect.n

    async def _tried(self, dialect: Dialect) -> tuple[int, Reply]:
        """A request for one token, and its prompt's length. Raises RefusedError."""
        prompt = self.tokenizer.prompt(TRIAL_TEXT) if self.has_tokenizer else text_ids(TRIAL_TEXT)
        sampling = Sampling(max_new_tokens=1, temperature=1.0, seed=1)
        stops = [f"\nstop {i}" for i in range(dialect.stops)]
        body = self._body(prompt, sampling, [0, 1] if dialect.n else [0], stops, dialect)
        reply = await self.client.post(self.path, body, doubtful=True)
        self.same(reply)
        return len(prompt), reply

    # Requests

    @property
    def path(self) -> str:
        return "/chat/completions" if self.endpoint.api == "chat" else "/completions"

    def body(
        self, prompt: Ids, sampling: Sampling, numbers: Sequence[int] = (0,), stops: Sequence[str] = ()
    ) -> Json:
        """A request for the samples ``numbers`` of a prompt."""
        return self._body(prompt, sampling, numbers, stops, self.dialect)

    def _body(
        self,
        prompt: Ids,
        sampling: Sampling,
        numbers: Sequence[int],
        stops: Sequence[str],
        dialect: Dialect,
    ) -> Json:
        room = max(1, min(sampling.max_new_tokens, self.max_seq_len - len(prompt)))
        body: Json = {
            "model": self.endpoint.model,
            dialect.max_tokens: room,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **self._prompt(prompt, dialect),
        }
        if dialect.neutral:
            body |= _NEUTRAL
        if dialect.seed and sampling.temperature > 0:
            body["seed"] = seed_of(sampling.seed, prompt, numbers[0])
        if len(numbers) > 1:
            body["n"] = len(numbers)
        if dialect.stops and stops:
            body["stop"] = list(stops[: dialect.stops])
        return body

    def _prompt(self, prompt: Ids, dialect: Dialect) -> Json:
        if self.endpoint.api == "chat":
            return {"messages": [{"role": "user", "content": text_of(prompt)}]}
        if is_text(prompt):
            return {"prompt": text_of(prompt)}
        return {"prompt": list(prompt) if dialect.ids else self.as_text(prompt)[0]}

    def as_text(self, prompt: Ids) -> tuple[str, bool]:
        """The text that the server's tokenizer is to make these ids of, and whether the tokenizer here
        does. It puts BOS before it, and many put a space there, too, which is then not in the text."""
        own, ids = self.tokenizer, list(prompt)
        first = ids[:1] if own.adds_bos and ids[:1] == [own.bos_id] else []
        rest = ids[len(first) :]
        texts = [own.decode(rest, after=after, special=True) for after in ((), first)]
        exact = [text for text in texts if own.encode(text, special=False) == rest]
        return (exact or texts)[0], bool(exact)

    async def ask(self, prompt: Ids, body: Json, *, counted: bool = True) -> Reply | None:
        """The answer to ``body``; None where the model's context has no room for a token of one.
        ``counted``: where its tokens are others than the prompt's, a note says so.

        Raises:
            EngineError: there is none, or another server gives it.
        """
        while True:
            try:
                reply = await self.client.post(self.path, body)
                break
            except RefusedError as err:
                if err.status not in (400, 413, 422) or not _TOO_LONG.search(err.said):
                    raise
                room = _room_left(err.said)
            if room is None or not 1 <= room < body[self.dialect.max_tokens]:
                return None
            body = {**body, self.dialect.max_tokens: room}
        self.same(reply)
        theirs = prompt_tokens(reply)
        if (
            counted
            and theirs is not None
            and not is_text(prompt)
            and self.endpoint.api == "completions"
        ):
            self.seen.counted += 1
            if theirs != len(prompt):
                self.seen.miscounted.append((len(prompt), theirs))
        return reply


async def listed(client: Client, endpoint: Endpoint) -> tuple[Json, dict[str, str]]:
    """The model's entry in the server's list of models, {} where it has no list; and the headers.

    Raises:
        EngineError: the server does not answer, or has other models only.
    """
    try:
        reply = await client.get("/models")
    except RefusedError as err:
        if err.status not in (404, 405, 501):
            raise
        return {}, {}
    data = reply.data.get("data")
    found = {e["id"]: e for e in data or () if isinstance(e, dict) and "id" in e}
    if found and endpoint.model not in found:
        known = ", ".join(map(repr, list(found)[:5])) + (", ..." if len(found) > 5 else "")
        raise EngineError(f"{endpoint.base_url}: no model {endpoint.model!r}: its models are {known}")
    return found.get(endpoint.model, {}), reply.headers


def choices(reply: Reply) -> list[Json]:
    """By their index."""
    index = {c.get("index", i): c for i, c in enumerate(reply.data["choices"])}
    return [index[i] for i in sorted(index)]


def prompt_tokens(reply: Reply) -> int | None:
    """As the server counts them; some say 0 for "not counted"."""
    return (reply.data.get("usage") or {}).get("prompt_tokens") or None


def new_tokens(reply: Reply) -> int | None:
    """Of all its choices."""
    found = (reply.data.get("usage") or {}).get("completion_tokens")
    return found if isinstance(found, int) else None


def _room_left(said: str) -> int | None:
    """New tokens that there is room for, as far as a refusal tells the maximum and the prompt's."""
    limit, prompt = _LIMIT.search(said), _PROMPT.search(said)
    if not limit or not prompt:
        return None
    return int(limit[1]) - int(prompt[1] or prompt[2])
