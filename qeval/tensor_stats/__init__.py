"""Statistics of a model's tensors, layer by layer: which of them rounding will hurt.

moments.py sums up one stream of values; collect.py shows it a model's weights, activations, keys and
values; rows.py (torch-free) is what comes out, and its file.
"""
