"""A spec and what becomes of it: cells, keys, what will happen to each."""
