"""Packed formats: recognised, accounted, loaded."""
