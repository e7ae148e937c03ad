"""LITStep against a naive two-pass implementation, its running statistics policy by policy, and its errors."""

from __future__ import annotations

import contextlib
import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.errors import LoweringError
from lit_fast.extension import EXTENSION
from lit_fast.settings.variants import VARIANTS
from lit_fast.teacher import programs

ALPHA, BETA, TAU = 0.9, 0.6, 3.0


def pair(dtype: torch.dtype = torch.float64) -> tuple[lf.SplitModel, lf.SplitModel]:
    made = copy.deepcopy(made_pair(dtype))
    torch.manual_seed(0)
    return made


@functools.cache
def made_pair(dtype: torch.dtype) -> tuple[lf.SplitModel, lf.SplitModel]:
    """Made once: no test gets it, each a copy."""
    torch.manual_seed(0)
    teacher, student = (lf.split(lf.models.ResNet(depth, num_classes=5).to(dtype)) for depth in (14, 8))
    with torch.no_grad():  # statistics that are not the identity
        for _ in range(20):
            teacher(torch.randn(8, 3, 8, 8, dtype=dtype))
    return teacher.eval().requires_grad_(False), student.train()


def batch(dtype: torch.dtype = torch.float64, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(0, 5, (size,), generator=generator)


def sgd(student: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)


def criterion(**options: object) -> lf.LITLoss:
    return lf.LITLoss(**{"alpha": ALPHA, "beta": BETA, "tau": TAU, **options})


def naive_loss(
    teacher: nn.Module, student: nn.Module, images: Tensor, labels: Tensor, sections: tuple[int, ...], fed: bool
) -> Tensor:
    """The method's formulas word for word: every pass computed on its own, section 1 twice."""

    def layers(model: nn.Module, start: Tensor) -> list[Tensor]:
        outputs, h = [], start
        for name in ("layer1", "layer2", "layer3"):
            h = getattr(model, name)(h)
            outputs.append(h)
        return outputs

    def stem(model: nn.Module) -> Tensor:
        return F.relu(model.bn1(model.conv1(images)))

    def head(model: nn.Module, h: Tensor) -> Tensor:
        return model.linear(h.mean((2, 3)))

    with torch.no_grad():
        t = layers(teacher, stem(teacher))
        z_t = head(teacher, t[-1])
    a = layers(student, stem(student))
    z_s = head(student, a[-1])
    ir = torch.zeros((), dtype=images.dtype)
    for n in sections:
        b = getattr(student, f"layer{n}")(stem(student) if n == 1 else t[n - 2]) if fed else a[n - 1]
        ir = ir + F.mse_loss(b, t[n - 1])
    kl = F.kl_div(F.log_softmax(z_s / TAU, 1), F.softmax(z_t / TAU, 1), reduction="batchmean") * TAU**2
    kd = ALPHA * F.cross_entropy(z_s, labels) + (1 - ALPHA) * kl
    return BETA * kd + (1 - BETA) * ir if sections else kd


@pytest.mark.parametrize("variant", ["kd", "hint", "one_ir_teacher_input", "multi_ir", "lit"])
def test_gradients_equal_a_naive_two_pass_implementation(variant: str) -> None:
    teacher, student = pair()
    images, labels = batch()
    switches = VARIANTS[variant]
    sections = switches.ir_sections(3)
    reference = copy.deepcopy(student.model)
    expected = naive_loss(teacher.model, reference, images, labels, sections, switches.student_input == "teacher")
    expected.backward()

    step = lf.LITStep(
        teacher,
        student,
        criterion(beta=BETA if sections else 1.0),
        sgd(student),
        ir_sections=sections or "all",
        student_input=switches.student_input,
    )
    loss = step.loss(images, labels)
    loss.backward()

    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-12, atol=1e-12)
    for (name, ours), (_, theirs) in zip(student.model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_scratch_needs_no_teacher_and_is_cross_entropy() -> None:
    _, student = pair()
    images, labels = batch()
    expected = F.cross_entropy(copy.deepcopy(student.model)(images), labels)
    step = lf.LITStep(None, student, criterion(alpha=1.0, beta=1.0), sgd(student))
    torch.testing.assert_close(step.loss(images, labels), expected)


def test_a_step_updates_the_student_and_only_the_student() -> None:
    teacher, student = pair()
    before_teacher = copy.deepcopy(teacher.model.state_dict())
    before_student = copy.deepcopy(student.model.state_dict())
    step = lf.LITStep(teacher, student, criterion(), sgd(student))
    parts = step(*batch())
    assert not parts.total.requires_grad
    assert parts.ir.shape == (3,)
    assert all(torch.equal(value, before_teacher[key]) for key, value in teacher.model.state_dict().items())
    assert all(
        not torch.equal(p, before_student[name])
        for name, p in student.model.named_parameters()
        if p.grad.abs().max() > 0
    )


def stats_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def run_passes(student: nn.Module, teacher: nn.Module, images: Tensor, order: tuple[str, ...]) -> dict[str, Tensor]:
    """Running statistics after the named passes, each through plain modules in train mode."""
    model = copy.deepcopy(student)
    with torch.no_grad():
        t = [F.relu(teacher.bn1(teacher.conv1(images)))]
        for name in ("layer1", "layer2"):
            t.append(getattr(teacher, name)(t[-1]))
        for one in order:
            if one == "composed":
                model(images)
            elif one == "section1":
                saved = stats_of(model)
                h = F.relu(model.bn1(model.conv1(images)))
                model.load_state_dict(saved, strict=False)  # the stem is not what is being counted
                model.layer1(h)
            else:  # teacher-fed
                model.layer2(t[1])
                model.layer3(t[2])
    return stats_of(model)


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("composed", ("composed",)),
        ("recalibrate", ("composed",)),
        ("both", ("composed", "section1", "fed")),
    ],
)
def test_running_statistics_match_the_policy(policy: str, order: tuple[str, ...]) -> None:
    teacher, student = pair()
    images, labels = batch()
    expected = run_passes(student.model, teacher.model, images, order)
    lf.LITStep(teacher, student, criterion(), sgd(student), bn_policy=policy).loss(images, labels)
    for name, value in stats_of(student.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_teacher_fed_policy_counts_only_teacher_fed_passes_where_there_are_any() -> None:
    teacher, student = pair()
    images, labels = batch()
    composed = run_passes(student.model, teacher.model, images, ("composed",))
    fed = run_passes(student.model, teacher.model, images, ("fed",))
    lf.LITStep(teacher, student, criterion(), sgd(student), bn_policy="teacher_fed").loss(images, labels)
    for name, value in stats_of(student.model).items():
        expected = fed if name.startswith(("layer2", "layer3")) else composed
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_the_policy_does_not_change_the_gradients() -> None:
    grads = []
    for policy in ("composed", "both", "teacher_fed", "recalibrate"):
        teacher, student = pair()
        lf.LITStep(teacher, student, criterion(), sgd(student), bn_policy=policy).loss(*batch()).backward()
        grads.append([p.grad for p in student.parameters()])
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_batches_are_counted_once_per_update_of_the_statistics() -> None:
    for policy, expected in (("composed", (1, 1)), ("both", (2, 2)), ("teacher_fed", (1, 1))):
        teacher, student = pair()
        lf.LITStep(teacher, student, criterion(), sgd(student), bn_policy=policy).loss(*batch())
        counts = (student.model.layer1[0].bn1.num_batches_tracked, student.model.layer3[0].bn1.num_batches_tracked)
        assert tuple(int(c) for c in counts) == expected, policy


def test_eval_mode_returns_the_composed_pass() -> None:
    teacher, student = pair()
    step = lf.LITStep(teacher, student, criterion(), sgd(student))
    images, labels = batch()
    step(images, labels)
    student.eval()
    with torch.no_grad():
        irs, logits = student.run(images)
        assert torch.equal(student(images), student.model(images))
        assert torch.equal(logits, student.model(images))
        h = F.relu(student.model.bn1(student.model.conv1(images)))
        assert torch.equal(irs[1], student.model.layer2(student.model.layer1(h)))


def test_beta_zero_needs_no_labels_and_leaves_the_head_alone() -> None:
    teacher, student = pair()
    step = lf.LITStep(teacher, student, criterion(beta=0.0), sgd(student))
    parts = step(batch()[0])
    assert student.model.linear.weight.grad is None
    torch.testing.assert_close(parts.total, parts.ir.sum())


def test_beta_zero_still_keeps_the_statistics_of_the_composed_pass() -> None:
    teacher, student = pair()
    images, _ = batch()
    expected = run_passes(student.model, teacher.model, images, ("composed",))
    lf.LITStep(teacher, student, criterion(beta=0.0), sgd(student)).loss(images)
    for name, value in stats_of(student.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_frozen_sections_carry_no_ir_loss_and_do_not_move() -> None:
    teacher, student = pair()
    lf.copy_parts(teacher, lf.split(copy.deepcopy(teacher.model)))  # equal networks copy without complaint
    lf.copy_parts(teacher, student, ("stem", "head"))
    student.freeze("stem", "section2", "head")
    student.train()
    before = copy.deepcopy(student.model.state_dict())
    step = lf.LITStep(teacher, student, criterion(), sgd(student))
    assert step.ir_sections == (0, 2)
    step(*batch())
    for name, value in student.model.state_dict().items():
        moved = name.startswith(("layer1", "layer3")) and "num_batches" not in name
        if not moved and "num_batches" not in name:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(student.model.layer1[0].conv1.weight, before["layer1.0.conv1.weight"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_near_fp32(precision: str) -> None:
    losses = {}
    for name in ("fp32", precision):
        teacher, student = pair(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if name == "fp16" else None
        step = lf.LITStep(teacher, student, criterion(), sgd(student), precision=name, scaler=scaler)
        images, labels = batch(torch.float32)
        losses[name] = [float(step(images, labels).total) for _ in range(4)]
        assert all(p.dtype == torch.float32 for p in student.parameters())
    assert losses["fp32"][-1] < losses["fp32"][0]
    for low, full in zip(losses[precision], losses["fp32"], strict=True):
        assert abs(low - full) < 0.05 * abs(full)


def test_fp16_makes_its_own_scaler_and_the_others_need_none() -> None:
    for precision, scaled in (("fp32", False), ("bf16", False), ("fp16", True)):
        teacher, student = pair(torch.float32)
        step = lf.LITStep(teacher, student, criterion(), sgd(student), precision=precision)
        assert (step.scaler is not None) == scaled


def test_fp16_overflow_skips_the_update_and_lowers_the_scale() -> None:
    teacher, student = pair(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    step = lf.LITStep(teacher, student, criterion(), sgd(student), precision="fp16", scaler=scaler)
    before = copy.deepcopy(student.model.layer1[0].conv1.weight)
    step(*batch(torch.float32))
    assert torch.equal(student.model.layer1[0].conv1.weight, before)
    assert scaler.get_scale() < 2.0**40


def test_projectors_train_students_of_another_width() -> None:
    teacher, _ = pair()

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.layer1 = nn.Conv2d(8, 8, 3, padding=1)
            self.layer2 = nn.Conv2d(8, 24, 3, padding=1, stride=2)
            self.layer3 = nn.Conv2d(24, 64, 3, padding=1, stride=2)
            self.linear = nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
            return self.linear(h.mean((2, 3)))

    student = lf.split(Narrow().double(), at=["layer1", "layer2", "layer3"])
    images, labels = batch()
    projector = lf.make_projectors(teacher, student, images).double()
    both = [*student.parameters(), *projector.parameters()]
    step = lf.LITStep(teacher, student, criterion(), torch.optim.SGD(both, lr=0.05), projector=projector)
    losses = [float(step(images, labels).total) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ValueError, match=r"optimizer: .*projector"):
        lf.LITStep(teacher, student, criterion(), sgd(student), projector=projector)


class TestErrors:
    def test_no_teacher(self) -> None:
        _, student = pair()
        with pytest.raises(ValueError, match=r"teacher: the loss needs one unless alpha=1 and beta=1"):
            lf.LITStep(None, student, criterion(), sgd(student))

    def test_section_numbers(self) -> None:
        teacher, student = pair()
        with pytest.raises(ValueError, match=r"ir_sections: expected numbers from 1 to 3, got \[4\]"):
            lf.LITStep(teacher, student, criterion(), sgd(student), ir_sections=[4])

    def test_section_counts_differ(self) -> None:
        teacher, student = pair()
        with pytest.raises(ValueError, match=r"teacher has 3 sections .* the student 2"):
            lf.LITStep(teacher, lf.split(student.model, at=["layer1", "layer2"]), criterion(), sgd(student))

    def test_optimizer_of_another_network(self) -> None:
        teacher, student = pair()
        with pytest.raises(ValueError, match=r"optimizer: it does not hold .* 'conv1.weight'"):
            lf.LITStep(teacher, student, criterion(), sgd(lf.models.resnet20()))

    @pytest.mark.parametrize(
        ("name", "value"), [("bn_policy", "mean"), ("precision", "fp8"), ("student_input", "both")]
    )
    def test_unknown_switch(self, name: str, value: str) -> None:
        teacher, student = pair()
        with pytest.raises(ValueError, match=rf"{name}: expected .* got '{value}'"):
            lf.LITStep(teacher, student, criterion(), sgd(student), **{name: value})

    def test_all_sections_frozen(self) -> None:
        teacher, student = pair()
        optimizer = sgd(student)
        student.freeze("section1", "section2", "section3")
        with pytest.raises(ValueError, match=r"every one of them is frozen"):
            lf.LITStep(teacher, student, criterion(), optimizer)

    def test_teacher_put_back_into_train_mode(self) -> None:
        teacher, student = pair()
        step = lf.LITStep(teacher, student, criterion(), sgd(student))
        teacher.train()
        with pytest.raises(RuntimeError, match=r"teacher: expected eval mode"):
            step(*batch())

    def test_a_section_that_overwrites_the_teachers_ir(self) -> None:
        teacher, student = pair()
        student.model.layer2 = nn.Sequential(nn.ReLU(inplace=True), student.model.layer2)
        student = lf.split(student.model)
        step = lf.LITStep(teacher, student, criterion(), sgd(student))
        with pytest.raises(RuntimeError, match=r"section 2 of the student overwrites its input in place"):
            step(*batch())

    def test_momentum_none_cannot_count_double(self) -> None:
        teacher, student = pair()
        student.model.layer1[0].bn1.momentum = None
        with pytest.raises(ValueError, match=r"'both' counts section 1 twice"):
            lf.LITStep(teacher, student, criterion(), sgd(student), bn_policy="both")


class TestRecalibrate:
    def test_equals_the_average_over_the_batches(self) -> None:
        _, student = pair()
        images, _ = batch(size=12)
        lf.recalibrate(student, images.split(4))
        conv = student.model.conv1(images)
        expected = torch.stack([part.mean((0, 2, 3)) for part in conv.split(4)]).mean(0)
        torch.testing.assert_close(student.model.bn1.running_mean, expected)

    def test_leaves_mode_momentum_and_frozen_parts_as_they_were(self) -> None:
        _, student = pair()
        student.freeze("stem")
        student.eval()
        before = student.model.bn1.running_mean.clone()
        lf.recalibrate(student, [batch()[0]])
        assert not student.training
        assert student.model.layer1[0].bn1.momentum == 0.1
        assert torch.equal(student.model.bn1.running_mean, before)

    def test_without_batches_nothing_changes(self) -> None:
        _, student = pair()
        before = stats_of(student.model)
        with pytest.raises(ValueError, match=r"at least one batch"):
            lf.recalibrate(student, [])
        assert all(torch.equal(value, before[name]) for name, value in stats_of(student.model).items())


# -- the teacher ahead -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
@pytest.mark.parametrize(("announced", "early"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_prefetching_changes_nothing(announced: int, early: int) -> None:
    """With float64 to rounding: another batch size of the teacher's forward may round otherwise."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64) for size in (6, 6, 5, 6, 6, 4)]
    weights = []
    for ahead in (False, True):
        teacher, student = pair()
        step = lf.LITStep(teacher, student, criterion(), sgd(student), engine="runner")
        if ahead and early:
            step.prefetch(*batches[:announced])
        for i, images in enumerate(batches):
            start = i + early * announced
            if ahead and i % announced == 0 and start < len(batches):
                step.prefetch(*batches[start : start + announced])
            step(images, torch.arange(len(images)) % 5)
        weights.append(stats_of(student) | dict(student.named_parameters()))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
def test_images_that_were_not_announced_are_trained_on() -> None:
    teacher, student = pair(torch.float32)
    step = lf.LITStep(teacher, student, criterion(), sgd(student), engine="runner")
    announced, labels = batch(torch.float32)
    other = announced.flip(0)
    step.prefetch(announced, announced.clone())
    parts = step(other, labels)
    teacher, student = pair(torch.float32)
    expected = lf.LITStep(teacher, student, criterion(), sgd(student), engine="runner")(other, labels)
    assert parts.total == expected.total


def test_prefetching_is_no_matter_for_modules() -> None:
    teacher, student = pair(torch.float32)
    step = lf.LITStep(teacher, student, criterion(), sgd(student), engine="eager")
    images, labels = batch(torch.float32)
    step.prefetch(images)
    assert step(images, labels).total.isfinite()


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


def gated() -> lf.SplitModel:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), Gate(), nn.Conv2d(4, 4, 3), nn.Flatten(1))
    return lf.split(layers.append(nn.Linear(16, 5)), at=["1", "3"])


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
@pytest.mark.parametrize("engine", ["auto", "runner"])
def test_a_teacher_that_looks_at_a_value_runs_as_its_module(engine: str) -> None:
    images, labels = batch(torch.float32)
    losses = []
    for way in (engine, "eager"):
        torch.manual_seed(0)
        teacher, student = gated(), gated().train()
        step = lf.LITStep(teacher, student, criterion(), sgd(student), engine=way)
        losses.append(step(images, labels).total)
        if way == engine:
            assert (
                "; section2: runs as its modules: it cannot be traced to operations (RuntimeError: "
                in step.engine_reason
            )
    torch.testing.assert_close(*losses)


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
def test_a_part_without_an_engine_runs_as_its_module_unless_the_runner_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unavailable(x: Tensor) -> Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(programs, "_program", lambda steps, output: unavailable)
    images, labels = batch(torch.float32)
    losses = []
    for engine in ("auto", "eager"):
        teacher, student = pair(torch.float32)
        step = lf.LITStep(teacher, student, criterion(), sgd(student), engine=engine)
        reason = step.engine_reason
        expected = pytest.warns(UserWarning, match="teacher, section1: lowered, it fails .*; it runs as its modules")
        with expected if engine == "auto" else contextlib.nullcontext():
            losses.append(step(images, labels).total)
        if engine == "auto":
            assert step.engine_reason.startswith(
                f"{reason}; stem: runs as its modules: it fails (RuntimeError: GET was"
            )
    torch.testing.assert_close(*losses)
    teacher, student = pair(torch.float32)
    step = lf.LITStep(teacher, student, criterion(), sgd(student), engine="runner")
    with pytest.raises(LoweringError, match=r"teacher, stem: lowered, it fails .*unable to find an engine"):
        step(images, labels)


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
@pytest.mark.parametrize("beta", [0.0, BETA, 1.0])
def test_steps_that_share_a_frozen_teacher_do_what_those_with_their_own_do(
    monkeypatch: pytest.MonkeyPatch, beta: float
) -> None:
    lowered = []
    lower = programs.lower
    monkeypatch.setattr(programs, "lower", lambda part, x: lowered.append(part.name) or lower(part, x))
    images, labels = batch(torch.float32)
    teacher, _ = pair(torch.float32)
    shared = lf.FrozenTeacher(teacher)
    losses: list[list[Tensor]] = [[], []]
    for totals, frozen in zip(losses, (shared, None)):
        _, student = pair(torch.float32)
        for options in ({"beta": beta}, {"beta": BETA}):
            step = lf.LITStep(teacher, student, criterion(**options), sgd(student), engine="runner", frozen=frozen)
            totals.append(step(images, labels).total)
    assert losses[0] == losses[1]
    assert len(lowered) == 3 * 5


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
class TestASharedFrozenTeacher:
    """What does not do for a step is refused when the step is built."""

    def refused(self, message: str, engine: str = "runner", **how: object) -> None:
        teacher, student = pair(torch.float32)
        frozen = how.pop("frozen", None) or lf.FrozenTeacher(teacher, **how)
        with pytest.raises((TypeError, ValueError), match=message):
            lf.LITStep(teacher, student, criterion(), sgd(student), engine=engine, frozen=frozen)

    def test_of_another_teacher(self) -> None:
        self.refused("frozen: it was made from another teacher", frozen=lf.FrozenTeacher(pair(torch.float32)[0]))

    def test_of_another_dtype(self) -> None:
        self.refused("frozen: expected torch.float32 for the step's precision, got torch.float16", dtype=torch.float16)

    def test_without_logits(self) -> None:
        self.refused("frozen: it leaves the head out, and the loss needs logits", logits=False)

    @pytest.mark.parametrize("engine", ["runner", "auto"])
    def test_that_raises_where_another_would_not(self, engine: str) -> None:
        self.refused(f"frozen: expected strict={engine == 'runner'}", engine=engine, strict=engine == "auto")

    def test_of_no_such_kind(self) -> None:
        self.refused("frozen: expected a FrozenTeacher, got Linear", frozen=nn.Linear(1, 1))

    def test_of_a_teacher_that_changed(self) -> None:
        teacher, student = pair(torch.float32)
        frozen = lf.FrozenTeacher(teacher, strict=False)
        lf.LITStep(teacher, student, criterion(), sgd(student), frozen=frozen)(*batch(torch.float32))
        lf.LITStep(teacher, student, criterion(), sgd(student), frozen=frozen)
        teacher.model.linear.bias.data.add_(1)
        with pytest.raises(ValueError, match="frozen: the teacher's parameters have changed"):
            lf.LITStep(teacher, student, criterion(), sgd(student), frozen=frozen)

    def test_that_modules_do_not_need(self) -> None:
        teacher, student = pair(torch.float32)
        frozen = lf.FrozenTeacher(teacher)
        step = lf.LITStep(teacher, student, criterion(), sgd(student), engine="eager", frozen=frozen)
        step(*batch(torch.float32))
        assert not frozen.parts
