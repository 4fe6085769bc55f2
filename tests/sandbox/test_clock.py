"""The clock against a machine that is simulated: whatever waits, ends or is looked at too late, no
program is over its limit before its own time is, and none is given much more."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeval.sandbox import clock
from qeval.sandbox.clock import Clock, Usage

JUDGE, ZYGOTE, PROGRAM = 10, 11, 12
LIMIT = 3.0
STEP = 0.001


@dataclass
class Thread:
    state: str = "S"  # R: runs, W: waits for a core, D: for the disk or the kernel, S: sleeps
    cpu: float = 0.0
    waited: float = 0.0  # as the kernel shows it: a wait that is not over is not in it
    waiting: float = 0.0


@dataclass
class Machine:
    """A lane and its program, as /proc shows them. ``own`` is the program's true own time."""

    now: float = 100.0
    own: float = 0.0
    tasks: dict[int, dict[int, Thread]] = field(
        default_factory=lambda: {JUDGE: {JUDGE: Thread()}, ZYGOTE: {ZYGOTE: Thread()}}
    )

    def go(self, seconds: float, **states: str) -> None:
        """Let time pass in which the threads (``judge``, ``zygote``, ``program``, ``t13``, ...) are in
        these states, and all others sleep."""
        wanted = {_number(name): state for name, state in states.items()}
        for threads in self.tasks.values():
            for number, thread in threads.items():
                self._set(thread, wanted.get(number, "S"))
        for thread in (t for threads in self.tasks.values() for t in threads.values()):
            if thread.state == "R":
                thread.cpu += seconds
            elif thread.state == "W":
                thread.waiting += seconds
        self.now += seconds
        not_its_own = {"W"}, {"D"}
        self.own += 0 if set(states.values()) in not_its_own or states == {"zygote": "R"} else seconds

    @staticmethod
    def _set(thread: Thread, state: str) -> None:
        if thread.state == "W" and state != "W":
            thread.waited, thread.waiting = thread.waited + thread.waiting, 0.0
        thread.state = state

    def fork(self) -> None:
        self.tasks[PROGRAM] = {PROGRAM: Thread()}

    def reap(self) -> None:
        del self.tasks[PROGRAM]


def _number(name: str) -> int:
    names = {"judge": JUDGE, "zygote": ZYGOTE, "program": PROGRAM}
    return names[name] if name in names else int(name[1:])


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    found.tasks[JUDGE][JUDGE].waited = found.tasks[ZYGOTE][ZYGOTE].cpu = 50.0  # of programs before
    _show(monkeypatch, found)
    return found


def _show(patch: pytest.MonkeyPatch, machine: Machine) -> None:
    patch.setattr(clock.time, "monotonic", lambda: machine.now)
    patch.setattr(clock, "descendants", lambda pid: [p for p in machine.tasks if p != pid])
    patch.setattr(
        clock,
        "usage",
        lambda pid: {n: Usage(t.cpu, t.waited) for n, t in machine.tasks.get(pid, {}).items()},
    )
    patch.setattr(clock, "states", lambda pid: _states(machine, pid))


def _states(machine: Machine, pid: int) -> set[bytes]:
    """As the kernel says them: R also of one that waits for a core."""
    return {t.state.replace("W", "R").encode() for t in machine.tasks.get(pid, {}).values()}


@pytest.fixture
def timed(machine):
    found = Clock(JUDGE)
    found.start()
    return found


def watched(
    machine: Machine, timed: Clock, seconds: float, limit: float = LIMIT, **states: str
) -> float:
    """Let time pass, and look whenever the clock asks for it; what is left in the end, or when it is
    over."""
    end = machine.now + seconds
    while (left := timed.left(limit)) > 0 and machine.now < end - STEP / 100:
        machine.go(max(min(left, end - machine.now), STEP / 100), **states)
    return left


def test_what_a_program_waited_is_not_forgotten_when_it_is_reaped(machine, timed):
    machine.fork()
    machine.go(2.2, program="R")
    machine.go(5.5, program="W")
    machine.go(0.1, program="R")
    assert timed.left(LIMIT) > 0
    machine.go(4.0, program="W")
    machine.go(0.1, program="R")
    machine.reap()  # with a wait that nobody has looked at
    machine.go(3.0, judge="W")
    machine.go(0.0, judge="R")
    assert timed.left(LIMIT) > 0
    machine.go(0.0)  # it has answered, or is about to
    assert timed.left(LIMIT) > 0


