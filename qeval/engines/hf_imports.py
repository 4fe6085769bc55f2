"""What every cell of the engine `hf` imports, whatever its model and task. A process imports this
module and is forked for each cell (jobs/zygote.py): nothing here computes, starts a thread or opens a
GPU."""

from __future__ import annotations

from importlib import import_module

from qeval.models.loading import lean_transformers

_MODULES = (
    "qeval.engines.generation.transformers_loop",
    "qeval.engines.hf",
    "qeval.formats.load",
    "qeval.models.linears",
    "qeval.models.tokenizer",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.processing_utils",
)

lean_transformers()
for _name in _MODULES:
    import_module(_name)
