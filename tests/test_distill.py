"""`lit_fast.distill` with networks and data of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_helpers import differing, quiet, weights

import lit_fast as lf
from lit_fast.errors import ConfigError, RunFolderError

OVERRIDES = ("epochs=3", "batch_size=16", "logging.tensorboard=false", "step.device=cpu")


class Net(nn.Module):
    """A network that knows nothing of lit_fast."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.low = nn.Sequential(*[self.block(8) for _ in range(depth)])
        self.high = nn.Sequential(*[self.block(8) for _ in range(depth)])
        self.last = nn.Linear(8, 2)

    @staticmethod
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.high(self.low(self.first(x))).mean((2, 3)))


def bright_or_dark() -> lf.data.Data:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 2
    noise = torch.randint(0, 60, (160, 1, 8, 8), generator=generator)
    images = (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return lf.data.from_arrays(
        train=(images[:96], labels[:96]), val=(images[96:128], labels[96:128]), test=(images[128:], labels[128:])
    )


@pytest.fixture(scope="module")
def teacher() -> Net:
    torch.manual_seed(0)
    net, data = Net(3), bright_or_dark()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(6):
        for images, labels in data.train_batches(epoch, batch_size=16, seed=0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net


def halves(net: nn.Module) -> lf.SplitModel:
    return lf.split(net, at=["low", "high"])


def student() -> Net:
    torch.manual_seed(1)
    return Net(1)


def test_the_given_student_is_trained_in_place(teacher: Net, tmp_path: Path) -> None:
    net = student()
    done = lf.distill(
        halves(teacher),
        halves(net),
        bright_or_dark(),
        recipe="digits",
        run_dir=tmp_path / "r",
        overrides=OVERRIDES,
        console=quiet(),
    )
    assert done.student is net
    first, second = done.results
    assert (first["role"], second["variant"]) == ("teacher", "lit")
    assert first["accuracy"]["test_last"] > 90
    assert second["accuracy"]["test_last"] > 90
    assert not differing(weights(tmp_path / "r", second["name"]), dict(net.state_dict()))
    assert json.loads((tmp_path / "r" / "results.json").read_text())["results"] == done.results


def test_a_resumed_call_gives_a_fresh_student_the_same_weights(teacher: Net, tmp_path: Path) -> None:
    options = {"recipe": "digits", "run_dir": tmp_path / "r", "overrides": OVERRIDES, "console": quiet()}
    first = student()
    lf.distill(halves(teacher), halves(first), bright_or_dark(), **options)
    torch.manual_seed(99)
    second = Net(1)
    lf.distill(halves(teacher), halves(second), bright_or_dark(), resume=True, **options)
    assert not differing(dict(first.state_dict()), dict(second.state_dict()))


def test_another_teacher_is_another_experiment(teacher: Net, tmp_path: Path) -> None:
    options = {"recipe": "digits", "run_dir": tmp_path / "r", "overrides": OVERRIDES, "console": quiet()}
    lf.distill(halves(teacher), halves(student()), bright_or_dark(), **options)
    other = Net(3)
    with pytest.raises(RunFolderError, match=r"teacher.weights"):
        lf.distill(halves(other), halves(student()), bright_or_dark(), resume=True, **options)


def test_a_pair_that_does_not_fit_fails_by_name_before_training(teacher: Net, tmp_path: Path) -> None:
    wide = Net(1)
    wide.high = nn.Conv2d(8, 12, 3)
    wide.last = nn.Linear(12, 2)
    with pytest.raises(lf.PairError, match=r"section ?2"):
        lf.distill(
            halves(teacher),
            halves(wide),
            bright_or_dark(),
            recipe="digits",
            run_dir=tmp_path / "r",
            overrides=OVERRIDES,
        )


def test_unknown_override(teacher: Net, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss.gamma: unknown key"):
        lf.distill(
            halves(teacher),
            halves(student()),
            bright_or_dark(),
            recipe="digits",
            run_dir=tmp_path / "r",
            overrides=["loss.gamma=1"],
        )
