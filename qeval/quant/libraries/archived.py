"""What the builders of AutoGPTQ and AutoAWQ share: loading and saving with transformers 4 (worker).

Both libraries are archived and run on transformers 4 in separate environments (`qeval env`). They take
the model in float16, their own default and the type of the scales in their formats.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeval.core.artifact import Artifact, CalibrationFacts, Library, ModelRef
from qeval.core.errors import BuildError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPE = "float16"


def use_only(device: str) -> None:
    """Show the process that device alone: the libraries take the first GPU, or all, of those they see.
    Call it before CUDA is used."""
    if device in ("auto", "cuda"):
        return
    seen = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    index = device.partition(":")[2]  # "" for cpu
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(index)] if index and seen else index


def check_architecture(library: str, model: ModelRef, known: Iterator[str]) -> str:
    """The model's ``model_type``, if the library knows it."""
    kind = str(_config(model.path).get("model_type"))
    names = sorted(known)
    if kind not in names:
        raise BuildError(
            f"{library} does not know the architecture {kind} (it knows {', '.join(names)}): "
            "use backend: gptqmodel"
        )
    return kind


def load(model: ModelRef, scratch: Path) -> PreTrainedModel:
    """The float model on the CPU, in float16, every weight accounted for.

    Raises:
        BuildError: transformers 4 does not read all of it right.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _as_transformers_4(model.path, scratch) as folder:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder,
            torch_dtype=getattr(torch, DTYPE),
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise BuildError(
                f"{model.path}: {len(info[kind])} {kind.replace('_', ' ')} in its weights for this "
                f"environment's transformers, first {sorted(map(str, info[kind]))[0]}: "
                "use backend: gptqmodel"
            )
    return loaded.eval()


def save(
    model: PreTrainedModel, quantization_config: dict[str, object], source: ModelRef, folder: Path
) -> None:
    """Weights in ``model.safetensors`` (shards of 4 GB and an index above that), the source's own
    configuration with the quantization in it, and the source's tokenizer and other files.

    Raises:
        BuildError: scales that are not finite (float16 overflowed).
    """
    from huggingface_hub import save_torch_state_dict

    from qeval.models.side_files import copy_side_files

    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if name.endswith(".scales") and not tensor.isfinite().all():
            raise BuildError(
                f"{source.id}: {name} is not finite: float16 is too narrow for this model: "
                "use backend: gptqmodel"
            )
    folder.mkdir()
    save_torch_state_dict(
        tensors,
        folder,
        max_shard_size="4GB",
        metadata={"format": "pt"},
        shared_tensors_to_discard=getattr(model, "_tied_weights_keys", None),
    )
    config = _config(source.path)
    config.pop("torch_dtype", None)
    config |= {"dtype": DTYPE, "quantization_config": quantization_config}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    copy_side_files(source.path, folder)


def describe(folder: Path, package: str, facts: CalibrationFacts) -> Artifact:
    """The artifact of a saved folder, with the library and the calibration in its details."""
    from qeval.formats.describe import describe_packed

    artifact = describe_packed(folder)
    details = {**artifact.details, "dtype": DTYPE}
    return replace(artifact, library=Library.of(package), calibration=facts, details=details)


@contextmanager
def _as_transformers_4(source: Path, scratch: Path) -> Iterator[Path]:
    """A folder of links to the model's files, its configuration in the words of transformers 4: a
    ``rope_theta`` that 5 wrote inside ``rope_parameters`` would be taken for the default, silently."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".source-") as name:
        folder = Path(name)
        for file in source.iterdir():
            if file.is_file() and file.name != "config.json":
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps(_old_config(source)), encoding="utf-8")
        yield folder


def _old_config(source: Path) -> dict[str, object]:
    config = _config(source)
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    if any(isinstance(value, dict) for value in rope.values()):
        raise BuildError(
            f"{source}/config.json: rope_parameters differ by layer, which transformers 4 cannot say: "
            "use backend: gptqmodel"
        )
    rope = dict(rope)
    config |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    config["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    return config


def _config(folder: Path) -> dict[str, Any]:
    data: dict[str, object] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return data
