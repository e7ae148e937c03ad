"""The same loss in several implementations, and the step around them: forward, backward, gradients to the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import lit_fast
from benchmarks.settings import Setting
from lit_fast.loss import backends

Loss = Callable[[], Tensor]  # forward alone
Step = Callable[[], tuple[Tensor, ...]]  # the loss, then the gradients of Problem.leaves
ALPHA, TAU = 0.95, 6.0
FUSED = ("native", "triton")


@dataclass(frozen=True)
class Problem:
    """The tensors of one loss."""

    student_irs: list[Tensor]
    teacher_irs: list[Tensor]
    student_logits: Tensor  # [B, C]
    teacher_logits: Tensor  # [B, C]
    labels: Tensor  # [B]
    grad_scale: Tensor | None  # 0-d: of a GradScaler, where the dtype is float16
    grad_total: Tensor  # 0-d: what backward starts with
    beta: float

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.student_irs, self.student_logits]

    def arguments(self) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
        return self.student_irs, self.teacher_irs, self.student_logits, self.teacher_logits, self.labels


def problem(setting: Setting, device: str) -> Problem:
    """Random tensors of a setting, the same ones each time."""
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(setting.dtype)

    batch, classes = setting.batch, setting.classes
    half = setting.dtype == torch.float16
    return Problem(
        [randn(batch, *shape).requires_grad_() for shape in setting.sections],
        [randn(batch, *shape) for shape in setting.sections],
        randn(batch, classes).requires_grad_(),
        randn(batch, classes),
        torch.randint(classes, (batch,), generator=generator, device=device),
        torch.tensor(1024.0, device=device) if half else None,
        torch.tensor(1024.0 if half else 1.0, device=device),
        setting.beta,
    )


def plain(
    student_irs: Sequence[Tensor],
    teacher_irs: Sequence[Tensor],
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    beta: float,
) -> Tensor:
    """The loss as a PyTorch script writes it; autocast makes the same casts to float32."""
    z_s, z_t = student_logits.float(), teacher_logits.float()
    log_q, log_p = F.log_softmax(z_s / TAU, 1), F.log_softmax(z_t / TAU, 1)
    soft = TAU**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    total = beta * (ALPHA * F.cross_entropy(z_s, labels) + (1 - ALPHA) * soft)
    for student, teacher in zip(student_irs, teacher_irs):
        total = total + (1 - beta) * F.mse_loss(student.float(), teacher.float())
    return total


def eager_loss(data: Problem) -> Loss:
    return lambda: plain(*data.arguments(), data.beta)


def compiled_loss(data: Problem, mode: str) -> Loss:
    """torch.compile of `plain`; compiles in its first call."""
    compiled = torch.compile(plain, dynamic=False, fullgraph=True, mode=mode)

    def loss() -> Tensor:
        if mode == "reduce-overhead":  # the gradients of the last step are no longer needed
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(*data.arguments(), data.beta)

    return loss


def backend_loss(data: Problem, name: str) -> Loss:
    """One of lit_fast's backends."""
    return lambda: lit_fast.lit_loss(
        *data.arguments(), alpha=ALPHA, beta=data.beta, tau=TAU, grad_scale=data.grad_scale, backend=name
    )


def step_of(data: Problem, loss: Loss) -> Step:
    """The loss, then backward from it."""

    def step() -> tuple[Tensor, ...]:
        total = loss()
        return total.detach(), *torch.autograd.grad(total, data.leaves, data.grad_total)

    return step


def copy_step(setting: Setting, device: str) -> Step:
    """A copy that moves as many bytes as the loss must: what a pass over memory costs at this size."""
    source = torch.randn(max(setting.bytes // 8, 1), device=device)
    target = torch.empty_like(source)
    return lambda: (target.copy_(source),)


def unavailable(name: str, device: str) -> str | None:
    """Why a backend cannot be used on a device, or None if it can."""
    try:
        backends.select(torch.device(device, 0) if device == "cuda" else torch.device(device), name)
    except (RuntimeError, ImportError) as error:
        return str(error)
    return None


def disagreement(step: Step, reference: Step, dtype: torch.dtype) -> str | None:
    """What a step computes that the reference does not, or None: the time of a wrong result is of no use."""
    loose = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}[dtype]
    names = ["loss", *(f"gradient {i}" for i in range(1, 1000))]
    for name, ours, right in zip(names, step(), reference()):
        error, scale = (ours.double() - right.double()).abs().max().item(), right.double().abs().max().item()
        if not error <= loose * scale:
            return f"{name} is off by {error:.3g}, its largest number is {scale:.3g}"
    return None
