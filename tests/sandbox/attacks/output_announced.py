# Announces an answer of four gigabytes and sends nothing of it.
# A reader that makes room for what is announced is out of memory.
# contained: output
def solve(x):
    os.write(3, b"\xff\xff\xff\xff")
    while True:
        pass
