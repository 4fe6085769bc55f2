# Returns a generator of values each of which is as large as an answer may be.
# One by one they are allowed; kept in a list they fill the judge.
# contained: memory, timeout, output, killed
def feed(*given):
    def values():
        while True:
            yield "x" * (12 << 20)

    return values()
