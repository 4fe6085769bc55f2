"""Doing it: jobs in fresh processes, one after the other."""
