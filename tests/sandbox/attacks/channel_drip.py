# Answers one byte at a time, and never finishes: there is always something to read.
# A time limit for each read is none for the whole.
# contained: timeout
import time


def solve(x):
    os.write(3, (1 << 20).to_bytes(4, "little"))
    while True:
        os.write(3, b" ")
        time.sleep(0.01)
