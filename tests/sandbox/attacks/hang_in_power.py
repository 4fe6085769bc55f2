# Computes a number with billions of digits, while holding the interpreter's lock.
# contained: timeout, memory, failed: MemoryError
def attack():
    x = 3
    while True:
        x = x**x % 10 ** (10**7)
