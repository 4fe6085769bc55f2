"""Run llama.cpp's converter as qeval reads tokenizers: a script for a subprocess, never imported.

``python convert_wrapper.py FOLDER PRE_TOKENIZER ARGUMENTS...`` runs ``FOLDER/convert_hf_to_gguf.py
ARGUMENTS...`` with transformers' general class for whatever has a ``tokenizer.json``: other classes of
transformers 5 may make another tokenizer of it (models/tokenizer_file.py). With a PRE_TOKENIZER that is
not empty, ``get_vocab_base_pre`` answers it. The converter recognizes BPE pre-tokenizers by a hash of
what they make of a test string and refuses those it does not know.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def main(folder: str, pre_tokenizer: str, arguments: list[str]) -> None:
    # This file's own folder leaves the path: its gguf.py and base.py are not those the converter means.
    sys.path[0:1] = [folder, f"{folder}/gguf-py"]
    _lean()
    _read_files()
    _older_names()
    if pre_tokenizer:
        from conversion.base import TextModel

        def named(_self: object, _tokenizer: object) -> str:
            return pre_tokenizer

        TextModel.get_vocab_base_pre = named
    script = f"{folder}/convert_hf_to_gguf.py"
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _lean() -> None:
    """Keep transformers from importing hqq, and with it torch's compiler, which takes longer than the
    conversion of a small model (as ``lean_transformers`` does in models/loading.py)."""
    from transformers import utils

    utils.is_hqq_available = lambda *_: False


def _read_files() -> None:
    """``AutoTokenizer`` by the file, unless the model brings its own class."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    by_class = AutoTokenizer.from_pretrained

    def from_pretrained(model: PreTrainedModel, *args: object, **kwargs: object) -> object:
        config = Path(model) / "tokenizer_config.json"
        told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if not (Path(model) / "tokenizer.json").is_file() or "auto_map" in told:
            return by_class(model, *args, **kwargs)
        return PreTrainedTokenizerFast.from_pretrained(model)

    AutoTokenizer.from_pretrained = from_pretrained


def _older_names() -> None:
    """What the converter reads by names that configurations of transformers 5 do not have any more, and
    GPT-2's own width of its feed-forward (``n_inner``), where it takes 4 times the model's."""
    from conversion.base import ModelBase
    from conversion.gpt2 import GPT2Model

    load, write = ModelBase.load_hparams, GPT2Model.set_gguf_parameters

    def load_hparams(folder: Path, is_mistral_format: bool) -> dict[str, object]:
        found = dict(load(folder, is_mistral_format))
        rope = found.get("rope_parameters") or {}
        found.setdefault("rotary_pct", rope.get("partial_rotary_factor", 1.0))  # GPT-NeoX, Cohere
        if "n_positions" in found:
            found.setdefault("n_ctx", found["n_positions"])  # GPT-2
        return found

    def set_gguf_parameters(self: GPT2Model) -> None:
        write(self)
        if width := self.hparams.get("n_inner"):
            self.gguf_writer.add_feed_forward_length(width)

    ModelBase.load_hparams = staticmethod(load_hparams)
    GPT2Model.set_gguf_parameters = set_gguf_parameters


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
