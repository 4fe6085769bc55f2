# Returns numbers that are hard to read, print or compute with: very many digits, exponents without end,
# signed zeros, infinities, not-a-numbers of every kind.
# contained: passed, timeout, memory, output
def feed(*given):
    nan = float("nan")
    values = [
        10**200_000,
        -(1 << 1_000_000),
        nan,
        -nan,
        -0.0,
        1e308 * 10,
        5e-324,
        complex(nan, -0.0),
        2**63,
    ]
    given[0][:] = values
    given[1].update({nan: nan, float("nan"): 1, 0.0: 2, -0.0: 3})
    return {"values": values, "range": range(-(10**30), 10**30, 7), "empty": range(10, 0)}
