"""Several processes train a generator as one would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_celeba
import pytest
import torch
from everyday import exhaustive
from gan_helpers import TINY, networks, tiny_gan
from processes import torchrun
from test_parallel import together
from torch import Tensor
from training_helpers import interrupt, quiet

import lit_fast as lf
from lit_fast.data.tables import share
from lit_fast.errors import Interrupted
from lit_fast.gan.draws import Draws, draw
from lit_fast.gan.experiment import run_gan_experiment
from lit_fast.gan.steps import AdversarialStep, BottleneckStep
from lit_fast.models.stargan import Discriminator, Generator
from lit_fast.step.parallel import ALONE, Workers

TEACHER, LIT = "teacher-stargan6", "stargan2-lit-seed0"
SIX = "batch_size=6"  # 32 images: five steps of 6, and one of 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_celeba.write(tmp_path_factory.mktemp("celeba"))


# -- the steps ---------------------------------------------------------------------------------------------------------


def batches(*sizes: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    own = torch.Generator().manual_seed(1)  # workers are threads, and the generator of all is none of theirs
    return [
        (
            torch.rand(size, 3, 16, 16, generator=own, dtype=dtype) * 2 - 1,
            torch.randint(0, 2, (size, 5), generator=own).to(dtype),
        )
        for size in sizes
    ]


def pairs(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[lf.SplitModel, lf.SplitModel, Discriminator]]:
    """Equal copies of a teacher, a student, and a discriminator; made beforehand, since tracing is not for threads."""
    made = []
    for _ in range(count):
        torch.manual_seed(0)
        teacher, student, discriminator = (
            net.to(dtype) for net in (Generator(2, 5, 2), Generator(1, 5, 2), Discriminator(16, 5, 2))
        )
        made.append((lf.split(teacher), lf.split(student), discriminator))
        made[-1][1].freeze("stem", "head")
    return made


def trained(
    workers: Workers, pair: tuple[lf.SplitModel, lf.SplitModel, Discriminator], settings: Any, kind: str
) -> tuple[list[dict[str, list[float]]], dict[str, Tensor]]:
    """Loss parts of each step, and the weights after the last; by SGD, which gives a rounding error no weight."""
    teacher, student, discriminator = pair
    step: AdversarialStep | BottleneckStep
    if kind == "lit":
        step = BottleneckStep(teacher, student, settings, workers=workers)
        step.step.optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    else:
        step = AdversarialStep(teacher, discriminator, settings, fixed=kind == "fixed", workers=workers)
        step.optimizers = {
            name: torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.01)
            for name, optimizer in step.optimizers.items()
        }
    logged = []
    for index, (images, labels) in enumerate(batches(6, 1, 5, 6)):
        draws = draw(labels, 0, 0, index)
        rows = share(len(images), workers.rank, workers.size)
        own = Draws(draws.targets[rows].double(), draws.alpha[rows].double())
        parts = step(images[rows], labels[rows], own, index)
        logged.append({name: row.tolist() for name, row in parts.items()})
    nets = {"teacher": teacher.model, "student": student.model, "discriminator": discriminator}
    return logged, {f"{role}.{name}": t for role, net in nets.items() for name, t in net.state_dict().items()}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["adversarial", "fixed", "lit"])
def test_steps_on_shares_are_steps_on_the_whole_batch(folder: Path, size: int, kind: str) -> None:
    """Also where a worker has no row. In float64: a rounding error in float32 grows 10,000-fold in these steps."""
    settings = tiny_gan(folder, "n_critic=2", "step.engine=eager")
    alone, *copies = pairs(1 + size)
    before = {name: tensor.clone() for name, tensor in alone[0].model.state_dict().items()}
    logged, expected = trained(ALONE, alone, settings, kind)
    for parts, found in together(size, lambda workers: trained(workers, copies[workers.rank], settings, kind)):
        torch.testing.assert_close(parts, logged, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    moved = any(not expected[f"teacher.{name}"].equal(tensor) for name, tensor in before.items())
    assert moved == (kind != "lit")


def test_all_workers_skip_the_update_in_which_one_overflows(folder: Path) -> None:
    settings = tiny_gan(folder, "n_critic=1", "step.precision=fp16")
    copies = pairs(2, torch.float32)
    ((images, labels),) = batches(4, dtype=torch.float32)
    images[0] = torch.inf  # a row of rank 0
    draws = draw(labels, 0, 0, 0)
    before = {name: tensor.clone() for name, tensor in copies[0][2].state_dict().items()}

    def work(workers: Workers) -> tuple[dict[str, Tensor], float]:
        teacher, _, discriminator = copies[workers.rank]
        step = AdversarialStep(teacher, discriminator, settings, workers=workers)
        rows = share(4, workers.rank, workers.size)
        step(images[rows], labels[rows], Draws(draws.targets[rows], draws.alpha[rows]), 0)
        return discriminator.state_dict(), step.scalers["discriminator"].get_scale()

    for found, scale in together(2, work):
        assert scale == 2.0**15  # half of what it begins with
        assert all(found[name].equal(tensor) for name, tensor in before.items())


# -- whole runs, in processes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_gan_experiment(tiny_gan(folder, SIX, "variants=[lit]", "step.device=cpu"), run_dir, console=quiet())
    return run_dir


def distilled(processes: int, folder: Path, run_dir: Path, *arguments: str) -> Any:
    settings = (*TINY, SIX, "variants=[lit]", f"data.dir={folder}", "step.device=cpu")
    sets = [word for setting in settings for word in ("--set", setting)]
    command = ["-m", "lit_fast", "distill", "--recipe", "stargan-celeba", "--run-dir", str(run_dir)]
    return torchrun(processes, *command, *sets, *arguments)


def history(run_dir: Path, name: str) -> list[dict[str, Any]]:
    entries = json.loads((run_dir / "runs" / name / "result.json").read_text())["history"]
    return [{key: value for key, value in entry.items() if key not in ("seconds", "phase")} for entry in entries]


def assert_same_run(run_dir: Path, whole: Path) -> None:
    """Up to rounding, which Adam makes of the size of its rate where a gradient is almost zero."""
    for name in (TEACHER, LIT):
        for entry, expected in zip(history(run_dir, name), history(whole, name), strict=True):
            torch.testing.assert_close(entry, expected, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(networks(run_dir, name), networks(whole, name), rtol=0, atol=2e-3)


@exhaustive
def test_two_processes_are_one_at_twice_the_batch_and_rank_0_alone_writes(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    done = distilled(2, folder, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{LIT}  epoch 1/2") == 1
    assert_same_run(tmp_path / "run", whole)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["environment"]["processes"] == 2
    assert [result["history"][-1]["images"] for result in found["results"]] == [64, 64]
    assert all("scores" in result for result in found["results"])
    assert (tmp_path / "run" / "samples.png").is_file()


@exhaustive
def test_a_run_of_one_process_goes_on_with_two(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = AdversarialStep.__call__, 0

    def interrupting(self: AdversarialStep, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            interrupt()
        return original(self, *args)

    experiment = tiny_gan(folder, SIX, "variants=[lit]", "step.device=cpu")
    with monkeypatch.context() as patch:
        patch.setattr(AdversarialStep, "__call__", interrupting)
        with pytest.raises(Interrupted, match="after step 4"):
            run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    resumed = distilled(2, folder, tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole)


@exhaustive
def test_a_batch_that_does_not_divide_is_told_once(folder: Path, tmp_path: Path) -> None:
    failed = distilled(2, folder, tmp_path / "run", "--set", "batch_size=7")
    assert failed.returncode == 1
    assert failed.stderr.count("batch_size: it counts the images of all processes, so expected a multiple of 2") == 1
    assert not (tmp_path / "run").exists()