def test_what_a_thread_waited_is_not_forgotten_when_it_ends(machine, timed):
    machine.fork()
    for number in range(13, 23):  # one after the other
        machine.tasks[PROGRAM][number] = Thread()
        machine.go(0.1, **{f"t{number}": "R"})
        machine.go(1.0, **{f"t{number}": "W"})
        machine.go(0.1, **{f"t{number}": "R"})
        assert timed.left(LIMIT) > 0
        del machine.tasks[PROGRAM][number]
    machine.go(0.2)
    assert timed.left(LIMIT) > 0


def test_what_a_thread_waited_since_the_last_look_is_assumed_when_it_has_ended(machine, timed):
    machine.fork()
    machine.tasks[PROGRAM][13] = Thread()
    assert watched(machine, timed, 0.5, t13="R") > 0
    machine.go(4.0, t13="W")
    del machine.tasks[PROGRAM][13]
    machine.go(0.1)  # the main thread, which waited for it, is not awake yet
    assert timed.left(LIMIT) > 0
    assert watched(machine, timed, 2.0) > 0
    assert watched(machine, timed, 0.6) <= 0


def test_who_lets_threads_end_while_it_sleeps_gains_little(machine, timed):
    machine.fork()
    for number in range(13, 500):
        machine.tasks[PROGRAM] = {PROGRAM: Thread(), number: Thread()}
        machine.go(clock.LOOK_S)
        if timed.left(LIMIT) <= 0:
            break
    assert machine.own <= LIMIT + clock.CREDIT_S + 2 * clock.LOOK_S


def test_a_thread_that_waits_beside_a_main_thread_that_sleeps_has_more_time(machine, timed):
    machine.fork()
    machine.tasks[PROGRAM][13] = Thread()
    assert timed.left(LIMIT) > 0
    machine.go(8.0, t13="W")
    assert timed.left(LIMIT) > 0


@pytest.mark.parametrize("process", ["judge", "zygote"])
def test_what_the_lane_waits_for_before_the_first_look_counts(machine, timed, process):
    machine.fork()
    machine.go(20.0, **{process: "W"})
    machine.go(0.5, program="R")
    assert 0 < timed.left(LIMIT) <= clock.LOOK_S
    machine.go(2.0, program="R")
    assert timed.left(LIMIT) > 0
    machine.go(0.6, program="R")
    machine.go(0.1)
    assert timed.left(LIMIT) <= 0


def test_what_the_lane_clears_away_is_not_the_next_programs_time(machine, timed):
    for _ in range(20):
        machine.go(0.25, zygote="R")
        assert timed.left(LIMIT) > 0
    machine.fork()
    machine.go(2.6, program="R")
    assert timed.left(LIMIT) > 0
    machine.go(0.7, program="R")
    assert timed.left(LIMIT) <= 0


def test_who_sleeps_has_no_more_than_the_limit(machine, timed):
    machine.fork()
    assert 0 < watched(machine, timed, 2.9) <= 0.1 + STEP
    assert watched(machine, timed, 0.1 + STEP) <= 0


def test_a_look_that_comes_late_takes_nothing_of_the_limit(machine, timed):
    """The host had no core, either: it cannot know what the program waited for."""
    machine.fork()
    machine.go(5.0)
    assert timed.left(LIMIT) > 0
    assert watched(machine, timed, 1.0) > 0
    machine.go(5.0)
    assert timed.left(LIMIT) > 0
    assert watched(machine, timed, 1.0) > 0
    machine.go(5.0, program="R")
    assert timed.left(LIMIT) <= 0


def test_a_short_limit_is_looked_at_as_often_as_a_long_one(machine, timed):
    machine.fork()
    machine.go(0.004)
    assert timed.left(0.02) == pytest.approx(0.001)
    machine.go(0.04, program="W")
    machine.go(0.005, program="R")
    machine.go(0.0)
    assert timed.left(0.02) > 0
    assert watched(machine, timed, 0.03, limit=0.02) <= 0


SHORT = 0.06


