"""What a reasoning model thinks before it answers, which is not part of its answer.

Models mark it by their own tags: ``<think>`` (DeepSeek-R1, Qwen3, ...), ``<thought>``,
``<reasoning>``, ``<analysis>`` and other words for it, ``<seed:think>``, ``[THINK]`` (Magistral),
``◁think▷`` (Kimi), ``<|begin_of_thought|>``, ``<|START_THINKING|>`` (Cohere), ``<|inner_prefix|>``
(Apertus), ``<unused94>`` (MedGemma), the channels of gpt-oss, the turns of s1, the sentences of
Granite and Apriel. A tag may be one special token, which plain decoding hides; the chat template
may have opened it, so that the answer has only its end; and where it is never closed, there is no
answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qeval.models.tokenizer import Tokenizer

_THOUGHT = (
    r"(?:think(?:ing|_[a-z]+)?|thoughts?|reason(?:s|ing)?|reflection|scratch_?pad|analysis|rationale"
    r"|monologue|deliberation|brainstorm(?:ing)?|plan(?:ning)?|draft|cot)"
)
_WORD = rf"(?:[a-z0-9]+[_:]|[a-z]+(?=thinking))?{_THOUGHT}"
_REST = r"[ ]*(?:(?<=[ ])\w+=[^<>\n]*)?"  # attributes
_TAG = re.compile(
    rf"""(?P<open>
          <(?P<angle>{_WORD}){_REST}> | \[(?P<bracket>(?-i:THINK))\] | ◁(?P<kimi>{_WORD})▷
        | <\|(?:(?:begin_of_|start_)(?P<long>{_THOUGHT})|(?P<short>{_THOUGHT})(?:_start)?)\|>
        | (?P<inner><\|inner_prefix\|>) | (?P<gemma><unused94>)
        | (?P<channel><\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>|<\|channel>thought)
        | (?P<turn><\|im_start\|>think\b)
        | (?P<granite>Here\ is\ my\ thought\ process:) | (?P<apriel>Here\ are\ my\ reasoning\ steps:)
      )|(?P<close>
          </(?P<angle2>{_WORD}){_REST}> | \[/(?P<bracket2>(?-i:THINK))\] | ◁/(?P<kimi2>{_WORD})▷
        | <\|(?:end_of_|end_)(?P<long2>{_THOUGHT})\|>
        | <\|/(?P<short2>{_THOUGHT})\|> | <\|(?P<tail2>{_THOUGHT})_end\|>
        | (?P<inner2><\|inner_suffix\|>) | (?P<gemma2><unused95>)
        | (?P<channel2><\|channel\|>final[^<]*<\|message\|>|<channel\|>)
        | (?P<turn2><\|im_start\|>answer\b)
        | (?P<granite2>Here\ is\ my\ response:) | (?P<apriel2>\[BEGIN\ FINAL\ RESPONSE\])
      )""",
    re.VERBOSE | re.IGNORECASE,
)


def spans(text: str, opened: str | None = None) -> list[tuple[int, int]]:
    """Where the answer is in ``text``: start and end of its parts. ``opened`` is the tag that the
    prompt left open. What comes before an end without a start was thought, too."""
    kept, start = [], 0
    inside = None if opened is None else _kind(opened)
    for tag in _TAG.finditer(text):
        if tag["close"] is None and inside is None:
            kept.append((start, tag.start()))
            inside = _kind(tag[0])
        elif tag["close"] is not None and inside is None:
            kept, start = [], tag.end()
        elif tag["close"] is not None and _kind(tag[0]) == inside:
            inside, start = None, tag.end()
    return kept if inside is not None else [*kept, (start, len(text))]


def without_reasoning(text: str, opened: str | None = None) -> str:
    return "".join(text[start:end] for start, end in spans(text, opened))


def left_open(prompt: str) -> str | None:
    """The tag that a prompt's last lines leave open."""
    found = None
    for tag in _TAG.finditer(prompt):
        found = tag[0] if tag["close"] is None else None
    return found


def closing(tag: str) -> str:
    """The tag that ends what ``tag`` began."""
    if "channel" in tag:
        return "<channel|>" if tag.startswith("<|channel>") else _FINAL
    for kind, end in _ENDS.items():
        if _kind(tag) == kind:
            return end
    for begin, end in (
        ("begin_of_", "end_of_"),
        ("start_", "end_"),
        ("START_", "END_"),
        ("_start", "_end"),
    ):
        if begin in tag:
            return tag.replace(begin, end)
    mark = 2 if tag.startswith("<|") else 1
    name = re.sub(r"\s[^<>]*>$", ">", tag[mark:])  # attributes are the beginning's
    return f"{tag[:mark]}/{name}"


_ENDS = {
    "turn": "<|im_end|>\n<|im_start|>answer",
    "granite": "Here is my response:",
    "apriel": "[BEGIN FINAL RESPONSE]",
    "inner": "<|inner_suffix|>",
    "gemma": "<unused95>",
}
_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


def _kind(tag: str) -> str:
    """What the start and the end of one kind have in common."""
    match = _TAG.fullmatch(tag)
    assert match is not None  # it was found by it
    name = next(n for n, v in match.groupdict().items() if v is not None and n not in ("open", "close"))
    word = str(match[name]).lower()
    if name.removesuffix("2") in ("channel", *_ENDS):
        return name.removesuffix("2")
    return "think" if re.search("th(ink|ought)", word) else word


def answer(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], opened: str | None) -> str:
    """The text of ``ids`` behind ``prompt`` without what was thought and without special tokens, which
    are looked at for tags."""
    parts = list(_parts(tokenizer, prompt, ids))
    text = "".join(part for part, _ in parts)
    kept, at = [], 0
    inside = spans(text, opened)
    for part, special in parts:
        if not special:
            ends = [(max(start, at), min(end, at + len(part))) for start, end in inside]
            kept += [text[start:end] for start, end in ends if start < end]
        at += len(part)
    return "".join(kept)


def _parts(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]
) -> Iterator[tuple[str, bool]]:
    """The text cut at special tokens: what is between them, and their names (True)."""
    hidden = {i for i in set(ids) if tokenizer.decode([i]) != tokenizer.decode([i], special=True)}
    start = 0
    for at, token in enumerate(ids):
        if token in hidden:
            yield tokenizer.decode(ids[start:at], after=[*prompt, *ids[:start]]), False
            yield tokenizer.decode([token], special=True), True
            start = at + 1
    yield tokenizer.decode(ids[start:], after=[*prompt, *ids[:start]]), False
