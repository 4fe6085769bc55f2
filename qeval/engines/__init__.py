"""Engines: what runs an artifact. One file per engine, each a class that satisfies ``qeval.lm.LM``."""
