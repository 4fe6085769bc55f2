"""Results in the forms that other programs read: tidy files, LaTeX, the hub's, lm-eval's, loggers."""
