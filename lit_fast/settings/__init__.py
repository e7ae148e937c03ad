"""Experiments as validated settings."""
