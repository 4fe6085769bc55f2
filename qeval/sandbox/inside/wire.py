"""Frames over a socket: four bytes of length, little endian, then JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

HEADER = 4
CHUNK = 1 << 16
_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
_read, _write = os.read, os.write


class Marks(TypedDict):
    """Things of the machine that no program may reach: the host's word to the probes."""

    file: str
    pid: int
    shm: int
    port: int
    abstract: str
    walled: NotRequired[bool]  # whether the lane has namespaces


class Request(TypedDict):
    """A program, and how the host wants it judged."""

    code: str
    setup: str
    names: Sequence[str]
    test: str
    call: str
    timeout_s: float
    seed: int
    reply_bytes: int


class Answer(TypedDict):
    """What came of it. ``cpu``: seconds of both processes."""

    status: str
    detail: str
    cpu: float


class WireError(Exception):
    """What was sent is not a frame."""


class TooLong(WireError):
    """A frame over the limit was announced."""


class Closed(WireError):
    """The other side has closed the socket."""


def frame(message: object) -> bytes:
    body = _encode(message).encode()
    return len(body).to_bytes(HEADER, "little") + body


def send(fd: int, message: object) -> None:
    """Write one message, whatever its length. Raises OSError when nobody is there to read it."""
    data = frame(message)
    written = _write(fd, data)
    while written < len(data):
        written += _write(fd, data[written : written + CHUNK])


class Reader:
    """Reads messages from a socket, with one system call for a short one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""

    def receive(self, limit: int) -> Any:
        """The next message, of at most ``limit`` bytes.

        Raises:
            Closed: end of file. TooLong: more than ``limit`` bytes. WireError: not a frame.
        """
        length = int.from_bytes(self._take(HEADER), "little")
        if length > limit:
            raise TooLong(f"a message of {length} bytes")
        body = self._take(length)
        try:
            return _decode(body.decode())
        except (ValueError, RecursionError) as err:
            raise WireError(f"not a message: {type(err).__name__}") from err

    def _take(self, count: int) -> bytes:
        if len(self._data) < count:
            chunks, missing = [self._data], count - len(self._data)
            while missing > 0:
                chunk = self._read()
                chunks.append(chunk)
                missing -= len(chunk)
            self._data = b"".join(chunks)
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def _read(self) -> bytes:
        try:
            chunk = _read(self._fd, CHUNK)
        except ConnectionResetError as err:
            raise Closed("reset") from err
        if not chunk:
            raise Closed("end of file")
        return chunk
