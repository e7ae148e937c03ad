"""What recording costs: ``python -m benchmarks.recording --out DIR``.

The forward of a transformer in a Python loop, and the same forward recorded (`lit_fast.split(how="recorded")`). In a
network of width 8 nearly all the time is Python's, so the difference shows there; in one of width 256 it is part of a
forward as it is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lit_fast as lf
from benchmarks import machine, run
from lit_fast.bench.pairing import Pairs

BLOCKS, ROWS, TOKENS = 12, 8, 64
WIDTHS = (8, 256)


class Transformer(nn.Module):
    """Blocks in a loop, each with a mask that forward makes."""

    def __init__(self, width: int, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(blocks)
        )
        self.last = nn.Linear(width, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden, padding = self.embed(input_ids), attention_mask == 0
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return self.last(hidden.mean(1))


def rows(device: str, seconds: float, widths: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    for width in widths:
        torch.manual_seed(0)
        model = Transformer(width).to(device)
        recorded = lf.split(model, blocks="layers", sections=4, how="recorded")
        ids = torch.randint(1000, (ROWS, TOKENS), device=device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def own(model: nn.Module = model, batch: dict[str, Tensor] = batch) -> Tensor:
            return model(**batch)

        def watched(recorded: lf.SplitModel = recorded, batch: dict[str, Tensor] = batch) -> Any:
            result = recorded.run(batch)
            recorded.release()
            return result

        pairs = Pairs({"own forward": own, "recorded": watched}, device)
        pairs.run(seconds)
        for way in pairs.times:
            median, low, high = (1e6 * value for value in pairs.spread(way))
            row = {"suite": "recording", "setting": f"width {width}", "variant": way, "median_us": median}
            print(f"width {width:<4} {way:<12} {median:10.1f} us  ({low:.1f} to {high:.1f})", flush=True)
            yield {**row, "low_us": low, "high_us": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/<device>-recording.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rounds at one width")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the code")
    options = parser.parse_args()
    measured = list(rows(options.device, options.seconds, WIDTHS[:1] if options.tiny else WIDTHS))
    if options.out:
        command = f"python -m benchmarks.recording {' '.join(sys.argv[1:])}"
        content = run.results(options.device, command, measured, tiny=options.tiny)
        run.write(options.out / f"{machine.slug(options.device)}-recording.json", content)


if __name__ == "__main__":
    main()
