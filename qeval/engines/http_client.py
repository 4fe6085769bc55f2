"""Requests to one endpoint: tried again where that helps, and silent about the key.

- The key is set on the way out (``_Guarded``), on a request to the endpoint's own host and no other.
  What comes back is cleaned of it before anything reads it: no message, traceback or log can hold it.
- Redirects are not followed.
- 429, 408, 5xx, timeouts, broken connections and answers that are no JSON or have no choices are tried
  again, after min(60, 2^n / 2) seconds, up to half of it less at random, or after what ``Retry-After``
  says, five minutes at most.

The `openai` package sends the requests; its own retries are off.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai

from qeval.core.endpoint import Endpoint
from qeval.core.errors import EngineError, first_line, one_line, short

Json = dict[str, Any]
Sleep = Callable[[float], Awaitable[object]]

LONGEST_WAIT = 300.0  # seconds, of a Retry-After
_LONGEST_BACKOFF = 60.0
_SHORTEST_KEY = 8  # characters; what is shorter ("EMPTY", "none") keeps nobody out
_SENT = frozenset(
    ("host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent")
)
_HIDDEN = "[key]"
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})


class RefusedError(EngineError):
    """The server answered, and said no: ``status`` and its own words."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Reply:
    data: Json
    headers: dict[str, str]  # names in lower case
    seconds: float  # from sending the request that was answered to its last byte


class _Guarded(httpx2.AsyncBaseTransport):
    """Gives the key to the endpoint's host, and no other header that a library or the environment would
    add; takes the key out of what comes back."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, endpoint: Endpoint, key: str | None) -> None:
        self._inner, self._own, self._key = inner, httpx2.URL(endpoint.base_url), key
        self._forms = key_forms(key)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        for name in list(request.headers):
            if name.lower() not in _SENT:
                del request.headers[name]
        if self._key is not None and self._is_own(request.url):
            request.headers["Authorization"] = f"Bearer {self._key}"
        response = await self._inner.handle_async_request(request)
        try:
            content = await response.aread()
        finally:
            await response.aclose()
        headers = [
            (name, self._clean(value))
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return httpx2.Response(
            response.status_code,
            headers=headers,
            content=self._clean(content.decode("utf-8", "surrogateescape")).encode(
                "utf-8", "surrogateescape"
            ),
            request=request,
        )

    def _is_own(self, url: httpx2.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._own.scheme, self._own.host, self._own.port)

    def _clean(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, _HIDDEN)
        return text

    async def aclose(self) -> None:
        await self._inner.aclose()


def key_forms(key: str | None) -> tuple[str, ...]:
    """The key as a server may write it: plainly, or in a JSON string."""
    if key is None or len(key) < _SHORTEST_KEY:
        return ()
    plain = json.dumps(key)[1:-1]
    return tuple(dict.fromkeys((key, plain, plain.replace("/", "\\/"))))


class Client:
    """Use it inside ``Loop.run`` alone: its connections belong to that loop.

    ``sleep`` waits between tries; ``chance`` draws from [0, 1).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None,
        *,
        sleep: Sleep = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        logging.getLogger("openai").disabled = True  # OPENAI_LOG would print requests
        self._endpoint, self._sleep, self._chance = endpoint, sleep, chance
        self.n_retries = 0
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=endpoint.concurrency)
        proxy = _proxy(endpoint)
        transport = _Guarded(httpx2.AsyncHTTPTransport(limits=limits, proxy=proxy), endpoint, key)
        http = httpx2.AsyncClient(
            transport=transport, timeout=endpoint.timeout, follow_redirects=False, trust_env=False
        )
        self._openai = openai.AsyncOpenAI(
            api_key="set-on-the-way-out",
            base_url=endpoint.base_url,
            http_client=http,
            max_retries=0,
            timeout=endpoint.timeout,
        )

    async def post(self, path: str, body: Json, *, doubtful: bool = False) -> Reply:
        """Completions; ``path`` is below base_url. ``doubtful``: the server may not understand the
        body, which some answer with 500: that is tried again only once. Raises as ``_ask``."""
        body = {**body, **self._endpoint.extra_body}

        async def send() -> httpx2.Response:
            response = await self._openai.post(path, body=body, cast_to=httpx2.Response)
            _check_choices(_json(response), response)
            return response

        return await self._ask(path, send, {500: 1} if doubtful else {})

    async def get(self, path: str, *, retries: int | None = None) -> Reply:
        """What the server says of itself. Raises as ``_ask``."""

        async def send() -> httpx2.Response:
            return await self._openai.get(path, cast_to=httpx2.Response)

        return await self._ask(path, send, {}, retries)

    async def _ask(
        self,
        path: str,
        send: Callable[[], Awaitable[httpx2.Response]],
        fewer: dict[int, int],
        retries: int | None = None,
    ) -> Reply:
        """One answer, after as many tries as it takes; ``fewer``: retries after some statuses.

        Raises:
            RefusedError: the server refuses it, whatever the number of tries.
            EngineError: no answer after all tries; with the last reason.
        """
        most = self._endpoint.max_retries if retries is None else retries
        tries = 0
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(
                    self._endpoint.timeout
                ):  # of all of it: httpx2's is a read's
                    response = await send()
                return Reply(_json(response), dict(response.headers), time.monotonic() - began)
            except Exception as err:  # of the openai package, of httpx2, of what _json found
                fault = self._fault(err, path)
            # Outside of the except block, so that no error of a library is behind the one line.
            if fault.final is not None:
                raise fault.final
            if tries >= min(most, fewer.get(fault.status or 0, most)):
                raise self._gave_up(fault, tries + 1)
            tries += 1
            self.n_retries += 1
            await self._sleep(fault.wait if fault.wait is not None else self._backoff(tries))

    def _backoff(self, tries: int) -> float:
        """Seconds before the next try, after ``tries`` of them."""
        longest = min(_LONGEST_BACKOFF, 2.0 ** min(tries, 10) / 2)
        return longest * (0.5 + 0.5 * self._chance())

    def _gave_up(self, fault: _Fault, tries: int) -> EngineError:
        times = "after 1 try" if tries == 1 else f"after {tries} tries"
        line = f"{self._endpoint.base_url}: {fault.reason} ({times}; max_retries)"
        if fault.status is not None:
            return RefusedError(line, fault.status, fault.reason)
        return EngineError(line)

    def _fault(self, err: Exception, path: str) -> _Fault:
        if isinstance(err, openai.APIStatusError):
            return self._status(err.response, path)
        if isinstance(err, openai.APITimeoutError | TimeoutError):
            return _Fault(f"no answer within {self._endpoint.timeout:g} s (timeout)")
        if isinstance(err, _BadAnswerError):
            return _Fault(str(err))
        causes = list(_causes(err))
        tls = next((e for e in causes if isinstance(e, ssl.SSLError)), None)
        if tls is not None:
            why = getattr(tls, "verify_message", "") or tls.reason or first_line(tls)
            return _Fault(
                "TLS",
                final=self._error(
                    f"TLS: {why}: set SSL_CERT_FILE to the server's certificate, or correct base_url"
                ),
            )
        if isinstance(err, openai.APIConnectionError | httpx2.HTTPError | OSError):
            return _Fault(_connection(causes))
        return _Fault("", final=self._error(one_line(f"{type(err).__name__}: {err}")))

    def _status(self, response: httpx2.Response, path: str) -> _Fault:
        status, said = response.status_code, _said(response)
        reason = f"HTTP {status}" + (f": {said}" if said else "")
        if status in _AGAIN:
            return _Fault(reason, wait=retry_after(response.headers.get("retry-after")), status=status)
        if 300 <= status < 400:
            to = short(response.headers.get("location", "?"))
            reason = (
                f"redirects to {to}, which is not followed: is that the server, let base_url name it"
            )
        elif status in (401, 403):
            name = self._endpoint.api_key_env
            fix = f"see the key in {name}" if name else "name the variable with its key by api_key_env"
            reason = f"{reason}: {fix}"
        elif status == 404:
            reason = (
                f"{reason} at {path}: is base_url whole (usually it ends in /v1), and the model's name?"
            )
        return _Fault(reason, final=RefusedError(f"{self._endpoint.base_url}: {reason}", status, said))

    def _error(self, reason: str) -> EngineError:
        return EngineError(f"{self._endpoint.base_url}: {reason}")

    async def close(self) -> None:
        await self._openai.close()


