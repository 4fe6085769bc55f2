#!/usr/bin/env python3
"""Generation and scoring by the engine `hf`, beside transformers' loop, vLLM and llama.cpp, in one run.

    python scripts/bench_generation.py models/SmolLM2-135M-Instruct --cases 1x50x64,1x1x64 --device cpu
    python scripts/make_random_model.py starcoder2-15b models/big --config
    python scripts/bench_generation.py models/big --dummy
    python scripts/make_random_model.py starcoder2-15b models/gptq4 --packed gptq
    python scripts/bench_generation.py models/gptq4 --kernel marlin

A case is prompts x samples of each x new tokens. Prompts have 150 random tokens; T 0.8, top_p 0.95, no
end of a sequence. ``hf`` draws every sample with a seed of its own, and once more with a stop that
reads each new token. transformers' ``generate`` runs all sequences of a case as one batch, as its users
do.
``perplexity`` scores windows of 2,048. Each way runs in a process of its own, warms up, and is measured
``--repeats`` times; the table has medians, and the best of the others in the last column.

``--dummy`` reads the folder's configuration alone and makes the weights up, as ``--load-format dummy``
of vLLM does; ``--activations`` and ``--kv-cache`` give bits to the engine `hf`, simulated. vLLM runs
where it is installed. ``--gguf`` adds the same model as a .gguf file, on the engine `llamacpp` and by
``llama_decode`` alone, which draws nothing (bench_llamacpp.py says more).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

PROMPT, TEMPERATURE, TOP_P, WINDOW = 150, 0.8, 0.95, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", default="1x200x128,6x200x256,1x1x64")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--windows", type=int, default=8, help="of perplexity; 0 for none")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kernel", help="of packed weights on hf")
    parser.add_argument("--activations", type=int, help="bits, on hf")
    parser.add_argument("--kv-cache", type=int, help="bits, on hf")
    parser.add_argument("--dummy", action="store_true")
    parser.add_argument("--gguf", type=Path, help="the model for llama.cpp")
    parser.add_argument("--ways", default="transformers,hf,vllm,llama_decode,llamacpp")
    parser.add_argument("--no-stops", action="store_true", help="do not read every new token, too")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(globals()[f"_{args.way}"](args)))
        return
    missing = set() if find_spec("vllm") else {"vllm"}
    missing |= set() if args.gguf else {"llama_decode", "llamacpp"}
    asked = [way for way in args.ways.split(",") if way not in missing]
    found: dict[str, dict[str, float]] = {}
    for way in asked:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--way", way], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            print(f"{way}: failed, see above")
            continue
        found[way] = json.loads(done.stdout.splitlines()[-1])
    _print(found)
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "found": found}, indent=1) + "\n")


def _print(found: dict[str, dict[str, float]]) -> None:
    ways = list(found)
    titles = "".join(f"{title:>16}" for title in ("hf / best", "llamacpp / raw"))
    print(f"{'':28}" + "".join(f"{way:>14}" for way in ways) + titles)
    for case in dict.fromkeys(case for rates in found.values() for case in rates):
        rates = {way: found[way][case] for way in ways if case in found[way]}
        ratios = (
            _ratio(rates, "hf", ("transformers", "vllm")),
            _ratio(rates, "llamacpp", ("llama_decode",)),
        )
        print(f"{case:28}" + "".join(f"{rates.get(way, 0):14,.1f}" for way in ways) + "".join(ratios))


def _ratio(rates: dict[str, float], ours: str, others: tuple[str, ...]) -> str:
    best = max((rates[way] for way in others if way in rates), default=0.0)
    return f"{rates[ours] / best:16.2f}" if best and ours in rates else f"{'':16}"


# ---- the ways: each prints numbers of the cases, tokens a second


def _prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(512) for _ in range(PROMPT)] for _ in range(64)]


def _measured(
    args: argparse.Namespace, run: Callable[[list[list[int]], int, int], int]
) -> dict[str, float]:
    """``run`` gets prompts, samples of each and new tokens, and returns how many tokens it made."""
    rates = {}
    for case in args.cases.split(","):
        prompts, n, tokens = map(int, case.split("x"))
        asked = _prompts()[:prompts]
        run(asked, n, tokens)
        rates[case] = median(_rate(lambda: run(asked, n, tokens)) for _ in range(args.repeats))  # noqa: B023
        print(f"{args.way}: {case}: {rates[case]:,.1f} tok/s", file=sys.stderr, flush=True)
    return rates


def _rate(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    made = run()
    return made / (time.perf_counter() - start)


def _windows(args: argparse.Namespace) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(512) for _ in range(WINDOW)] for _ in range(args.windows)]


def _hf(args: argparse.Namespace) -> dict[str, float]:
    from qeval.engines.base import Sampling

    lm = _engine(args)

    def generate(prompts: list[list[int]], n: int, tokens: int, stop: Any = None) -> int:
        sampling = Sampling(n=n, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=tokens)
        return sum(len(c.ids) for c in lm.generate(prompts, sampling, stop))

    def stopped(prompts: list[list[int]], n: int, tokens: int) -> int:
        return generate(prompts, n, tokens, lambda ids: len(ids) > 10**9)

    rates = _measured(args, generate)
    if not args.no_stops:
        rates |= {f"{case}, stops": rate for case, rate in _measured(args, stopped).items()}
    if windows := _windows(args):
        lm._prepare(10**9)  # as where there are many more windows

        def score() -> int:
            return sum(len(nll) for nll in lm.nll(windows))

        score()
        rates["perplexity"] = median(_rate(score) for _ in range(args.repeats))
    print("hf:", lm.facts(), file=sys.stderr, flush=True)
    return rates


def _engine(args: argparse.Namespace) -> Any:
    from qeval.core.execution import Execution
    from qeval.core.settings import EngineSettings
    from qeval.engines.hf import HfEngine
    from qeval.formats.describe import describe_folder

    asked: dict[str, object] = {"kernel": args.kernel} if args.kernel else {}
    if args.activations:
        asked["activations"] = {"num_bits": args.activations}
    if args.kv_cache:
        asked["kv_cache"] = {"num_bits": args.kv_cache}
    execution = Execution.from_json(asked)
    settings = EngineSettings(device=args.device, dtype=args.dtype, execution=execution)
    if args.dummy:
        import qeval.formats.load

        artifact = _artifact(args.model)
        qeval.formats.load.load = lambda *_: _made_up(args)
        qeval.formats.load.nonfinite = lambda model: []
    else:
        artifact = describe_folder(args.model, args.dtype)
    return HfEngine.open(artifact, settings)


def _artifact(folder: Path) -> Any:
    from qeval.core.artifact import Artifact

    return Artifact(folder, "hf", False, 0, 0, None, None)


def _made_up(args: argparse.Namespace) -> Any:
    """The model of config.json with random weights, made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_default_dtype(getattr(torch, args.dtype))
    with torch.device(args.device):
        config = AutoConfig.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_config(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def _transformers(args: argparse.Namespace) -> dict[str, float]:
    """The model as the engine loads it, through ``generate``: all sequences of a case as one batch."""
    import torch

    lm = _engine(args)
    model = lm.internals().model

    def generate(prompts: list[list[int]], n: int, tokens: int) -> int:
        ids = torch.tensor(prompts, device=model.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                num_return_sequences=n,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return int(out[:, ids.shape[1] :].numel())

    return _measured(args, generate)


def _vllm(args: argparse.Namespace) -> dict[str, float]:
    """Bare ``LLM.generate``, started as the engine `vllm` starts it."""
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"  # as the engine: it knows no seed of a sequence
    from vllm import LLM, SamplingParams

    longest = max(int(case.split("x")[2]) for case in args.cases.split(","))
    llm = LLM(
        model=str(args.model),
        dtype=args.dtype,
        skip_tokenizer_init=True,
        max_model_len=max(WINDOW + 1, PROMPT + longest),
        max_num_seqs=256,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.6,
        **({"load_format": "dummy"} if args.dummy else {}),
    )

    def generate(prompts: list[list[int]], n: int, tokens: int) -> int:
        params = SamplingParams(
            n=n,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        done = llm.generate(asked, params, use_tqdm=False)
        return sum(len(one.token_ids) for output in done for one in output.outputs)

    rates = _measured(args, generate)
    if windows := _windows(args):
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        asked = [{"prompt_token_ids": ids} for ids in windows]

        def score() -> int:
            return sum(len(o.prompt_logprobs) for o in llm.generate(asked, params, use_tqdm=False))

        score()
        rates["perplexity"] = median(_rate(score) for _ in range(args.repeats))
    return rates


def _llamacpp(args: argparse.Namespace) -> dict[str, float]:
    from qeval.engines.base import Sampling

    lm = _llama_engine(args)

    def generate(prompts: list[list[int]], n: int, tokens: int) -> int:
        sampling = Sampling(n=n, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=tokens)
        return sum(len(c.ids) for c in lm.generate(prompts, sampling, lambda ids: False))

    rates = _measured(args, generate)
    print("llamacpp:", lm.facts(), file=sys.stderr, flush=True)
    return rates


def _llama_decode(args: argparse.Namespace) -> dict[str, float]:
    """The steps alone, one prompt after the other."""
    from bench_llamacpp import raw

    lm = _llama_engine(args)

    def decode(prompts: list[list[int]], n: int, tokens: int) -> int:
        for prompt in prompts:
            raw(lm, prompt, n, tokens, unified=True, halves=1)
        return len(prompts) * n * tokens

    return _measured(args, decode)


def _llama_engine(args: argparse.Namespace) -> Any:
    from qeval.core.artifact import Artifact
    from qeval.core.settings import EngineSettings
    from qeval.engines.llamacpp import LlamaCppEngine

    artifact = Artifact(args.gguf, "llamacpp", False, 0, 0, None, None)
    return LlamaCppEngine.open(artifact, EngineSettings(device=args.device.partition(":")[0]))


if __name__ == "__main__":
    main()