@pytest.mark.parametrize("process", ["judge", "zygote", "program"])
def test_what_waits_for_the_disk_or_the_kernel_has_more_time(machine, timed, process):
    """Pages of the interpreter that are read for the first time, a fork or an end behind another
    process's lock: seen as programs of 2 to 25 ms that timed out at 60 while many lanes started."""
    machine.fork()
    machine.go(0.002, program="R")
    for _ in range(10):
        machine.go(0.02, **{process: "D"})
        assert timed.left(SHORT) > 0
    machine.go(0.001, program="R")
    machine.go(0.003)  # it sleeps for a moment, and is looked at then
    assert timed.left(SHORT) > 0


def test_who_waits_for_the_disk_between_sleeps_gains_little(machine, timed):
    machine.fork()
    while machine.own <= LIMIT + 2 * clock.CREDIT_S:
        machine.go(clock.LOOK_S)
        assert timed.left(LIMIT) > 0 or machine.own >= LIMIT
        machine.go(0.0, program="D")
        if timed.left(LIMIT) <= 0:
            break
        machine.go(STEP)
        if timed.left(LIMIT) <= 0:
            break
    assert machine.own <= LIMIT + clock.CREDIT_S + 2 * clock.LOOK_S


def test_what_the_zygote_computes_is_not_the_programs(machine, timed):
    """A fork may take long: its memory is copied, and others hold the locks for it."""
    machine.go(0.014, zygote="R")
    machine.fork()
    for _ in range(6):
        machine.go(0.01, zygote="R")
        assert timed.left(SHORT) > 0
    machine.go(0.03, program="R")
    machine.go(0.003)
    assert timed.left(SHORT) > 0


def test_states_are_asked_after_the_time_and_before_what_was_waited(machine, timed, monkeypatch):
    """The program waits for a core, and has its core and has answered while it is looked at: nobody is
    busy, and the wait is counted all the same."""
    machine.fork()
    machine.go(0.01, program="R")
    machine.go(8.0, program="W")

    def seen(pid: int) -> set[bytes]:
        machine.go(STEP, program="R")
        machine.go(LIMIT, judge="W")  # which begins too late to count
        return {b"S"}

    monkeypatch.setattr(clock, "states", seen)
    assert timed.left(LIMIT) > 0


def test_where_nothing_is_to_be_seen_wall_time_counts(machine, monkeypatch):
    monkeypatch.setattr(clock, "usage", lambda pid: {})
    timed = Clock(JUDGE)
    timed.start()
    assert watched(machine, timed, 2.0) > 0
    assert watched(machine, timed, 1.1, judge="R") <= 0


def test_in_the_end_the_wall_clock_decides(machine, timed):
    machine.fork()
    machine.go(clock.PATIENCE * LIMIT, program="W")
    assert timed.left(LIMIT) > 0
    machine.go(61.0, program="W")
    assert timed.left(LIMIT) <= 0


phases = st.lists(
    st.tuples(
        st.sampled_from(["judge", "zygote", "program"]),
        st.sampled_from("RWDS"),
        st.integers(1, 4000),  # ms
        st.booleans(),  # the host has a core, and looks when the clock asks for it
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(phases, st.booleans())
def test_the_limit_is_reached_by_own_time_alone(phases, never_late):
    """One runs, waits or sleeps while the others wait for its answer: never too early (but for what it
    waited for in the kernel unseen), and, where the host is never late, too late by no more than the
    credit for that."""
    machine, blocked = Machine(), 0.0
    with pytest.MonkeyPatch.context() as patch:
        _show(patch, machine)
        timed = Clock(JUDGE)
        timed.start()
        machine.fork()
        over = False
        for who, state, length, looked in phases:
            blocked += length / 1000 if state == "D" else 0.0
            if (looked or never_late) and not over:
                over = watched(machine, timed, length / 1000, **{who: state}) <= 0
            else:
                machine.go(length / 1000, **{who: state})
            assert not over or machine.own + blocked >= LIMIT - STEP
            if never_late and state == "S" and machine.own > LIMIT + clock.CREDIT_S + STEP:
                assert over


def test_the_lists_of_children_say_what_the_process_table_says():
    assert set(clock.descendants(1)) >= set(clock.descendants(os.getpid()))
    assert clock._descendants_of_all(2**22 + 1) == clock.descendants(2**22 + 1) == []
