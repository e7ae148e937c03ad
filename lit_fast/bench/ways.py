"""The ways to compute one LIT step that are compared: each is a function that trains on one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_fast.loss.modules import LITLoss
from lit_fast.pair import counting
from lit_fast.sections.model import SplitModel
from lit_fast.step.lit_step import LITStep

__all__ = [
    "Problem",
    "Several",
    "Way",
    "captured_step",
    "compiled_step",
    "drift",
    "eager_step",
    "lit_step",
    "plain_step",
    "repeated",
    "replays",
    "runner_step",
    "steps_of",
    "work",
]

Way = Callable[[], object]


@dataclass(frozen=True)
class Several:
    """A way that trains several steps in a call, and gives the result of the last."""

    steps: int
    call: Way

    def __call__(self) -> object:
        return self.call()


class Problem:
    """A pair of networks, one batch and a precision; every way trains copies of the same student on it.

    Args:
        teacher, student: split alike, on one device. They are copied, not changed.
        images: model input, [B, ...].
        labels: class indices, [B] int64; ``None`` needs beta = 0.
        precision: "fp32", "bf16" or "fp16".
        alpha, beta, tau: of the loss (method eq. 1, 2).
        name: of the pair, for reports.
    """

    def __init__(
        self,
        teacher: SplitModel,
        student: SplitModel,
        images: Tensor,
        labels: Tensor | None,
        precision: str = "fp32",
        *,
        alpha: float = 0.95,
        beta: float = 0.75,
        tau: float = 6.0,
        name: str = "",
    ) -> None:
        if labels is None and beta > 0:
            raise ValueError("labels: expected class indices, got None; only beta=0 (no KD loss) goes without")
        self.teacher, self.student, self.images, self.labels = teacher, student, images, labels
        self.precision, self.alpha, self.beta, self.tau, self.name = precision, alpha, beta, tau, name
        self.batch, self.device = len(images), images.device.type
        # Names a part of the plain step while it runs, as `LITStep.mark` does.
        self.mark: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def networks(self, *, fused: bool = False) -> tuple[SplitModel, SplitModel, torch.optim.Optimizer]:
        """A frozen teacher, a student in train mode and its optimizer (`fused`: torch's fused SGD), always the same."""
        teacher, student = copy.deepcopy(self.teacher), copy.deepcopy(self.student)
        teacher.eval().requires_grad_(False)
        trained = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)
        return teacher, student.train(), optimizer


def plain_step(problem: Problem) -> Way:
    """As the original code does it: unfused losses, section 1 twice, layouts as given, the loss read every step."""
    teacher, student, optimizer = problem.networks()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(problem.precision)
    scaler = torch.amp.GradScaler(problem.device, enabled=problem.precision == "fp16")
    alpha, beta, tau, mark = problem.alpha, problem.beta, problem.tau, problem.mark

    def step() -> float:
        with torch.autocast(problem.device, dtype, enabled=dtype is not None):
            with torch.no_grad(), mark("teacher"):
                irs, soft = teacher.run(problem.images)
            with mark("student, teacher-fed"):
                inputs = [student.stem(problem.images), *irs[:-1]]
                fed = [section(x) for section, x in zip(student.sections, inputs)]
            with mark("student, composed"):
                logits = student(problem.images) if beta > 0 else None
        with mark("loss"):
            loss = (1 - beta) * torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(fed, irs)]).sum()
            if logits is not None and problem.labels is not None:
                hard = F.cross_entropy(logits.float(), problem.labels)
                log_q, p = F.log_softmax(logits.float() / tau, 1), F.softmax(soft.float() / tau, 1)
                kl = tau**2 * F.kl_div(log_q, p, reduction="batchmean")
                loss = loss + beta * (alpha * hard + (1 - alpha) * kl)
        with mark("backward"):
            optimizer.zero_grad()
            scaler.scale(loss).backward()
        with mark("update"):
            scaler.step(optimizer)
            scaler.update()
            return loss.item()

    return step


