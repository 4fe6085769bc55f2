"""qeval: which quantization of a language model to run, and what it costs."""

__version__ = "0.1.0"
