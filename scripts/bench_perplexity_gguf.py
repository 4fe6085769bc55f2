"""Perplexity of one GGUF file: llama.cpp's own llama-perplexity against the ``llamacpp`` engine.

``python scripts/bench_perplexity_gguf.py LLAMA_PERPLEXITY MODEL.gguf TEXT [--chunks 20] [--threads 2]
[--rounds 3]`` runs the two programs in turn, each in a process of its own, and prints PPL, seconds and
ratios. LLAMA_PERPLEXITY is the program built from the sources that llama-cpp-python vendors
(``cmake -DGGML_NATIVE=OFF``, target ``llama-perplexity``). Seconds are of the evaluation: tokenization
and model load are left out on both sides (theirs: the log's own clock). Both score the protocol
``llamacpp/wikitext2``: chunks of 512, second half. To pass: PPL within 1e-4, median time within 15%.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

N_CTX = 512


def theirs(args: argparse.Namespace) -> dict[str, float]:
    """Run llama-perplexity; its final estimate, and the seconds between its first and last log line
    about the chunks."""
    command = [
        args.program,
        "-m",
        args.model,
        "-f",
        args.text,
        "-c",
        str(N_CTX),
        "-t",
        str(args.threads),
    ]
    command += ["--chunks", str(args.chunks), "--log-timestamps"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    log = done.stdout + done.stderr
    ppl = re.search(r"Final estimate: PPL = ([\d.]+)", log)
    if ppl is None:
        raise SystemExit(f"llama-perplexity printed no estimate: {log[-300:]!r}")
    seconds = _clock(log, "Final estimate") - _clock(log, r"\w+: calculating perplexity over")
    return {"ppl": float(ppl[1]), "seconds": seconds}


def _clock(log: str, message: str) -> float:
    """Seconds at which a message was logged. Its stamp (minutes.seconds.milli.micro) need not begin
    a line: the program writes the rest of an unfinished line elsewhere."""
    stamp = re.search(r"(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) I " + message, log)
    if stamp is None:
        raise SystemExit(f"no time stamp before {message!r} in llama-perplexity's log")
    minutes, seconds, milli, micro = map(int, stamp.groups())
    return 60 * minutes + seconds + milli / 1e3 + micro / 1e6


def ours(args: argparse.Namespace) -> dict[str, float]:
    """Run this file once more as ``--worker``: a process of its own, as theirs."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def worker(args: argparse.Namespace) -> None:
    import numpy as np

    from qeval.core.artifact import Artifact
    from qeval.core.settings import EngineSettings
    from qeval.engines.llamacpp import GgufTokenizer, LlamaCppEngine

    tokenizer = GgufTokenizer(Path(args.model))
    ids = tokenizer.encode(Path(args.text).read_text(encoding="utf-8"))
    windows = [ids[i * N_CTX : (i + 1) * N_CTX] for i in range(args.chunks)]
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        windows = [[tokenizer.bos_id, *window[1:]] for window in windows]
    artifact = Artifact(Path(args.model), "llamacpp", False, 0, 0, None, None)
    engine = LlamaCppEngine.open(artifact, EngineSettings(device="cpu", n_threads=args.threads))
    began = time.perf_counter()
    nll = np.concatenate(list(engine.nll(windows, first=N_CTX // 2 + 1))).astype(np.float64)
    seconds = time.perf_counter() - began
    print(json.dumps({"ppl": math.exp(nll.mean()), "seconds": seconds}))


def table(runs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    rows = [f"{'':8}{'theirs PPL':>12}{'ours PPL':>12}{'theirs s':>10}{'ours s':>10}{'ratio':>8}"]
    for i, (a, b) in enumerate(runs, 1):
        rows.append(_row(f"run {i}", a, b))
    medians = [
        {k: statistics.median(r[side][k] for r in runs) for k in runs[0][side]} for side in (0, 1)
    ]
    rows.append(_row("median", *medians))
    relative = abs(medians[1]["ppl"] / medians[0]["ppl"] - 1)
    rows.append(f"relative difference of PPL {relative:.1e} (theirs is printed with 4 decimals)")
    return "\n".join(rows)


def _row(name: str, a: dict[str, float], b: dict[str, float]) -> str:
    ratio = b["seconds"] / a["seconds"]
    return (
        f"{name:8}{a['ppl']:12.4f}{b['ppl']:12.4f}{a['seconds']:10.2f}{b['seconds']:10.2f}{ratio:8.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("program", help="path of llama-perplexity")
    parser.add_argument("model", help="path of a .gguf file")
    parser.add_argument("text", help="path of wiki.test.raw")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args: Any = parser.parse_args()
    if args.worker:
        worker(args)
    else:
        print(table([(theirs(args), ours(args)) for _ in range(args.rounds)]))


if __name__ == "__main__":
    main()
