"""`lit_fast.distill` with networks and data of one's own."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from test_cli import lit_fast_command, refused
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_helpers import before_step, differing, interrupt, quiet, weights

import lit_fast as lf
from lit_fast.errors import ConfigError, Interrupted, RunFolderError
from lit_fast.settings.optimizer import OptimizerConfig
from lit_fast.step.parallel import Workers
from lit_fast.training import classifier

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


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw takes longer than to train."""
    monkeypatch.setattr("lit_fast.report.plots.draw", lambda *_: None)


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


def test_adamw_trains_and_resumes_exactly(teacher: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ("phases.lit.lr=0.003", "phases.finetune.lr=0.001")
    chosen = ("optimizer={name: adamw, betas: [0.8, 0.99], eps: 1e-6, weight_decay: 0.05}", *OVERRIDES, *rates)

    def trained(folder: str, resume: bool = False) -> dict[str, Tensor]:
        net = student()
        options = {"recipe": "digits", "run_dir": tmp_path / folder, "overrides": chosen, "console": quiet()}
        done = lf.distill(halves(teacher), halves(net), bright_or_dark(), resume=resume, **options)
        assert done.results[1]["accuracy"]["test_last"] > 90
        return dict(net.state_dict())

    whole = trained("whole")
    with monkeypatch.context() as patch:
        before_step(patch, 9, interrupt)
        with pytest.raises(Interrupted):
            trained("stopped")
    assert not differing(trained("stopped", resume=True), whole)
    written = yaml.safe_load((tmp_path / "whole" / "experiment.yaml").read_text())["optimizer"]
    assert written == {"name": "adamw", "weight_decay": 0.05, "betas": [0.8, 0.99], "eps": 1e-6}


def test_sgd_is_written_as_before_and_built_of_its_settings() -> None:
    config = OptimizerConfig(momentum=0.5)
    assert config.model_dump() == {"momentum": 0.5, "weight_decay": 1e-4, "nesterov": False}
    (group,) = OptimizerConfig(name="adamw").build([torch.ones(1)], torch.device("cpu")).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 1e-4)


def test_the_commands_take_the_weights_with_the_function_that_makes_the_network(
    teacher: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"recipe": "digits", "run_dir": tmp_path / "r", "overrides": OVERRIDES, "console": quiet()}
    done = lf.distill(halves(teacher), halves(student()), bright_or_dark(), **options)
    module = ModuleType("mine")
    vars(module).update(net=lambda: Net(1), split=lambda: halves(Net(1)), data=bright_or_dark)
    monkeypatch.setitem(sys.modules, "mine", module)
    file = tmp_path / "r" / done.results[1]["files"]["last"]
    told = lit_fast_command("evaluate", "--checkpoint", file, "--model", "mine:net", "--dataset", "mine:data")
    assert f"{done.results[1]['accuracy']['test_last']:.2f} % (" in told.stdout, told.output
    assert "give the function that makes them" in refused("evaluate", "--checkpoint", file, "--model", "mine:net")
    written = ["--checkpoint", file, "--to", "torch-export", "--out", tmp_path / "net.pt2"]
    assert lit_fast_command("export", *written, "--model", "mine:split").exit_code == 0
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    assert "a network of your own: give the function that makes it, --model" in refused("export", *written)


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


# -- a last batch of one image ---------------------------------------------------------------------------------------


class OneValue(Net):
    """BatchNorm has one value per channel and image, in the head or in section 2."""

    def __init__(self, where: str) -> None:
        super().__init__(1)
        if where == "head":
            self.last = nn.Sequential(nn.BatchNorm1d(8), self.last)
        else:
            self.high = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())


def trained(net: nn.Module) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    (batch,) = bright_or_dark().train_batches(0, batch_size=96, seed=0)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
    return net


def one_left(where: str, folder: Path, *overrides: str) -> lf.Distilled:
    """Five batches of 19 images and one of one image, in two LIT epochs and a fine-tune epoch."""
    torch.manual_seed(2)
    pair = halves(trained(OneValue(where))), halves(OneValue(where))
    settings = [*OVERRIDES, "batch_size=19", *overrides]
    options = {"recipe": "digits", "run_dir": folder, "overrides": settings, "console": quiet()}
    return lf.distill(*pair, bright_or_dark(), **options)


