"""How the program ends: one line and an exit code, whatever happened. errors.py has the codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from qeval.core.console import say, silence
from qeval.core.errors import QevalError, short


@contextmanager
def ending(debug: bool) -> Iterator[None]:
    """What is inside is the whole program: an error is one line on standard error and an exit code, and
    SIGTERM is what Ctrl-C is."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as the shell has it for `qeval run &`
                signal.signal(number, _interrupt)
        yield
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    except QevalError as err:
        if debug:
            traceback.print_exc()
        for line in err.lines:
            say(line)
        sys.exit(err.exit_code)
    except click.ClickException as err:
        context = getattr(err, "ctx", None)
        if type(err).__name__ == "NoArgsIsHelpError":  # click 8.2 and later: `qeval cache` alone
            err.show()
            sys.exit(err.exit_code)
        hint = f" (`{context.command_path} --help`)" if context else ""
        say(f"{err.format_message().rstrip('.')}{hint}")
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending
        say("interrupted; what is finished is kept, run the same command to go on")
        # Not sys.exit: an interrupt inside an exec(), as dataclasses have one, makes Python end itself
        # by the signal, whoever caught the exception.
        os._exit(130)
    except BrokenPipeError:  # `qeval --help | head`
        silence(sys.stdout)
        sys.exit(0)
    except OSError as err:
        if debug:
            traceback.print_exc()
        silence(sys.stdout)  # where it is what failed, the interpreter's end would say so again
        where = f"{short(os.fsdecode(err.filename))}: " if err.filename is not None else ""
        say(f"{where}{err.strerror or err}")
        sys.exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
