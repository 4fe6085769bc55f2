"""Builds tiny models with every library and runs them by qeval's engine, each step in its own process.

python make_quantized.py FOLDER, then names of steps on stdin, a line each; each is answered by its exit
status (negative: a signal). This process imports torch and transformers, which takes ten seconds, and
nothing else; a step is a fork of it. So GPTQModel, which changes transformers when it is imported, is
in no other step's way, and nothing is imported twice.

A build leaves NAME/model and NAME.json (the artifact); a run NAME.run.json and NAME.npy (logits); where
qeval raised one of its errors, the JSON has that instead. quantized.py reads them.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quantized import BUILDS, MODELS, PLAIN, UNLIKE, VARIANTS, Variant, probe_ids, random_windows
from torch import Tensor

OUT = Path(sys.argv[1])


def main() -> None:
    import transformers
    from transformers import (  # noqa: F401  # for the forks
        AutoModelForCausalLM,
        LlamaForCausalLM,
        MixtralForCausalLM,
        Starcoder2ForCausalLM,
    )

    transformers.logging.disable_progress_bar()
    gc.freeze()  # GPTQModel collects garbage at every load; nothing that is here already
    for line in sys.stdin:
        print(_in_fork(line.strip()), flush=True)


def _in_fork(step: str) -> int:
    pid = os.fork()
    if not pid:
        log = os.open(OUT / f"{step}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = 1
        try:
            do(step)
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)  # GPTQModel's threads would go on
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def do(step: str) -> None:
    kind, _, method = step.partition(" ")
    names = [name for name, build in BUILDS.items() if build.method == method]
    match kind:
        case "float":
            make_models()
        case "build":
            for name in names:
                _kept(f"{name}.json", partial(_build, name))
            if method == "gptq":  # while GPTQModel is imported; the last one leaves it broken
                _kept("pack.json", pack)
                _kept("failing.json", failing)
        case "run":
            if method == "quanto":
                _without_a_compiler()
            for name in filter(_is_built, names):
                _kept(f"{name}.run.json", partial(_run, name))
            for name, variant in VARIANTS.items():
                if BUILDS[variant.of].method == method:
                    _kept(f"{name}.run.json", partial(_vary, name, variant))
        case "weigh":  # gptq, awq: where GPTQModel is not
            for name in filter(_is_built, names):
                if (artifact := _artifact(name)).format:
                    weigh(name, artifact, {})
        case "plain":
            for name in names:
                if name in PLAIN:
                    plain(name)
        case "killed":
            killed()
        case _:
            raise ValueError(step)


def _build(name: str) -> Any:
    return build(OUT / name, name).to_json()


def _run(name: str) -> dict[str, Any]:
    return run(name, _artifact(name))


def _vary(name: str, variant: Variant) -> dict[str, Any]:
    from qeval.formats import gptqmodel

    if variant.merged:
        gptqmodel._MERGES = ("cpu",)
    try:
        return run(name, vary(name, variant), kernel=variant.kernel)
    finally:
        gptqmodel._MERGES = ("cuda",)


def _kept(name: str, result: Callable[[], Any]) -> None:
    from qeval.core.errors import QevalError

    try:
        data = result()
    except QevalError as err:
        traceback.print_exc()
        data = {"error": f"{type(err).__name__}: {err}"}
    (OUT / name).write_text(json.dumps(data))


def _is_built(name: str) -> bool:
    file = OUT / f"{name}.json"
    return file.exists() and "error" not in json.loads(file.read_text())


def _artifact(name: str) -> Any:
    from qeval.core.artifact import Artifact

    return Artifact.from_json(json.loads((OUT / f"{name}.json").read_text()))


# -- the models -------------------------------------------------------------------------------


def make_models() -> None:
    """Two blocks of hidden size 256 in bfloat16, StarCoder2 with biases and tied embeddings. Of one
    block: a Mixtral; a HunYuan, whose routers are linear layers with a name of their own; a GPT-NeoX;
    a mixture whose files have all experts in one tensor; and one that GPTQModel does not know."""
    from tiny_models import make_tiny_llama, tiny_tokenizer
    from transformers import (
        BioGptConfig,
        BioGptForCausalLM,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        GptOssConfig,
        GptOssForCausalLM,
        HunYuanMoEV1Config,
        HunYuanMoEV1ForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        Starcoder2Config,
        Starcoder2ForCausalLM,
    )

    from qeval.formats.describe import describe_folder

    wide = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
    make_tiny_llama(OUT / "llama", dtype="bfloat16", **wide)
    common = {
        "vocab_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    tied = {"tie_word_embeddings": True, "use_bias": True, "num_hidden_layers": 2}
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "initializer_range": 0.05}
    hunyuan = HunYuanMoEV1Config(
        **small, **common, num_experts=4, moe_topk=2, head_dim=16, initializer_range=0.05
    )
    neox = GPTNeoXConfig(**{**small, **common, "tie_word_embeddings": False}, initializer_range=0.05)
    stacked = GptOssConfig(**small, **common, **experts, head_dim=16, layer_types=["full_attention"])
    torch.manual_seed(0)
    made = {
        "hunyuan": HunYuanMoEV1ForCausalLM(hunyuan),
        "neox": GPTNeoXForCausalLM(neox),
        "stacked": GptOssForCausalLM(stacked),
        "starcoder2": Starcoder2ForCausalLM(Starcoder2Config(**wide, **common, **tied)),
        "mixtral": MixtralForCausalLM(MixtralConfig(**small, **common, **experts)),
        "unknown": BioGptForCausalLM(BioGptConfig(vocab_size=512, num_attention_heads=4, **small)),
    }
    for name, parameter in made["starcoder2"].named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    for name, model in made.items():
        model.to(torch.bfloat16).save_pretrained(OUT / name)
        tiny_tokenizer().save_pretrained(OUT / name)
    (OUT / "short.txt").write_text("forty-two tokens at the most\n")
    for name in MODELS:
        artifact = describe_folder(OUT / name, "bfloat16")
        for dtype in ("float32", "bfloat16"):
            full = f"{name}-{dtype}"
            _kept(f"{full}.run.json", partial(run, full, artifact, dtype))


# -- building ---------------------------------------------------------------------------------


def build(folder: Path, name: str, progress: Callable[..., None] | None = None) -> Any:
    """What the worker does, with windows of random tokens; the steps that were told are kept."""
    from qeval.core.artifact import ModelRef
    from qeval.quant.base import METHODS, BuildContext

    wanted, steps = BUILDS[name], []
    folder.mkdir(exist_ok=True)
    method = METHODS[wanted.method]()
    ref = ModelRef(wanted.model, OUT / wanted.model, "sha256:0", "bfloat16")

    def told(*step: object) -> None:
        steps.append(step)
        (OUT / f"{name}.steps.json").write_text(json.dumps(steps))

    def drawn(options: Any) -> Any:
        return calibration(ref, options)

    context = BuildContext(ref, folder, None, drawn, progress or told, OUT / "cache", "cpu", 1)
    return method.build(method.Options.model_validate(wanted.options), context)


def calibration(model: Any, options: Any) -> Any:
    from qeval.core.artifact import CalibrationFacts
    from qeval.data.calibration import Calibration, draw
    from qeval.data.datasets import DataSource
    from qeval.models.tokenizer import load_tokenizer

    if options.dataset.startswith("file:"):
        return draw(DataSource(None), load_tokenizer(model), options)
    windows = random_windows(options.n_samples, options.seq_len, options.seed)
    facts = CalibrationFacts(
        dataset=options.dataset,
        n_samples=options.n_samples,
        seq_len=options.seq_len,
        seed=options.seed,
        n_tokens=sum(map(len, windows)),
        text_sha256="0" * 64,
    )
    return Calibration(windows, facts)


def killed() -> None:
    """A build that is killed after its first block, in a cache's own folder."""
    from qeval.store.artifacts import ArtifactCache

    with ArtifactCache(OUT / "cache").building("k" * 64) as folder:
        build(folder, "llama-gptq-4", lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def failing() -> Any:
    """A build in which a thread of GPTQModel fails."""
    import gptqmodel.quantization.gptq as library

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no luck\nand a second line")

    library.GPTQ.quantize = fail
    return build(OUT / "failing", "llama-gptq-4").to_json()


# -- running ----------------------------------------------------------------------------------


def run(name: str, artifact: Any, dtype: str = "bfloat16", kernel: str | None = None) -> dict[str, Any]:
    import numpy as np

    from qeval.core.execution import Execution
    from qeval.core.settings import EngineSettings
    from qeval.engines.hf import HfEngine
    from qeval.formats.load import resident_bytes

    if artifact is None:  # a variant without an engine
        return {}
    running = Execution.from_json({} if kernel is None else {"kernel": kernel})
    settings = EngineSettings(device="cpu", dtype=dtype, n_threads=1, execution=running)
    lm = HfEngine.open(artifact, settings)
    before = resident_bytes(lm._model)
    method = BUILDS[name].method if name in BUILDS and BUILDS[name].model not in UNLIKE else ""
    by_modules = method in ("bitsandbytes", "hqq", "torchao", "quanto")
    dense = dict(_from_modules(artifact, lm._model)) if by_modules else {}
    nll = [row.tolist() for row in lm.nll(probe_ids())]
    np.save(OUT / f"{name}.npy", np.stack([lm.logits(row) for row in probe_ids()]))
    if method == "compressed-tensors":  # has unpacked itself now
        dense = dict(_from_modules(artifact, lm._model))
    if method == "auto-round":
        dense = dict(_from_files(artifact))
    if dense:
        weigh(name, artifact, dense)
    return {
        "nll": nll,
        "facts": lm.facts(),
        "notes": lm.notes(),
        "resident": [before, resident_bytes(lm._model)],
    }


def _without_a_compiler() -> None:
    """quanto compiles its unpacking of 4 bits on first use, for a minute; it has the same in Python."""
    from types import SimpleNamespace

    from optimum.quanto.library.extensions import get_extension

    def unpack(packed: Tensor, bits: int) -> Tensor:  # as in optimum/quanto/library/unpack.py
        shifts = range(0, 8, bits)
        return torch.cat([packed >> shift & (2**bits - 1) for shift in shifts]).to(torch.uint8)

    get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)


