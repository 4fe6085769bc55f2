"""qeval as a library: ``qeval.run``, ``qeval.load`` and what they return. The command line reads
results through it, too."""
