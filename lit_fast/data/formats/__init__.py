"""Datasets as they lie on disk or come from elsewhere."""
