"""Stand-ins for what a coding task works with: a tokenizer, a model that is a table, its problems."""

import os
import signal
from pathlib import Path

import pytest

from qeval.core.artifact import ModelRef
from qeval.core.errors import SandboxError
from qeval.data.datasets import DataSource, dataset
from qeval.engines.base import Completion
from qeval.sandbox import find_sandbox
from qeval.sandbox.weak import WeakSandbox
from qeval.tasks.base import TaskContext
from qeval.tasks.coding import task as coding

DATA_DIR = os.environ.get("QEVAL_DATA_DIR")  # read before the tests lose it


class Letters:
    """A tokenizer of one character per token. EOS is 0; the chat template puts 2 before each turn."""

    sha256 = "letters"
    bos_id = None
    eos_ids = (0,)
    adds_bos = False
    byte_ids = frozenset()

    def __init__(self, chat=False):
        self.has_chat_template = chat

    def encode(self, text, *, special=True, parse_special=True):
        return [ord(c) for c in text]

    def prompt(self, text):
        return self.encode(text)

    def decode(self, ids, *, after=(), special=False):
        return "".join(chr(i) for i in ids if i > 2)

    def chat(self, messages):
        return f"\x02{messages[0]['content']}\x02"

    def notes(self):
        return ()


class TableLM:
    """Writes ``answer(problem, sample)`` whatever the sampling, and honours stop and length. It knows a
    problem by its key, a text: the last one in the prompt is the one that is asked."""

    name, version, capabilities = "table", 1, frozenset({"generate"})
    max_seq_len, vocab_size = 100_000, 0x110000

    def __init__(self, keys, answer, dies_after=None):
        self.keys, self.answer, self.dies_after = keys, answer, dies_after
        self.calls, self.prompts = [], []

    def generate(self, prompts, sampling, stop=None):
        self.calls.append((len(prompts), sampling))
        for p, ids in enumerate(prompts):
            for s in sampling.numbers:
                if self.dies_after is not None:
                    if self.dies_after == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    self.dies_after -= 1
                yield self._complete(p, s, ids, sampling, stop)

    def _complete(self, p, s, ids, sampling, stop):
        text = Letters().decode(ids)
        self.prompts.append(text)
        task = max((t for t, key in self.keys.items() if key in text), key=self._place(text))
        out, finish = [], "eos"
        for character in self.answer(task, s):
            out.append(ord(character))
            if stop is not None and stop(out):
                finish = "stop"
                break
            if len(out) == sampling.max_new_tokens:
                finish = "length"
                break
        return Completion(p, s, out, finish)

    def _place(self, text):
        return lambda task: text.rfind(self.keys[task])


@pytest.fixture
def letters():
    return Letters


@pytest.fixture
def table_lm():
    return TableLM


@pytest.fixture
def box(monkeypatch):
    """There on every machine; the real sandboxes are tested in tests/sandbox."""
    monkeypatch.setattr(coding, "find_sandbox", lambda weak: WeakSandbox())


@pytest.fixture(scope="session")
def sandbox():
    """The sandbox of this machine."""
    try:
        return find_sandbox()
    except SandboxError as err:
        pytest.skip(str(err))


@pytest.fixture
def mbpp_small(tmp_path):
    """A data directory whose MBPP are a few problems of our own, eight of them in the test split."""
    folder = tmp_path / "data"
    (folder / "mbpp").mkdir(parents=True)
    source = Path(__file__).with_name("coding") / "mbpp_small.jsonl"
    (folder / "mbpp" / "mbpp.jsonl").write_bytes(source.read_bytes())
    return DataSource(folder, offline=True)


@pytest.fixture
def real_table():
    """Where a table lies on this machine, by its name."""
    return _real_table


def _real_table(name):
    shared = os.environ.get("QEVAL_SHARED", Path(__file__).parents[3] / "shared")
    for folder in filter(Path.is_dir, map(Path, [*filter(None, [DATA_DIR]), Path(shared, "data")])):
        source = DataSource(folder, offline=True)
        if source.find(dataset(name)):
            return source
    pytest.skip(f"no {dataset(name).files[0].path} in QEVAL_DATA_DIR or the shared data")


@pytest.fixture
def run_task(tmp_path):
    """A task's result; the cell's folder is ``folder`` in the test's own."""

    def run(task, lm, *, chat=False, limit=None, data=None, folder="cell", **options):
        context = TaskContext(
            model=ModelRef("table", tmp_path, "sha256:0", "float32"),
            data=data or DataSource(offline=True),
            out=tmp_path / folder,
            progress=lambda done, total, unit: None,
            limit=limit,
        )
        context.__dict__["tokenizer"] = Letters(chat)
        return task.run(lm, task.Options.model_validate(options), context)

    return run
