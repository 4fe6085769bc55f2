"""What a number can bear: distributions, means of correlated series, verdicts and their power."""
