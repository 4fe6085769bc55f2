# Returns lists within lists, deeper than the interpreter can follow, and one that holds itself.
# Every encoder, decoder, comparison and repr that recurses without a limit dies of it.
# contained: failed: RecursionError, failed: protocol, passed
def feed(*given):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    given[0][:] = [given[0]]
    return deep
