"""`qeval report` and `qeval plot`: results as one page that loads nothing, and as pictures."""
