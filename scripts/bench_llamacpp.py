#!/usr/bin/env python3
"""The llama.cpp engine beside raw ``llama_decode`` on the same file, in one process.

    python scripts/bench_llamacpp.py FILE.gguf [--device cuda] [--n 200] [--new 128]
    python scripts/make_random_gguf.py FILE.gguf --type Q8_0      # for a model that cannot be fetched

Generation. Raw: n sequences that share one prompt, one llama_decode a step with the same tokens every
time, logits to the host, nothing drawn; once with llama.cpp's unified cache, once with a part of the
cache for each sequence, and this also in two halves (two contexts, two threads). The engine: n samples
of one prompt at temperature 0.8 and top_p 0.95, with the stops of HumanEval; its contexts and the
prompt are in the time, "a step" is of its steps alone. Then `--prompts` prompts at n samples each, and
one sequence alone.

Scoring. Raw: windows of 2,048, all logits to the host. The engine: their NLL.

Ratios are to the first raw line: goal 0.95. `--json FILE` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qeval.core.artifact import Artifact
from qeval.core.settings import EngineSettings
from qeval.engines import llamacpp
from qeval.engines.base import Ids, Sampling
from qeval.engines.drawing import draw_rows
from qeval.engines.llamacpp import LlamaCppEngine
from qeval.llama.library import N_BATCH, Context
from qeval.models.gguf_tokenizer import GgufTokenizer
from qeval.tasks.coding.codegen import StopScanner

STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nprint", "\nif ", "\n```")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--n", type=int, default=200, help="samples of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens generated")
    parser.add_argument("--prompt", type=int, default=150, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--only", choices=("generate", "score"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = EngineSettings(args.device, n_threads=args.threads)
    began = time.perf_counter()
    lm = LlamaCppEngine.open(Artifact(args.model, "llamacpp", False, 0, 0, None, None), settings)
    facts = lm.facts()
    print(
        f"{args.model.name} on {facts['device_name']}, {facts['n_threads']} threads, load "
        f"{os.getloadavg()[0]:.1f}; loaded in {time.perf_counter() - began:.1f} s"
    )
    found: dict[str, Any] = {"model": args.model.name, **facts}
    if args.only != "score":
        found["generate"] = generation(lm, args)
    if args.only != "generate":
        found["score"] = scoring(lm, args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


# ------------------------------------------------------------------------------------ generation


def generation(lm: LlamaCppEngine, args: argparse.Namespace) -> dict[str, float]:
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, lm.vocab_size, (args.prompts, args.prompt)).tolist()
    n, new = args.n, args.new
    list(lm.generate(prompts[:1], Sampling(n=min(n, 4), temperature=1, max_new_tokens=2)))  # warm-up
    found: dict[str, float] = {}
    print(f"{'generating':44}{'tok/s':>9}{'ratio':>7}{'ms a step':>11}{'ratio':>7}")

    def line(name: str, tokens: int, seconds: float, step: float, per_step: int) -> None:
        found[name] = tokens / seconds
        found[f"{name}, a step"] = per_step / step
        first = next(iter(found.values())), list(found.values())[1]
        print(
            f"{name:44}{tokens / seconds:9,.0f}{tokens / seconds / first[0]:7.2f}"
            f"{1e3 * step:11.2f}{per_step / step / first[1]:7.2f}",
            flush=True,
        )

    for name, unified, halves in (
        ("raw, unified cache", True, 1),
        ("raw, a part for each sequence", False, 1),
        ("raw, in two halves", False, 2),
    ):
        seconds, step = raw(lm, prompts[0], n, new, unified, halves)
        line(name, n * new, seconds, step, n)
    usual = llamacpp._TWO_LANES
    for lanes in (1, 2) if lm._ahead else (1,):
        llamacpp._TWO_LANES = 10**9 if lanes == 1 else 1
        timed(lm, prompts[:1], n, 2)
        tokens, seconds, step = timed(lm, prompts[:1], n, new)
        line(f"engine, lanes: {lanes}", tokens, seconds, step, n)
        tokens, seconds, step = timed(lm, prompts, n, new)
        line(f"engine, lanes: {lanes}, {len(prompts)} prompts", tokens, seconds, step, n)
    llamacpp._TWO_LANES = usual
    print(f"the engine chose {lm.facts()['generation']}")
    seconds, step = raw(lm, prompts[0], 1, new, False, 1)
    line("raw, 1 sequence", new, seconds, step, 1)
    tokens, seconds, step = timed(lm, prompts[:1], 1, new)
    line("engine, 1 sequence", tokens, seconds, step, 1)
    logits = rng.standard_normal((n, lm.vocab_size), dtype=np.float32)
    u = rng.random(n).tolist()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        draw_rows(logits, 0.8, 0.95, u, lm._pool, lm._n_threads)
        times.append(time.perf_counter() - start)
    found["drawing, ms"] = 1e3 * median(times)
    print(f"drawing alone, {n} rows of flat logits: {1e3 * median(times):.2f} ms")
    return found


def raw(
    lm: LlamaCppEngine, prompt: Ids, n: int, new: int, unified: bool, halves: int
) -> tuple[float, float]:
    """Seconds of all steps, and of a typical one of all n sequences."""
    model, n_threads = lm._model, lm._n_threads
    sizes = [n // halves + (i < n % halves) for i in range(halves)]
    length = len(prompt) + new
    with ExitStack() as stack:
        contexts = [
            stack.enter_context(
                Context(model, n_seq=size, seq_len=length, n_threads=n_threads, unified=unified)
            )
            for size in sizes
        ]
        tokens = np.asarray(prompt, np.int32)
        each = [np.resize(tokens, size) for size in sizes]
        for context, size in zip(contexts, sizes, strict=True):
            positions = np.arange(len(tokens), dtype=np.int32)
            context.decode(tokens, positions, 0 * positions, np.zeros(len(tokens), np.int8))
            context.synchronize()
            for sequence in range(1, size):
                context.copy(0, sequence)

        def steps(i: int) -> list[float]:
            size, times = sizes[i], []
            for position in range(len(tokens), length):
                start = time.perf_counter()
                contexts[i].decode(
                    each[i],
                    np.full(size, position, np.int32),
                    np.arange(size, dtype=np.int32),
                    np.ones(size, np.int8),
                )
                contexts[i].synchronize()
                times.append(time.perf_counter() - start)
            return times

        with ThreadPoolExecutor(halves) as pool:
            start = time.perf_counter()
            times = list(pool.map(steps, range(halves)))
            seconds = time.perf_counter() - start
    return seconds, median(times[0])


def timed(lm: LlamaCppEngine, prompts: list[Ids], n: int, new: int) -> tuple[int, float, float]:
    """New tokens, seconds of the whole call, and of a typical step of ``n`` sequences: from one token
    of the first sample to its next."""
    scanner = StopScanner(GgufTokenizer(lm._model.path), STOPS)
    stamps: list[float] = []
    followed: list[list[int]] = []

    def stop(ids: list[int]) -> bool:
        if not followed:
            followed.append(ids)
        if ids is followed[0]:
            stamps.append(time.perf_counter())
        return scanner(ids)

    sampling = Sampling(n=n, temperature=0.8, top_p=0.95, max_new_tokens=new, at_once=n)
    start = time.perf_counter()
    tokens = sum(len(c.ids) for c in lm.generate(prompts, sampling, stop))
    seconds = time.perf_counter() - start
    return tokens, seconds, median(np.diff(stamps)) if len(stamps) > 1 else seconds


# ------------------------------------------------------------------------------------ scoring


def scoring(lm: LlamaCppEngine, args: argparse.Namespace) -> dict[str, float]:
    length = min(args.length, lm.max_seq_len)
    rng = np.random.default_rng(1)
    windows = rng.integers(1, lm.vocab_size, (args.windows, length)).tolist()
    runs: dict[str, Callable[[], object]] = {
        "raw": lambda: raw_windows(lm, windows),
        "engine": lambda: list(lm.nll(windows)),
        "engine, one window": lambda: list(lm.nll(windows[:1])),
    }
    found = {}
    print(f"scoring windows of {length:<24,}{'ms a window':>12}{'ratio':>7}")
    for name, run in runs.items():
        run()  # warm-up
        start = time.perf_counter()
        run()
        count = 1 if name == "engine, one window" else len(windows)
        found[name] = (time.perf_counter() - start) / count
        print(f"{name:43}{1e3 * found[name]:12.1f}{found[name] / found['raw']:7.2f}", flush=True)
    return found


def raw_windows(lm: LlamaCppEngine, windows: list[Ids]) -> None:
    at_once = min(N_BATCH, llamacpp._LOGITS_BYTES // (4 * lm.vocab_size))
    with Context(lm._model, n_seq=1, seq_len=len(windows[0]), n_threads=lm._n_threads) as context:
        for window in windows:
            context.clear()
            for start in range(0, len(window), at_once):
                part = np.asarray(window[start : start + at_once], np.int32)
                positions = np.arange(start, start + len(part), dtype=np.int32)
                context.decode(part, positions, 0 * positions, np.ones(len(part), np.int8))
                context.synchronize()


if __name__ == "__main__":
    main()