@pytest.mark.parametrize(("where", "in_lit"), [("head", True), ("section", False)])
@pytest.mark.parametrize("policy", ["composed", "recalibrate"])
def test_a_last_image_that_batchnorm_cannot_be_trained_on_is_left_out_where_it_cannot(
    where: str, in_lit: bool, policy: str, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    seen: list[tuple[bool, int]] = []
    step = classifier._train

    def look(lit: lf.LITStep, images: Tensor, labels: Tensor) -> Any:
        seen.append((bool(lit.student.frozen), len(images)))
        return step(lit, images, labels)

    monkeypatch.setattr(classifier, "_train", look)
    one_left(where, tmp_path / "r", f"step.bn_policy={policy}")
    lit = [(True, 19)] * 5 + [(True, 1)] * in_lit
    assert seen == lit + lit + [(False, 19)] * 5
    phases = "finetune" if in_lit else "lit, finetune"
    assert (
        f"with one of the 96 images, on which its BatchNorm cannot be trained: it is left out in the phases {phases}"
        in (caplog.text)
    )


def test_a_last_image_that_a_network_can_be_trained_on_is_trained_on(
    teacher: Net, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    seen: list[int] = []
    step = classifier._train
    monkeypatch.setattr(classifier, "_train", lambda lit, *batch: seen.append(len(batch[0])) or step(lit, *batch))
    options = {"recipe": "digits", "run_dir": tmp_path, "overrides": [*OVERRIDES, "batch_size=19"], "console": quiet()}
    lf.distill(halves(teacher), halves(student()), bright_or_dark(), **options)
    assert seen == [*([19] * 5), 1] * 3
    assert "left out" not in caplog.text


def test_a_run_that_leaves_an_image_out_is_resumed_exactly(tmp_path: Path, monkeypatch: Any) -> None:
    whole = one_left("section", tmp_path / "whole")
    step, calls = classifier._train, []

    def stop(*batch: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 8:
            signal.raise_signal(signal.SIGINT)
        return step(*batch)

    monkeypatch.setattr(classifier, "_train", stop)
    with pytest.raises(lf.Interrupted):
        one_left("section", tmp_path / "parts")
    monkeypatch.undo()
    options = {"recipe": "digits", "run_dir": tmp_path / "parts", "console": quiet(), "resume": True}
    torch.manual_seed(2)
    pair = halves(trained(OneValue("section"))), halves(OneValue("section"))
    parts = lf.distill(*pair, bright_or_dark(), overrides=[*OVERRIDES, "batch_size=19"], **options)
    assert not differing(dict(whole.student.state_dict()), dict(parts.student.state_dict()))


def test_batches_of_one_image_for_each_process_are_refused_where_batchnorm_cannot_be_trained() -> None:
    task = SimpleNamespace(
        settings=SimpleNamespace(batch_size=4),
        data=SimpleNamespace(train=range(96)),
        workers=Workers(0, 4, "cpu"),
        spec=SimpleNamespace(name="net", phases=[SimpleNamespace(name="lit")]),
        _takes_one_row=lambda phase: False,
    )
    with pytest.raises(ConfigError, match=r"batch_size: the BatchNorm of net cannot .* one of the 4 of a step; choose"):
        classifier.ClassifierTask._check_one_row(task)
    task.settings.batch_size, task.data.train = 8, range(85)  # five images to four processes
    classifier.ClassifierTask._check_one_row(task)
    assert task._leave_out_last == {"lit": True}
    del task._leave_out_last
    task.data.train = range(96)
    classifier.ClassifierTask._check_one_row(task)
    assert not hasattr(task, "_leave_out_last")


# -- what the caller holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_weights_can_be_saved_by_safetensors_afterwards(
    fails: bool, teacher: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    def stopped(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    if fails:
        monkeypatch.setattr(lf.LITStep, "_update", stopped)
    ours, net = copy.deepcopy(teacher), student()
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        lf.distill(
            halves(ours),
            halves(net),
            bright_or_dark(),
            recipe="digits",
            run_dir=tmp_path / "r",
            overrides=(*OVERRIDES, "epochs=1"),
            console=quiet(),
        )
    for model in (ours, net):
        save_file(model.state_dict(), tmp_path / "weights")


# -- what is written is what runs --------------------------------------------------------------------------------------


def short(tmp_path: Path, **options: Any) -> dict[str, Any]:
    overrides = [*OVERRIDES, "epochs=1", *options.pop("overrides", [])]
    return {"recipe": "digits", "run_dir": tmp_path / "r", "overrides": overrides, "console": quiet(), **options}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("variants=[kd]", "contradicts the argument variant="),
        ("seeds=[3]", "contradicts the argument seed="),
        ("seeds=[0, 1]", "contradicts the argument seed="),
        ("student.models=[resnet20]", "contradicts the argument student="),
        ("teacher.model=resnet20", "contradicts the argument teacher="),
        ("targets=dense", "contradicts the argument targets="),
        ("skip_padding=true", "contradicts the argument skip_padding="),
        ("data.train_size=10", "data.train_size: the dataset is given; leave it out"),
        ("data.mean=[0.5]", "data.mean: the dataset is given; leave it out"),
        ("data.val_size=10", "data.val_size: the dataset is given; leave it out"),
        ("teacher.epochs=3", "teacher.epochs: a trained teacher is given; leave it out"),
        ("teacher.seed=3", "teacher.seed: a trained teacher is given; leave it out"),
        ("student.sequence=true", "student.sequence is for several students"),
    ],
)
def test_an_override_that_does_not_run_is_refused(override: str, said: str, teacher: Net, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        lf.distill(halves(teacher), halves(student()), bright_or_dark(), **short(tmp_path, overrides=[override]))
    assert not (tmp_path / "r").exists()


def test_an_override_that_says_what_the_argument_says_is_taken(teacher: Net, tmp_path: Path) -> None:
    overrides = ["variants=[kd]", "seeds=[3]", "data.augment=false"]
    options = short(tmp_path, overrides=overrides, variant="kd", seed=3)
    done = lf.distill(halves(teacher), halves(student()), bright_or_dark(), **options)
    assert [result["variant"] for result in done.results] == ["checkpoint", "kd"]
    settings = yaml.safe_load((tmp_path / "r" / "experiment.yaml").read_text())
    assert (settings["variants"], settings["seeds"], settings["data"]["augment"]) == (["kd"], [3], False)


def test_the_recipes_dataset_is_not_written_for_data_of_ones_own(teacher: Net, tmp_path: Path) -> None:
    options = short(tmp_path, recipe="resnet-cifar10")
    lf.distill(halves(teacher), halves(student()), bright_or_dark(), **options)
    data = yaml.safe_load((tmp_path / "r" / "experiment.yaml").read_text())["data"]
    assert (data["name"], data["val_size"]) == ("arrays", None)


def test_it_leaves_a_report(teacher: Net, tmp_path: Path) -> None:
    lf.distill(halves(teacher), halves(student()), bright_or_dark(), **short(tmp_path))
    assert "net-lit-seed0" in (tmp_path / "r" / "report.md").read_text()


@pytest.mark.parametrize("overrides", ["epochs=1", {"epochs": 1}, [3]])
def test_overrides_of_another_type(overrides: Any, teacher: Net, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="overrides: expected"):
        lf.distill(halves(teacher), halves(student()), bright_or_dark(), **{**short(tmp_path), "overrides": overrides})


@pytest.mark.parametrize(
    ("argument", "value"),
    [("teacher", 3), ("student", [Net(1)]), ("recipe", None), ("run_dir", 3), ("seed", "one"), ("resume", "no")],
)
def test_arguments_of_another_type(argument: str, value: Any, teacher: Net, tmp_path: Path) -> None:
    given = {"teacher": halves(teacher), "student": halves(student()), "data": bright_or_dark(), **short(tmp_path)}
    with pytest.raises(TypeError, match=f"{argument}: expected"):
        lf.distill(**{**given, argument: value})


@pytest.mark.parametrize("data", [[], 3, TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4))])
def test_data_of_another_type(data: Any, teacher: Net, tmp_path: Path) -> None:
    with pytest.raises(lf.DataError, match="expected a mapping or an object with the datasets train, val and test"):
        lf.distill(halves(teacher), halves(student()), data, **short(tmp_path))


def test_a_data_loader_of_torch_is_told_of(teacher: Net, tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4)))
    with pytest.raises(lf.DataError, match="expected datasets, got a DataLoader; give those that it reads"):
        lf.distill(halves(teacher), halves(student()), loader, **short(tmp_path))
    with pytest.raises(lf.DataError, match=r"train: expected a map-style dataset.*got DataLoader; give its .dataset"):
        lf.distill(
            halves(teacher), halves(student()), dict.fromkeys(("train", "val", "test"), loader), **short(tmp_path)
        )


