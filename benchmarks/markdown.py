"""Markdown tables for what must work without torch and without lit_fast, which may not even build."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells below their heads."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return "\n".join([head.replace("  |", " |"), "|" + "---|" * len(columns), *lines])
