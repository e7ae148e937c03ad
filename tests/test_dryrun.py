"""Nothing is changed by a dry run: of no network, by no function that makes one, whether it ends well or raises."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.bench.ways import Problem, work
from lit_fast.extension import EXTENSION
from lit_fast.pair.counting import count_macs
from lit_fast.runs.export import export
from lit_fast.sections.dryrun import untouched

X, LABELS = (2, 3, 8, 8), torch.tensor([0, 1])
WIDTH = 4


def conv() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv(), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def shared_module() -> nn.Module:
    act = nn.PReLU()
    return nn.Sequential(*(Block(act) for _ in range(3)))


def tied_weights() -> nn.Module:
    one, two = conv(), conv()
    two.weight = one.weight
    return nn.Sequential(one, nn.BatchNorm2d(WIDTH), nn.Dropout(), two)


class TiedEmbedding(nn.Module):
    """One Parameter as the table of an embedding and as a projection's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project = nn.Embedding(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.project.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(WIDTH, device=x.device)
        return self.project(x.transpose(1, 3) + self.table(positions).mean(0)).transpose(1, 3)


class Recurrent(nn.Module):
    """nn.LSTM holds its parameters a second time, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)


class Lazy(nn.Module):
    """Registers, counts, keeps and draws in its forward, and writes into its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls, self.recent = conv(), 0, deque(maxlen=2)
        self.seen: list[Tensor] = [torch.zeros(1)]
        self.mean = torch.zeros(WIDTH)  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "noise"):
            self.register_buffer("noise", torch.rand(1, device=x.device) * random.random())
            self.extra = nn.Identity()
        self.calls += 1
        self.last = x
        self.recent.append(self.calls)
        self.seen.append(x)
        self.seen[0] += 1
        self.mean.add_(x.detach().mean((0, 2, 3)))
        self.conv.weight.data.clamp_(-0.01, 0.01)
        return self.conv(x) + self.noise


def hooked() -> nn.Module:
    module = nn.Sequential(conv(), nn.ReLU())
    module[0].register_forward_hook(lambda module, args, out: out * module.weight.mean())
    module[0].register_forward_pre_hook(lambda module, args: setattr(module, "given", args[0]))
    return nn.utils.parametrizations.spectral_norm(module[0]) and module


class Raises(Lazy):
    """Fails with its state half changed, on the meta device and on the CPU alike."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        self.conv.weight.requires_grad_(False)
        self.conv.eval()
        raise ZeroDivisionError("a forward that raises")


class LooksAtAValue(Lazy):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * 2 if out.mean() > 0 else out


SECTIONS = [shared_module, tied_weights, TiedEmbedding, Recurrent, Lazy, hooked, Raises, LooksAtAValue]


class Net(nn.Module):
    def __init__(self, section: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.low, self.high = nn.Conv2d(3, WIDTH, 3, padding=1), section(), section()
        self.last = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.high(self.low(self.first(x))).mean((2, 3)))


def everything(*models: lf.SplitModel) -> list[Any]:
    """All that a model holds: tensors by identity with device, value and gradient; the rest as it is."""

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value), str(value.device), value.requires_grad, id(value.grad), value.detach().cpu().tolist()
        if isinstance(value, dict):
            return {key: described(item) for key, item in value.items()}
        if isinstance(value, (list, deque)):
            return [described(item) for item in value]
        return value

    modules = [module for model in models for module in (*model.modules(), *model.parts)]
    state = [torch.get_rng_state().tolist(), random.getstate()]
    return [state, *([(id(module), described(vars(module))) for module in modules])]


def inspected(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    lf.inspect(teacher, student, x)


def counted(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    for model in (teacher, student, student.model):
        count_macs(model, x)
    count_macs(teacher.part("section1"), torch.ones(2, WIDTH, 8, 8))


def worked(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    with untouched(nn.Module()):  # copies of the networks run, and may draw
        work(Problem(teacher, student, x, LABELS))


def diagnosed(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    step = lf.LITStep(teacher, student, lf.LITLoss(), torch.optim.SGD(student.parameters(), lr=0.1), engine="eager")
    lf.section_diagnostics(step, x, LABELS)


def projected(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    with untouched(nn.Module()):  # projectors are drawn
        lf.make_projectors(teacher, student, x)


def exported(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    for to in ("safetensors", "torch-export"):
        with contextlib.suppress(Exception):  # not every network can be
            export(student.model, X[1:], to, Path("net"))


def frozen(teacher: lf.SplitModel, student: lf.SplitModel, x: Tensor) -> None:
    if EXTENSION.loaded:
        lf.FrozenTeacher(teacher)._prepare(x)


DRY_RUNS = [inspected, counted, worked, diagnosed, projected, exported, frozen]


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("dry_run", DRY_RUNS)
@pytest.mark.filterwarnings("ignore")
def test_a_dry_run_changes_nothing(
    section: Callable[[], nn.Module], dry_run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    teacher = lf.split(Net(section).eval().requires_grad_(False), at=["low", "high"])
    student = lf.split(Net(section), at=["low", "high"])
    student.model.high.eval()
    student.model.first.weight.grad = torch.ones_like(student.model.first.weight)
    x = torch.randn(X)
    before = everything(teacher, student)
    fails = section is Raises and dry_run is not exported
    with pytest.raises((ZeroDivisionError, lf.PairError)) if fails else contextlib.nullcontext():
        dry_run(teacher, student, x)
    assert everything(teacher, student) == before


@pytest.mark.parametrize("dry_run", [inspected, counted, projected])
def test_parameters_that_are_not_made_yet_are_told_and_left_alone(dry_run: Callable[..., None]) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(WIDTH, 3, padding=1), nn.LazyBatchNorm2d())

    teacher, student = (lf.split(Net(lazy), at=["low", "high"]) for _ in range(2))
    with pytest.raises(ValueError, match=r"LazyConv2d: its weight is made when it first runs.*run the model on one"):
        dry_run(teacher.eval(), student, torch.randn(X))
    assert isinstance(teacher.model.low[0], nn.LazyConv2d)
    assert isinstance(student.model.high[1], nn.LazyBatchNorm2d)


def test_a_value_that_a_module_looks_at_is_reported() -> None:
    torch.manual_seed(0)
    teacher = lf.split(Net(LooksAtAValue).eval().requires_grad_(False), at=["low", "high"])
    report = lf.inspect(teacher, lf.split(Net(LooksAtAValue), at=["low", "high"]), torch.randn(X))
    assert [name for name, _ in report.not_lowered] == ["section1", "section2"]
    assert "is not lowered and runs as modules: it cannot be traced to operations (RuntimeError: " in str(report)