class Doubled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


def with_gelu() -> Net:
    net = student()
    net.low[0][2] = nn.GELU()
    return net


@pytest.mark.parametrize(
    ("which", "changed"),
    [
        ("student.cuts", lambda teacher: (halves(teacher), lf.split(student(), at=["low.0", "high"]))),
        ("teacher.cuts", lambda teacher: (lf.split(teacher, at=["low.2", "high"]), halves(student()))),
        ("student.forward", lambda teacher: (halves(teacher), halves(with_gelu()))),
        ("student.forward", lambda teacher: (halves(teacher), halves(Doubled(1)))),
        ("teacher.forward", lambda teacher: (halves(doubled(teacher)), halves(student()))),
    ],
)
def test_another_network_does_not_go_on(which: str, changed: Any, teacher: Net, tmp_path: Path) -> None:
    lf.distill(halves(teacher), halves(student()), bright_or_dark(), **short(tmp_path))
    teacher_split, student_split = changed(teacher)
    Doubled.__qualname__ = Doubled.__name__ = "Net"  # runs are named after the class
    with pytest.raises(RunFolderError, match=which):
        lf.distill(teacher_split, student_split, bright_or_dark(), resume=True, **short(tmp_path))


def doubled(teacher: Net) -> Net:
    net = Doubled(3)
    net.load_state_dict(teacher.state_dict())
    return net
