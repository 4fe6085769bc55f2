# Returns an iterator that never ends, and objects whose length, hash and truth are never done.
# contained: timeout
class Endless:
    def __iter__(self):
        return self

    def __next__(self):
        return Endless()

    def __getitem__(self, i):
        return i

    def __len__(self):
        return 1 << 62


def feed(*given):
    return Endless()
