"""Fixtures: tiny models made on the spot, and real data and models where the machine has them.

``../shared`` beside the checkout (or ``QEVAL_SHARED``) holds real datasets and stories260k, a trained
260k-parameter Llama. Tests that want them skip, with the reason, where it is absent.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

REPO = Path(__file__).parents[1]
# Files that share the models of tests/helpers/quantized.py, and others that take long; so begun, the
# last files are short, and no process waits for the other.
QUANTIZED = ("gptqmodel", "awq", "gptq", "gptq_format", "mixtures", "neighbours")
BEGIN = ("vllm", "run", "line", "command_line", "attacks", "gguf", "endpoint", "build", "gate_page")
FIRST = {f"test_{name}.py": place for place, name in enumerate((*QUANTIZED, *BEGIN))}


def _share_the_machine(workers: int) -> None:
    """For one of pytest-xdist's processes: its share of the cores (torch is not imported yet), and a
    folder of its own for temporary files, where the sandbox's tests look for what is left."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tests-")
    Path(tempfile.tempdir).chmod(0o755)  # one of them starts processes as another user
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


if "PYTEST_XDIST_WORKER" in os.environ:
    _share_the_machine(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: FIRST.get(item.path.name, len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one file run in one process, since they share what the file made; the long ones begin
    first. ``--dist`` asks for pytest-xdist's own ways."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "quantized" if FIRST.get(file.rpartition("/")[2], 99) < len(QUANTIZED) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("QEVAL_SHARED", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared material at {folder} (set QEVAL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> Path:
    return shared / "models" / "stories260k"


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder with random weights (seed 0): hidden 64, MLP 172, 2 layers, vocab 512, 512
    positions, grouped-query attention, untied head, a byte-level BPE tokenizer that adds no BOS."""
    from tiny_models import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tokenizer_with() -> Callable[..., Any]:
    """tiny_tokenizer, for tests that want special tokens of their own."""
    from tiny_models import tiny_tokenizer

    return tiny_tokenizer


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The user's cache, if it gives llama.cpp's converter without a download (scripts/setup left the
    source archive there)."""
    from qeval.core.settings import default_cache_dir

    cache = default_cache_dir()
    named = os.environ.get("QEVAL_LLAMA_CPP") or os.environ.get("QEVAL_LLAMA_CPP_SDIST")
    if not named and not any((cache / "sdist").glob("llama_cpp_python-*")):
        pytest.skip("no llama.cpp converter (run scripts/setup, or set QEVAL_LLAMA_CPP_SDIST)")
    return cache


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test package of tests/plugin, visible to this process and to the workers it starts."""
    folder = REPO / "tests" / "plugin"
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    _forget_installed()
    yield folder
    _forget_installed()


def _forget_installed() -> None:
    from qeval.core import registry

    registry.installed.cache_clear()
    registry.from_outside.cache_clear()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data directory."""
    monkeypatch.setenv("QEVAL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("QEVAL_DATA_DIR", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _converter_that_is_warm() -> Iterator[None]:
    """llama.cpp's converter, where a test itself converts: without its imports each time."""
    import warm_converter

    from qeval.quant import gguf

    with pytest.MonkeyPatch.context() as patch:
        named = {"PIPE": subprocess.PIPE, "STDOUT": subprocess.STDOUT, "run": warm_converter.run}
        patch.setattr(gguf, "subprocess", SimpleNamespace(**named))
        yield


@pytest.fixture(scope="session")
def tiny_f32(tiny_llama: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gguf_files import build

    return build(tiny_llama, "F32", tmp_path_factory.mktemp("gguf") / "f32", cache_dir)


@pytest.fixture(scope="session")
def stories_gguf(stories260k: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260k as a GGUF file in float32."""
    from gguf_files import build

    return build(stories260k, "F32", tmp_path_factory.mktemp("gguf") / "stories", cache_dir).path


@pytest.fixture(scope="session")
def completions_url(stories_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-cpp-python's server on that file: its base_url."""
    pytest.importorskip("openai")
    pytest.importorskip("llama_cpp.server.app", exc_type=ImportError)
    from completion_servers import llama_server

    with llama_server(stories_gguf, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="session")
def build_gguf(cache_dir: Path) -> Callable[[Path, str, Path], Any]:
    from gguf_files import build

    return lambda model, kind, out: build(model, kind, out, cache_dir)


@pytest.fixture(scope="session")
def damage() -> Callable[[str, Path, Path], Path]:
    from gguf_files import damaged

    return damaged


@pytest.fixture(scope="session")
def quantized() -> Any:
    """Tiny models quantized by every library: ``Quantized`` of quantized.py."""
    import quantized

    return quantized.get()


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """Writes records into a results folder."""
    from qeval.store.records import Store

    def kept(records: Sequence[Any], name: str = "results") -> Path:
        folder = tmp_path / name
        for record in records:
            Store(folder).append(record)
        return folder

    return kept
