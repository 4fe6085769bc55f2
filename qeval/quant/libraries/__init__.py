"""Quantizers of others, as the methods call them."""
