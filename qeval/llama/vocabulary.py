"""Try whether llama.cpp reads a ``.gguf`` file's vocabulary, in a process of its own: it may know no
such pre-tokenizer, and a damaged file may end the process."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from qeval.core.errors import EngineError, QevalError

_PATIENCE_S = 60.0


def check_vocabulary(path: Path) -> None:
    """Raises EngineError where llama.cpp does not read it."""
    package_path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(package_path), "GGML_NO_BACKTRACE": "1"}
    with suppress(subprocess.TimeoutExpired):  # the job will say what it is
        done = subprocess.run(
            [sys.executable, "-m", "qeval.llama.vocabulary", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **variables},
            timeout=_PATIENCE_S,
            check=False,
        )
        if done.returncode != 0:
            said = done.stdout.decode("utf-8", "replace").strip()
            raise EngineError(said or f"{path}: llama.cpp ends on its vocabulary: the file is damaged")


def main(path: str) -> int:
    from qeval.llama.library import Model

    try:
        Model(Path(path), vocab_only=True)
    except QevalError as err:
        print(err)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
