"""Where numbers were measured, and how few words tell one place from another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qeval.core.record import Conditions, Record
from qeval.report.places import UNKNOWN, Place, labels, place_of

LAPTOP = Place("laptop", "cpu", "Intel", 8)
CI = Place("ci", "cpu", "AMD", 2)
BOX = Place("box", "cuda", "H200")
BOX_CPU = Place("box", "cpu", "EPYC", 16)


def one(place: Place, n_threads: int) -> Place:
    return replace(place, n_threads=n_threads)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([LAPTOP], [""]),
        ([UNKNOWN], [""]),
        ([one(LAPTOP, 1), LAPTOP], ["1 thread", "8 threads"]),
        ([LAPTOP, CI], ["laptop", "ci"]),
        ([LAPTOP, one(LAPTOP, 1), CI], ["laptop, 8 threads", "laptop, 1 thread", "ci, 2 threads"]),
        ([BOX, BOX_CPU], ["H200", "cpu"]),
        ([LAPTOP, BOX, BOX_CPU], ["laptop, cpu", "box, H200", "box, cpu"]),
        ([LAPTOP, UNKNOWN], ["laptop, 8 threads", "conditions unknown"]),
        ([BOX, UNKNOWN], ["box, H200", "conditions unknown"]),
        ([BOX, replace(BOX, device_name="A100")], ["H200", "A100"]),
        ([BOX, replace(BOX, device_name=None)], ["H200", "device unknown"]),
        ([Place("a", None, None, 4), Place("b", None, None, 4)], ["a", "b"]),
    ],
)
def test_labels_say_what_differs_and_no_more(places, expected):
    for given in (places, places[::-1]):
        found = labels(given)
        assert [found[place] for place in places] == expected
    assert len(set(expected)) == len(expected)


RECORD = Record("eval", "k", {}, "ok", conditions=Conditions("box", "cuda:3", "H200", n_threads=8))


def test_a_place_is_what_the_worker_found():
    assert place_of(RECORD) == BOX  # which of the GPUs, and the threads beside it, decide nothing
    spread = replace(RECORD, conditions=replace(RECORD.conditions, device="cuda:0,1"))
    assert place_of(spread) == replace(BOX, device_name="2 x H200")
    on_cpu = Conditions("laptop", "cpu", "Intel", n_threads=8, load_before=3.0, batch_size=4)
    assert place_of(replace(RECORD, conditions=on_cpu)) == LAPTOP
    assert place_of(replace(RECORD, conditions=None)) == UNKNOWN


def test_what_failed_stands_where_it_was_to_run():
    asked = {"host": "box", "device": "cuda:0", "device_name": "H200", "n_threads": None}
    found = Conditions("box", None, None, n_threads=8)
    for conditions in (found, None):
        failed = replace(RECORD, status="oom", cell={"conditions": asked}, conditions=conditions)
        assert place_of(failed) == BOX
