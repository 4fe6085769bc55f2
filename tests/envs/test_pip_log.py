"""What pip says of an index that fails, and what qeval makes of it; pip itself, on loopback."""

import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qeval.envs.pip_log import why

LINK = f'<a href="tinylib-1.0-py3-none-any.whl#sha256={"a" * 64}">tinylib-1.0-py3-none-any.whl</a>'


@pytest.fixture
def index():
    """An index that answers with ``status``; with 200 it has one file, not the one of its link."""

    class Handler(BaseHTTPRequestHandler):
        status = 200

        def log_message(self, *args):
            pass

        def do_GET(self):
            body = b"no wheel" if self.path.endswith(".whl") else LINK.encode()
            self.send_response(self.status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield Handler, f"http://127.0.0.1:{server.server_address[1]}/simple"
    server.shutdown()
    server.server_close()
    thread.join(5)


def pip(url: str, folder) -> str:
    """Its output, for a package that it cannot have."""
    command = ["--no-input", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--retries", "1", "--index-url", url, "tinylib==1.0"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode != 0
    return done.stdout


NOTHING = "No matching distribution found for tinylib==1.0 (the index {} offers nothing of that name"
FIX = ": check the network, the proxy and pip's index-url)"


def test_no_index(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/simple"
    said = why(pip(url, tmp_path))
    assert said.startswith(NOTHING.format(url)) and said.endswith(FIX)
    assert "Failed to establish a new connection: [Errno 111] Connection refused" in said
    assert "object at" not in said


@pytest.mark.parametrize("status", [401, 404, 503])
def test_an_index_that_answers_with_an_error(index, tmp_path, status):
    handler, url = index
    handler.status = status
    assert why(pip(url, tmp_path)) == NOTHING.format(url) + FIX


def test_a_file_that_was_cut_off(index, tmp_path):
    said = "a file is not the one that the index names (cut off, or changed on its way): run again"
    assert why(pip(index[1], tmp_path)) == said


def test_an_exception_of_pip_itself_is_the_end_of_its_traceback():
    traceback = "Traceback (most recent call last):\n  x\nOSError: [Errno 28] No space left on device"
    assert why(f"ERROR: Exception:\n{traceback}\n[notice] new") == traceback.splitlines()[-1]


def test_other_errors_stay_as_they_are():
    assert why("x\nERROR: a\nERROR: b (from versions: 1.0)\ny\n") == "b (from versions: 1.0)"
    assert why("x\n\nModuleNotFoundError: no\n\n") == "ModuleNotFoundError: no"
    assert why("") == "no message"
