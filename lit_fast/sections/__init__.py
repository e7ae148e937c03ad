"""Cutting a model into stem, sections and head, and running the parts."""
