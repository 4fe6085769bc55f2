"""Words that every other folder shares, and what has no folder of its own below it."""
