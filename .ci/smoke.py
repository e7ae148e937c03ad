"""A built wheel, used from outside the checkout: the extension loads and a loss trains."""

from pathlib import Path

import torch

import lit_fast

info = lit_fast.build_info()
checkout = Path(__file__).resolve().parents[1]
if checkout in Path(lit_fast.__file__).resolve().parents:
    raise SystemExit(f"imported from the checkout: {lit_fast.__file__}")
if info["backend"] != "native":
    raise SystemExit(f"the wheel's extension is not used: {info['reason']}")

irs, logits = [torch.randn(2, 3, 4, 4, requires_grad=True)], torch.randn(2, 10, requires_grad=True)
criterion = lit_fast.LITLoss()
loss = criterion(irs, [torch.randn(2, 3, 4, 4)], logits, torch.randn(2, 10), torch.tensor([3, 7]))
loss.backward()
if not all(tensor.grad is not None and tensor.grad.any() for tensor in (*irs, logits)):
    raise SystemExit("no gradient")
print(f"smoke test passed: loss {loss.item():.4f}, {criterion.parts}")
