"""Whether a model is a causal language model, which is what every task here measures: each token is
predicted from those before it. A masked-language model (BERT) that is run as one sees the tokens that
it is asked for, and its perplexity means nothing. Torch-free, before any job; what files do not say is
tried on the running model (``models/loading.py``).
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from qeval.core.errors import ModelError
from qeval.llama.gguf_file import Header
from qeval.models.config import read_json

# transformers' architectures whose causal class masks attention only where config.json has this key.
_MASKED_IF = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"),
            *("megatron-bert", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert"),
            *("roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        ),
        "is_decoder",
    ),
    "xlm": "causal",
}
# Those that are a decoder with an encoder before it, unless config.json says otherwise.
_WITH_ENCODER = (
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"),
    *("pegasus", "plbart", "prophetnet"),
)
# llama.cpp's, whose attention it does not mask, whatever the file says (src/models).
_GGUF = ("t5", "t5encoder", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1")


def check_causal(config: Path) -> None:
    """Raises ModelError where a model's config.json says that it is not a causal language model."""
    data = read_json(config)
    kind = data.get("model_type")
    if data.get("is_encoder_decoder", kind in _WITH_ENCODER):
        raise ModelError(f"{config}: {kind} is an encoder with a decoder, no causal language model")
    key = _MASKED_IF.get(str(kind))
    if key is not None and data.get(key) is not True:
        raise ModelError(
            f"{config}: {kind} is a masked-language model, no causal one: its attention sees the "
            f"tokens that it is asked for (it masks them where {key} is true, as causal models have it)"
        )
    if not _brings_class(data) and (known := _causal_kinds()) and kind not in known:
        raise ModelError(
            f"{config}: model_type {kind!r}: the transformers installed here has no causal language "
            "model of that kind: masked and encoder-only models are none; for a newer one update it"
        )


def check_causal_gguf(path: Path, header: Header) -> None:
    """Raises ModelError where llama.cpp runs a file without a causal mask."""
    if header.architecture in _GGUF or header.get("attention.causal") is False:
        raise ModelError(
            f"{path}: {header.architecture} without a causal mask is no causal language model: its "
            "attention sees the tokens that it is asked for"
        )


def _brings_class(config: dict[str, object]) -> bool:
    auto_map = config.get("auto_map")
    return isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map


@cache
def _causal_kinds() -> frozenset[str]:
    """The model types of transformers' AutoModelForCausalLM, read from its source without importing it;
    empty where it is not installed or written otherwise."""
    found = find_spec("transformers")
    for folder in found.submodule_search_locations or () if found else ():
        file = Path(folder) / "models" / "auto" / "modeling_auto.py"
        if not file.is_file():
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and _named(node) == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
                pairs = (n for n in ast.walk(node.value) if isinstance(n, ast.Tuple) and n.elts)
                return frozenset(
                    first.value
                    for pair in pairs
                    if isinstance(first := pair.elts[0], ast.Constant) and isinstance(first.value, str)
                )
    return frozenset()


def _named(node: ast.Assign) -> str:
    target = node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""
