"""How qeval talks to a hub: patience with a busy one, and one line for whatever fails.

huggingface_hub does the downloading. What it leaves open is settled in the HTTP client that it is given
(``set_client_factory``):

- what a second try may mend (429, 5xx, no connection) is asked for again, after ``Retry-After`` where
  the hub names one; a wait that is too long ends the run instead of hanging in it;
- a connection that breaks inside a file is resumed like one that was closed (huggingface_hub resumes
  after the latter only);
- no request waits for ever;
- Ctrl-C ends a download (``stoppable``).

No token, password or signed address gets into a message (``scrub``).
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import httpx
import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import disable_progress_bars

from qeval.core.console import say
from qeval.core.errors import HubError, first_line
from qeval.core.files import disk_message

# How often a request is made, with waits of 1, 2, 4, ... s between: of a busy hub; of one out of reach
# (what is in the cache may do); of that for a file's content, half an hour into a download.
TRIES, TRIES_NO_CONNECTION, TRIES_FILE = 5, 3, 8
LONGEST_WAIT_S = 300.0  # the hub counts requests in windows of so long
BEST_EFFORT_S = 5.0  # a request that may not take longer is huggingface_hub's own business: made once
_RATE_LIMIT = re.compile(r"\br=0;\s*t=(\d+)")  # RateLimit: "api";r=0;t=55
_STOP = threading.Event()
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SENDABLE = re.compile(r"[!-~]+")  # what an HTTP header holds: printable ASCII without spaces


@dataclass(frozen=True)
class Place:
    """What is asked for, as messages name it."""

    repo: str
    kind: Literal["model", "dataset"]
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        name = self.repo if self.kind == "model" else f"dataset {self.repo}"
        name += f" {self.file}" if self.file else ""
        short = (self.revision or "")[:12] if _COMMIT.fullmatch(self.revision or "") else self.revision
        return name + (f" @{short}" if short else "")

    @property
    def page(self) -> str:
        return f"{host()}/{'' if self.kind == 'model' else 'datasets/'}{self.repo}"


class GaveUp(Exception):
    """Asked often enough. huggingface_hub does not know this exception, and so neither repeats the
    request nor falls back on its cache. ``status``: of the last answer, None where there was none."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


# Patience


def prepare(place: Place) -> None:
    """Give huggingface_hub the patient client, once a process, and look at the token.

    Raises:
        HubError: the token cannot be sent.
    """
    token = _token()
    if token and not _SENDABLE.fullmatch(token):
        fault = (
            "HF_TOKEN (or the file of `hf auth login`) holds what no token does, such as a line break"
        )
        raise HubError(place, f"{fault}: set it again", refused=True)
    _be_patient()


@cache
def _be_patient() -> None:
    huggingface_hub.set_client_factory(_client)
    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_hide_in_log)


def _hide_in_log(record: logging.LogRecord) -> bool:
    """huggingface_hub logs the signed addresses of downloads that break off."""
    record.msg, record.args = hide(record.getMessage()), ()
    return True


def _token() -> str | None:
    try:
        return huggingface_hub.get_token()
    except Exception:  # of a service that hands out tokens: the request itself will say
        return None


def _client() -> httpx.Client:
    from huggingface_hub.utils._http import hf_request_event_hook  # it keeps HF_HUB_OFFLINE

    hooks: dict[str, list[Any]] = {"request": [hf_request_event_hook]}
    return PatientClient(event_hooks=hooks, follow_redirects=True)


class Stopped(Exception):
    """Somebody pressed Ctrl-C: to threads, which are not told."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C (or SIGTERM) raises KeyboardInterrupt and ends the threads of ``snapshot_download``, which
    waits for them: they would first finish their files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        _STOP.set()
        with suppress(ImportError):  # a name of huggingface_hub's own
            from huggingface_hub.utils._xet import abort_xet_session

            abort_xet_session()  # type: ignore[no-untyped-call]
        raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _STOP.clear()


def _check_stop() -> None:
    if _STOP.is_set():
        raise Stopped


def _wait(seconds: float) -> None:
    _STOP.wait(seconds)
    _check_stop()


class PatientClient(httpx.Client):
    """``httpx.Client`` that asks again. Proxies and certificates are httpx's own."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Raises GaveUp after too many tries, or where the hub asks to stay away for too long."""
        once = _bound(request) < BEST_EFFORT_S
        no_connection = TRIES_FILE if options.get("stream") else TRIES_NO_CONNECTION
        tries = 0
        while True:
            tries += 1
            _check_stop()
            wait = 2.0 ** (tries - 1)
            try:
                response = super().send(request, **options)
            except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as err:
                reason = _reason(err)
                if once or tries == no_connection or "CERTIFICATE" in reason:  # which no try mends
                    raise GaveUp(reason) from err
            else:
                status = response.status_code
                if status not in (408, 429) and status < 500:
                    response.stream = _Body(response.stream)
                    return response
                response.close()
                reason, wait = _named(status), _asked_wait(response.headers, wait)
                if wait > LONGEST_WAIT_S:
                    raise GaveUp(f"{reason}, not before {wait:.0f} s from now", status)
                if once or tries == TRIES:
                    raise GaveUp(f"{reason}, {tries} times", status)
            say(f"{request.url.host}: {reason}: trying again in {wait:.0f} s")
            _wait(wait)


