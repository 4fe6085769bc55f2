"""Texts and problems: found, fetched, checked; windows for calibration."""
