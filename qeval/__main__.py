"""The program ``qeval``, and ``python -m qeval``: Ctrl-C is one line from its first imports on, so this
module imports next to nothing."""

from __future__ import annotations

import os
import signal


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _at_once)
    from qeval.cli.main import main as command_line

    command_line()


def _at_once(_number: int, _frame: object) -> None:
    """There is nothing to tidy up yet, and an exception would end somewhere inside an import."""
    try:
        os.write(2, b"qeval: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()
