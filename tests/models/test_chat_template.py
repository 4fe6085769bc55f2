"""What a chat template may make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qeval.core.artifact import ModelRef
from qeval.core.errors import ModelError
from qeval.models.chat_template import MOST, checked
from qeval.models.tokenizer import load_tokenizer


def test_a_prompt_over_the_limit_is_refused_before_it_is_tokenized(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = folder / "tokenizer_config.json"
    template = f"{{{{ 'a' * {MOST} }}}}{{{{ messages[0].content }}}}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    tokenizer = load_tokenizer(ModelRef("m", folder, "sha256:0", "float32"))
    assert len(tokenizer.chat([{"role": "user", "content": ""}])) == MOST
    with pytest.raises(ModelError, match=r"a prompt of 16,777,217 characters .*mend the template"):
        tokenizer.chat([{"role": "user", "content": "b"}])


def test_a_usual_one_is_left_as_it_is():
    assert checked("text", Path("m")) == "text"
