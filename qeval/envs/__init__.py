"""Environments of their own for archived libraries."""
