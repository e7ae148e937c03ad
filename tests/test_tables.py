"""Rows of cells become aligned text or Markdown."""

from __future__ import annotations

import pytest

from lit_fast.tables import aligned, markdown_table

LINES = [("name", "n", "note"), ("a", "10", ""), ("bcdef", "9", "x")]


def test_columns_are_flush_left_or_right() -> None:
    assert aligned(LINES, left=1, rule=1).splitlines() == [
        "name    n  note",
        "-----  --  ----",
        "a      10",
        "bcdef   9     x",
    ]
    assert aligned(LINES, left=(0, 2)).splitlines() == ["name    n  note", "a      10", "bcdef   9  x"]


def test_columns_have_their_least_width_at_least() -> None:
    assert aligned(LINES[1:], left=1, least=(3, 4, 0)).splitlines() == ["a        10", "bcdef     9  x"]


@pytest.mark.parametrize(
    ("left", "head", "rule"),
    [(1, "| a |  |", "| --- | ---: |"), (2, "| a |  |", "| --- | --- |"), (None, "| a | |", "|---|---|")],
)
def test_markdown_has_a_rule_that_aligns_its_columns(left: int | None, head: str, rule: str) -> None:
    assert markdown_table(("a", ""), [("1", "2"), ("3", "")], left=left).splitlines() == [
        head,
        rule,
        "| 1 | 2 |",
        "| 3 |  |",
    ]


def test_no_rows_are_no_markdown() -> None:
    assert markdown_table(("a", "b"), []) == ""
