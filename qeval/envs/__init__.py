"""Separate environments for archived libraries."""
