"""The documentation's pages, cut into fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# docs/results holds reports of long runs: their commands take hours.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_MARK = re.compile(r"^ *<!--\s*(.+?)\s*-->$")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: its page.
        number: its place among the page's blocks, from 0.
        line: number of its first line of text, from 1.
        language: what follows the fence, "" for nothing.
        text: without the fences.
        mark: what an HTML comment on the line above the fence says: "output" (what the block before prints),
            "error NAME" (a message of ``documented_errors``), "files DIR" (what a run leaves in DIR), "results DIR"
            (the table of DIR/results.json beside the page), "study NAME" (its tables from results/studies); else "".
    """

    page: Path
    number: int
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a fence that is never closed.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    found = []
    at = 0
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            at += 1
            continue
        mark = _MARK.match(lines[at - 1]) if at else None
        start = at + 1
        indent, ticks, language = fence.groups()
        end = next((i for i in range(start, len(lines)) if lines[i] == indent + ticks), None)
        if end is None:
            raise ValueError(f"{page.name}:{at + 1}: this fence is never closed")
        text = "\n".join(line.removeprefix(indent) for line in lines[start:end])
        found.append(Block(page, len(found), start + 1, language.strip(), text, mark[1] if mark else ""))
        at = end + 1
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^( *`{3,})\w*\n.*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def replace(block: Block, text: str) -> None:
    """Write ``text`` into the block's place on its page, wherever that is by now."""
    here = blocks(block.page)[block.number]
    lines = block.page.read_text(encoding="utf-8").splitlines()
    fence = lines[here.line - 2]
    indent = " " * (len(fence) - len(fence.lstrip()))
    old = here.line - 1, here.line - 1 + (len(here.text.splitlines()) if here.text else 0)
    lines[slice(*old)] = [indent + line for line in text.splitlines()]
    block.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
