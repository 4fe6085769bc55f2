# Climbs from its own frame to its callers', and through every thread's, to the test that calls it.
# In one interpreter the expected value lies in the caller's code object.
# contained: passed
# in the open: succeeds
import sys


def attack():
    frames = [sys._getframe(), *sys._current_frames().values()]
    try:
        raise ValueError
    except ValueError as error:
        frames.append(error.__traceback__.tb_frame)
    for frame in frames:
        while frame is not None:
            for scope in (frame.f_locals, frame.f_globals):
                for name in ("check", "SECRET_OF_THE_TEST", "got", "expected", "test"):
                    if name in scope:
                        return f"{frame.f_code.co_name} has {name}"
            if frame.f_code.co_name == "check":
                return str(frame.f_code.co_consts)
            frame = frame.f_back
    return None
