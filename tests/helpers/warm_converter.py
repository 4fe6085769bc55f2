"""llama.cpp's converter without its imports, which take ten times as long as a tiny model's conversion.

One process imports them, and is forked for every conversion: ``run`` stands in for ``subprocess.run``
in qeval/quant/gguf.py. The converter in a process of its own is part of tests/test_line.py.

As a script: ``python warm_converter.py FOLDER``, then a conversion as JSON on each line of stdin; the
answer is its exit status, and what it printed is in the file that the line names.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
    """What ``subprocess.run(command, stdout=PIPE, stderr=STDOUT, env=..., check=False)`` returns, of a
    command ``[python, convert_wrapper.py, FOLDER, PRE_TOKENIZER, ...]``."""
    assert how["check"] is False and how["stdout"] == subprocess.PIPE, how
    with tempfile.NamedTemporaryFile() as output:
        told = {"argv": command[1:], "env": how["env"], "cwd": str(Path.cwd()), "output": output.name}
        process = _started(command[2])
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline() or "1")
        return subprocess.CompletedProcess(command, code, output.read())


@functools.cache
def _started(folder: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)  # it ends with its input
    return process


def main(folder: str) -> None:
    sys.path[0:1] = [folder, f"{folder}/gguf-py"]
    from transformers import utils

    utils.is_hqq_available = lambda *_: False
    from conversion.gpt2 import GPT2Model  # noqa: F401  # for the forks, as the next lines
    from conversion.llama import LlamaModel  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    for line in sys.stdin:
        print(_in_fork(json.loads(line)), flush=True)


def _in_fork(told: dict[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            log = os.open(told["output"], os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(told["cwd"])
            os.environ.clear()
            os.environ.update(told["env"])
            status = _convert(told["argv"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _convert(argv: list[str]) -> int:
    import runpy

    sys.argv = argv
    sys.path[0:2] = [str(Path(argv[0]).parent)]
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
