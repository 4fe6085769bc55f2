"""Mutated inputs, a fixed number of them from a fixed seed: each is read, or refused in one line.

No traceback, no endless loop, under 1 GiB. Each kind runs in a process of its own, this file as a
script: ``python tests/test_fuzz.py KIND FOLDER [SEED] [COUNT]`` tries others, and more.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).parents[1]
MEMORY = 2**30  # bytes
SECONDS = 20  # of CPU time for one input; an ordinary one takes some milliseconds
COUNTS = {"specs": 250, "scores": 400, "verdicts": 400, "gguf": 800, "safetensors": 800, "pickles": 300}

NUMBERS = [b"-1", b"0", b"1e-3", b"1e999", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 40, b".nan", b".inf"]
WORDS = [
    b"~",
    b"true",
    b"[]",
    b"{}",
    b"''",
    b'"\\0"',
    b'"\\ud800"',
    b"!!int abc",
    b"2001-13-45",
    b"x" * 999,
]
SHAPES = [
    b"&a [*a]",
    b"*a",
    b"[" * 500,
    b"{a: " * 500,
    b"\t",
    b"\0",
    b"\xff\xfe",
    b"- " * 99,
    b"? ",
    b"<<: *a",
]
JUNK = [*NUMBERS, *WORDS, *SHAPES]


def mutated(data: bytes, rnd: random.Random, words: list[bytes]) -> bytes:
    """One to four changes: bytes flipped, cut, repeated, a word put somewhere or over something."""
    out = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 4))):
        at = rnd.randrange(len(out) + 1)
        end = min(len(out), at + rnd.choice((0, 1, 4, 8, 40)))
        how = rnd.randrange(6)
        if how == 0:
            out[at:end] = rnd.randbytes(end - at)
        elif how == 1:
            del out[at : rnd.choice((end, len(out)))]
        elif how == 2:
            out[at:at] = out[at:end] * rnd.choice((1, 3, 50))
        else:
            out[at:end] = rnd.choice(words)
    return bytes(out)


def spec(rnd: random.Random) -> bytes:
    """A mutation of a line's value, of a line, or of any bytes of the spec with every option."""
    text = (REPO / "configs" / "options.yaml").read_bytes()
    lines = [line for line in text.split(b"\n") if line.strip() and not line.strip().startswith(b"#")]
    if rnd.random() < 0.3:
        return mutated(b"\n".join(lines), rnd, JUNK)
    for _ in range(rnd.choice((1, 1, 2))):
        i = rnd.randrange(len(lines))
        key, colon, _ = lines[i].partition(b": ")
        how = rnd.randrange(4)
        if how == 0 and colon:
            lines[i] = key + colon + rnd.choice(JUNK)
        elif how == 1:
            lines[i] = mutated(lines[i], rnd, JUNK)
        elif how == 2:
            lines.insert(i, rnd.choice(lines))
        else:
            del lines[i]
    return b"\n".join(lines)


def read_spec(path: Path) -> None:
    from qeval.plan.spec import load_spec

    load_spec(path)


def scores(rnd: random.Random) -> bytes:
    sample = {"task_id": "HumanEval/0", "completion": "    return 1\n", "sample": 0, "prefix": None}
    lines = b"".join(
        json.dumps({**sample, "sample": i}).encode() + b"\n" for i in range(rnd.randrange(5))
    )
    data = mutated(
        lines, rnd, [*NUMBERS, b'"', b"{", b"[" * 9999, b"NaN", b"\\ud800", b"\n\n", b"\0", b"null"]
    )
    if rnd.random() < 0.3:
        data = gzip.compress(data, 1)
        data = mutated(data, rnd, [b"\xff" * 9, bytes(9)]) if rnd.random() < 0.7 else data
    return data


def read_scores(path: Path) -> None:
    from qeval.tasks.coding.samples import Problem, read_samples

    problem = Problem("HumanEval/0", "def f():\n", "f", "assert f()", "")
    read_samples(path, {"HumanEval/0": problem})


def verdicts(rnd: random.Random) -> bytes:
    verdict = {
        "task_id": "HumanEval/0",
        "sample": 0,
        "status": "passed",
        "verdict": "passed",
        "detail": "",
        "passed": True,
        "seconds": 0.5,
        "sandbox": "kernel",
        "program": "ab" * 32,
    }
    lines = b"".join(
        json.dumps({**verdict, "sample": i}).encode() + b"\n" for i in range(rnd.randrange(1, 5))
    )
    return mutated(
        lines, rnd, [*NUMBERS, b'"', b"[" * 9999, b"NaN", b"Infinity", b"\n", b"\0", b"null"]
    )


