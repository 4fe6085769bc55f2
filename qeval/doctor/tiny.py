"""`qeval try`: a language model that is trained here within seconds, to see qeval at work.

A Llama of 200,000 weights learns the docstrings of Python's standard library, with a byte-level BPE of
512 tokens. It is no good model, but its weights are trained: rounding them costs what it costs, which
random ones would not show. ``python -m qeval.doctor.tiny FOLDER`` makes it.
"""

from __future__ import annotations

import ast
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

VOCABULARY, SEQ_LEN = 512, 256
STEPS, BATCH, WINDOW, LEARNING_RATE = 200, 16, 64, 5e-3
_CHARACTERS = 400_000  # of the text that is learned
_END = "<|endoftext|>"


def docstrings() -> Iterator[str]:
    """Those of the modules of the standard library, and of what is in them."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):  # a distribution may have changed one
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield text + "\n"


def make(folder: Path, steps: int = STEPS) -> float:
    """Train the model, write it and its tokenizer as a Hugging Face folder; the last loss in nats a
    token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = ""
    for part in docstrings():
        text += part
        if len(text) > _CHARACTERS:
            break
    tokenizer = _tokenizer(text)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQ_LEN,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    loss = _train(model, ids, steps)
    beside = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    beside.rename(folder)
    return loss


def _train(model: torch.nn.Module, ids: torch.Tensor, steps: int) -> float:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    total = 0.0
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - WINDOW, (BATCH,))
        batch = torch.stack([ids[i : i + WINDOW] for i in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total = loss.item()
    return total


def _tokenizer(text: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=_END, eos_token=_END)


if __name__ == "__main__":
    print(f"{make(Path(sys.argv[1])):.2f} nats a token")
