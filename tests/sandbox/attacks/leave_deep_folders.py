# Leaves folders so deep that no path reaches their bottom, each with the longest name there can be.
# A cleaner that works with paths, or by recursion, fails and leaves them for the next program.
# contained: passed
def attack():
    for _ in range(2000):
        try:
            os.mkdir("hostile" + "x" * 248)
            os.chdir("hostile" + "x" * 248)
        except OSError:
            break
