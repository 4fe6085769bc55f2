"""The tiny model that other tests use is what its docstring says."""

from pathlib import Path

from qeval.core.artifact import ModelRef
from qeval.models.tokenizer import load_tokenizer


def test_tiny_llama_tokenizer_round_trips(tiny_llama: Path):
    tok = load_tokenizer(ModelRef("tiny", tiny_llama, "sha256:0", "float32"))
    text = "def f(x):\n    return x + 1  # é\n"
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert max(ids) < 512
    assert not tok.adds_bos
    assert tok.eos_ids == (0,)