def vary(name: str, variant: Variant) -> Any:
    """The artifact of a changed copy, described anew as a user's checkpoint is."""
    from safetensors.torch import load_file, save_file

    from qeval.formats.describe import describe_folder
    from qeval.models.loading import load_model

    folder = OUT / name
    shutil.copytree(OUT / variant.of / "model", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    match variant.change:
        case "remove":
            del tensors[variant.tensor]
            save_file(tensors, file, {"format": "pt"})
        case "add":
            tensors[variant.tensor] = torch.full((256,), variant.value, dtype=torch.bfloat16)
            save_file(tensors, file, {"format": "pt"})
        case "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
            file.unlink()
        case "transformers":
            load_model(folder, "bfloat16", "cpu")
            return None
    artifact = describe_folder(folder, "bfloat16")
    if variant.change == "cut":  # after it was described: in the cache, as it were
        with file.open("r+b") as handle:
            handle.truncate(file.stat().st_size // 2)
    return artifact


# -- weights ----------------------------------------------------------------------------------


def weigh(name: str, artifact: Any, dense: dict[str, Tensor]) -> None:
    """NAME.twin.npy: logits of a float model with the stored weights. NAME.weights.json: of each
    linear, ``error``, ||Q - W|| / ||W||; ``levels``, the most different weights in a group of a row."""
    import numpy as np
    from safetensors.torch import load_file

    if BUILDS[name].model in UNLIKE:
        return
    floats = load_file(OUT / BUILDS[name].model / "model.safetensors")
    twin = _twin(artifact, OUT / BUILDS[name].model, dense)
    state = twin.state_dict()
    with torch.inference_mode():
        rows = [twin(input_ids=torch.tensor([ids])).logits[0].float().numpy() for ids in probe_ids()]
    np.save(OUT / f"{name}.twin.npy", np.stack(rows))
    plain = state | (_without_scales(state, floats) if BUILDS[name].method == "awq" else {})
    group = artifact.format.group_size
    found = {}
    for linear in (f"{layer.name}.weight" for layer in artifact.layers):
        rows = state[linear].reshape(-1, state[linear].shape[1] if group in (None, -1) else group)
        found[linear.removesuffix(".weight")] = {
            "levels": max(len(row.unique()) for row in rows),
            "error": float((plain[linear] - floats[linear]).norm() / floats[linear].float().norm()),
        }
    if BUILDS[name].method == "gptq":
        for linear, losses in _losses(name, artifact, state, floats):
            found[linear] |= losses
    (OUT / f"{name}.weights.json").write_text(json.dumps(found))


def _twin(artifact: Any, source: Path, dense: dict[str, Tensor]) -> Any:
    """The float model with the weights ``dense``, and all else from the checkpoint's files."""
    from transformers import AutoModelForCausalLM

    from qeval.quant.libraries.unpack import float_twin

    kind = artifact.format.name
    if kind in ("gptq", "awq"):
        return float_twin(artifact.path, torch.float32)
    twin = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    parts = {} if kind == "hqq" else _tensors(artifact.path)
    state = twin.state_dict()
    state |= {name: tensor for name, tensor in parts.items() if name in state}
    state |= {f"{linear}.weight": weight for linear, weight in dense.items()}
    twin.load_state_dict(state)
    return twin


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def _from_files(artifact: Any) -> Iterator[tuple[str, Tensor]]:
    from qeval.quant.libraries.unpack import awq_weight, gptq_weight

    parts = _tensors(artifact.path)
    layout = artifact.format.details["layout"]
    for layer in artifact.layers:
        mine = {k: parts[f"{layer.name}.{k}"] for k in ("qweight", "qzeros", "scales")}
        yield layer.name, awq_weight(mine) if layout == "awq" else gptq_weight(mine, 4)


def _from_modules(artifact: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
    """As the library itself gives them."""
    for layer in artifact.layers:
        yield layer.name, _dense(model.get_submodule(layer.name)).detach().float().clone()


def _dense(module: Any) -> Tensor:
    """[out_features, in_features]"""
    weight: Tensor
    match type(module).__name__:
        case "HQQLinear":
            weight = module.dequantize()
        case "Linear8bitLt":
            weight = module.weight.data.float() * module.weight.SCB[:, None] / 127
        case "Linear4bit":
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        case _ if hasattr(module.weight, "__tensor_flatten__"):
            weight = module.weight.dequantize()
        case _:
            weight = module.weight.data
    return weight


def _without_scales(state: dict[str, Tensor], floats: dict[str, Tensor]) -> dict[str, Tensor]:
    """AWQ's weights with the scales taken out that went into the operation before: a norm's weight, or
    the rows of the up projection. What is left differs from the float weights by the rounding."""
    out = {}
    for block in (f"model.layers.{i}" for i in (0, 1)):
        for norm, linears in {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj", "mlp.c_fc"),
        }.items():
            key = f"{block}.{norm}.weight"
            scale = floats[key].float() / state[key].float()
            for linear in linears:
                weight = f"{block}.{linear}.weight"
                if weight in state:
                    out[weight] = state[weight] / scale
        up, down = f"{block}.mlp.up_proj.weight", f"{block}.mlp.down_proj.weight"
        if up in out:
            rows = (floats[up].float() * out[up]).sum(1) / out[up].square().sum(1)  # least squares
            out |= {up: out[up] * rows[:, None], down: state[down] / rows}
    return out


def _losses(
    name: str, artifact: Any, state: dict[str, Tensor], floats: dict[str, Tensor]
) -> Iterator[tuple[str, dict[str, float]]]:
    """||(Q - W) X||^2 of the linears that read the first block's norm, on the calibration windows; and
    the same of rounding W to nearest on the very grid of the file."""
    options = BUILDS[name].options["calibration"]
    windows = torch.tensor(random_windows(options["n_samples"], options["seq_len"], 0))
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(OUT / BUILDS[name].model, dtype=torch.float32)
        inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(windows)).flatten(0, 1)
    parts = _tensors(artifact.path)
    from qeval.quant.libraries.unpack import unpack_ints

    bits = artifact.format.num_bits
    offset = int(artifact.format.details["checkpoint_format"] == "gptq")
    for linear in (f"model.layers.0.self_attn.{n}_proj" for n in "qkv"):
        weight, found = floats[f"{linear}.weight"].float(), state[f"{linear}.weight"].float()
        index = parts[f"{linear}.g_idx"].long()
        scale = parts[f"{linear}.scales"].float()[index].T  # [out, in]
        zero = unpack_ints(parts[f"{linear}.qzeros"].T.contiguous(), bits)[:, index] + offset
        nearest = scale * ((weight / scale).round().add(zero).clamp(0, 2**bits - 1) - zero)
        yield (
            linear,
            {
                "loss": float(((found - weight) @ inputs.T).square().sum()),
                "nearest": float(((nearest - weight) @ inputs.T).square().sum()),
            },
        )


# -- packing ----------------------------------------------------------------------------------


def pack() -> dict[str, list[str]]:
    """Which tensors GPTQModel's own packing has otherwise, for every width and both kinds of grid."""
    import gptqmodel.utils.model as library
    from gptqmodel import QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    from qeval.quant.laboratory.gptq_format import pack_gptq
    from qeval.quant.laboratory.solvers.base import GridRules
    from qeval.quant.laboratory.solvers.rtn import rtn

    found = {}
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            torch.manual_seed(bits)
            linear = torch.nn.Linear(160, 96, bias=False)
            order = torch.randperm(160)
            solved = rtn(linear.weight.data[:, order], torch.eye(160), GridRules(bits, 32, symmetric))
            back = order.argsort()
            linear.weight.data, group_of = solved.weight[:, back], solved.group_of[back]
            mine = pack_gptq(linear.weight.data, solved.grid, group_of)
            shape = {"in_features": 160, "out_features": 96, "group_size": 32, "bits": bits}
            other = TorchLinear(sym=symmetric, desc_act=True, **shape)
            zero_point = solved.grid.zero_point - solved.grid.low
            other.pack_original(linear, solved.grid.scale, zero_point, group_of.int())
            if symmetric:
                library.convert_gptq_v2_to_v1_format_module(other, QuantizeConfig(bits=bits))
            theirs = other.state_dict()
            name = f"{bits} {'symmetric' if symmetric else 'asymmetric'}"
            assert mine.keys() == theirs.keys()
            found[name] = [
                part
                for part in mine
                if mine[part].dtype != theirs[part].dtype or not torch.equal(mine[part], theirs[part])
            ]
    return found


# -- without qeval ----------------------------------------------------------------------------


def plain(name: str) -> None:
    """What a user of transformers alone gets."""
    import numpy as np
    import torch._dynamo.config
    from transformers import AutoModelForCausalLM

    sys.modules["qeval"] = None  # type: ignore[assignment]  # an import of it fails
    # GPTQModel's torch kernel compiles the unpacking of each linear on first use: half a minute.
    torch._dynamo.config.disable = True
    model, info = AutoModelForCausalLM.from_pretrained(
        OUT / name / "model", dtype=torch.bfloat16, output_loading_info=True
    )
    model.eval()
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([ids])).logits[0].float().numpy() for ids in probe_ids()]
    np.save(OUT / f"{name}.plain.npy", np.stack(rows))
    kernels = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "qweight")})
    keys = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys")}
    (OUT / f"{name}.plain.json").write_text(json.dumps({**keys, "kernels": kernels}))


if __name__ == "__main__":
    main()
