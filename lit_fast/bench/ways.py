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

from lit_fast.literals import TargetsKind
from lit_fast.loss.modules import LITLoss
from lit_fast.loss.targets import TargetsOf, resolve
from lit_fast.pair import counting
from lit_fast.sections.inputs import Inputs, call, num_rows, only_tensor, replaced, tensors_of
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
    "fused_step",
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
        inputs: of the models, [B, ...]: a tensor, a tuple or a dict.
        labels: as the targets take them, class indices [B] int64 for instance; ``None`` needs beta = 0, or targets
            that need none.
        precision: "fp32", "bf16" or "fp16".
        alpha, beta, tau: of the loss (method eq. 1, 2).
        name: of the pair, for reports.
        targets: as for `LITStep`.
    """

    def __init__(
        self,
        teacher: SplitModel,
        student: SplitModel,
        inputs: Inputs,
        labels: Tensor | None,
        precision: str = "fp32",
        *,
        alpha: float = 0.95,
        beta: float = 0.75,
        tau: float = 6.0,
        name: str = "",
        targets: TargetsKind | TargetsOf = "classification",
    ) -> None:
        if labels is None and beta > 0 and targets == "classification":
            raise ValueError("labels: expected class indices, got None; only beta=0 (no KD loss) goes without")
        self.teacher, self.student, self.inputs, self.labels = teacher, student, inputs, labels
        self.targets = targets
        self.precision, self.alpha, self.beta, self.tau, self.name = precision, alpha, beta, tau, name
        self.batch, self.device = num_rows(inputs), next(tensors_of(inputs)).device.type
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
    """As the original code does it: unfused losses, section 1 twice, layouts as given, the loss read every step.

    The sections of a recorded student take masks and positions from its composed pass, so that comes first there, and
    section 1 runs once.
    """
    teacher, student, optimizer = problem.networks()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(problem.precision)
    scaler = torch.amp.GradScaler(problem.device, enabled=problem.precision == "fp16")
    alpha, beta, tau, mark = problem.alpha, problem.beta, problem.tau, problem.mark
    targets = resolve(problem.targets, -100, False)
    recorded = student.how == "recorded"

    def step() -> float:
        with torch.autocast(problem.device, dtype, enabled=dtype is not None):
            with torch.no_grad(), mark("teacher"):
                irs, output = teacher.run(problem.inputs)
            composed: Any = None
            if recorded:
                with mark("student, composed"):
                    (first, *_), composed = student.run(problem.inputs)
                with mark("student, teacher-fed"):
                    fed = [first, *(section(x) for section, x in zip(student.sections[1:], irs))]
            else:
                with mark("student, teacher-fed"):
                    inputs = [student.stem(only_tensor(problem.inputs)), *irs[:-1]]
                    fed = [section(x) for section, x in zip(student.sections, inputs)]
            if beta > 0 and not recorded:
                with mark("student, composed"):
                    composed = call(student, problem.inputs)
            for model in (teacher, student):
                model.release()
        with mark("loss"):
            loss = (1 - beta) * torch.stack([F.mse_loss(a.float(), b.float()) for a, b in zip(fed, irs)]).sum()
            if beta > 0:
                logits, labels, _ = targets(composed, problem.inputs, problem.labels)
                soft = targets(output, problem.inputs, problem.labels).logits
                assert labels is not None
                hard = F.cross_entropy(logits.float(), labels)
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
    if engine == "runner" and problem.device == "cuda":  # cuDNN would lay the weights out anew at every call
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    criterion = LITLoss(alpha=problem.alpha, beta=problem.beta, tau=problem.tau, backend=backend)
    return LITStep(
        teacher,
        student,
        criterion,
        optimizer,
        precision=problem.precision,
        engine=engine,
        capture=capture,
        targets=problem.targets,
        **options,
    )


def eager_step(problem: Problem) -> Way:
    """lit_fast's step of modules and plain PyTorch operations."""
    step = lit_step(problem, "eager", "eager")
    return lambda: step(problem.inputs, problem.labels)


