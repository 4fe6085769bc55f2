# Makes compile() itself work without end, or crash, before a line has been run: expressions nested
# deeply, constants that fold into something huge.
# Code has to be compiled inside, too.
# contained: passed, failed, syntax, memory, timeout, killed
def attack():
    for text in (
        "(" * 50_000 + ")" * 50_000,
        "-" * 200_000 + "1",
        "+".join(["x"] * 200_000),
        "x = " + "[" * 5_000 + "]" * 5_000,
        "(1,) * 4096 * 4096 * 64",
        "'a' * 4000 * 4000",
        "if x:\n" + "".join(" " * i + "if x:\n" for i in range(1, 110)) + " " * 111 + "pass",
        "lambda: " * 20_000 + "1",
    ):
        try:
            compile(text, "hostile", "exec")
        except Exception:
            pass
