"""What every other folder shares; it imports none of them."""

__version__ = "0.1.0"
