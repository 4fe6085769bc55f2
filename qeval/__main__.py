"""``python -m qeval``."""

from qeval.cli import main

main()
