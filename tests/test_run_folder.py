"""Which data a run folder may be resumed with, and what it says of data that have changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_helpers import quiet, tiny

from lit_fast.data import Augmentation, Data, from_arrays
from lit_fast.errors import RunFolderError
from lit_fast.runs.folder import DALI, RunFolder
from lit_fast.training import session
from lit_fast.training.experiment import run_experiment


def pictures(count: int) -> tuple[Tensor, Tensor]:
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
    return images, torch.arange(count) % 5


def opened(**changes) -> Data:
    arguments = {"train": pictures(40), "val": pictures(10), "test": pictures(15), "num_classes": 5, **changes}
    return from_arrays(**{"mean": (0.5,) * 3, "std": (0.25,) * 3, **arguments})


def touched(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images = pair[0].clone()
    images[3, 0, 0, 0] ^= 1
    return images, pair[1]


def relabelled(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    labels = pair[1].clone()
    labels[2] = 4
    return pair[0], labels


def begun(path: Path) -> None:
    RunFolder(path, tiny(), opened(), resume=False).claim()


def test_the_same_data_go_on(tmp_path):
    begun(tmp_path)
    RunFolder(tmp_path, tiny(), opened(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": pictures(14)}, "test has 14 images, it had 15"),
        ({"train": touched(pictures(40))}, "the images of train, or their order"),
        ({"val": relabelled(pictures(10))}, "the labels of val, or their order"),
        ({"mean": (0.5, 0.5, 0.4)}, r"mean \(\[0.5, 0.5, 0.5\] there, \[0.5, 0.5, 0.4\] now\)"),
        (
            {"augmentation": Augmentation(flip=True)},
            r"augmentation \(Augmentation\(pad=0, flip=False\) there, .*flip=True\) now\)",
        ),
        (
            {"train": touched(pictures(40)), "test": pictures(20)},
            "the images of train, or their order; test has 20 images, it had 15",
        ),
    ],
)
def test_what_changed_in_the_data_is_named(tmp_path, changes, message):
    begun(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        RunFolderError, match=rf"the data have changed since this experiment was begun: {message}\. Bring them back"
    ):
        RunFolder(tmp_path, tiny(), opened(**changes), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before  # nothing is lost


def test_a_folder_that_does_not_tell_still_refuses_other_data(tmp_path):
    begun(tmp_path)
    (tmp_path / "data.json").unlink()
    RunFolder(tmp_path, tiny(), opened(), resume=True).claim()
    (tmp_path / "data.json").unlink()
    with pytest.raises(RunFolderError, match=r"the data have changed .*: images, labels, splits, normalisation or"):
        RunFolder(tmp_path, tiny(), opened(test=pictures(14)), resume=True)


@pytest.mark.parametrize(
    ("there", "now", "message"),
    [
        ({}, {DALI: True}, "was begun without DALI, .* go on with --loader torch"),
        ({DALI: True}, {}, "was begun with DALI, .* go on with --loader dali"),
    ],
)
def test_a_run_goes_on_with_or_without_dali_as_it_began(tmp_path, there, now, message):
    RunFolder(tmp_path, tiny(), opened(), resume=False, extra=there).claim()
    with pytest.raises(RunFolderError, match=message):
        RunFolder(tmp_path, tiny(), opened(), resume=True, extra=now)


def test_what_may_change_the_last_bits_is_told(tmp_path):
    RunFolder(tmp_path, tiny(), opened(), resume=False, environment={"threads": 2, "torch": "2.13.0"}).claim()
    here = {"threads": 1, "torch": "2.13.0", "instructions": "AVX512"}
    again = RunFolder(tmp_path, tiny(), opened(), resume=True, environment=here)
    assert again.changes == ["threads 2, now 1"]
    again.claim()
    assert RunFolder(tmp_path, tiny(), opened(), resume=True, environment=here).changes == []
    (tmp_path / "environment.json").write_text("[]")
    assert RunFolder(tmp_path, tiny(), opened(), resume=True, environment=here).changes == []


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    run_experiment(tiny("epochs=1", "variants=[scratch]"), tmp_path / "run", console=quiet())
    real = session.rounding_environment
    monkeypatch.setattr(session, "rounding_environment", lambda *given: {**real(*given), "threads": 99})
    console = quiet()
    run_experiment(tiny("epochs=1", "variants=[scratch]"), tmp_path / "run", resume=True, console=console)
    assert "now 99: what follows may differ in its last bits from a run without a stop" in console.file.getvalue()
