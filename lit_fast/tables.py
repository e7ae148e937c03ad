"""Rows of cells as a table: aligned text, or Markdown."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

__all__ = ["aligned", "fenced", "markdown_table", "markdown_text", "printable", "printable_lines"]


def printable(text: str) -> str:
    """Names as a terminal may show them: what would move its cursor, colour it or end a line is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """As `printable`, of a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def markdown_text(text: str) -> str:
    """Names as Markdown shows them, and nothing that it or HTML would make of their signs."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def fenced(text: str, language: str) -> str:
    """A block of code in Markdown, behind a longer fence than any that is in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable_lines(text)}\n{fence}"


def aligned(
    lines: Sequence[Sequence[str]], *, left: int | Collection[int], rule: int | None = None, least: Sequence[int] = ()
) -> str:
    """Cells in columns, two spaces apart.

    Args:
        lines: rows of equally many cells.
        left: how many columns at the start are flush left, or which; the others are flush right.
        rule: lines above the rule; None: no rule.
        least: the columns' least widths.
    """
    lines = [[printable(cell) for cell in line] for line in lines]
    flush_left = range(left) if isinstance(left, int) else left
    least = least or [0] * len(lines[0])
    widths = [max(width, *map(len, column)) for width, *column in zip(least, *lines, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) if i in flush_left else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in lines)
    ]
    if rule is not None:
        rows.insert(rule, "  ".join("-" * width for width in widths))
    return "\n".join(row.rstrip() for row in rows)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | None = 1) -> str:
    """In Markdown, the columns but the first ``left`` flush right; empty without rows. None: no column is aligned."""
    if not rows:
        return ""
    if left is None:
        head = [_markdown_row(columns).replace("  |", " |"), "|" + "---|" * len(columns)]
    else:
        head = [_markdown_row(columns), _markdown_row(["---" if i < left else "---:" for i in range(len(columns))])]
    return "\n".join([*head, *map(_markdown_row, rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
