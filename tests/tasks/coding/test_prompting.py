"""Prompts and answers of each mode with real tokenizers: what a model is given, what is kept of it."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from qeval.core.artifact import ModelRef
from qeval.models.tokenizer import HfTokenizer
from qeval.tasks.coding.prompting import Chat, ChatPrefill, Continuation
from qeval.tasks.coding.samples import Problem

PROBLEM = Problem("t/0", "def solve(xs):\n", "solve", "")
RIGHT = "```python\ndef solve(xs):\n    return sum(xs)\n```"
WRONG = "```python\ndef solve(xs):\n    return 0\n```"
TAGS = ["<think>", "</think>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
TURN = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}assistant{{ '\\n' }}"


@pytest.fixture
def tokenizer(tmp_path):
    """A byte-level tokenizer of bytes and ``TAGS``; it adds <s> before a text and </s> behind."""

    def make(template=TURN, special=True):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
        made = Tokenizer(models.BPE(vocab, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
        added = [AddedToken(tag, special=special, normalized=False) for tag in TAGS]
        (made.add_special_tokens if special else made.add_tokens)(added)
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        made.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return HfTokenizer(ModelRef("m", tmp_path, "sha256:0", "float32"))

    return make


def chat(tokenizer):
    return Chat(tokenizer, lambda p: f"Complete\n{p.prompt}", lambda p: "import math\n")


def test_a_continued_prompt_has_the_special_tokens_that_go_before_it_and_none_behind(tokenizer):
    made = tokenizer()
    mode = Continuation(made, ["\nprint"], lambda p: p.prompt)
    ids = mode.ids(PROBLEM)
    assert made.encode(PROBLEM.prompt) == [*ids, 1]
    assert ids[0] == 0
    written = made.encode("    return 1\nprint(2)", special=False)
    assert mode.answer(PROBLEM, ids, written).completion == "    return 1"


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "answer", "scored"),
    [
        (TURN, f"<think>{WRONG}</think>{RIGHT}", True),
        (TURN, f"<think>{RIGHT}</think>", False),
        (TURN, f"<think>{RIGHT}", False),
        (TURN, RIGHT, True),
        (TURN, f"{RIGHT}<|end|>", True),
        (TURN + "<think>{{ '\\n' }}", f"{WRONG}</think>{RIGHT}", True),
        (TURN + "<think>{{ '\\n' }}", RIGHT, False),
        (TURN + "<think>\n\n</think>\n\n", RIGHT, True),
        (
            TURN,
            f"<|channel|>analysis<|message|>{WRONG}<|end|><|start|>assistant"
            f"<|channel|>final<|message|>{RIGHT}",
            True,
        ),
        (TURN, f"<|channel|>analysis<|message|>{RIGHT}<|end|>", False),
    ],
)
def test_what_is_thought_is_never_scored(tokenizer, special, template, answer, scored):
    """Whether tags are special tokens, which plain decoding hides, or not."""
    made = tokenizer(template, special)
    mode = chat(made)
    prompt = mode.ids(PROBLEM)
    kept = mode.answer(PROBLEM, prompt, made.encode(answer, special=False))
    assert ("sum(xs)" in kept.completion) == scored
    assert "return 0" not in kept.completion and "<|end|>" not in kept.completion
    assert kept.raw == answer
    assert kept.prefix == "import math\n"


def test_a_tag_in_the_request_is_not_the_templates(tokenizer):
    made = tokenizer("{% for m in messages %}Think in <think>.{{ m['content'] }}{% endfor %}")
    kept = chat(made).answer(PROBLEM, [], made.encode(RIGHT, special=False))
    assert "sum(xs)" in kept.completion


def test_a_future_import_comes_before_everything(tokenizer):
    made = tokenizer()
    answer = f"```python\nfrom __future__ import annotations\nimport os\n{RIGHT[10:]}"
    kept = chat(made).answer(PROBLEM, [], made.encode(answer, special=False))
    assert kept.prefix == "from __future__ import annotations\nimport math\n"
    compile(kept.prefix + kept.completion, "program", "exec")


def test_a_prefilled_answer_is_of_one_text_with_its_prompt_and_not_thought(tokenizer):
    def opened(template):
        made = tokenizer(template)
        mode = ChatPrefill(made, lambda p: "Complete", lambda p: p.prompt)
        return made.decode(mode.ids(PROBLEM), special=True)

    block = "```python\ndef solve(xs):\n"
    assert opened(TURN) == f"<|start|>Complete<|end|>assistant\n{block}"
    closed = f"<|start|>Complete<|end|>assistant\n<think>\n\n</think>\n\n{block}"
    assert opened(TURN + "<think>{{ '\\n' }}") == closed
