"""Calls the compiled loss and its backward on odd sizes, and nothing else: what a memory checker looks at."""

from __future__ import annotations

import argparse
import itertools

import torch

import lit_fast

SHAPES = (((3, 5, 7), (11,)), ((16, 32, 32), (32, 16, 16), (64, 8, 8)))
CLASSES = (3, 10, 100, 2000)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    calls = 0
    for dtype, classes, shapes in itertools.product(DTYPES, CLASSES, SHAPES):
        for batch in (1, 33):
            irs = [torch.randn(batch, *shape, device=device).to(dtype).requires_grad_() for shape in shapes]
            targets = [torch.randn_like(ir) for ir in irs]
            logits = torch.randn(batch, classes, device=device).to(dtype).requires_grad_()
            labels = torch.randint(0, classes, (batch,), device=device)
            total = lit_fast.lit_loss(irs, targets, logits, torch.randn_like(logits), labels, backend="native")
            torch.autograd.backward(total, total.new_full((), 3.0))  # another scale: gradients are rescaled, too
            calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} calls of the loss")


if __name__ == "__main__":
    main()
