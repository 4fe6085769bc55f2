"""A hub on loopback, for this process (``hub``) and for processes of their own (``qeval``), since
huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    return importlib.import_module("hub_server")


@pytest.fixture
def hub(hub_server: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    """A hub that this process's huggingface_hub talks to, with an empty cache and no token."""
    import huggingface_hub
    from huggingface_hub import _tree_cache, constants

    from qeval.hub import client as hub_client

    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    with hub_server.serve() as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({"127.0.0.1"}))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
        monkeypatch.setattr(_tree_cache, "_IN_MEMORY_TREE_CACHE", {})
        yield served
        huggingface_hub.close_session()
        hub_client._be_patient.cache_clear()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that qeval and huggingface_hub would have waited before asking again."""
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    from qeval.hub import client as hub_client

    found: list[float] = []
    monkeypatch.setattr(hub_client, "_wait", found.append)
    for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
        clock = SimpleNamespace(**{**vars(module.time), "sleep": found.append})
        monkeypatch.setattr(module, "time", clock)
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From here on as with HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def qeval(hub_server: ModuleType, tmp_path: Path) -> Iterator[Callable[..., SimpleNamespace]]:
    """``qeval ARGS`` in a process of its own, in ``tmp_path``, against the hub given; every variable
    is one that a user would set."""

    def run(hub: object, *args: object, **env: str) -> SimpleNamespace:
        clean = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HF_", "HUGGING")) and "PROXY" not in k.upper()
        }
        variables = {
            **clean,
            "PYTHONPATH": str(REPO),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "QEVAL_CACHE_DIR": str(tmp_path / "cache"),
            **env,
        }
        command = [sys.executable, "-m", "qeval", *map(str, args)]
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    yield run
