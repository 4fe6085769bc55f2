# Registers hooks for audit events, calls and traces, to see the tests compiled, run and called.
# Audit hooks cannot be removed, and see every compile() and exec() after them.
# contained: passed
# in the open: succeeds
import sys
import threading

SEEN = []


def audit(event, arguments):
    if event in ("compile", "exec", "import", "open"):
        SEEN.append(f"{event} {arguments!r:.200}")


def trace(frame, event, argument):
    SEEN.append(f"{event} {frame.f_code.co_name}")
    return trace


sys.addaudithook(audit)
sys.settrace(trace)
sys.setprofile(trace)
threading.settrace(trace)
threading.setprofile(trace)


def attack():
    sys.settrace(None)
    sys.setprofile(None)
    found = [text for text in list(SEEN) if "check" in text or "Escaped" in text]
    return str(found) if found else None