def lit_step(problem: Problem, engine: str, backend: str, *, capture: bool = False, **options: Any) -> LITStep:
    """lit_fast's step on networks of its own; `options` are `LITStep`'s."""
    teacher, student, optimizer = problem.networks(fused=capture)
    criterion = LITLoss(alpha=problem.alpha, beta=problem.beta, tau=problem.tau, backend=backend)
    return LITStep(
        teacher, student, criterion, optimizer, precision=problem.precision, engine=engine, capture=capture, **options
    )


def eager_step(problem: Problem) -> Way:
    """lit_fast's step of modules and plain PyTorch operations."""
    step = lit_step(problem, "eager", "eager")
    return lambda: step(problem.images, problem.labels)


def compiled_step(problem: Problem, mode: str) -> Way:
    """The eager step with its forward pass and loss under torch.compile."""
    step: Any = lit_step(problem, "eager", "eager")
    step.loss = torch.compile(step.loss, mode=mode)
    return lambda: step(problem.images, problem.labels)


def runner_step(problem: Problem) -> Way:
    """The teacher lowered, the loss fused."""
    step = lit_step(problem, "runner", "auto")
    return lambda: step(problem.images, problem.labels)


def captured_step(problem: Problem) -> Way:
    """The same, replayed as one CUDA graph.

    Raises:
        RuntimeError: it cannot be captured; says why.
    """
    return replays(lit_step(problem, "runner", "auto", capture=True), problem)


def replays(step: LITStep, problem: Problem) -> Way:
    """Trains one step, which shows whether it is captured; the way's first call gives that step's result.

    So the first call of every way is its first step, and `drift` compares the same steps.
    """
    first: list[object] = [step(problem.images, problem.labels)]
    if not step.captured:
        raise RuntimeError(f"not captured: {step.capture_reason}")
    return lambda: first.pop() if first else step(problem.images, problem.labels)


def work(problem: Problem) -> tuple[int, int]:
    """The least that a step must do: floating-point operations, and bytes of the student's parameters and IRs.

    The teacher forward once; the student's composed pass (with beta = 0 no more of it than section 1), its teacher-
    fed sections but the first, and twice that for the gradients. Bytes: images, the teacher's IRs written and read
    twice, the student's IRs written, read, and their gradients written and read; parameters read, their gradients
    and momenta written and read.
    """
    teacher, student, _ = problem.networks()
    image = problem.images[:1]
    with torch.no_grad():
        irs, _ = teacher.run(image)
        macs = counting.count_macs(teacher, image)
        fed = sum(counting.count_macs(part, x) for part, x in zip(student.sections[1:], irs))
        composed = counting.count_macs(student, image)
        if problem.beta == 0:
            stem = student.stem(image)
            composed = counting.count_macs(student.stem, image) + counting.count_macs(student.sections[0], stem)
        macs += 3 * (composed + fed)
    width = 4 if problem.precision == "fp32" else 2
    elements = sum(ir.numel() for ir in irs)
    parameters = sum(p.numel() for p in student.parameters())
    moved = problem.batch * (image.nbytes + 7 * width * elements) + 4 * 7 * parameters
    return 2 * macs * problem.batch, moved


def repeated(way: Way, steps: int) -> Several:
    """`steps` calls of a way, one behind the other as in training, as one."""

    def call() -> object:
        for _ in range(steps - 1):
            way()
        return way()

    return Several(steps * steps_of(way), call)


def steps_of(way: Way) -> int:
    """How many steps a call trains."""
    return way.steps if isinstance(way, Several) else 1


def drift(way: Way, reference: Way, calls: int = 2) -> float:
    """Largest relative difference of the losses that a way's first calls give from those of the reference's steps."""
    worst = 0.0
    for _ in range(calls):
        expected = [float(_total(reference())) for _ in range(steps_of(way))][-1]
        worst = max(worst, abs(float(_total(way())) - expected) / abs(expected))
    return worst


def _total(result: Any) -> float | Tensor:
    return result.total if hasattr(result, "total") else result
