"""The suite "text": reviews to tokens, by the compiled extension and in plain Python, on one core and on all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.choice import ALL, Choice
from lit_fast.bench.pairing import Pairs
from lit_fast.data import reviews
from lit_fast.extension import EXTENSION

Row = dict[str, Any]
LENGTH = 1014
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 5.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure until `deadline` (of ``time.monotonic``); always on the CPU, whatever `device` is."""
    content = _reviews(200_000 if tiny else 20_000_000)
    threads = torch.get_num_threads()
    for count in sorted({1, threads}):
        setting = f"{len(content) / 1e6:.1f} MB of reviews, {count} threads"
        heading = {"suite": "text", "setting": setting, "family": "reviews", "device": "cpu"}
        heading |= {"batch": None, "dtype": "uint8", "mode": None, "threads": count}
        if not choice.setting("text", setting):
            continue
        if time.monotonic() > deadline:
            yield {**heading, "variant": "all", "status": "out of time"}
            continue
        torch.set_num_threads(count)
        try:
            yield from _measured(heading, content, seconds)
        except Exception as error:
            yield {**heading, "variant": "all", "status": f"{type(error).__name__}: {error}"[:500]}
        finally:
            torch.set_num_threads(threads)


def _reviews(size: int) -> torch.Tensor:
    """Some `size` bytes of lines as long as those of Amazon Reviews: uint8 [bytes]."""
    draw = random.Random(0)
    words = ["".join(draw.choices(_LETTERS, k=draw.randrange(1, 10))) for _ in range(2000)]
    lines, total = [], 0
    while total < size:
        text = " ".join(draw.choices(words, k=draw.randrange(15, 150))) + draw.choice([".", "!", ' ""so""', "\\nBye"])
        lines.append(f'"{draw.randrange(1, 6)}","{draw.choice(words).title()}","{text}"\n')
        total += len(lines[-1])
    return torch.frombuffer(bytearray("".join(lines).encode()), dtype=torch.uint8)


def _measured(heading: Row, content: torch.Tensor, seconds: float) -> list[Row]:
    def tokenise(by: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: by(content, "reviews", length=LENGTH, classes=5)

    steps = {"python": tokenise(reviews.by_line)}
    if EXTENSION.loaded:
        steps["native"] = tokenise(reviews.tokenise)
        pairs = zip(steps["python"](), steps["native"](), strict=True)
        if not all(torch.equal(ours, right) for ours, right in pairs):
            return [{**heading, "variant": "native", "status": "its tokens are not the reference's"}]
    paired = Pairs(steps, "cpu")
    paired.run(seconds)
    rows = []
    for name in paired.times:
        median, low, high = paired.spread(name)
        rows.append(
            {
                **heading,
                "variant": name,
                "status": "measured",
                "best": True,
                "rounds": len(paired.times[name]),
                "median_us": median * 1e6,
                "quartiles_us": [low * 1e6, high * 1e6],
                "mb_s": len(content) / 1e6 / median,
            }
        )
    failed = {} if EXTENSION.loaded else {"native": EXTENSION.reason}
    return [*rows, *({**heading, "variant": n, "status": why} for n, why in {**failed, **paired.failed}.items())]
