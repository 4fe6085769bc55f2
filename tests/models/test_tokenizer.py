"""What tokenizers of every make do with text: ids of tokenizer.json, texts of ids as they come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from qeval.core.artifact import ModelRef
from qeval.core.errors import ModelError
from qeval.models.tokenizer import HfTokenizer
from qeval.tasks.coding.codegen import BASE_STOPS, StopScanner, cut

CORPUS = [
    "def close(numbers, threshold):\n    for i in range(10):\n        return True\n",
    "class A:\n    # x\n    def f(self):\n\tprint('naïve 漢字 😀')\n\nif x:\n    pass\n",
    "the unk of a <unk> text ' . ' is not <s> a token , or is it ?",
] * 4
BYTES = [f"<0x{i:02X}>" for i in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def llama(scheme: str | None = None) -> Tokenizer:
    """As Llama's: the file of transformers 4 (``scheme`` None), or with a Metaspace pre-tokenizer."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=[*SPECIAL, *BYTES], show_progress=False, limit_alphabet=60
    )
    made.pre_tokenizer = pre_tokenizers.Split(Regex("\n|▁?[^▁\n]+|▁+"), "isolated")
    made.train_from_iterator([line.replace("\n", "") for line in CORPUS], trainer)
    model = json.loads(made.to_str())
    model["pre_tokenizer"] = None
    model["added_tokens"] = [t for t in model["added_tokens"] if t["content"] in SPECIAL]
    made = Tokenizer.from_str(json.dumps(model))
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    made.decoder = decoders.Sequence(parts)
    if scheme is not None:
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def metaspace(scheme: str) -> Tokenizer:
    """As T5's: Unigram, whose decoder is Metaspace's."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return made


def word_ends() -> Tokenizer:
    """As GPT-1's: words end with ``</w>``."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


MAKES = {
    "byte-level": byte_level,
    "Llama": llama,
    "Llama, first": lambda: llama("first"),
    "Llama, always": lambda: llama("always"),
    "Llama, never": lambda: llama("never"),
    "Unigram, first": lambda: metaspace("first"),
    "Unigram, never": lambda: metaspace("never"),
    "WordPiece": word_piece,
    "word ends": word_ends,
}


def save(made: Tokenizer, folder: Path, cls: str = "PreTrainedTokenizerFast", **config) -> Path:
    """A folder with the file and what usually stands beside it; ``config`` None: left out."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": cls,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        **config,
    }
    told = {key: value for key, value in told.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def read(folder: Path) -> HfTokenizer:
    return HfTokenizer(ModelRef("m", folder, "sha256:0", "float32"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each make, with a token added that is not special and one that is."""
    folder, found = tmp_path_factory.mktemp("tokenizers"), {}
    for name, make in MAKES.items():
        one = make()
        one.add_tokens([AddedToken("<mark>", normalized=False)])
        one.add_special_tokens([AddedToken("<|end|>", normalized=False)])
        found[name] = read(save(one, folder / name))
    return found


# Texts of ids

