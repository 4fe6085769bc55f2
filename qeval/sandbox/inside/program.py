"""The process of one program: loads the code, then answers calls of its functions. It sees no tests.

Messages in: ``{"code": text}``, then ``{"call": name or reference, "args": [...], "kwargs": {...}}``,
``{"iter": reference}`` and ``{"next": reference}``. Messages out: ``{"value": ...}``, with ``"args"``
and ``"kwargs"`` where the call has changed its arguments; ``{"end": true}`` of an iterator; ``{"error":
class, "bases": [...], "text": ..., "status": ..., "final": bool}``. All of them may be forged by the
program: the judge takes them for what they are, plain values and names.
"""

from __future__ import annotations

import _socket
import random
import sys
import types
from collections.abc import Callable
from typing import Any

from .values import decode, encode
from .wire import Reader, send

MAX_REQUEST = 1 << 30
TEXT_CHARS = 200
REHEARSALS = 20  # until nothing is done for the first time, the interpreter's own tuning included
REHEARSAL = """\
from typing import Dict, List, Optional, Tuple
import math


def largest(numbers: List[int], start: Optional[int] = None) -> Tuple[int, Dict[str, float]]:
    \"\"\"The largest number, and what the others are.\"\"\"
    found = {}
    for i, n in enumerate(sorted(set(numbers), reverse=True)):
        if i % 2 == 0 and n > 1:
            found[str(n)] = math.sqrt(n) / 2.0
    numbers.append(sum(n * n for n in numbers) + len([n for n in numbers if n != 1]))
    return max(numbers[0], start or -1), found


def spaced(text):
    words = text.lower().split(" ")
    while len(words) > 3:
        words.pop()
    if not words[-1]:
        raise ValueError(f"no word in {text!r}")
    return "-".join(reversed(words))[::-1]
"""
CALLS: tuple[tuple[str, list[object], dict[str, object]], ...] = (
    ("largest", [[3, 1, 2]], {}),
    ("largest", [[]], {"start": 5}),
    ("spaced", ["a bc d e"], {}),
    ("spaced", [""], {}),
)


def serve(channel: int) -> None:
    """Answer until no more messages come."""
    reader = Reader(channel)
    code = reader.receive(MAX_REQUEST)["code"]
    objects = Objects()
    try:
        answer = load(code, objects)
        while True:
            try:
                send(channel, answer)
            except MemoryError as err:  # before a byte was written: it is put together first
                send(channel, failure("memory", err))
            answer = objects.answer(reader.receive(MAX_REQUEST))
    except Exception:  # the judge has gone, or the program has broken its own channel
        return


def rehearse() -> None:
    """Do what a program's process does, before the fork: what is looked up, tuned or set aside on the
    first time is then in memory that all of them share."""
    for _ in range(REHEARSALS):
        ours, theirs = _socket.socketpair()
        send(ours.fileno(), {"code": REHEARSAL})
        for name, args, kwargs in CALLS:
            send(ours.fileno(), {"call": name, "args": args, "kwargs": kwargs})
        ours.shutdown(_socket.SHUT_WR)
        serve(theirs.fileno())
        ours.close()
        theirs.close()
    del sys.modules["program"]


def load(code: str, objects: Objects) -> dict[str, object]:
    """Run the code as the module ``program``: not __main__, since its "main" block is not part of
    it."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    objects.names = module.__dict__
    random.seed(0)  # the same draws every time
    try:
        compiled = compile(code, "<program>", "exec", dont_inherit=True)
    except MemoryError as err:
        return failure("memory", err)
    except Exception as err:  # ValueError: null bytes, RecursionError: nested too deeply, ...
        return failure("syntax", err)
    try:
        exec(compiled, module.__dict__)
    except BaseException as err:
        return failure("failed", err)
    return {"value": None}


class Objects:
    """The program's names, and the objects that the judge has references to."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}  # of whatever type the program likes
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def refer(self, value: object) -> int:
        """The number of an object; it stays alive, so its id stays its own."""
        number = self._numbers.setdefault(id(value), len(self._kept))
        if number == len(self._kept):
            self._kept.append(value)
        return number

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        try:
            if "call" in request:
                return self._call(**request)
            if "iter" in request:
                return {"value": encode(iter(self._kept[request["iter"]]), self.refer)}
            try:
                return {"value": encode(next(self._kept[request["next"]]), self.refer)}
            except StopIteration:
                return {"end": True}
        except BaseException as err:
            return failure("failed", err)

    def _call(
        self, call: str | int, args: list[object], kwargs: dict[str, object]
    ) -> dict[str, object]:
        resolve: Callable[[int], object] = self._kept.__getitem__
        given = [decode(form, resolve) for form in args]
        named = {key: decode(form, resolve) for key, form in kwargs.items()}
        try:
            answer = {"value": encode(self._target(call)(*given, **named), self.refer)}
        except Exception as err:
            answer = failure("failed", err)
        if any(type(form) in (list, dict) for form in (*args, *kwargs.values())):
            after = [encode(value, self.refer) for value in given]
            after_named = {key: encode(value, self.refer) for key, value in named.items()}
            if (after, after_named) != (args, kwargs):
                answer |= {"args": after, "kwargs": after_named}
        return answer

    def _target(self, call: str | int) -> Callable[..., object]:
        if isinstance(call, int):
            target: Callable[..., object] = self._kept[call]
            return target
        if call not in self.names:
            raise NameError(f"name {call!r} is not defined")
        found: Callable[..., object] = self.names[call]
        return found


def failure(status: str, err: BaseException) -> dict[str, object]:
    """What the judge is told of an exception; ``final``: no test may catch it."""
    name = type(err).__name__
    try:
        text = str(err)
    except BaseException:  # __str__ is the program's own code, too
        text = ""
    if isinstance(err, MemoryError) and status == "failed":
        status = "memory"
    final = not isinstance(err, Exception) or status != "failed"
    bases = [kind.__name__ for kind in type(err).__mro__]
    return {"error": name, "bases": bases, "text": text[:TEXT_CHARS], "status": status, "final": final}
