"""Servers of OpenAI's API for tests, on loopback: llama-cpp-python's own, and a proxy before it that
fails on demand.

``Proxy.faults`` is a list of what happens to the next requests for completions, one after the other; a
request that finds it empty is passed on. ``Proxy.log`` has all that were made. ``Proxy.vllm`` makes it
answer as vLLM does where llama-cpp-python's server does not: token ids as prompts, ``n``,
``system_fingerprint``.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODEL = "stories"
Json = dict[str, Any]
Fault = Callable[["_Handler"], None]


@contextmanager
def llama_server(gguf: Path, folder: Path) -> Iterator[str]:
    """llama-cpp-python's server on a file; its address, up to and with /v1."""
    argv = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", MODEL]
    with running([*argv, "--host", "127.0.0.1", "--n_ctx", "512"], folder) as url:
        yield url


@contextmanager
def running(argv: list[str], folder: Path) -> Iterator[str]:
    """A server started by a command that takes ``--port``; its log is in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, "--port", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait(url, process, folder / "server.log")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: Json


@dataclass
class Proxy:
    upstream: str
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    after: int | None = None  # completions that are passed on before ``faults`` begin
    lasting: Fault | None = None  # what happens when ``faults`` has run out
    log: list[Asked] = field(default_factory=list)
    n_passed: int = 0
    vllm: Callable[[list[int]], str] | None = None  # the text of token ids
    told: Json = field(default_factory=dict)  # put into every answer
    models: list[Json] | None = None  # instead of the server's own
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def completions(self) -> list[Asked]:
        return [asked for asked in self.log if asked.path.endswith("completions")]

    def fault(self, path: str) -> Fault | None:
        with self.lock:
            if not path.endswith("completions"):
                return None
            if self.after is not None and self.n_passed < self.after:
                self.n_passed += 1
                return None
            found = self.faults.pop(0) if self.faults else self.lasting
            self.n_passed += found is None
            return found


# Faults


def status(code: int, body: object = b"", **headers: str) -> Fault:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, data, named)


def answer(data: bytes) -> Fault:
    return lambda handler: handler.answer(200, data, {})


def cut(handler: _Handler) -> None:
    """Reset before any byte of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True


def half(handler: _Handler) -> None:
    """Half of a body, and the end of the connection."""
    data = handler.passed_on()
    handler.begin(200, len(data))
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def slow(seconds: float) -> Fault:
    def do(handler: _Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return do


def drip(handler: _Handler) -> None:
    """A body that comes byte by byte, each within any timeout of a read."""
    handler.begin(200, 1000)
    with suppress(OSError):
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    handler.close_connection = True


def echo_headers(code: int) -> Fault:
    """An error that shows what was sent, as debugging proxies do: in its body, as JSON and as text, and
    in a header."""

    def do(handler: _Handler) -> None:
        sent = dict(handler.headers)
        body = {"error": {"message": f"bad request with {sent}", "headers": sent}}
        handler.answer(code, json.dumps(body).encode(), {"X-Sent": str(sent)})

    return do


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.proxy.log.append(Asked(self.path, dict(self.headers), {}))
        if self.path.endswith("/models") and self.proxy.models is not None:
            self.answer(200, json.dumps({"data": self.proxy.models}).encode(), {})
            return
        self.pass_on(None)

    def do_POST(self) -> None:
        self.raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.proxy.log.append(Asked(self.path, dict(self.headers), json.loads(self.raw)))
        fault = self.proxy.fault(self.path)
        if fault is not None:
            fault(self)
        else:
            self.pass_on(self.raw)

    def pass_on(self, data: bytes | None) -> None:
        try:
            body = self.passed_on() if data is not None else self.asked(None)
        except urllib.error.HTTPError as err:
            self.answer(err.code, err.read(), {})
            return
        self.answer(200, body, {})

    def passed_on(self) -> bytes:
        """The answer of the server behind, as the proxy gives it."""
        body = json.loads(self.raw)
        ids = body.get("prompt")
        if self.proxy.vllm is not None and isinstance(ids, list):
            body["prompt"] = self.proxy.vllm(ids)
        n = body.pop("n", 1) if self.proxy.vllm is not None else 1
        found = []
        for i in range(n):
            own = {**body, "seed": body["seed"] + i} if i and "seed" in body else body
            found.append(json.loads(self.asked(json.dumps(own).encode())))
        whole = {**found[0], **self.proxy.told}
        if n > 1:
            whole["choices"] = [{**one["choices"][0], "index": i} for i, one in enumerate(found)]
            whole["usage"] = {}
        return json.dumps(whole).encode()

    def asked(self, data: bytes | None) -> bytes:
        url = self.proxy.upstream + self.path.removeprefix("/v1")
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())

    def begin(self, code: int, size: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(size))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        with suppress(BrokenPipeError):
            self.begin(code, len(data), headers)
            self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away


@contextmanager
def proxy(upstream: str, certificate: Path | None = None) -> Iterator[Proxy]:
    """A proxy on a free port, behind TLS where there is a certificate (with its key)."""
    found = Proxy(upstream)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": found}))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    found.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