PIECES = [
    "def ",
    "    ",
    "\n",
    "if ",
    "x",
    "print",
    "# ",
    "class ",
    "漢",
    "é",
    "😀",
    "<mark>",
    " ",
    "'",
    ".",
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize("name", MAKES)
@given(prompt=texts, completion=texts)
@settings(max_examples=30, deadline=None)
def test_a_completion_is_what_it_adds_to_the_text_of_its_prompt(name, made, prompt, completion):
    tokenizer = made[name]
    before = tokenizer.prompt(f"def f():{prompt}")
    ids = tokenizer.encode(completion, special=False)
    whole = tokenizer.decode([*before, *ids])
    assert tokenizer.decode(before) + tokenizer.decode(ids, after=before) == whole
    assert tokenizer.decode(ids) == tokenizer.decode(ids, after=[])


@pytest.mark.parametrize(
    "name", ["byte-level", "Llama", "Llama, first", "Llama, always", "Llama, never"]
)
@given(body=texts.map(lambda text: text.replace("<mark>", "")))
@settings(max_examples=30, deadline=None)
def test_text_that_goes_through_ids_comes_back_whole(name, made, body):
    """The indentation of HumanEval's completions: 4 spaces, of which none may be lost."""
    tokenizer, prompt = made[name], "def f():\n"
    ids = tokenizer.encode(prompt + body, special=False)
    cuts = [n for n in range(len(ids)) if tokenizer.decode(ids[:n]) == prompt]
    for n in cuts[:1]:
        assert tokenizer.decode(ids[n:], after=ids[:n]) == body


@pytest.mark.parametrize("name", MAKES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_scanner_stops_where_the_whole_text_does(name, made, data):
    """On any ids: halves of characters, bytes that are none, special tokens left out."""
    tokenizer = made[name]
    words = ["\nif ", "\nprint", "\n#", "é", "漢\n", "def", "<mark>", "\n"]
    pieces = [tokenizer.encode(word, special=False) for word in words]
    some = st.sampled_from([*pieces, *([i] for i in range(len(tokenizer._reader.vocab())))])
    ids = [i for piece in data.draw(st.lists(some, max_size=30)) for i in piece]
    prompt = tokenizer.prompt("def f():")
    text = [tokenizer.decode(ids[:n], after=prompt) for n in range(len(ids) + 1)]
    scanner = StopScanner(tokenizer, BASE_STOPS)
    ended = next((n for n in range(1, len(ids) + 1) if scanner(ids[:n])), None)
    first = next((n for n in range(1, len(ids) + 1) if cut(text[n], BASE_STOPS) != text[n]), None)
    assert ended == first


def test_the_scanner_decodes_as_much_for_the_last_token_as_for_the_first(made, monkeypatch):
    tokenizer, decoded = made["Llama"], []
    own = tokenizer._reader.text
    monkeypatch.setattr(
        tokenizer._reader, "text", lambda ids, special: decoded.append(len(ids)) or own(ids, special)
    )
    scanner, ids = StopScanner(tokenizer, BASE_STOPS), tokenizer.encode("x = é + 漢 " * 200)
    for n in range(1, len(ids)):
        scanner(ids[:n])
    assert len(ids) > 1000 and max(decoded) < 30


def test_special_tokens_are_left_out_unless_their_names_are_wanted(made):
    for tokenizer in made.values():
        end = tokenizer.encode("<|end|>", special=False)
        before = tokenizer.prompt("x")
        assert tokenizer.decode(end, after=before) == ""
        assert tokenizer.decode(end, after=before, special=True).strip() == "<|end|>"


# Ids

CLASSES = [
    *("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast"),
    *("CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer", "GPT2Tokenizer"),
    *("Qwen2Tokenizer", "T5Tokenizer", "BertTokenizer", "RobertaTokenizer", "NoSuchTokenizer", None),
]
KINDS = ["llama", "mistral", "gemma", "qwen2", "gpt2", "gpt_neox", "deepseek_v3", "bert", "phi3"]
TEXT = "def f(x):\n    return x  # naïve <unk> 漢\n\n<s>\tif  x :"


@pytest.mark.parametrize("name", ["byte-level", "Llama", "Unigram, first"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_class_is_called_the_ids_are_those_of_the_file(name, kind, tmp_path):
    made = MAKES[name]()
    folder = save(made, tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    for cls in CLASSES:
        save(made, folder, cls)
        tokenizer = read(folder)
        right = made.encode(TEXT, add_special_tokens=False).ids
        assert tokenizer.encode(TEXT, special=False) == right, cls
        assert tokenizer.decode(right) == made.decode(right), cls


def test_a_class_that_reads_the_file_otherwise_is_named(tmp_path):
    made = byte_level()
    tokenizer = read(save(made, tmp_path / "a", "LlamaTokenizerFast"))
    assert tokenizer.notes() == ()
    ids = tokenizer.encode(TEXT, special=False)
    tokenizer.encode(TEXT)
    (note, *_) = tokenizer.notes()
    assert f"read as tokenizer.json, {len(ids)} tokens; LlamaTokenizer (transformers " in note
    same = read(save(made, tmp_path / "b"))
    assert same.encode(TEXT, special=False) == ids
    assert same.notes() == ()


def test_a_class_that_cannot_read_a_text_is_named_and_in_nobodys_way(tmp_path):
    """A WordPiece class that finds no [UNK] in a byte-level vocabulary."""
    made = byte_level()
    tokenizer = read(save(made, tmp_path, "BertTokenizer", unk_token=None))
    for text in (TEXT, "b"):
        assert tokenizer.encode(text) == made.encode(text).ids
    (note,) = tokenizer.notes()
    assert note.startswith("tokenizer: read as tokenizer.json; BertTokenizer (transformers ")
    assert "cannot read the same texts: WordPiece error" in note


@pytest.mark.parametrize(
    ("cls", "template", "flags", "around"),
    [
        ("PreTrainedTokenizerFast", None, {}, [[], []]),
        ("PreTrainedTokenizerFast", None, {"add_bos_token": True}, [[1], []]),
        ("PreTrainedTokenizerFast", None, {"add_bos_token": True, "add_eos_token": True}, [[1], [2]]),
        ("PreTrainedTokenizerFast", None, {"add_eos_token": True}, [[], [2]]),
        ("PreTrainedTokenizerFast", None, {"add_bos_token": False}, [[], []]),
        ("PreTrainedTokenizerFast", "<s> $A", {}, [[1], []]),
        ("PreTrainedTokenizerFast", "<s> $A", {"add_bos_token": False}, [[1], []]),
        ("PreTrainedTokenizerFast", "$A </s>", {"add_bos_token": True}, [[], [2]]),
        ("PreTrainedTokenizerFast", "$A", {"add_bos_token": True}, [[1], []]),
        ("PreTrainedTokenizerFast", None, {"add_bos_token": True, "bos_token": None}, [[], []]),
        ("PreTrainedTokenizerFast", None, {"add_bos_token": True, "bos_token": "<no>"}, [[], []]),
        ("GPT2Tokenizer", None, {"add_bos_token": True}, [[1], []]),
        ("LlamaTokenizerFast", None, {}, [[1], []]),
        ("LlamaTokenizerFast", "<s> $A", {"add_bos_token": False}, [[], []]),
        ("LlamaTokenizer", "$A", {"add_bos_token": True, "add_eos_token": True}, [[1], [2]]),
        ("LlamaTokenizer", "$A </s>", {}, [[], [2]]),
        ("GPTNeoXTokenizerFast", None, {}, [[], []]),
        ("GPTNeoXTokenizerFast", "<s> $A", {"add_bos_token": False}, [[], []]),
    ],
)
def test_special_tokens_are_those_of_the_file_then_those_of_the_flags(
    cls, template, flags, around, tmp_path
):
    """As transformers 4.51 reads them, but for flags without a template, which only some classes read
    there."""
    made = byte_level()
    if template is None:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        tokens = [("<s>", 1), ("</s>", 2)]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    tokenizer = read(save(made, tmp_path, cls, **flags))
    before, behind = around
    plain = made.encode("a b", add_special_tokens=False).ids
    assert tokenizer.encode("a b") == [*before, *plain, *behind]
    assert tokenizer.prompt("a b") == [*before, *plain]
    assert tokenizer.adds_bos == (before == [1])


def test_special_tokens_in_a_text_are_tokens_or_text(made):
    for name in MAKES.keys() - {"Unigram, first", "Unigram, never"}:  # their pieces match in any text
        tokenizer = made[name]
        parsed = tokenizer.encode("a <s> b", special=False)
        as_text = tokenizer.encode("a <s> b", special=False, parse_special=False)
        assert 1 in parsed, name
        assert 1 not in as_text, name
        assert tokenizer.encode("a <s> b", special=False) == parsed, "the choice does not stay"


def test_tokens_that_the_configuration_adds_are_read(tmp_path):
    made = byte_level()
    n = made.get_vocab_size()
    token = {"content": "<|im_start|>", "special": True, "normalized": False, "lstrip": False}
    new = save(made, tmp_path / "new", added_tokens_decoder={str(n): token})
    assert read(new).encode("a<|im_start|>", special=False)[-1] == n
    old = save(made, tmp_path / "old", additional_special_tokens=["<|im_start|>"])
    (old / "added_tokens.json").write_text(json.dumps({"<|im_start|>": n}))
    assert read(old).encode("a<|im_start|>", special=False)[-1] == n


def test_a_prefix_space_that_the_configuration_asks_for_is_added(tmp_path):
    made = byte_level()
    plain = made.encode("if x", add_special_tokens=False).ids
    spaced = made.encode(" if x", add_special_tokens=False).ids
    assert read(save(made, tmp_path / "a")).encode("if x", special=False) == plain
    asked = save(made, tmp_path / "b", add_prefix_space=True)
    assert read(asked).encode("if x", special=False) == spaced
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert read(save(made, tmp_path / "c")).encode("if x", special=False) == spaced


def test_a_damaged_file_is_named(tmp_path):
    folder = save(byte_level(), tmp_path)
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(
        ModelError, match=r"no usable tokenizer \(tokenizer\.json: .*needs tokenizer\.json"
    ):
        read(folder)


# Chats

DATED = "{% for m in messages %}{{ m['content'] }}{% endfor %} {{ strftime_now('%d %B %Y %H:%M') }}"
MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_template_that_asks_for_the_date_always_gets_the_same(tmp_path):
    tokenizer = read(save(byte_level(), tmp_path, chat_template=DATED))
    assert tokenizer.chat(MESSAGES) == "hi 26 July 2024 00:00"


@pytest.mark.parametrize(
    ("template", "has"),
    [
        ("{{ messages[0].content }}", True),
        ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": "d"}], True),
        ([{"name": "tool_use", "template": "x"}], False),
        ([], False),
        ("", False),
        (None, False),
    ],
)
def test_of_several_chat_templates_the_default_counts(template, has, tmp_path):
    tokenizer = read(save(byte_level(), tmp_path, chat_template=template))
    assert tokenizer.has_chat_template == has
    if isinstance(template, list) and has:
        assert tokenizer.chat([{"role": "user", "content": "hello"}]) == "d"
