#!/usr/bin/env python3
"""The engine `vllm` beside bare vLLM: the same started LLM, prompts and draws, one after the other.

    python scripts/make_random_model.py starcoder2-15b models/big --config
    python scripts/make_random_model.py starcoder2-15b models/gptq4 --packed gptq
    python scripts/bench_vllm.py models/gptq4 [--dtype bfloat16] [--repeats 3]
    python scripts/bench_vllm.py models/big --dummy [--tensor-parallel 2] [--cases 1x200x128]

``--dummy`` reads the folder's configuration alone (``make_random_model.py --config``) and lets vLLM
make the weights up; of float models only, since vLLM looks into packed files to see what is packed. Run
it with the interpreter that has vLLM.
Prompts have 150 random tokens; T 0.8, top_p 0.95, no end-of-sequence. Bare vLLM is
``LLM.generate`` with ``n`` samples a prompt; the engine asks for each sample with a seed of
its own, and once more with a stop that reads the text of every new token, as HumanEval's does.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

PROMPT, TEMPERATURE, TOP_P = 150, 0.8, 0.95
CASES = ((1, 1, 64), (1, 200, 128), (6, 200, 256))  # prompts, samples of each, new tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dummy", action="store_true")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="GPUS")
    parser.add_argument(
        "--cases", type=_case, nargs="+", default=CASES, help="PROMPTSxSAMPLESxTOKENS, of at most 256"
    )
    args = parser.parse_args()
    if args.dummy:
        _make_weights_up()
    from qeval.core.execution import Execution
    from qeval.core.settings import EngineSettings
    from qeval.engines.base import Sampling
    from qeval.engines.vllm import VllmEngine

    spread = {} if args.tensor_parallel == 1 else {"tensor_parallel_size": args.tensor_parallel}
    settings = EngineSettings(dtype=args.dtype, execution=Execution(engine=spread))
    lm = VllmEngine.open(_artifact(args.model, args.dummy), settings)
    lm.reserve(256, PROMPT + 256)
    lm.reserve(8, min(2048, lm.max_seq_len))
    start = time.perf_counter()
    list(lm.generate([[1] * PROMPT], Sampling(max_new_tokens=2)))
    seconds = time.perf_counter() - start
    over = f"tensor parallel {args.tensor_parallel}"
    print(f"{args.model}, {args.dtype}, {over}: started in {seconds:.0f} s")
    print(lm.facts())
    draw = random.Random(0)
    most = max(n for n, _, _ in args.cases)
    prompts = [[draw.randrange(512) for _ in range(PROMPT)] for _ in range(most)]
    stop = _reader(args.model)
    print(
        f"{'prompts x samples x tokens':28} {'bare tok/s':>10} {'engine':>10} {'ratio':>6} {'stop':>10}"
    )
    for n_prompts, n, tokens in args.cases:
        asked = prompts[:n_prompts]
        ways = [
            lambda asked=asked, n=n, tokens=tokens: _bare(lm, asked, n, tokens),
            lambda asked=asked, n=n, tokens=tokens: _engine(lm, asked, n, tokens, None),
            lambda asked=asked, n=n, tokens=tokens: _engine(lm, asked, n, tokens, stop),
        ]
        ways[0]()  # compiles what this size needs
        bare, engine, stopped = _rates(ways, args.repeats)
        what = f"{n_prompts} x {n} x {tokens}"
        print(
            f"{what:28} {bare:10,.0f} {engine:10,.0f} {engine / bare:6.2f} {stopped:10,.0f}", flush=True
        )
    _windows(lm, draw)
    print(lm.memory(PROMPT + 256))
    lm.close()


def _case(text: str) -> tuple[int, int, int]:
    prompts, samples, tokens = map(int, text.split("x"))
    return prompts, samples, tokens


def _rates(ways: Sequence[Callable[[], int]], repeats: int) -> list[float]:
    """Median tokens a second of each way; the ways in turn, so that a drift meets all of them."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for rates, way in zip(found, ways, strict=True):
            start = time.perf_counter()
            tokens = way()
            rates.append(tokens / (time.perf_counter() - start))
    return [median(rates) for rates in found]


def _bare(lm: Any, prompts: Sequence[Sequence[int]], n: int, tokens: int) -> int:
    from vllm import SamplingParams

    params = SamplingParams(
        n=n,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        seed=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
    )
    asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
    found = lm._running.llm.generate(asked, params, use_tqdm=False)
    return sum(len(one.token_ids) for output in found for one in output.outputs)


def _engine(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    tokens: int,
    stop: Callable[[list[int]], bool] | None,
) -> int:
    from qeval.engines.base import Sampling

    sampling = Sampling(n=n, temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=tokens)
    return sum(len(done.ids) for done in lm.generate(prompts, sampling, stop))


def _windows(lm: Any, draw: random.Random) -> None:
    length = min(2048, lm.max_seq_len)
    long = [[draw.randrange(512) for _ in range(length)] for _ in range(8)]
    short = [ids[:512] for ids in long]
    list(lm.nll(long[:2]))
    start = time.perf_counter()
    list(lm.nll(long))
    print(f"scores: {1000 * (time.perf_counter() - start) / len(long):.0f} ms a window of {length:,}")
    list(lm.predictions(short[:2]))
    start = time.perf_counter()
    sizes = [float(rows.float().sum()) for rows in lm.predictions(short)]  # waits for the device
    seconds = (time.perf_counter() - start) / len(sizes)
    print(f"all logits: {1000 * seconds:.0f} ms a window of 512")


def _reader(folder: Path) -> Callable[[list[int]], bool]:
    from qeval.core.artifact import ModelRef
    from qeval.models.tokenizer import load_tokenizer
    from qeval.tasks.coding.codegen import BASE_STOPS, StopScanner

    tokenizer = load_tokenizer(ModelRef(str(folder), folder, "", "bfloat16"))
    scan = StopScanner(tokenizer, BASE_STOPS)

    def read(ids: list[int]) -> bool:
        scan(ids)
        return False  # random text stops by chance: every way is to make the same tokens

    return read


def _artifact(folder: Path, dummy: bool) -> Any:
    from qeval.core.artifact import Artifact
    from qeval.formats.describe import describe_folder

    if dummy:
        return Artifact(folder, "vllm", False, 0, 0, None, None)
    return describe_folder(folder, "bfloat16")


def _make_weights_up() -> None:
    import vllm

    started: Any = vllm.LLM
    vllm.LLM = lambda **given: started(load_format="dummy", **given)


if __name__ == "__main__":
    main()
