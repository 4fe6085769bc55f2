"""Qeval's own quantizers: one driver, its solvers and transforms."""