@dataclass(frozen=True)
class _Fault:
    """Why a try failed: ``final`` where another would, too, else ``wait`` as the server asks."""

    reason: str
    final: EngineError | None = None
    wait: float | None = None
    status: int | None = None


class _BadAnswerError(Exception):
    pass


def _json(response: httpx2.Response) -> Json:
    if response.status_code >= 300:  # the package raises for 4xx and 5xx
        raise openai.APIStatusError("", response=response, body=None)
    try:
        data = json.loads(response.content)
    except ValueError:
        raise _BadAnswerError(f"its answer is no JSON: {_excerpt(response)}") from None
    if not isinstance(data, dict):
        raise _BadAnswerError(f"its answer is no JSON object: {_excerpt(response)}")
    if "error" in data and data["error"] and "choices" not in data:
        raise _BadAnswerError(f"it answers with an error: {_message(data) or _excerpt(response)}")
    return data


def _check_choices(data: Json, response: httpx2.Response) -> None:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
        raise _BadAnswerError(f"its answer has no choices: {_excerpt(response)}")


def _said(response: httpx2.Response) -> str:
    """What an error's body says, in one short line."""
    try:
        data = json.loads(response.content)
    except ValueError:
        return _excerpt(response)
    return _message(data) or _excerpt(response)


def _message(data: object) -> str:
    """``error.message`` of OpenAI and vLLM, ``error`` or ``detail`` or ``message`` of others."""
    for key in ("error", "detail", "message"):
        if isinstance(data, dict) and data.get(key):
            data = data[key]
    return short(one_line(data), 300) if isinstance(data, str) else ""


def _excerpt(response: httpx2.Response) -> str:
    text = re.sub(r"<[^>]*>", " ", response.text)  # the page of a proxy
    return short(one_line(" ".join(text.split())), 100)


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _connection(causes: Iterable[BaseException]) -> str:
    """The innermost reason that says something."""
    said = [first_line(e) for e in causes if not isinstance(e, openai.OpenAIError)]
    return f"no connection, or a broken one: {short(one_line(said[-1])) if said else 'unknown'}"


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds to wait, of a header with seconds or a date; None where it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _proxy(endpoint: Endpoint) -> str | None:
    """Of the environment, for a server that is not near."""
    parts = urlsplit(endpoint.base_url)
    if endpoint.is_near or proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)
