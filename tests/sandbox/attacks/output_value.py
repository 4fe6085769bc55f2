# Returns more than anyone can take: a gigabyte, by one string.
# contained: output, memory, timeout
def solve(x):
    return "x" * (400 << 20)
