"""Programs through several lanes at once: what every backend has in common."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import ClassVar

from qeval.core.errors import SandboxError
from qeval.sandbox.base import Limits, Program, Verdict, Verdicts
from qeval.sandbox.host_limits import HostLimitError, allowed_here, check_cpu
from qeval.sandbox.lane import Lane, LaneBroken, Launch, host_marks

JOIN_S = 10.0
TRIAL = Program("trial", "def one(): return 1", "assert one() == 1", names=("one",))
TRIAL_LIMITS = Limits(timeout_s=30.0, scratch_bytes=1 << 20, scratch_files=64)


class LaneSandbox(ABC):
    """A Sandbox made of lanes; see Sandbox."""

    name: ClassVar[str]
    required: ClassVar[frozenset[str]]  # walls without which it is not to be used

    def __init__(self) -> None:
        """Start a lane, try its walls, and run a program in it.

        Raises:
            SandboxError: it does not work here; says what does not.
        """
        self.tried = self._try()  # wall -> "" or what is wrong with it
        self.layers = tuple(name for name, wrong in self.tried.items() if not wrong)
        for wall, wrong in self.tried.items():
            if wrong and wall in self.required:
                raise SandboxError(f"{self.name}: {wall}: {wrong}")
        missing = self.required - self.tried.keys()
        if missing:
            raise SandboxError(f"{self.name}: no {', '.join(sorted(missing))}")

    @abstractmethod
    def launch(self, limits: Limits) -> AbstractContextManager[Launch]:
        """How a lane is started, and what there is for as long as it runs."""

    def run(self, programs: Iterable[Program], limits: Limits, workers: int) -> Verdicts:
        """See Sandbox.run. Close an iterable that blocks before the verdicts are closed."""
        check_cpu(limits)
        return _Verdicts(_Run(self, programs, allowed_here(limits)[0], workers))

    def _try(self) -> dict[str, str]:
        try:
            limits, _ = allowed_here(TRIAL_LIMITS)
            with host_marks() as marks, self.launch(limits) as launch:
                lane = Lane(launch, limits, marks)
                try:
                    verdict = lane.judge(TRIAL, self.name)
                    layers = lane.layers
                finally:
                    lane.close()
        except HostLimitError:
            raise
        except (SandboxError, LaneBroken, OSError) as err:
            raise SandboxError(f"{self.name}: {err}") from err
        if not verdict.passed:
            raise SandboxError(
                f"{self.name}: a right program is judged {verdict.text} {verdict.detail}"
            )
        return layers


class _Verdicts:
    """What LaneSandbox.run returns. The lanes' threads hold no reference to it, so dropping it ends
    them."""

    def __init__(self, run: _Run) -> None:
        self._run, self._verdicts = run, run.verdicts()

    def __iter__(self) -> _Verdicts:
        return self

    def __next__(self) -> Verdict:
        return next(self._verdicts)

    def close(self) -> None:
        self._run.stop()

    def __del__(self) -> None:
        self.close()


class _Run:
    """One call of LaneSandbox.run: a thread for each lane, and the verdicts as they come."""

    def __init__(
        self, sandbox: LaneSandbox, programs: Iterable[Program], limits: Limits, workers: int
    ) -> None:
        self._sandbox, self._limits = sandbox, limits
        self._programs = iter(programs)
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        self._found: queue.Queue[Verdict | BaseException | None] = queue.Queue(2 * workers)
        self._lanes: set[Lane] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"lane {i}", daemon=True) for i in range(workers)
        ]

    def verdicts(self) -> Iterator[Verdict]:
        for thread in self._threads:
            thread.start()
        working = len(self._threads)
        try:
            while working and not self._stopped.is_set():
                found = self._found.get()
                if found is None:
                    working -= 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    yield found
        finally:
            self.stop()

    def stop(self) -> None:
        """Kill what still runs, from any thread. One that waits for the next program ends when there
        is one."""
        self._stopped.set()
        with suppress(queue.Full):  # then there is something to take, and nobody waits for it
            self._found.put_nowait(None)
        for lane in list(self._lanes):
            lane.kill()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(0 if self._taking.locked() else JOIN_S)

    def _work(self) -> None:
        try:
            self._judge_all()
        except BaseException as err:
            self._put(err)
        self._put(None)

    def _judge_all(self) -> None:
        lane: Lane | None = None
        with self._sandbox.launch(self._limits) as launch:
            try:
                while (program := self._next()) is not None:
                    for attempt in (1, 2):
                        if lane is None:
                            lane = Lane(launch, self._limits)
                            self._lanes.add(lane)
                            if self._stopped.is_set():  # nobody else would end it
                                return
                        try:
                            verdict = lane.judge(program, self._sandbox.name)
                            break
                        except LaneBroken as err:
                            lane.close()
                            lane = None
                            verdict = Verdict(
                                program.id,
                                "killed",
                                f"its lane broke twice: {err}",
                                0.0,
                                self._sandbox.name,
                            )
                            if self._stopped.is_set() or attempt == 2:
                                break
                    self._put(verdict)
            finally:
                if lane is not None:
                    lane.close()

    def _next(self) -> Program | None:
        with self._taking:
            return None if self._stopped.is_set() else next(self._programs, None)

    def _put(self, found: Verdict | BaseException | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._found.put(found, timeout=1.0)
                return
