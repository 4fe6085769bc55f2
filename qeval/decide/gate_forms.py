"""What a gate found, as text and json, as JUnit's XML, and as GitHub shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from qeval.core.console import aligned
from qeval.core.errors import one_line
from qeval.core.record import finite
from qeval.decide.bounds import Verdict
from qeval.decide.gate import Check
from qeval.report.render import escaped

_LEGEND = (
    "[low, high] of a change: one-sided 95% bounds; of a value: its 95% interval; of a speed or time: "
    "slowest and fastest repeat. pass: the bound holds at both ends; undecided: at one"
)


@dataclass(frozen=True)
class Outcome:
    """``undecided``: what these count as."""

    checks: Sequence[Check]
    undecided: Literal["pass", "fail"] = "fail"

    def counts_as(self, check: Check) -> Verdict:
        return self.undecided if check.verdict == "undecided" else check.verdict

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if self.counts_as(check) == "fail"]

    @property
    def verdict(self) -> Verdict:
        return "fail" if self.failed else "pass"

    @property
    def summary(self) -> str:
        """``gate: fail (5 passed, 1 failed, 2 undecided, which count as failed)``."""
        n = {v: sum(c.verdict == v for c in self.checks) for v in ("pass", "fail", "undecided")}
        counted = f", which count as {self.undecided}ed" if n["undecided"] else ""
        return (
            f"gate: {self.verdict} ({n['pass']} passed, {n['fail']} failed, "
            f"{n['undecided']} undecided{counted})"
        )


def text(found: Outcome) -> str:
    rows = [
        [c.verdict, c.row, c.what, c.number, c.bound, f"({c.reason})" if c.reason else ""]
        for c in found.checks
    ]
    return "\n".join([*aligned(rows), "", _LEGEND, found.summary]) + "\n"


def json_text(found: Outcome) -> str:
    data = {
        "schema_version": 1,
        "verdict": found.verdict,
        "undecided": found.undecided,
        "checks": [
            {
                "verdict": c.verdict,
                "row": c.row,
                "what": c.what,
                "bound": c.bound,
                "value": c.value,
                "low": c.low,
                "high": c.high,
                "reason": c.reason,
                "line": c.rule.line,
            }
            for c in found.checks
        ],
    }
    return json.dumps(finite(data), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def junit(found: Outcome) -> str:
    """One test case a line: what counts as failed is a failure, an undecided one that does not is
    skipped."""
    passed_over = [c for c in found.checks if c.verdict == "undecided" and c not in found.failed]
    counts = {
        "tests": str(len(found.checks)),
        "failures": str(len(found.failed)),
        "errors": "0",
        "skipped": str(len(passed_over)),
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "qeval gate", **counts})
    for c in found.checks:
        name = one_line(f"{c.what} {c.bound}")
        case = ElementTree.SubElement(suite, "testcase", {"classname": one_line(c.row), "name": name})
        said = one_line(_said(c))
        if c in found.failed:
            about = {"message": said, "type": c.verdict}
            ElementTree.SubElement(case, "failure", about).text = said
        elif c.verdict == "undecided":
            ElementTree.SubElement(case, "skipped", {"message": said})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def workflow_commands(found: Outcome) -> Iterator[str]:
    """GitHub's workflow commands, one for each line that is not passed."""
    for c in found.checks:
        if c.verdict == "pass":
            continue
        level = "error" if c in found.failed else "warning"
        at = f"file={_property(str(c.rule.file.path))},line={c.rule.line}," if c.rule.file else ""
        title = _property(f"{c.row}: {c.what}")
        yield f"::{level} {at}title={title}::{_data(_said(c))}"


def step_summary(found: Outcome) -> str:
    """A GitHub table in markdown."""
    marks = {"pass": "✅", "fail": "❌", "undecided": "❔"}
    lines = [f"### {escaped(found.summary)}", "", "| | row | what | number | bound | |"]
    lines.append("|---|---|---|---|---|---|")
    for c in found.checks:
        cells = (f"{marks[c.verdict]} {c.verdict}", c.row, c.what, c.number, c.bound, c.reason)
        lines.append("| " + " | ".join(escaped(one_line(cell)) for cell in cells) + " |")
    return "\n".join([*lines, "", escaped(_LEGEND), ""])


def _said(c: Check) -> str:
    """``fail: 0.0715 [0.0646, 0.0784], bound <= 0.02``."""
    reason = f" ({c.reason})" if c.reason else ""
    return f"{c.verdict}: {c.number}, bound {c.bound}{reason}"


def _data(said: str) -> str:
    """A message, as actions/toolkit escapes it (packages/core/src/command.ts)."""
    return said.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(said: str) -> str:
    return _data(said).replace(":", "%3A").replace(",", "%2C")
