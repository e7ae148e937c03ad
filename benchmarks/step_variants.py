"""The ways to compute one LIT step that are compared: each is a function that trains on one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import lit_fast as lf
from lit_fast import counting

ALPHA, BETA, TAU = 0.95, 0.75, 6.0
Step = Callable[[], object]


class Pair(NamedTuple):
    """What a step trains: builders of both networks, and the shape of an image."""

    name: str
    teacher: Callable[[], torch.nn.Module]
    student: Callable[[], torch.nn.Module]
    image: tuple[int, ...] = (3, 32, 32)
    classes: int = 10


PAIRS = (
    Pair("resnet110-resnet20", lf.models.resnet110, lf.models.resnet20),
    Pair("resnet56-resnet20", lf.models.resnet56, lf.models.resnet20),
    Pair("resnext110-resnext20", lambda: lf.models.ResNeXt(110), lambda: lf.models.ResNeXt(20)),
)
TINY = Pair("resnet32-resnet20", lf.models.resnet32, lf.models.resnet20, (3, 8, 8))


class Problem:
    """Networks, one batch and a precision; every variant trains copies of the same student on it."""

    def __init__(self, pair: Pair, batch: int, precision: str, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pair, self.batch, self.precision, self.device = pair, batch, precision, device
        self.images = torch.randn(batch, *pair.image, generator=generator).to(device)
        self.labels = torch.randint(0, pair.classes, (batch,), generator=generator).to(device)

    def networks(self) -> tuple[lf.SplitModel, lf.SplitModel, torch.optim.Optimizer]:
        """A frozen teacher, a student in train mode and its optimizer, the same in every call."""
        torch.manual_seed(0)
        teacher, student = (lf.split(build().to(self.device)) for build in (self.pair.teacher, self.pair.student))
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        return teacher, student.train(), optimizer


def plain_step(problem: Problem) -> Step:
    """As the original code does it: unfused losses, section 1 twice, layouts as given, the loss read every step."""
    teacher, student, optimizer = problem.networks()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(problem.precision)
    scaler = torch.amp.GradScaler(problem.device, enabled=problem.precision == "fp16")

    def step() -> float:
        with torch.autocast(problem.device, dtype, enabled=dtype is not None):
            with torch.no_grad():
                irs, soft = teacher.run(problem.images)
            inputs = [student.stem(problem.images), *irs[:-1]]
            fed = [section(x) for section, x in zip(student.sections, inputs)]
            logits = student(problem.images)
        loss = (1 - BETA) * sum(F.mse_loss(a.float(), b.float()) for a, b in zip(fed, irs))
        hard = F.cross_entropy(logits.float(), problem.labels)
        log_q, p = F.log_softmax(logits.float() / TAU, 1), F.softmax(soft.float() / TAU, 1)
        soft_loss = TAU**2 * F.kl_div(log_q, p, reduction="batchmean")
        loss = loss + BETA * (ALPHA * hard + (1 - ALPHA) * soft_loss)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def lit_step(problem: Problem, engine: str, backend: str) -> lf.LITStep:
    """lit_fast's step on networks of its own."""
    teacher, student, optimizer = problem.networks()
    criterion = lf.LITLoss(alpha=ALPHA, beta=BETA, tau=TAU, backend=backend)
    return lf.LITStep(teacher, student, criterion, optimizer, precision=problem.precision, engine=engine)


def eager_step(problem: Problem) -> Step:
    """lit_fast's step of modules and plain PyTorch operations."""
    step = lit_step(problem, "eager", "eager")
    return lambda: step(problem.images, problem.labels)


def compiled_step(problem: Problem, mode: str) -> Step:
    """The eager step with its forward pass and loss under torch.compile."""
    step: Any = lit_step(problem, "eager", "eager")
    step.loss = torch.compile(step.loss, mode=mode)
    return lambda: step(problem.images, problem.labels)


def runner_step(problem: Problem) -> Step:
    """The teacher lowered, the loss fused."""
    step = lit_step(problem, "runner", "auto")
    return lambda: step(problem.images, problem.labels)


def work(problem: Problem) -> tuple[int, int]:
    """The least that a step must do: floating-point operations, and bytes of the student's parameters and IRs.

    The teacher forward once; the student's composed pass, its teacher-fed sections but the first, and twice that for
    the gradients. Bytes: images, the teacher's IRs written and read twice, the student's IRs written, read, and their
    gradients written and read; parameters read, their gradients and momenta written and read.
    """
    teacher, student, _ = problem.networks()
    image = problem.images[:1]
    with torch.no_grad():
        irs, _ = teacher.run(image)
        macs = counting.count_macs(teacher, image)
        fed = sum(counting.count_macs(part, x) for part, x in zip(student.sections[1:], irs))
        macs += 3 * (counting.count_macs(student, image) + fed)
    width = 4 if problem.precision == "fp32" else 2
    elements = sum(ir.numel() for ir in irs)
    parameters = sum(p.numel() for p in student.parameters())
    moved = problem.batch * (image.nbytes + 7 * width * elements) + 4 * 7 * parameters
    return 2 * macs * problem.batch, moved


def drift(step: Step, reference: Step, steps: int = 2) -> float:
    """Largest relative difference of the losses of two variants' first steps."""

    def losses(one: Step) -> list[float]:
        return [float(_total(one())) for _ in range(steps)]

    return max(abs(a - b) / abs(b) for a, b in zip(losses(step), losses(reference)))


def _total(result: Any) -> float | Tensor:
    return result.total if hasattr(result, "total") else result
