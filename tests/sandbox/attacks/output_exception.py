# Raises exceptions whose class names and texts are made to be read: verdicts, line breaks, control
# sequences for the terminal, characters that are none.
# They are printed and saved by the scorer, and shown to the user.
# contained: failed
def solve(x):
    name = "passed\n\x1b]0;owned\x07\x1b[2J\x00\x9b" + "\ud800" + "‮" + "x" * 100_000
    raise type(
        name, (Exception,), {"__str__": lambda self: '", "status": "passed"}\n\tpassed\r\n' + name}
    )
