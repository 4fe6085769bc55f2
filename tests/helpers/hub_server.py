"""A hub for tests, on loopback: what huggingface_hub 1.33 and datasets 5.2 ask of huggingface.co.

Repositories are dictionaries of files, their commits are found by branch, tag and (shortened) commit.
Large files are where the hub has them: on another host (``localhost`` for ``127.0.0.1``), behind a
signed address that must not be given the token. Small ones are redirected to a cached path of the same
host and compressed. ``Hub.faults`` makes it fail; ``Hub.log`` has every request.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".parquet", ".gz", ".model", ".onnx")
SIGNATURE = "X-Amz-Signature=planted-signature"
NO_TOKEN = "Access to {} is restricted. You must have access to it and be authenticated. Please log in."
NO_GRANT = "Access to {} is restricted and you are not in the authorized list."
Do = Callable[["_Handler", bytes], None]


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branches, tags, refs/...
    gated: bool = False
    private: bool = False
    grants: set[str] = field(default_factory=set)  # tokens that may read it

    def commit(self, files: dict[str, bytes], *refs: str, sha: str | None = None) -> str:
        """Files as a new commit; the names (``main`` where none is given) lead to it."""
        sha = sha or hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = files
        self.refs |= dict.fromkeys(refs or ("main",), sha)
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision in self.refs:
            return self.refs[revision]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return found[0] if len(found) == 1 else None


@dataclass
class Fault:
    """The first ``times`` requests whose "METHOD path" matches get ``do`` instead of an answer; files'
    faults (``cut``, ``reset``) come with the bytes that were asked for."""

    matches: str
    do: Do
    times: int = 1


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorized: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Hub:
    def __init__(self) -> None:
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.page = 1000  # entries of a listing
        self.url = ""
        self.cdn = ""
        self.lock = threading.Lock()

    def model(self, name: str, files: dict[str, bytes], **options: object) -> Repo:
        self.models[name] = Repo(**options)  # type: ignore[arg-type]
        self.models[name].commit(files)
        return self.models[name]

    def dataset(self, name: str, files: dict[str, bytes], *refs: str, sha: str | None = None) -> Repo:
        repo = self.datasets.setdefault(name, Repo())
        repo.commit(files, *refs, sha=sha)
        return repo

    def asked(self, pattern: str) -> list[Request]:
        return [request for request in self.log if re.search(pattern, str(request))]

    def fault(self, request: Request) -> Do | None:
        with self.lock:
            self.log.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.matches, str(request)):
                    fault.times -= 1
                    return fault.do
        return None


# Faults


def status(code: int, **headers: str) -> Do:
    return lambda handler, _: handler.answer(
        code, b"{}", {k.replace("_", "-"): v for k, v in headers.items()}
    )


def cut(after: int) -> Do:
    """The connection is closed after so many bytes of the file."""

    def do(handler: _Handler, data: bytes) -> None:
        handler.begin(data)
        handler.wfile.write(data[:after])
        handler.close_connection = True

    return do


def reset(after: int) -> Do:
    """The connection is reset, as by a firewall, after so many bytes of the file."""

    def do(handler: _Handler, data: bytes) -> None:
        handler.begin(data)
        handler.wfile.write(data[:after])
        handler.wfile.flush()
        time.sleep(0.05)  # what was sent arrives
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return do


def slow(parts: int) -> Do:
    """The file comes in so many parts, a tenth of a second between."""

    def do(handler: _Handler, data: bytes) -> None:
        handler.begin(data)
        step = len(data) // parts + 1
        with suppress(OSError):  # the reader went away
            for start in range(0, len(data), step):
                handler.wfile.write(data[start : start + step])
                time.sleep(0.1)
        handler.close_connection = True

    return do


def stall(seconds: float) -> Do:
    def do(handler: _Handler, _: bytes) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return do


def portal(handler: _Handler, _: bytes) -> None:
    """What a hotel's network answers."""
    handler.answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a free port, which ends with the block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a connection may be idle

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        path = unquote(split.path)
        authorized = "Authorization" in self.headers
        request = Request(self.command, path, self.headers.get("Range"), authorized)
        self.body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1 << 20))
        fault = self.hub.fault(request)
        if path.startswith("/cdn/"):
            return self.from_cdn(path, fault)
        if fault is not None:
            return fault(self, b"")
        for pattern, reply in ROUTES:
            if match := re.fullmatch(pattern, split.path):
                return self.in_repo(reply, {k: unquote(v or "") for k, v in match.groupdict().items()})
        return self.refuse(404, None, "Not found")

    do_HEAD = do_POST = do_GET

    def in_repo(self, reply: str, names: dict[str, str]) -> None:
        """Find the repository, check who asks, find the commit, answer."""
        kind = "dataset" if names["kind"].startswith("datasets") else "model"
        name, sent = names["repo"], self.headers.get("Authorization") or ""
        token = sent.removeprefix("Bearer ") if sent.startswith("Bearer ") else ""
        if token and token not in self.hub.tokens:
            message = "Invalid credentials in Authorization header"
            return self.refuse(401, None, message)
        if name in self.hub.renamed:
            return self.redirect(307, self.path.replace(name, self.hub.renamed[name]))
        repo = (self.hub.datasets if kind == "dataset" else self.hub.models).get(name)
        if repo is None or (repo.private and token not in repo.grants):
            if not token:
                return self.refuse(401, None, "Invalid username or password.")
            return self.refuse(404, "RepoNotFound", "Repository not found")
        sha = repo.resolve(names.get("revision") or "main")
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {names['revision']}")
        if reply == "file" and repo.gated and token not in repo.grants:
            message = (NO_GRANT if token else NO_TOKEN).format(f"{kind} {name}")
            return self.refuse(403 if token else 401, "GatedRepo", message)
        getattr(self, reply)(repo, sha, names | {"kind": kind})
        return None

    # What the routes answer

    def info(self, repo: Repo, sha: str, names: dict[str, str]) -> None:
        files = [{"rfilename": name} for name in repo.commits[sha]]
        gated = "manual" if repo.gated else False
        found = {"id": names["repo"], "sha": sha, "private": repo.private, "gated": gated}
        more = {"siblings": files, "tags": [], "downloads": 0, "likes": 0, "cardData": None}
        self.answer(200, json.dumps(found | more).encode(), {"Content-Type": "application/json"})

    def tree(self, repo: Repo, sha: str, names: dict[str, str]) -> None:
        files = repo.commits[sha]
        under = f"{names['path']}/" if names.get("path") else ""
        entries = [_entry(name, data) for name, data in sorted(files.items()) if name.startswith(under)]
        folders = {n[:i] for n in files for i in (m.start() for m in re.finditer("/", n))}
        entries += [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in sorted(folders)
        ]
        if self.query.get("recursive", "").lower() != "true":
            entries = [e for e in entries if "/" not in e["path"].removeprefix(under)]
        if under and not entries:
            return self.refuse(404, "EntryNotFound", f"{under} does not exist")
        start = int(self.query.get("cursor", 0))
        headers = {"Content-Type": "application/json"}
        if start + self.hub.page < len(entries):
            more = f"?recursive=True&cursor={start + self.hub.page}"
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}{more}>; rel="next"'
        page = entries[start : start + self.hub.page]
        return self.answer(200, json.dumps(page).encode(), headers)

    def paths(self, repo: Repo, sha: str, names: dict[str, str]) -> None:
        files = repo.commits[sha]
        asked = parse_qs(self.body.decode()).get("paths", [])
        found = [_entry(name, files[name]) for name in asked if name in files]
        self.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def file(self, repo: Repo, sha: str, names: dict[str, str]) -> None:
        headers = {"X-Repo-Commit": sha}
        data = repo.commits[sha].get(names["path"])
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", headers)
        if names["path"].endswith(LARGE):
            linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
            where = f"{self.hub.cdn}/cdn/{names['kind']}s/{names['repo']}/{sha}/{quote(names['path'])}"
            return self.redirect(302, f"{where}?{SIGNATURE}", headers | linked)
        where = f"/api/resolve-cache/{names['kind']}s/{names['repo']}/{sha}/{quote(names['path'])}"
        return self.redirect(307, where, headers)

    def cached(self, repo: Repo, sha: str, names: dict[str, str]) -> None:
        data = repo.commits[sha][names["path"]]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_id(data)}"'}
        if self.command == "GET" and "gzip" in self.headers.get("Accept-Encoding", ""):
            return self.answer(200, gzip.compress(data), headers | {"Content-Encoding": "gzip"})
        return self.answer(200, data, headers)

    def from_cdn(self, path: str, fault: Do | None) -> None:
        """Large files, in parts if asked. Whoever sends a token here has given it away."""
        _, _, kind, org, name, sha, file = path.split("/", 6)
        repos = self.hub.datasets if kind == "datasets" else self.hub.models
        data = repos[f"{org}/{name}"].commits[sha][file]
        if "Authorization" in self.headers or SIGNATURE not in self.path:
            return self.refuse(400, None, "Only one auth mechanism allowed")
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(first[1]) if first else 0
        if start >= len(data) > 0:
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        self.whole = len(data) if first else None
        if fault is not None:
            return fault(self, data[start:])
        self.begin(data[start:])
        self.wfile.write(data[start:])
        return None

    # How it is said

    def begin(self, data: bytes) -> None:
        """The head of a file's answer."""
        self.send_response(200 if self.whole is None else 206)
        self.send_header("Content-Length", str(len(data)))
        if self.whole is not None:
            first = self.whole - len(data)
            self.send_header("Content-Range", f"bytes {first}-{self.whole - 1}/{self.whole}")
        self.end_headers()

    def answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def redirect(self, code: int, where: str, headers: dict[str, str] | None = None) -> None:
        self.answer(code, b"", {"Location": where, **(headers or {})})

    def refuse(
        self, code: int, error: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        known = {"X-Error-Code": error} if error else {}
        body = json.dumps({"error": message}).encode()
        self.answer(code, body, {"X-Error-Message": message, **known, **(headers or {})})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """A file in a listing; ``oid`` is its id in git, or that of the pointer in a large one's place."""
    entry: dict[str, Any] = {"type": "file", "oid": git_id(data), "size": len(data), "path": name}
    if name.endswith(LARGE):
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\nsize {len(data)}\n"
        )
        entry["oid"] = git_id(pointer.encode())
        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": len(pointer)}
    return entry


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = r"/api/(?P<kind>models|datasets)/" + _REPO
ROUTES = (
    (_API + r"(/revision/(?P<revision>[^/]+))?", "info"),
    (_API + r"/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    (_API + r"/paths-info/(?P<revision>[^/]+)", "paths"),
    (
        r"/api/resolve-cache/(?P<kind>models|datasets)/" + _REPO + r"/(?P<revision>[^/]+)/(?P<path>.+)",
        "cached",
    ),
    (r"/(?P<kind>datasets/)?" + _REPO + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
)