def read_verdicts(path: Path) -> None:
    from qeval.tasks.coding.verdicts import VerdictFile

    VerdictFile(path).close()


def gguf(rnd: random.Random) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def number(name: str, value: int) -> bytes:
        return text(name) + struct.pack("<II", 4, value)

    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        number("llama.block_count", 2),
        number("llama.embedding_length", 32),
        number("llama.attention.head_count", 4),
        number("general.alignment", 32),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") * 3,
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    ]
    tensors = [
        text(f"blk.{i}.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 32, 0, i * 4096) for i in range(2)
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values)) + b"".join([*values, *tensors])
    sizes = [struct.pack("<Q", n) for n in (0, 2**31, 2**40, 2**62, 2**63, 2**64 - 1)]
    small = [struct.pack("<I", n) for n in (0, 8, 9, 12, 99, 2**31, 2**32 - 1)]
    return mutated(head, rnd, sizes + small) + bytes(-len(head) % 32 + 8192)


def read_gguf(path: Path) -> None:
    from qeval.formats.gguf import describe_gguf

    describe_gguf(path)


def safetensors(rnd: random.Random) -> bytes:
    entries = {
        f"model.layers.{i}.mlp.up_proj.weight": {
            "dtype": "F32",
            "shape": [4, 4],
            "data_offsets": [64 * i, 64 * i + 64],
        }
        for i in range(3)
    }
    words = [
        b'"',
        b"{",
        b"[" * 9999,
        b"null",
        b'"F8_E4M3"',
        b'"\\ud800"',
        b"-64",
        b"1.5",
        b"true",
        b"9" * 5000,
    ]
    head = mutated(json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode(), rnd, words)
    length = len(head) if rnd.random() < 0.9 else rnd.choice((0, 7, 2**31, 2**62, 2**64 - 1))
    return struct.pack("<Q", length) + head + bytes(192)


def read_safetensors(path: Path) -> None:
    from qeval.models.weights import read_header

    read_header(path)


def pickles(rnd: random.Random) -> bytes:
    import io
    import pickle

    value = {f"layer.{i}": [i, (1.5, "x"), {"a": None}] for i in range(3)}
    data = pickle.dumps(value, protocol=rnd.choice((2, 4)))
    code = mutated(
        data, rnd, [bytes([n]) for n in range(256)] + [b"(" * 9999, b"]" * 9999, b"2\x86" * 40]
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    packed = out.getvalue()
    return mutated(packed, rnd, [b"\xff" * 4, bytes(4)]) if rnd.random() < 0.2 else packed


def read_pickle(path: Path) -> None:
    from qeval.models.torch_file import read_torch_file

    read_torch_file(path)


KINDS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[Path], None], str]] = {
    "specs": (spec, read_spec, "spec.yaml"),
    "scores": (scores, read_scores, "samples.jsonl"),
    "verdicts": (verdicts, read_verdicts, "samples.verdicts.jsonl"),
    "gguf": (gguf, read_gguf, "model.gguf"),
    "safetensors": (safetensors, read_safetensors, "model.safetensors"),
    "pickles": (pickles, read_pickle, "pytorch_model.bin"),
}


def peak_bytes() -> int:
    """VmHWM: the peak of this program alone. getrusage's counts what the process was before exec, the
    whole test process with torch in it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1])


def run(kind: str, folder: Path, seed: int, count: int) -> None:
    """Try them, one after the other; the first that ends otherwise stays in the folder."""
    from qeval.core.errors import QevalError

    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # it ends the process
    make, read, name = KINDS[kind]
    refused = 0
    for i in range(count):
        path = folder / name
        path.write_bytes(make(random.Random(f"{kind}/{seed}/{i}")))
        print(f"{kind} {seed} {i}", flush=True)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            read(path)
        except QevalError as err:
            refused += 1
            said = str(err)
            assert said.isprintable() and len(said) < 1000 + len(str(path)), said
            assert name in said, said
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    peak = peak_bytes()
    assert peak < MEMORY, f"{peak} bytes at the peak"
    assert count // 20 <= refused, f"only {refused} were refused: these mutations are none"
    print(f"done: {refused} of {count} refused, {peak >> 20} MiB")


def pytest_generate_tests(metafunc):
    metafunc.parametrize("kind", COUNTS)


def test_whatever_is_read_is_refused_in_one_line(kind, tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, kind, tmp_path],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(REPO),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{last}, {list(tmp_path.iterdir())}: {done.stderr[-2000:]}"
    assert last[0].startswith("done: ")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = int(arguments[2]) if len(arguments) > 2 else 0
    n = int(arguments[3]) if len(arguments) > 3 else COUNTS[arguments[0]]
    run(arguments[0], Path(arguments[1]), chosen, n)
