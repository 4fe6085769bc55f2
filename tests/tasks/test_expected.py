"""What a task says of its units before a run is what the run then has."""

from __future__ import annotations

from pathlib import Path

import pytest

from qeval.core.artifact import ModelRef
from qeval.data.datasets import DataSource
from qeval.tasks.base import TASKS, TaskContext, expected
from qeval.tasks.perplexity import PerplexityOptions, chosen, windows_of


@pytest.mark.parametrize("protocol", ["gptq", "llamacpp"])
@pytest.mark.parametrize(
    ("dataset", "limit"), [("file", None), ("file", 7), ("file", 10**6), ("pydoc", 3)]
)
@pytest.mark.parametrize("model", ["tiny_llama", "stories260k"])
def test_windows_are_counted_as_they_are_cut(protocol, dataset, limit, model, request, tmp_path):
    path: Path = request.getfixturevalue(model)
    (tmp_path / "text.txt").write_text("Once upon a time there was <unk> a fox.\n\n" * 60)
    name = f"file:{tmp_path / 'text.txt'}" if dataset == "file" else dataset
    options = PerplexityOptions(dataset=name, protocol=protocol, seq_len=64)
    ref = ModelRef("m", path, "sha256:0", "float32")
    context = TaskContext(ref, DataSource(), tmp_path, lambda *_: None)
    cut = chosen(windows_of(protocol, options, 64, context).ids, options, limit)
    told = expected(TASKS["perplexity"](), options, limit, ref, DataSource(download=False))
    assert (told.n, told.unit) == (len(cut), "windows")
    assert expected(TASKS["perplexity"](), options, limit, None, DataSource()).n is None


def test_a_plug_in_that_says_nothing_has_nothing_expected(plugin):
    task = TASKS["misbehave"]()
    assert expected(task, task.Options(), None, None, DataSource()).metrics == ()
