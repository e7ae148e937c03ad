"""BatchNorm with residual and ReLU: problems, the right results in float64, and the launches of a problem."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_fast.models.fused_norm import enabled, norm_act

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Case:
    """How a problem is made."""

    name: str
    shape: tuple[int, int, int, int] = (3, 16, 4, 5)
    dtype: torch.dtype = torch.float32
    residual: bool = True
    relu: bool = True
    mean: float = 0.5
    options: dict = field(default_factory=dict)  # of nn.BatchNorm2d

    def __str__(self) -> str:
        return self.name


@dataclass
class Problem:
    norm: nn.BatchNorm2d
    x: Tensor
    residual: Tensor | None
    dy: Tensor
    relu: bool

    def leaves(self) -> list[Tensor]:
        tensors = (self.x, self.residual, self.norm.weight, self.norm.bias)
        return [tensor for tensor in tensors if tensor is not None]

    def in_float64(self) -> Problem:
        x, residual = (None if t is None else t.detach().double().requires_grad_() for t in (self.x, self.residual))
        assert x is not None
        return Problem(copy.deepcopy(self.norm).double(), x, residual, self.dy.double(), self.relu)


@dataclass
class Result:
    y: Tensor
    grads: list[Tensor]  # of `Problem.leaves`
    buffers: dict[str, Tensor]


def matrix() -> list[Case]:
    """Every kernel and branch of it, in every dtype."""
    found = []
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        found += [
            Case(f"{name}-residual {residual}, relu {relu}", dtype=dtype, residual=residual, relu=relu)
            for residual in (False, True)
            for relu in (False, True)
        ]
        found += [
            Case(f"{name}-odd sizes", (3, 5, 7, 3), dtype),
            Case(f"{name}-one channel", (2, 1, 3, 3), dtype, residual=False),
            Case(f"{name}-blocks of channels", (2, 70, 3, 3), dtype),
            Case(f"{name}-one pixel", (5, 3, 1, 1), dtype),
            Case(f"{name}-large mean", (4, 16, 8, 8), dtype, mean=1000.0),
            Case(f"{name}-cumulative", dtype=dtype, options={"momentum": None}),
            Case(f"{name}-another momentum", dtype=dtype, options={"momentum": 0.3, "eps": 1e-3}),
            Case(f"{name}-nothing tracked", dtype=dtype, options={"track_running_stats": False}),
            Case(f"{name}-no weights", dtype=dtype, options={"affine": False}),
        ]
    return found


def without_dtype(case: Case) -> str:
    """What a case tries; the same for the cases of several dtypes."""
    return case.name.partition("-")[2]


def build(case: Case, device: str = "cpu") -> Problem:
    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.to(device, case.dtype).to(memory_format=torch.channels_last)

    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm2d(case.shape[1], **case.options)
    for tensor in norm.parameters():
        nn.init.normal_(tensor, generator=generator)
    for tensor in norm.buffers():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0, generator=generator)
    x, residual, dy = (torch.randn(case.shape, generator=generator) for _ in range(3))
    norm.to(device, torch.float64 if case.dtype == torch.float64 else torch.float32)
    return Problem(
        norm,
        laid_out(x + case.mean).requires_grad_(),
        laid_out(residual).requires_grad_() if case.residual else None,
        laid_out(dy),
        case.relu,
    )


def run(problem: Problem, *, fused: bool) -> Result:
    with enabled(fused):
        y = norm_act(problem.norm, problem.x, problem.residual, relu=problem.relu)
    grads = torch.autograd.grad(y, problem.leaves(), problem.dy)
    return Result(y.detach(), list(grads), dict(problem.norm.named_buffers()))


def check(case: Case, device: str = "cpu") -> None:
    """The kernels' results against PyTorch's own in float64, where the ReLU's side is beyond doubt."""
    problem = build(case, device)
    right = run(in_doubt_silenced(problem).in_float64(), fused=False)
    ours = run(problem, fused=True)
    assert ours.y.dtype == case.dtype
    assert ours.y.is_contiguous(memory_format=torch.channels_last)
    last_bit = torch.finfo(case.dtype).eps
    computed = torch.finfo(torch.float64 if case.dtype == torch.float64 else torch.float32).eps
    # A mean is kept to the last bit of the type that is computed in, relative to the deviation: about 1, but less where
    # a channel has few values (of two, PyTorch's own float32 is as far off).
    variance = problem.x.detach().double().var((0, 2, 3), unbiased=False).min().item()
    kept = computed * max(8.0, 2 * abs(case.mean)) / min(1.0, math.sqrt(variance + problem.norm.eps))
    for name, tensor, other in compared(ours, right):
        rounding = last_bit if tensor.dtype == case.dtype else computed
        scale = max(other.abs().max().item(), 1.0) if other.numel() else 1.0
        torch.testing.assert_close(
            tensor.to(other.dtype), other, rtol=rounding, atol=8 * kept * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def in_doubt_silenced(problem: Problem) -> Problem:
    """The same problem; dy is 0 where float32 might see y on the other side of 0 than float64."""
    if problem.relu:
        plain = copy.deepcopy(problem).in_float64()
        plain.relu = False
        y = run(plain, fused=False).y
        problem.dy[y.abs() < 1e-3] = 0.0
    return problem


def compared(ours: Result, right: Result) -> list[tuple[str, Tensor, Tensor]]:
    named = [("y", ours.y, right.y)]
    named += [
        (f"gradient {i}", mine, other) for i, (mine, other) in enumerate(zip(ours.grads, right.grads, strict=True))
    ]
    return [*named, *((name, tensor, right.buffers[name]) for name, tensor in ours.buffers.items())]
