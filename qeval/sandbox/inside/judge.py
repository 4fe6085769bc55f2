"""The judge: runs the tests of a program, whose code runs elsewhere and is only asked for values.

It never executes code under test. What comes back from the program's process is decoded into plain
values (values.py) or references to objects that stay over there, so the tests' comparisons are those of
Python's own types. A reference equals only itself; it can be called, iterated, and passed back.
"""

from __future__ import annotations

import _socket
import builtins
import math
import operator
import os
import random
import struct
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType
from typing import NoReturn

from .values import NotPlain, decode, encode
from .wire import Answer, Closed, Reader, Request, TooLong, WireError, send

DETAIL_CHARS = 200
MAX_REQUEST = 1 << 30


class Ended(BaseException):
    """The program's end, decided; no test can catch it as an Exception."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


class SandboxBroken(BaseException):
    """Not the program's fault: the lane must not be used."""


class Gone(BaseException):
    """The program's process closed its socket; the zygote says how it ended."""


class Session:
    """One program's process, seen from its judge."""

    def __init__(self, channel: int, reply_bytes: int) -> None:
        self._channel, self._reply_bytes = channel, reply_bytes
        self._reader = Reader(channel)
        self._known: dict[int, Reference] = {}
        self.end: Ended | Gone | None = None
        self.last: tuple[BaseException | None, str] = (None, "")  # what the code raised, in its words

    def load(self, code: str) -> None:
        """Raises SandboxBroken when the walls did not go up: that is heard before the code runs."""
        send(self._channel, {"code": code})
        broken = self._reader.receive(MAX_REQUEST)["broken"]
        if broken:
            raise SandboxBroken(broken)
        self._check(self._answer())

    def function(self, name: str) -> Callable[..., object]:
        """The code's function of a name; it is looked up when it is called."""

        def remote(*args: object, **kwargs: object) -> object:
            return self.call(name, args, kwargs)

        remote.__name__ = remote.__qualname__ = name
        return remote

    def call(self, target: str | int, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        forms = [encode(value, self._number_of) for value in args]
        named = {key: encode(value, self._number_of) for key, value in kwargs.items()}
        answer = self._ask({"call": target, "args": forms, "kwargs": named})
        if type(answer.get("args")) is list:
            _merged([*args], self._value(answer["args"]))
        named_after = answer.get("kwargs")
        if type(named_after) is dict:
            new = {key: self._value(form) for key, form in named_after.items()}
            _merged(dict(kwargs), new)
        self._check(answer)
        return self._value(answer.get("value"))

    def iterator(self, number: int) -> object:
        return self._value(self._check(self._ask({"iter": number})).get("value"))

    def next(self, number: int) -> object:
        answer = self._check(self._ask({"next": number}))
        if "end" in answer:
            raise StopIteration
        return self._value(answer.get("value"))

    def _ask(self, message: dict[str, object]) -> dict[str, object]:
        """The answer to a message. Raises Ended or Gone, and again whenever it is asked after that."""
        if self.end is not None:
            raise self.end
        try:
            send(self._channel, message)
        except OSError:
            raise self._over(Gone()) from None
        return self._answer()

    def _answer(self) -> dict[str, object]:
        try:
            answer = self._reader.receive(self._reply_bytes)
        except (Closed, OSError):
            raise self._over(Gone()) from None
        except TooLong as err:
            detail = f"{err} where at most {self._reply_bytes} are taken"
            raise self._over(Ended("output", detail)) from None
        except WireError as err:
            raise self._over(Ended("failed", f"protocol: {err}")) from None
        if not isinstance(answer, dict):
            raise self._over(Ended("failed", "protocol: not an answer"))
        return answer

    def _over(self, end: Ended | Gone) -> Ended | Gone:
        """Remember the end: a test that catches everything cannot make it undone."""
        self.end = end
        return end

    def _check(self, answer: dict[str, object]) -> dict[str, object]:
        """The answer, unless it is an exception: that is raised."""
        if "error" in answer:
            self._raise(answer)
        return answer

    def _raise(self, answer: dict[str, object]) -> NoReturn:
        name, text = str(answer["error"])[:DETAIL_CHARS], str(answer.get("text", ""))
        detail = f"{name}: {text}"
        if answer.get("final"):
            status = answer.get("status")
            known = isinstance(status, str) and status in ("syntax", "memory")
            raise self._over(Ended(str(status) if known else "failed", detail))
        err = _exception(name, answer.get("bases"), text)
        self.last = (err, detail)
        raise err

    def _value(self, form: object) -> object:
        try:
            return decode(form, self._resolve)
        except (NotPlain, RecursionError) as err:
            raise self._over(Ended("failed", f"protocol: {err}")) from None

    def _resolve(self, number: int) -> Reference:
        if type(number) is not int:
            raise NotPlain("not a reference")
        return self._known.setdefault(number, Reference(self, number))

    def _number_of(self, value: object) -> int:
        if isinstance(value, Reference):
            return value.number
        raise NotPlain(f"a test passes a {type(value).__name__}, which is not a plain value")


class Reference:
    """An object of the program that is not a plain value."""

    def __init__(self, session: Session, number: int) -> None:
        self._session, self.number = session, number

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._session.call(self.number, args, kwargs)

    def __iter__(self) -> Reference:
        found = self._session.iterator(self.number)
        if isinstance(found, Reference):
            return found
        raise TypeError("iter() returned a value that is no iterator")

    def __next__(self) -> object:
        return self._session.next(self.number)


def _exception(name: str, bases: object, text: str) -> Exception:
    """An exception that a test can catch as it would the code's: by its nearest built-in class."""
    names = bases if isinstance(bases, list) else []
    found = (getattr(builtins, base, None) for base in names if isinstance(base, str))
    kinds = (kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))
    body = {"__init__": lambda self, *_: None, "__str__": lambda _: text}
    try:
        made = type(name, (next(kinds, Exception),), body)(text)
    except (TypeError, ValueError):  # an ExceptionGroup wants more; a name with a null character
        return Exception(text)
    return made if isinstance(made, Exception) else Exception(text)


