"""Quantization methods: how weights become an artifact. One file per method."""
