"""Run llama.cpp's converter with a named pre-tokenizer: a script for a subprocess, never imported.

``python convert_wrapper.py FOLDER PRE_TOKENIZER ARGUMENTS...`` runs ``FOLDER/convert_hf_to_gguf.py
ARGUMENTS...`` with ``get_vocab_base_pre`` answering PRE_TOKENIZER. The converter recognizes BPE
pre-tokenizers by a hash of what they make of a test string and refuses those it does not know.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any


def main(folder: str, pre_tokenizer: str, arguments: list[str]) -> None:
    # This file's own folder leaves the path: its gguf.py and base.py are not those the converter means.
    sys.path[0:1] = [folder, f"{folder}/gguf-py"]
    from conversion.base import TextModel

    def named(_self: Any, _tokenizer: Any) -> str:
        return pre_tokenizer

    TextModel.get_vocab_base_pre = named
    script = f"{folder}/convert_hf_to_gguf.py"
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