def _merged(old: object, new: object) -> object:
    """``old``, changed in place to what the code has made of it, wherever it can be; else ``new``."""
    if type(old) is not type(new):
        return new
    if isinstance(old, tuple) and isinstance(new, tuple):
        merged = tuple(map(_merged, old, new))
        return old if len(old) == len(new) and all(map(operator.is_, old, merged)) else new
    if isinstance(old, list) and isinstance(new, list):
        old[:] = [*map(_merged, old, new), *new[len(old) :]]
    elif isinstance(old, dict) and isinstance(new, dict):
        merged_items = {key: _merged(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(merged_items)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    else:
        return new
    return old


@lru_cache(maxsize=512)  # the tests of a problem are compiled once for all its samples
def _compiled(text: str, name: str) -> CodeType:
    return compile(text, name, "exec", dont_inherit=True)


def _run_tests(session: Session, request: Request) -> None:
    namespace: dict[str, object] = {"__name__": "tests"}
    random.seed(request["seed"])  # not the code's own: it would know what the tests draw
    exec(_compiled(request["setup"], "<setup>"), namespace)
    namespace.update({name: session.function(name) for name in request["names"]})
    exec(_compiled(request["test"], "<test>"), namespace)
    exec(_compiled(request["call"], "<call>"), namespace)


def judge(request: Request, control: _socket.socket) -> Answer:
    """Run one program."""
    started = time.process_time()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", theirs.fileno()))]
    cpu_s = math.ceil(request["timeout_s"]) + 1  # behind the host's clock, which ends it before
    control.sendmsg([b"run %d" % cpu_s], rights)
    theirs.close()
    session = Session(ours.fileno(), request["reply_bytes"])
    gone = False
    try:
        session.load(request["code"])
        _run_tests(session, request)
        if session.end is not None:
            raise session.end
        status, detail = "passed", ""
    except Ended as end:
        status, detail = end.status, end.detail
    except Gone:
        status, detail, gone = "killed", "", True
    except SandboxBroken:
        raise
    except MemoryError as err:
        status, detail = "memory", f"MemoryError: {err}"
    except BaseException as err:  # an assertion, usually; the tests are ours, so is their SystemExit
        raised, words = session.last
        status, detail = "failed", words if err is raised else _describe(err)
    ours.close()
    control.send(b"wait" if gone else b"end")
    code, cpu = control.recv(64).split()
    if gone:
        status, detail = _silent_end(int(code), float(cpu), request["timeout_s"])
    detail = " ".join(detail.split())[:DETAIL_CHARS]
    used = float(cpu) + time.process_time() - started
    return {"status": status, "detail": detail, "cpu": used}


def _describe(err: BaseException) -> str:
    return f"{type(err).__name__}: {err}"


def _silent_end(code: int, cpu: float, timeout_s: float) -> tuple[str, str]:
    """A process that ended without an answer."""
    if code >= 0:
        return "failed", f"exit: {code}, before the end of the tests"
    if cpu >= timeout_s:  # the kernel's limit
        return "timeout", f"{timeout_s:g} s of CPU time"
    return "killed", f"signal {-code}"


def serve(reader: Reader, host: int, control: _socket.socket) -> None:
    """Judge what the host sends, until it has gone. A program that takes too long is killed by the
    host, which alone knows how much of the time was the program's own."""
    while True:
        try:
            request = reader.receive(MAX_REQUEST)
        except Closed:
            os._exit(0)
        try:
            send(host, judge(request, control))
        except SandboxBroken as err:
            send(host, {"broken": str(err)})
            os._exit(1)
