"""Section diagnostics: against formulas written out, with an assembly gap that is known, and without a trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.settings.variants import VARIANTS

ALPHA, BETA, TAU = 0.9, 0.6, 3.0


class Chain(nn.Module):
    """Linear sections with BatchNorm and dropout: whatever leaves a trace."""

    def __init__(self, width: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        for n in (1, 2, 3):
            setattr(
                self, f"part{n}", nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(dropout))
            )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part3(self.part2(self.part1(self.stem(x)))))


def chain(seed: int, dropout: float = 0.0) -> lf.SplitModel:
    torch.manual_seed(seed)
    return lf.split(Chain(dropout=dropout).double(), at=["part1", "part2", "part3"])


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 4, generator=generator, dtype=torch.float64), torch.randint(5, (16,), generator=generator)


def step_of(
    teacher: lf.SplitModel | None, student: lf.SplitModel, variant: str = "lit", **options: object
) -> lf.LITStep:
    switches = VARIANTS[variant]
    settings: dict[str, object] = {"alpha": ALPHA, "beta": BETA, "tau": TAU, **options}
    return lf.LITStep(
        teacher,
        student.train(),
        lf.LITLoss(**settings),  # type: ignore[arg-type]
        torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9),
        ir_sections=switches.ir_sections(3) or "all",
        student_input=switches.student_input,
    )


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    x, y = (torch.cat([g.flatten() for g in gradients]) for gradients in (a, b))
    return float(F.cosine_similarity(x, y, dim=0))


@pytest.mark.parametrize("variant", ["hint", "one_ir_teacher_input", "multi_ir", "lit"])
def test_numbers_equal_the_formulas(variant: str) -> None:
    teacher, student = chain(0), chain(1)
    images, labels = batch()
    found = lf.section_diagnostics(step_of(teacher, student, variant), images, labels)

    targets, z_t = teacher.run(images)
    composed, z_s = student.run(images)
    assert not any(target.requires_grad for target in targets)
    fed = [composed[0], student.sections[1](targets[0]), student.sections[2](targets[1])]
    assert found.teacher_fed == pytest.approx([F.mse_loss(a, t).item() for a, t in zip(fed, targets)], rel=1e-9)
    assert found.composed == pytest.approx([F.mse_loss(a, t).item() for a, t in zip(composed, targets)], rel=1e-9)
    assert found.gaps == pytest.approx([a - b for a, b in zip(found.composed, found.teacher_fed)], abs=1e-12)

    kl = F.kl_div(F.log_softmax(z_s / TAU, 1), F.softmax(z_t / TAU, 1), reduction="batchmean") * TAU**2
    kd = ALPHA * F.cross_entropy(z_s, labels) + (1 - ALPHA) * kl
    switches = VARIANTS[variant]
    own = [n - 1 for n in switches.ir_sections(3)]
    ir = sum(F.mse_loss((fed if switches.student_input == "teacher" else composed)[i], targets[i]) for i in own)
    assert isinstance(ir, Tensor)
    pairs = []
    for i in range(3):
        parameters = list(student.sections[i].parameters())
        if i not in own:
            assert found.cosines[i] is None
            continue
        gradients = [list(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in (kd, ir)]
        assert found.cosines[i] == pytest.approx(cosine(*gradients), rel=1e-6)
        pairs.append(gradients)
    together = [[g for pair in pairs for g in pair[side]] for side in (0, 1)]
    assert found.cosine == pytest.approx(cosine(*together), rel=1e-6)


def test_the_gap_is_what_the_section_before_loses() -> None:
    """All sections the teacher's but the first: fed by the teacher there is no error, put together there is."""
    teacher = chain(0).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.model.part1[0].bias.add_(1.0)  # type: ignore[union-attr,operator]
    student.freeze("stem", "section2", "section3", "head")
    images, labels = batch()
    step = step_of(teacher, student)
    student.eval()
    found = lf.section_diagnostics(step, images, labels)
    assert found.teacher_fed[1:] == [0.0, 0.0]
    assert min(found.gaps[1:]) > 0.0
    assert found.gaps[0] == 0.0
    assert found.cosines[1:] == [None, None]  # frozen
    assert found.cosine == found.cosines[0]


def test_a_section_whose_ir_is_met_has_no_gradient_and_no_cosine() -> None:
    teacher = chain(0).eval()
    student = copy.deepcopy(teacher)
    step = step_of(teacher, student)
    student.eval()
    found = lf.section_diagnostics(step, *batch())
    assert found.teacher_fed == [0.0, 0.0, 0.0]
    assert (found.cosines, found.cosine) == ([None, None, None], None)


@pytest.mark.parametrize("beta", [1.0, 0.0])
def test_with_one_loss_alone_there_are_errors_and_no_cosine(beta: float) -> None:
    found = lf.section_diagnostics(step_of(chain(0), chain(1), beta=beta), *batch())
    assert min(found.teacher_fed) > 0.0
    assert (found.cosines, found.cosine) == ([None, None, None], None)


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    """Weights, momentum, running statistics and dropout's draws are bit-equal with and without a look at each step."""
    states = []
    for looks in (False, True):
        teacher, student = chain(0), chain(1, dropout=0.5)
        step = step_of(teacher, student)
        torch.manual_seed(7)
        for _ in range(3):
            step(*batch())
            if looks:
                lf.section_diagnostics(step, *batch())
        states.append((student.model.state_dict(), step.optimizer.state_dict()["state"]))
        assert student.training
        assert all(p.grad is not None for p in student.parameters())
    for (name, a), b in zip(states[0][0].items(), states[1][0].values()):
        assert torch.equal(a, b), name
    for a, b in zip(states[0][1].values(), states[1][1].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_other_ir_losses_and_section_weights_are_the_step_s() -> None:
    """Errors are unweighted means of the step's element loss; weights count in the cosine over all sections."""
    teacher, student = chain(0), chain(1)
    plain = lf.section_diagnostics(step_of(teacher, student, ir="l1"), *batch())
    weighted = lf.section_diagnostics(step_of(teacher, student, ir="l1", section_weights=(1, 0, 0)), *batch())
    target, own = teacher.run(batch()[0])[0][0], student.run(batch()[0])[0][0]
    assert plain.teacher_fed[0] == pytest.approx((own - target).abs().mean().item(), rel=1e-9)
    assert weighted.teacher_fed == plain.teacher_fed
    assert weighted.cosines[0] == pytest.approx(plain.cosines[0])
    assert weighted.cosines[1] is None
    assert weighted.cosine is not None
    assert not math.isclose(weighted.cosine, plain.cosine or 0.0)


def test_what_cannot_be_measured_is_told_by_name() -> None:
    with pytest.raises(ValueError, match="the step has no teacher"):
        lf.section_diagnostics(step_of(None, chain(1), alpha=1.0, beta=1.0), *batch())
    teacher, student = lf.split(lf.models.resnext20(cardinality=2)), lf.split(lf.models.resnet20())
    maps = lf.make_projectors(teacher, student, torch.zeros(1, 3, 8, 8))
    optimizer = torch.optim.SGD([*student.parameters(), *maps.parameters()], lr=0.1)
    step = lf.LITStep(teacher, student, lf.LITLoss(), optimizer, projector=maps)
    with pytest.raises(ValueError, match="IRs of equal width"):
        lf.section_diagnostics(step, torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
