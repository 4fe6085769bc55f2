"""Tiny models, quantized by every library and run by qeval's engine, each step in a process of its own.

python make_quantized.py FOLDER, then names of steps on stdin, a line each; each is answered by its exit
status (negative: a signal). This process imports torch and transformers, which takes ten seconds, and
nothing else; a step is a fork of it. So GPTQModel, which changes transformers when it is imported, is
in no other step's way, and nothing is imported twice.

A build leaves NAME/ and NAME.json (the artifact), a run NAME.npy (logits) and NAME.run.json; where qeval
raised one of its errors, the JSON has that instead.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quantized import BUILDS, FLOATS, PLAIN, VARIANTS, Variant, probe_ids, random_windows

OUT = Path(sys.argv[1])


def main() -> None:
    import transformers
    from transformers import (  # noqa: F401  # for the forks
        AutoModelForCausalLM,
        LlamaForCausalLM,
        Starcoder2ForCausalLM,
    )

    transformers.logging.disable_progress_bar()
    gc.freeze()
    for line in sys.stdin:
        import time; t=time.time(); c=os.times()
        code=_in_fork(line.strip()); d=os.times()
        print(code, flush=True)
        print(line.strip(), "wall %.1f cpu %.1f"%(time.time()-t, d.children_user+d.children_system-c.children_user-c.children_system), file=sys.stderr)


def _in_fork(step: str) -> int:
    pid = os.fork()
    if not pid:
        log = os.open(OUT / f"{step}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            _run(step)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)  # GPTQModel's threads would go on
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(step: str) -> None:
    kind, _, family = step.partition(" ")
    names = [name for name, build in BUILDS.items() if build.family == family]
    match kind:
        case "float":
            make_models()
            for name, dtype in FLOATS.items():
                run(name, _float_artifact(name.split("-")[0]), dtype)
        case "build":
            for name in names:
                build(name)
        case "run":
            for name in names:
                run(name, _artifact(name), "bfloat16")
        case "variants":
            for name, variant in VARIANTS.items():
                if BUILDS[variant.of].family == family:
                    run(name, _vary(name, variant), "bfloat16")
        case "plain":
            for name in PLAIN:
                plain(name)
        case "killed":
            killed()
        case _:
            raise ValueError(step)


# -- the models -------------------------------------------------------------------------------


def make_models() -> None:
    """Two blocks of hidden size 256 in bfloat16; StarCoder2 with biases and tied embeddings."""
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import make_tiny_llama, tiny_tokenizer

    wide = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
    make_tiny_llama(OUT / "llama", dtype="bfloat16", **wide)
    torch.manual_seed(0)
    config = Starcoder2Config(
        **wide,
        vocab_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        use_bias=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Starcoder2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    model.to(torch.bfloat16).save_pretrained(OUT / "starcoder2")
    tiny_tokenizer().save_pretrained(OUT / "starcoder2")


def _float_artifact(model: str) -> Any:
    from qeval.quant.folder import describe_folder

    return describe_folder(OUT / model, "bfloat16")


# -- building ---------------------------------------------------------------------------------


def build(name: str) -> None:
    from qeval.errors import QevalError

    try:
        data = build_into(OUT / name, name).to_json()
    except QevalError as err:
        data = {"error": str(err), "type": type(err).__name__}
        traceback.print_exc()
    (OUT / f"{name}.json").write_text(json.dumps(data))


def build_into(folder: Path, name: str, progress: Callable[..., None] | None = None) -> Any:
    """What the worker does, with windows of random tokens; the steps that were told are kept."""
    from qeval import registry
    from qeval.quant.base import BuildContext, ModelRef

    wanted, steps = BUILDS[name], []
    folder.mkdir(exist_ok=True)
    method = registry.method(wanted.method)
    ref = ModelRef(wanted.model, OUT / wanted.model, "sha256:0", "bfloat16")

    def told(*step: object) -> None:
        steps.append(step)
        (OUT / f"{name}.steps.json").write_text(json.dumps(steps))

    context = BuildContext(
        ref, folder, None, _calibration, progress or told, OUT / "cache", "cpu", n_threads=2
    )
    return method.build(method.Options.model_validate(wanted.options), context)


def _calibration(options: Any) -> Any:
    from qeval.calibration import Calibration

    windows = random_windows(options.n_samples, options.seq_len, options.seed)
    tokens = sum(map(len, windows))
    return Calibration(windows, {**options.model_dump(), "n_tokens": tokens, "text_sha256": "0" * 64})


def killed() -> None:
    """A build that is killed after its first block, in a cache's own folder."""
    from qeval.artifacts import ArtifactCache

    with ArtifactCache(OUT / "cache").building("k" * 64) as folder:
        build_into(folder, "llama-gptq-4", lambda *_: os.kill(os.getpid(), signal.SIGKILL))


