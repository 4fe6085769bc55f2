"""Engines: what runs an artifact. One file an engine, each a class that satisfies ``base.LM``."""
