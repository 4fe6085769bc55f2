"""Fixtures: tiny models made on the spot, and real data and models where the machine has them.

``../shared`` beside the checkout (or ``QEVAL_SHARED``) holds real datasets and stories260k, a trained
260k-parameter Llama. Tests that want them skip, with the reason, where it is absent.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[1]
# Files that share the models of tests/quant/quantized.py.
QUANTIZED = [
    f"test_{name}.py" for name in ("gptqmodel", "awq", "gptq", "gptq_format", "mixtures", "neighbours")
]
FIRST = [*QUANTIZED, "test_line.py"]  # they take minutes


def _share_the_machine(workers: int) -> None:
    """For one of pytest-xdist's processes: its share of the cores (torch is not imported yet), and a
    folder of its own for temporary files, where the sandbox's tests look for what is left."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tests-")
    Path(tempfile.tempdir).chmod(0o755)  # one of them starts processes as another user
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


if importlib.util.find_spec("setuptools"):
    # At its first import it takes the place of distutils, which fails half-way where its own warnings
    # are errors: so before they are.
    importlib.import_module("setuptools")
if "PYTEST_XDIST_WORKER" in os.environ:
    _share_the_machine(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in FIRST)


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
            return "quantized" if file.rpartition("/")[2] in QUANTIZED else file

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
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def make_tiny_llama(folder: Path, *, dtype: str = "float32", **config: object) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, object] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.2,  # at the default 0.02 every prediction is nearly uniform
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config})).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_with() -> Callable[..., Any]:
    """tiny_tokenizer, for tests that want special tokens of their own."""
    return tiny_tokenizer


def tiny_tokenizer(*special: str):
    """A byte-level BPE of 512 tokens, trained on the licence, which never changes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([(REPO / "LICENSE").read_text(), *[str(i) for i in range(500)]], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The user's cache, if it gives llama.cpp's converter without a download (scripts/setup left the
    source archive there)."""
    from qeval.artifacts import default_cache_dir

    cache = default_cache_dir()
    named = os.environ.get("QEVAL_LLAMA_CPP") or os.environ.get("QEVAL_LLAMA_CPP_SDIST")
    if not named and not any((cache / "sdist").glob("llama_cpp_python-*")):
        pytest.skip("no llama.cpp converter (run scripts/setup, or set QEVAL_LLAMA_CPP_SDIST)")
    return cache


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test package of tests/plugin, visible to this process and to the workers it starts."""
    from qeval import registry

    folder = REPO / "tests" / "plugin"
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    registry.names.cache_clear()
    yield folder
    registry.names.cache_clear()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data directory."""
    monkeypatch.setenv("QEVAL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("QEVAL_DATA_DIR", raising=False)