def compiled_step(problem: Problem, mode: str) -> Way:
    """The eager step with its forward pass and loss under torch.compile."""
    step: Any = lit_step(problem, "eager", "eager")
    step.loss = torch.compile(step.loss, mode=mode)
    return lambda: step(problem.inputs, problem.labels)


def runner_step(problem: Problem) -> Way:
    """The teacher lowered, the loss fused."""
    step = lit_step(problem, "runner", "auto")
    return lambda: step(problem.inputs, problem.labels)


def fused_step(problem: Problem) -> Way:
    """The loss fused, the teacher's modules."""
    step = lit_step(problem, "eager", "auto")
    return lambda: step(problem.inputs, problem.labels)


def captured_step(problem: Problem) -> Way:
    """The same as the fastest of these, replayed as one CUDA graph.

    Raises:
        RuntimeError: it cannot be captured; says why.
    """
    engine = "runner" if problem.teacher.how == "traced" else "eager"
    return replays(lit_step(problem, engine, "auto", capture=True), problem)


def replays(step: LITStep, problem: Problem) -> Way:
    """Trains one step, which shows whether it is captured; the way's first call gives that step's result.

    So the first call of every way is its first step, and `drift` compares the same steps.
    """
    first: list[object] = [step(problem.inputs, problem.labels)]
    if not step.captured:
        raise RuntimeError(f"not captured: {step.capture_reason}")
    return lambda: first.pop() if first else step(problem.inputs, problem.labels)


def work(problem: Problem) -> tuple[int, int]:
    """The least that a step must do: floating-point operations, and bytes of the student's parameters and IRs.

    The teacher forward once; the student's composed pass (with beta = 0 no more of it than section 1), its teacher-
    fed sections but the first, and twice that for the gradients. Bytes: images, the teacher's IRs written and read
    twice, the student's IRs written, read, and their gradients written and read; parameters read, their gradients
    and momenta written and read.
    """
    teacher, student, _ = problem.networks()
    image = replaced(problem.inputs, lambda value: value[:1] if isinstance(value, Tensor) and value.dim() else value)
    with torch.no_grad():
        irs, _ = teacher.run(image)
        macs, composed, fed = _macs(teacher, student, image, irs)
        if problem.beta == 0:
            stem = student.stem(image)
            composed = counting.count_macs(student.stem, image) + counting.count_macs(student.sections[0], stem)
        macs += 3 * (composed + fed)
    for model in (teacher, student):
        model.release()
    width = 4 if problem.precision == "fp32" else 2
    elements = sum(ir.numel() for ir in irs)
    parameters = sum(p.numel() for p in student.parameters())
    read = sum(tensor.nbytes for tensor in tensors_of(image))
    moved = problem.batch * (read + 7 * width * elements) + 4 * 7 * parameters
    return 2 * macs * problem.batch, moved


def _macs(teacher: SplitModel, student: SplitModel, image: Inputs, irs: list[Tensor]) -> tuple[int, int, int]:
    """Of the teacher, of the student's composed pass, and of its teacher-fed sections but the first."""
    whole = [
        sum(counting.count_part_macs(model, [image])) if model.how == "recorded" else counting.count_macs(model, image)
        for model in (teacher, student)
    ]
    if student.how == "recorded":
        return whole[0], whole[1], sum(counting.count_part_macs(student, [image])[2:-1])
    return whole[0], whole[1], sum(counting.count_macs(part, x) for part, x in zip(student.sections[1:], irs))


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
    for call_number in range(calls):
        torch.manual_seed(call_number)  # dropout: both draw the same
        expected = [float(_total(reference())) for _ in range(steps_of(way))][-1]
        torch.manual_seed(call_number)
        worst = max(worst, abs(float(_total(way())) - expected) / abs(expected))
    return worst


def _total(result: Any) -> float | Tensor:
    return result.total if hasattr(result, "total") else result
