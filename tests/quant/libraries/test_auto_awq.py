"""AutoAWQ in its own environment: its file, and the token ids that calibration sees there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qeval.core.artifact import Artifact, Library
from qeval.envs.build import worker_path

TEXT = "Hello  world, 42 is\n\n followed\tby 43.<|endoftext|> Ünïcödé 中文 <s> "


@pytest.mark.real
def test_the_file_runs_here_and_predicts_as_four_bits_do(archived):
    python = archived.python("auto-awq")
    rope = {"rope_type": "default", "rope_theta": 1e6}
    archived.make_model(tie_word_embeddings=True, rope_parameters=rope)
    result, steps = archived.build("awq", python, group_size=32, backend="auto-awq")
    assert (result.status, result.error) == ("ok", None)
    assert steps[-1] == (2, 2, "blocks")
    artifact = Artifact.from_json(result.payload)
    assert len(artifact.layers) == 14
    assert artifact.library == Library("autoawq", "0.2.9")
    assert artifact.calibration["n_tokens"] == 8 * 64
    config = json.loads((artifact.path / "config.json").read_text())
    assert config["rope_parameters"] == rope and config["quantization_config"]["group_size"] == 32
    # 0.025 nats measured (random weights); 4 bits rounded to nearest: 0.022, rope_theta at 10000: 0.067
    assert archived.divergence(artifact) < 0.035


@pytest.mark.real
def test_token_ids_are_those_of_this_environment(archived, tmp_path):
    """transformers 4 there, 5 here: with and without BOS, by tokenizer.json and against the words of
    tokenizer_config.json, with classes that 4 does not know."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    python = archived.python("auto-awq")
    archived.make_model()
    folders = []
    for post in (False, True):
        for name, config in {
            "plain": {},
            "says-bos": {"add_bos_token": True, "add_eos_token": True},
            "says-none": {"add_bos_token": False},
            "gpt2": {"tokenizer_class": "GPT2Tokenizer"},
            "qwen2": {"tokenizer_class": "Qwen2Tokenizer"},
            "template": {"chat_template": "{% for m in messages %}<{{ m.content }}>{% endfor %}"},
        }.items():
            folder = tmp_path / f"{name}-{post}"
            folder.mkdir()
            tokenizer = Tokenizer.from_file(str(archived.model / "tokenizer.json"))
            if post:
                tokenizer.post_processor = TemplateProcessing(
                    single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
                )
            tokenizer.save(str(folder / "tokenizer.json"))
            told = json.loads((archived.model / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps({**told, **config}))
            folders.append(folder)
    here, there = (_tokenized(p, folders, archived.cache) for p in (Path(sys.executable), python))
    assert here == there
    assert len({str(row) for row in here}) > 2  # with and without BOS


def _tokenized(python: Path, folders: list[Path], cache: Path) -> list[object]:
    code = f"""
import json, sys
from pathlib import Path
from qeval.quant.base import ModelRef
from qeval.models.tokenizer import HfTokenizer
rows = []
for folder in sys.argv[1:]:
    t = HfTokenizer(ModelRef("m", Path(folder), "sha256:0", "float32"))
    chat = t.chat([{{"role": "user", "content": "hi"}}]) if t.has_chat_template else None
    ids = t.encode({TEXT!r})
    bare = t.encode({TEXT!r}, special=False)
    rows.append([ids, bare, t.decode(ids), t.sha256, t.eos_ids, t.adds_bos, chat])
print(json.dumps(rows))
"""
    done = subprocess.run(
        [python, "-c", code, *map(str, folders)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(worker_path(cache)), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
