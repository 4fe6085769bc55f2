"""Progress on stderr: what is running and in which phase, how far, for how long, how long still; plain
lines where there is no terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from qeval.core.console import say, tell
from qeval.core.errors import one_line
from qeval.core.progress import kind
from qeval.core.record import Metric, Record
from qeval.core.units import human_seconds
from qeval.store.results import cell_name

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Told = Literal["failures", "usual", "all"]
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = re.compile(r"^(The above exception was|During handling of the above)")
_SHORTEST = 12  # columns of a title that is worth more than the time left
_WIDE = 80  # columns of a terminal that has room for a bar
_TAIL = 20  # lines of a log without a traceback


class Phase:
    """What a job does, and when it began with it: the steps that it had done by then (a run that is
    continued) are not its speed."""

    def __init__(self, name: str, done: int, now: float) -> None:
        self.name, self._first, self._start = name, done, now

    def rate(self, done: int, now: float) -> str:
        """``30/s``; "" where nothing was done since."""
        took = now - self._start
        speed = (done - self._first) / took if took > 0 else 0.0
        return f"{speed:,.0f}/s" if speed >= 1 else f"{60 * speed:.1f}/min" if speed else ""

    def left(self, done: int, total: int, now: float) -> str:
        """``about 3 m 20 s left``, as if the other steps took as long on average; "" where unknown."""
        if not self._first < done < total:
            return ""
        each = (now - self._start) / (done - self._first)
        return f"about {human_seconds(each * (total - done))} left"


class Progress:
    """A Listener for Runner: two bars on a terminal (all cells, this job), else one line a job.

    Args:
        logs_in: the results folder, to print what the logs of failed jobs say last; None: not.
        told: ``failures`` alone, the ``usual`` lines, or ``all``: with the paths of logs, too.
    """

    EVERY_S = 30.0  # between lines of a job that runs, where there is no terminal

    def __init__(self, n_cells: int, logs_in: Path | None = None, told: Told = "usual") -> None:
        self._n_cells = n_cells
        self._told = told
        self._logs_in = logs_in
        self._printed: set[str] = set()
        self._done = 0
        self._start = time.monotonic()
        self._title = ""
        self._bars: RichProgress | None = None

    def __enter__(self) -> Progress:
        if _redrawn() and self._told != "failures":
            self._bars = _bars()
            none_yet = f"0/{self._n_cells:,}"
            self._all = self._bars.add_task(
                "cells", total=self._n_cells, phase="", count=none_yet, left=""
            )
            self._job = self._bars.add_task("", total=None, phase="", count="", left="")
            self._bars.start()
        return self

    def __exit__(
        self, error: type[BaseException] | None, err: object, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def job_started(self, title: str) -> None:
        self._job_start = self._said = time.monotonic()
        self._title, self._phase = title, Phase("starting", 0, self._job_start)
        if self._bars is not None:
            self._bars.remove_task(self._job)  # reset() would keep the last job's total
            self._job = self._bars.add_task(
                one_line(title), total=None, phase="starting", count="", left=""
            )
        elif self._told != "failures":
            self._line(f"{title} ...")

    def job_progress(self, done: int, total: int, unit: str) -> None:
        """``total`` is 0 in a phase that has no steps (loading)."""
        now = time.monotonic()
        if self._phase.name != kind(unit):
            self._phase = Phase(kind(unit), done, now)
        left = self._phase.left(done, total, now)
        if self._bars is not None:
            self._bars.update(
                self._job,
                completed=done,
                total=total or None,
                phase=one_line(unit),
                count=f"{done:,}/{total:,}" if total else "",
                left=left,
            )
        elif self._told != "failures" and now >= self._said + self.EVERY_S:
            self._said = now
            count = f"{done:,} of {total:,} {unit}" if total else unit
            took = human_seconds(now - self._job_start)
            self._line(f"{self._title}: {count}, {took}{', ' + left if left else ''}")

    def build_ended(self, record: Record) -> None:
        self._ended(record, f"{self._title}: {_outcome(record)}")

    def cell_ended(self, record: Record) -> None:
        self._done += 1
        if self._bars is not None:
            count = f"{self._done:,}/{self._n_cells:,}"
            self._bars.update(self._all, completed=self._done, count=count, left=self._left()[2:])
        self._ended(record, f"{cell_name(record.cell)}: {_outcome(record)}{self._left()}")

    def _ended(self, record: Record, line: str) -> None:
        if self._told != "failures" or not record.settled:
            log = f"; log: {record.log}" if self._told == "all" and record.log else ""
            self._line(f"{line}{log}")
        self._why(record)

    def _why(self, record: Record) -> None:
        """With ``logs_in``: the traceback of a job that failed, once (a build serves many cells)."""
        if self._logs_in is None or record.log is None or record.settled:
            return
        if record.log not in self._printed:
            self._printed.add(record.log)
            self._print(last_traceback(self._logs_in / record.log))

    def _left(self) -> str:
        """Time left, as if the other cells took as long as these did on average."""
        remaining = self._n_cells - self._done
        if not remaining:
            return ""
        each = (time.monotonic() - self._start) / self._done
        return f", about {human_seconds(each * remaining)} left"

    def _line(self, text: str) -> None:
        self._print(f"[{self._done}/{self._n_cells}] {one_line(text)}")

    def _print(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            tell(text)


def last_traceback(log: Path) -> str:
    """The last traceback in a worker's log, exceptions that led to it included; without one, what the
    log ends with."""
    text = log.read_text(encoding="utf-8", errors="replace").rstrip()
    blocks = text.split("\n\n")
    found = [i for i, block in enumerate(blocks) if _TRACEBACK in block]
    if not found:
        return "\n".join(text.splitlines()[-_TAIL:])
    first = found[-1]
    while first >= 2 and _CHAINED.search(blocks[first - 1]) and _TRACEBACK in blocks[first - 2]:
        first -= 2
    text = "\n\n".join(blocks[first:])
    return text[text.index(_TRACEBACK) :]


def _outcome(record: Record) -> str:
    seconds = record.timing.get("wall_s", 0.0)
    took = f" ({human_seconds(seconds)})" if seconds else ""
    if record.status != "ok":
        return f"{record.status}: {record.error}{took}"
    shown = ", ".join(_shown(metric) for metric in record.metrics if metric.shown)
    return f"{shown or 'built'}{took}"


def _shown(metric: Metric) -> str:
    if metric.value is None:
        return f"{metric.name} {'broken' if metric.nonfinite else 'not measurable'}"
    return f"{metric.name} {metric.value:.4g}{' ' + metric.unit if metric.unit else ''}"


class Bar:
    """One bar on stderr with what is done per second; a line at times where there is no terminal.
    ``quiet``: nothing."""

    EVERY_S = 10.0

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def __enter__(self) -> Bar:
        self._bars: RichProgress | None = None
        self._phase: Phase | None = None
        self._told = time.monotonic()
        if _redrawn() and not self._quiet:
            self._bars = _bars()
            self._task = self._bars.add_task("", total=None, phase="starting", count="", left="")
            self._bars.start()
        return self

    def __exit__(
        self, error: type[BaseException] | None, err: object, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if self._phase is None or self._phase.name != kind(unit):
            self._phase = Phase(kind(unit), done, now)
        speed, left = self._phase.rate(done, now), self._phase.left(done, total, now)
        if self._bars is not None:
            count = f"{done:,}/{total:,}" if total else ""
            if speed:
                count = f"{count}, {speed}"
            self._bars.update(
                self._task, completed=done, total=total or None, phase=unit, count=count, left=left
            )
        elif now >= self._told + self.EVERY_S and not self._quiet:
            self._told = now
            count = f"{done:,} of {total:,} {unit}" if total else unit
            say(", ".join(filter(None, (count, speed, left))))


def _redrawn() -> bool:
    """Whether standard error is a terminal that can go back to a line's start."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _bars() -> RichProgress:
    """A line for each task: a bar where there is room, and ``_fitted`` of its fields."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True)
    bar = 20 if console.width >= _WIDE else 0

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            told = [task.fields["phase"], task.fields["count"], human_seconds(int(task.elapsed or 0))]
            return Text(_fitted(task.description, told, task.fields["left"], console.width - bar - 1))

    return Progress(
        *([BarColumn(bar_width=bar)] if bar else []),
        Line(table_column=Column(no_wrap=True, overflow="crop")),
        console=console,
        transient=True,
        refresh_per_second=2,  # a cell may be timing itself on the same cores
    )


def _fitted(title: str, told: Sequence[str], left: str, width: int) -> str:
    """One line of at most so many columns: the title loses its beginning first (its end, the task, is
    what changes), then the time left goes."""
    from rich.cells import cell_len

    rest = "  ".join(filter(None, told))
    if cell_len(rest) + cell_len(left) + _SHORTEST + 4 <= width and left:
        rest = f"{rest}  {left}"
    room = width - cell_len(rest) - 2
    if cell_len(title) > room:
        while title and cell_len(title) > room - 1:
            title = title[1:]
        title = f"…{title}" if title else ""
    return f"{title}  {rest}" if title else rest[: max(width, 0)]