# -- running ----------------------------------------------------------------------------------


def _artifact(name: str) -> Any:
    from qeval.quant.base import Artifact

    data = json.loads((OUT / f"{name}.json").read_text())
    return None if "error" in data else Artifact.from_json(data)


def run(name: str, artifact: Any, dtype: str) -> None:
    import numpy as np

    from qeval.engines.hf import HfEngine
    from qeval.engines.packed import resident_bytes
    from qeval.errors import QevalError
    from qeval.lm import EngineSettings

    if artifact is None:
        return
    try:
        lm = HfEngine.open(artifact, EngineSettings(device="cpu", dtype=dtype, n_threads=2))
    except QevalError as err:
        data = {"error": str(err), "type": type(err).__name__}
    else:
        before = resident_bytes(lm._model)
        data = {
            "nll": [row.tolist() for row in lm.nll(probe_ids())],
            "facts": lm.facts(),
            "notes": lm.notes(),
            "resident": (before, resident_bytes(lm._model)),
            "class": type(lm._model).__name__,
        }
        np.save(OUT / f"{name}.npy", np.stack([lm.logits(row) for row in probe_ids()]))
        data["weights"] = _weights(name, lm._model, artifact)
    (OUT / f"{name}.run.json").write_text(json.dumps(data))


def _weights(name: str, model: Any, artifact: Any) -> dict[str, list[float]]:
    """Of each quantized linear whose library gives its weights as floats: their distance from the
    float model's, relative to these, and the most levels that a row has in one group."""
    if name not in BUILDS:
        return {}
    from safetensors.torch import load_file

    floats = load_file(OUT / BUILDS[name].model / "model.safetensors")
    group = artifact.details["format"]["group_size"] or -1
    out = {}
    for linear, module in model.named_modules():
        weight = _dense(module)
        if weight is None:
            continue
        before, weight = floats[f"{linear}.weight"].float(), weight.float()
        size = weight.shape[1] if group == -1 else group
        levels = max(len(row.unique()) for row in weight.reshape(-1, size))
        out[linear] = [float((weight - before).norm() / before.norm()), levels]
    return out


def _dense(module: Any) -> Any:
    """[out_features, in_features] of a quantized linear in bitsandbytes, hqq, torchao or quanto, or of
    one of compressed-tensors that has run; None for anything else."""
    kind, weight = type(module).__name__, getattr(module, "weight", None)
    if kind == "HQQLinear":
        return module.dequantize()
    if not hasattr(module, "in_features") or weight is None:
        return None
    if kind == "Linear8bitLt":
        return weight.data.float() * module.state.SCB[:, None] / 127
    if kind == "Linear4bit":
        return None  # reordered for the CPU's kernel
    if hasattr(weight, "dequantize") and type(weight.data).__name__ not in ("Tensor", "Parameter"):
        return weight.dequantize()
    return weight.data if getattr(module, "quantization_scheme", None) is not None else None


# -- variants of built checkpoints ------------------------------------------------------------


def _vary(name: str, variant: Variant) -> Any:
    """The artifact of a changed copy, described anew as a user's checkpoint is."""
    from dataclasses import replace

    from safetensors.torch import load_file, save_file

    from qeval.quant.folder import describe_folder

    folder = OUT / name
    shutil.copytree(OUT / variant.of / "model", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    match variant.change:
        case "remove":
            del tensors[variant.tensor]
            save_file(tensors, file, {"format": "pt"})
        case "add":
            tensors[variant.tensor] = torch.ones(256, dtype=torch.bfloat16)
            save_file(tensors, file, {"format": "pt"})
        case "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
            file.unlink()
    artifact = describe_folder(folder, "bfloat16")
    if variant.change == "cut":  # after it was described: in the cache, as it were
        with file.open("r+b") as handle:
            handle.truncate(file.stat().st_size // 2)
    details = {**artifact.details, "execution": {"kernel": variant.kernel}}
    return replace(artifact, details=details)


# -- without qeval ----------------------------------------------------------------------------


def plain(name: str) -> None:
    """What a user of transformers alone gets."""
    import numpy as np
    from transformers import AutoModelForCausalLM

    sys.modules["qeval"] = None  # type: ignore[assignment]  # an import of it fails
    model, info = AutoModelForCausalLM.from_pretrained(
        OUT / name / "model", dtype=torch.bfloat16, output_loading_info=True
    )
    model.eval()
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([ids])).logits[0].float().numpy() for ids in probe_ids()]
    np.save(OUT / f"{name}.plain.npy", np.stack(rows))
    classes = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "qweight")})
    keys = {k: sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys")}
    (OUT / f"{name}.plain.json").write_text(json.dumps({**keys, "kernels": classes}))


if __name__ == "__main__":
    main()
