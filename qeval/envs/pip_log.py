"""What pip printed -> why it failed, in one line. pip itself ends with "No matching distribution found"
whether the index has no such version, answers with an error or cannot be reached."""

from __future__ import annotations

import re

_INDEX = re.compile(r"^Looking in indexes: (.+)$", re.MULTILINE)
_BROKEN = re.compile(r"connection broken by '(.+)': /")


def why(output: str) -> str:
    """The reason in pip's output (standard output and error): its last ERROR line, else its last line,
    or that of pip's own traceback; corrected where a file was cut off or the index gave nothing."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (lines or ["no message"])[-1]
    if reason == "Exception:":  # of pip itself: a traceback follows, and ends in what it was
        reason = next(line for line in reversed(lines) if not line.startswith(("[notice]", "WARNING:")))
    if any("DO NOT MATCH THE HASHES" in line for line in errors):
        return "a file is not the one that the index names (cut off, or changed on its way): run again"
    if "(from versions: none)" not in output:
        return reason
    index, broken = _INDEX.search(output), _BROKEN.findall(output)
    where = f" {index[1]}" if index else ""
    cause = ": " + re.sub(r"<[^>]+>: ", "", broken[-1]) if broken else ""
    fix = "check the network, the proxy and pip's index-url"
    return f"{reason} (the index{where} offers nothing of that name{cause}: {fix})"
