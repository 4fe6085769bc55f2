"""Engine ``openai``: a server that speaks OpenAI's completions API is asked for completions.

Prompts go in as token ids where the server takes them (vLLM, llama.cpp's own server), else as text, or
as one user message (``api: chat``). What comes back is text, with ids of its own (models/endpoint.py).
A server draws samples in its own way: it is told temperature, top_p and, where it takes them, a seed
and that no other sampler (top_k, min_p, a repetition penalty) is to have a say.

Nothing here imports the `openai` package at the top: the parent reads the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from qeval.core.artifact import Artifact, ModelRef
from qeval.core.console import say
from qeval.core.endpoint import SERVER, Endpoint
from qeval.core.errors import EngineError, NotOfferedError
from qeval.core.extras import require
from qeval.core.record import MemoryReport
from qeval.core.settings import EngineSettings
from qeval.engines.base import LM, Completion, Ids, Request, Sampling, StepTrace, Stop
from qeval.engines.loop import Loop
from qeval.models.endpoint import N_IDS, endpoint_of, text_ids

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qeval.engines.http_client import Client, Json
    from qeval.engines.server import Server
    from qeval.models.tokenizer import Tokenizer

_HURRY_S = 20.0  # for an answer before the first job


@final
class OpenAiEngine(LM):
    name: ClassVar[str] = "openai"
    version: ClassVar[int] = 1
    packages: ClassVar[tuple[str, ...]] = ()  # the server's are its own
    capabilities: ClassVar[frozenset[str]] = frozenset({"generate", "nll", "requests"})

    def __init__(
        self,
        endpoint: Endpoint,
        client: Callable[[], Client],
        tokenizer: Callable[[], Tokenizer] | None,
    ) -> None:
        """``client`` makes the one that asks, ``tokenizer`` loads the one of the prompts' ids.

        Raises:
            EngineError: the server does not answer, refuses the key or has no such model.
        """
        from qeval.engines.server import Server

        self._endpoint, self._loop = endpoint, Loop()
        self._server: Server | None = None
        self._scores_checked = False
        try:
            self._server = Server(endpoint, client(), tokenizer)
            self._loop.run(self._server.introduce())
            self._loop.run(self._server.learn())
        except BaseException:
            self.close()
            raise
        self.max_seq_len, self.vocab_size = self._server.max_seq_len, N_IDS

    @classmethod
    def preflight(cls) -> None:
        require("openai", "openai")

    @classmethod
    def device(cls, asked: str) -> str:
        return SERVER

    @classmethod
    def reach(cls, artifact: Artifact) -> None:
        """Whether the server is there and has the model.

        Raises:
            EngineError: it is not, or has not.
            MissingExtraError: what reads its tokenizer is not installed.
            UsageError: the variable with the key is not set.
        """
        from qeval.engines.http_client import Client
        from qeval.engines.server import listed

        if path := artifact.details.get("tokenizer"):
            require(*(("gguf", "llama_cpp") if path.endswith(".gguf") else ("hf", "transformers")))
        endpoint = _asked(artifact)
        hurried = endpoint.model_copy(
            update={
                "timeout": min(endpoint.timeout, _HURRY_S),
                "max_retries": min(endpoint.max_retries, 1),
            }
        )
        if endpoint.warning:
            say(endpoint.warning)
        client, loop = Client(hurried, endpoint.key()), Loop()
        try:
            loop.run(listed(client, hurried))
        finally:
            loop.run(client.close())
            loop.close()

    @classmethod
    def open(cls, artifact: Artifact, settings: EngineSettings) -> OpenAiEngine:
        """Ask the server what it is and what it takes.

        Raises:
            EngineError: as __init__.
            UsageError: the variable with the key is not set.
        """
        from qeval.engines.http_client import Client

        endpoint, path = _asked(artifact), artifact.details.get("tokenizer")
        ref = ModelRef("", Path(path), "", settings.dtype, artifact.trust_remote_code) if path else None
        key = endpoint.key()
        return cls(endpoint, lambda: Client(endpoint, key), partial(_loaded, ref) if ref else None)

    @property
    def _asks(self) -> Server:
        assert self._server is not None  # but in __init__
        return self._server

    def generate(
        self, prompts: Sequence[Ids], sampling: Sampling, stop: Stop | None = None
    ) -> Iterator[Completion]:
        together = self._asks.dialect.n and sampling.temperature > 0
        size = self._endpoint.samples_per_request if together else 1
        jobs = (
            partial(self._completions, i, ids, sampling, numbers, stop)
            for i, ids in enumerate(prompts)
            for numbers in _blocks(sampling.numbers, size)
        )
        for completed in self._loop.stream(jobs, sampling.at_once or self._endpoint.concurrency):
            yield from completed

    async def _completions(
        self, index: int, prompt: Ids, sampling: Sampling, numbers: list[int], stop: Stop | None
    ) -> list[Completion]:
        """By one request, and one more for each completion that its answer lacks."""
        from qeval.engines.server import choices, new_tokens

        stops = tuple(getattr(stop, "texts", ()))
        reply = await self._asks.ask(prompt, self._asks.body(prompt, sampling, numbers, stops))
        if reply is None:
            return [Completion(index, number, [], "no room", 0) for number in numbers]
        answers = choices(reply)
        n_tokens = new_tokens(reply) if len(answers) == 1 else None
        found = []
        for number, answer in zip(numbers, answers, strict=False):
            ids, finish = _read(answer, stop, stops)
            found.append(Completion(index, number, ids, finish, n_tokens))
        for number in numbers[len(answers) :]:
            found += await self._completions(index, prompt, sampling, [number], stop)
        return found

    def requests(self, prompts: Sequence[Ids], new_tokens: int, at_once: int) -> Iterator[Request]:
        from qeval.engines import server

        sampling = Sampling(max_new_tokens=new_tokens)

        async def ask(prompt: Ids) -> Request:
            body = self._asks.body(prompt, sampling)
            if self._asks.dialect.neutral:
                body["ignore_eos"] = True
            reply = await self._asks.ask(prompt, body, counted=False)  # cut anywhere
            if reply is None:
                raise EngineError(
                    f"{self._endpoint.name}: no room for {new_tokens} tokens behind a prompt"
                )
            return Request(reply.seconds, server.prompt_tokens(reply), server.new_tokens(reply))

        yield from self._loop.stream((partial(ask, prompt) for prompt in prompts), at_once)

    def nll(self, windows: Sequence[Ids], *, first: int = 1) -> Iterator[NDArray[np.float32]]:
        from qeval.engines.echo import Echo

        if not windows:
            return
        echo, at_once = Echo(self._asks), self._endpoint.concurrency
        if not self._scores_checked:
            self._loop.run(echo.check())
            self._scores_checked = True

        async def one(i: int) -> tuple[int, NDArray[np.float32]]:
            return i, await echo.nll(windows[i], first, f"window {i + 1}")

        waiting: dict[int, NDArray[np.float32]] = {}
        coming = 0
        for i, nll in self._loop.stream((partial(one, i) for i in range(len(windows))), at_once):
            waiting[i] = nll
            while coming in waiting:
                yield waiting.pop(coming)
                coming += 1

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        raise NotOfferedError(f"{self._endpoint.name}: a server gives no logits")

    def steps(self, ids: Ids) -> StepTrace:
        raise NotOfferedError(f"{self._endpoint.name}: a server is not asked token by token")

    def tokenize(
        self, text: str, *, special: bool = True, parse_special: bool = True
    ) -> list[int] | None:
        return None

    def memory(self, context: int) -> MemoryReport:
        """Nothing is known of it."""
        return MemoryReport()

    def signature(self) -> dict[str, object]:
        return self._asks.signature()

    def facts(self) -> dict[str, object]:
        server, dialect = self._asks, self._asks.dialect
        how = "chat" if self._endpoint.api == "chat" else "ids" if dialect.ids else "text"
        seen = {"model": server.seen.model, "system_fingerprint": server.seen.fingerprint}
        return {
            "device": SERVER,
            "device_name": self._endpoint.host,
            "n_threads": None,
            "batch_size": None,
            "engine_version": _version(server.told),
            "prompts": how,
            "server": {**server.told, **{name: value for name, value in seen.items() if value}},
            "requests": {
                "answered": server.seen.answers,
                "retries": server.client.n_retries,
                "samplers": "neutral" if dialect.neutral else "the server's defaults",
                "seed": dialect.seed,
                "n": dialect.n,
                "stops": dialect.stops,
            },
        }

    def notes(self) -> tuple[str, ...]:
        server, found = self._asks, []
        if not server.dialect.neutral:
            found.append(
                f"{self._endpoint.host} takes no settings of its samplers: top_k, min_p and penalties "
                "are its defaults"
            )
        if server.seen.miscounted:
            (ours, theirs), n = server.seen.miscounted[0], len(server.seen.miscounted)
            found.append(
                f"prompts as text: {self._endpoint.host} reads other tokens than the tokenizer here, "
                f"in {n} of {server.seen.counted} requests ({theirs} in place of {ours} in the first)"
            )
        return tuple(found)

    def close(self) -> None:
        if self._server is not None:
            self._loop.run(self._server.client.close())
        self._loop.close()


def _asked(artifact: Artifact) -> Endpoint:
    endpoint = endpoint_of(artifact)
    if endpoint is None:
        raise EngineError(f"{artifact.path}: no endpoint: the engine openai opens no weights")
    return endpoint


def _loaded(ref: ModelRef) -> Tokenizer:
    from qeval.models.tokenizer import load_tokenizer

    return load_tokenizer(ref)


def _version(told: Json) -> str:
    words = [told.get("server"), told.get("version")]
    return " ".join(str(word) for word in words if word) or "unknown server"


def _blocks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """The numbers that are asked for together: of 0 .. size-1, size .. 2 size-1, ..., so that a run
    that was killed asks for the rest of a block."""
    block: list[int] = []
    for number in numbers:
        if block and number // size != block[0] // size:
            yield block
            block = []
        block.append(number)
    if block:
        yield block


def _read(choice: Json, stop: Stop | None, stops: tuple[str, ...]) -> tuple[list[int], str]:
    """The ids of an answer's text, up to where it is over, and why it is."""
    message = choice.get("message")
    text = choice.get("text") if message is None else message.get("content")
    whole = text_ids(text) if isinstance(text, str) else []
    ids = whole if stop is None else _stopped(whole, stop, stops)
    return ids, "stop" if len(ids) < len(whole) else _finish(choice, bool(stops))


def _stopped(ids: list[int], stop: Stop, texts: tuple[str, ...]) -> list[int]:
    """Up to where ``stop`` ends a sequence, the stop included, as an engine here has it. A stop that
    says its ``texts`` ends one where the first of them is complete; another is asked at every byte."""
    if not texts:
        everywhere = range(1, len(ids) + 1)
        return next((ids[:end] for end in everywhere if stop(ids[:end])), ids)
    data, base = bytes(i & 0xFF for i in ids), [text.encode() for text in texts]
    ends = [at + len(word) for word in base if (at := data.find(word)) >= 0]
    return ids[: min(ends)] if ends else ids


def _finish(choice: Json, stops_given: bool) -> str:
    """``stop`` in OpenAI's words is an end of sequence, or one of the stops that were given; vLLM's
    ``stop_reason`` tells them apart."""
    if choice.get("finish_reason") == "length":
        return "length"
    if "stop_reason" in choice:
        return "stop" if isinstance(choice["stop_reason"], str) else "eos"
    return "stop" if stops_given else "eos"
