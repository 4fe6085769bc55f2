# Asks the garbage collector for every function, code object and text alive, to find the tests.
# It knows all containers of the interpreter, whoever made them.
# contained: passed
# in the open: succeeds
import gc
import sys
import types

TEXT = "".join(["def ", "check", "():"])  # not to find this file's own


def attack():
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__name__ == "check":
            return f"the test: {thing.__code__.co_consts}"
        if isinstance(thing, dict) and "SECRET_OF_THE_TEST" in thing and thing is not globals():
            return f"the test's module: {list(thing)}"
        for referent in gc.get_referents(thing):
            if isinstance(referent, types.CodeType) and referent.co_name == "check":
                return f"the test's code: {referent.co_consts}"
            if (
                isinstance(referent, str)
                and len(referent) < 10_000
                and TEXT in referent
                and referent is not TEXT
            ):
                return f"the test's source: {referent}"
    return next((name for name, m in list(sys.modules.items()) if hasattr(m, "check")), None)