class _Body(httpx.SyncByteStream):
    """A body whose broken connection is one that huggingface_hub resumes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._stream:
                _check_stop()
                yield data
        except httpx.ReadError as err:
            raise httpx.RemoteProtocolError(f"the connection broke: {err}") from err

    def close(self) -> None:
        self._stream.close()


def _bound(request: httpx.Request) -> float:
    """Give the request a limit for each of its steps, for huggingface_hub's functions for listings set
    none; the seconds that it may wait for data."""
    asked = request.extensions.get("timeout") or {}
    limits = dict.fromkeys(("connect", "read", "write", "pool"), constants.HF_HUB_DOWNLOAD_TIMEOUT)
    limits |= {step: limit for step, limit in asked.items() if limit is not None}
    request.extensions["timeout"] = limits
    return float(limits["read"])


def _named(status: int) -> str:
    """``503 Service Unavailable``; the number alone where HTTP has no name for it."""
    with suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _asked_wait(headers: httpx.Headers, default: float) -> float:
    """Seconds that the server asks to wait: Retry-After (a number, a date), or the hub's RateLimit."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    found = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(found[1]) if found else default


# Messages


def host() -> str:
    """The hub's address, as messages name it."""
    return scrub(constants.ENDPOINT)


def hide(text: str) -> str:
    """The text without the token, and without passwords and queries in addresses."""
    if token := _token():
        text = text.replace(token, "***")
    text = re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\",)]*", r"\1", text)


def scrub(text: str) -> str:
    """The first line of the text, without its secrets."""
    return first_line(hide(text))


def _reason(err: Exception) -> str:
    return scrub(str(err)) or type(err).__name__


def explain(err: Exception, place: Place) -> HubError:
    """The one line for an exception of huggingface_hub, httpx or the disk: what, where, and the fix."""
    if isinstance(err, HubError):
        return err
    if isinstance(err, errors.LocalEntryNotFoundError) and isinstance(err.__cause__, Exception):
        return explain(err.__cause__, place)  # it adds that the cache has no copy
    response = getattr(err, "response", None)
    if isinstance(response, httpx.Response):
        return HubError(place, _refusal(response, place), refused=True)
    return HubError(place, _trouble(err))


def _refusal(response: httpx.Response, place: Place) -> str:
    """The hub answered: https://huggingface.co/docs/hub/api says with which codes."""
    status, code = response.status_code, response.headers.get("X-Error-Code")
    said = scrub(response.headers.get("X-Error-Message", ""))
    if code == "GatedRepo" and status == 401:
        return f"gated: accept its terms at {place.page}, then set HF_TOKEN to a token of that account"
    if code == "GatedRepo":
        return (
            f"gated, and not open to the account of your token: accept its terms at {place.page}, or "
            "wait for the answer; a fine-grained token also needs access to public gated repositories"
        )
    if code == "RevisionNotFound":
        return f"the hub has no such revision: {place.page}/commits has its commits; correct `revision`"
    if code == "EntryNotFound":
        return f"the hub has no such file: {place.page}/tree/{place.revision or 'main'} lists them"
    if status == 401 and "credentials" in said.lower():
        return f"the hub does not accept your token ({said}): set HF_TOKEN to a valid one, or unset it"
    if code == "RepoNotFound" or status in (401, 404):
        return f"no such {place.kind} on {host()}, or a private one: correct the name, or set HF_TOKEN"
    return f"the hub refuses it: {_named(status)}{f': {said}' if said else ''} ({place.page})"


def _trouble(err: Exception) -> str:
    """No answer, or none to use."""
    reason = _reason(err)
    if isinstance(err, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        cache_folder = constants.HF_HUB_CACHE
        return f"HF_HUB_OFFLINE is set and the cache ({cache_folder}) has no copy: unset it to download"
    if isinstance(err, GaveUp) and err.status is not None:
        fix = "; requests with a token (HF_TOKEN) have a higher limit" if err.status == 429 else ""
        return f"{host()} answers {reason}: run again later, complete files are kept{fix}"
    if isinstance(err, GaveUp | httpx.ConnectError | httpx.UnsupportedProtocol | httpx.ProxyError):
        return f"{host()} is out of reach ({reason}): check the network, the proxy and HF_ENDPOINT"
    if isinstance(err, httpx.TransportError):
        return f"the download broke off ({reason}): run again, complete files are kept"
    if isinstance(err, errors.HFValidationError):
        return f"not a name that a hub could have ({reason})"
    if isinstance(err, errors.FileMetadataError | ValueError | TypeError | KeyError):
        return f"{host()} does not answer as a hub does ({reason}): check HF_ENDPOINT and the proxy"
    if isinstance(err, OSError) and err.errno:
        return f"{disk_message(Path(constants.HF_HUB_CACHE), err)} (HF_HOME says where)"
    return f"{type(err).__name__}: {reason}: run again"
