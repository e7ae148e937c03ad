"""Small files of reviews in the form of Zhang et al. 2015, made from words."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = ("a", "the", "book", "film", "of", "Plot", "very", "and", "17", "$5", "caf\u00e9", "end")
OPINIONS = ("awful", "poor", "plain", "good", "superb")


def line(label: int, title: str, text: str) -> str:
    """One row: everything quoted, quotes doubled, line breaks as backslash and n."""
    fields = (str(label), title, text)
    return ",".join('"' + field.replace('"', '""').replace("\n", "\\n") + '"' for field in fields)


def write(folder: Path, classes: int = 2, train: int = 120, test: int = 40) -> Path:
    """train.csv and test.csv, whose class can be read from the text; gives the folder."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        rows = []
        for i in range(count):
            label = i % classes
            opinion = OPINIONS[label * (len(OPINIONS) - 1) // (classes - 1)]
            words = [*draw.choices(WORDS, k=draw.randrange(3, 25)), f'"{opinion}"']
            rows.append(line(label + 1, opinion if i % 3 else "", " ".join(words) + ".\nBye!"))
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
