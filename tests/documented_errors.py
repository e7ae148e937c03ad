"""The causes of the messages that the documentation quotes, by the name under which a page marks them.

    <!-- error split-unknown-name -->

above a ``text`` block says that the block holds what CAUSES["split-unknown-name"] raises. ``tests/test_docs.py`` holds
the pages to it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import small_reviews
import torch
import torch.nn.functional as F
import toy_tasks
from PIL import Image
from rich.console import Console
from text_networks import Causal, Text, text
from torch import Tensor, nn
from torch.utils.data import Dataset

import lit_fast as lf
from lit_fast.cli.networks import evaluate
from lit_fast.data.formats.datasets import as_data
from lit_fast.data.loaders import resident
from lit_fast.extension import EXTENSION
from lit_fast.loss import backends
from lit_fast.loss.backends import native
from lit_fast.models.own import cut, own_network
from lit_fast.runs import checkpoint, export
from lit_fast.runs.folder import DALI, RunFolder
from lit_fast.runs.lock import RunLock
from lit_fast.settings.classifier import load_experiment
from lit_fast.step import parallel
from lit_fast.teacher import programs
from lit_fast.teacher.instruction import Instruction
from lit_fast.training.classifier import ClassifierTask
from lit_fast.training.evaluation import evaluate as evaluate_split
from lit_fast.training.experiment import run_experiment
from lit_fast.training.run import Run
from lit_fast.training.tally import LossTally

CAUSES: dict[str, Callable[[], Any]] = {}
IMAGES = torch.zeros(2, 3, 8, 8)
TINY = ("data.image_size=8", "data.train_size=40", "data.val_size=20", "teacher.model=resnet20", "epochs=1")
NO_LOGS = ("logging.tensorboard=false", "step.device=cpu")


def cause(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        CAUSES[name] = function
        return function

    return register


def message(name: str) -> str:
    """What the cause raises (or warns of), without this machine's folders and line numbers."""
    torch.manual_seed(0)
    text = ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            CAUSES[name]()
        except (AttributeError, NameError):
            raise  # a mistake of the cause
        except Exception as error:
            text = str(error)
    if not text and warned:
        text = str(warned[0].message)
    assert text, f"{name} raised nothing"
    text = text.replace(f"{Path.cwd()}{os.sep}", "")
    return re.sub(r"documented_errors\.py:\d+", "model.py:12", text)


# -- splitting -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two sections, ``low`` and ``high``, between a convolution and a linear layer."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.low = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.high(self.low(self.first(x))).mean((2, 3)))


class Skipping(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        low = self.low(x)
        return self.last((self.high(low) + x).mean((2, 3)))


class Repeating(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.high(self.low(self.low(self.first(x)))).mean((2, 3)))


class Deciding(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.mean() > 0:
            x = F.relu(x)
        return self.last(self.high(self.low(x)).mean((2, 3)))


class TwoInputs(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.last((self.high(self.low(self.first(x))) * mask).mean((2, 3)))


def halves(net: nn.Module) -> lf.SplitModel:
    return lf.split(net, at=["low", "high"])


def teacher(net: nn.Module | None = None) -> lf.SplitModel:
    return halves((net or Net()).eval().requires_grad_(False))


CAUSES["split-no-default-cuts"] = lambda: lf.split(Net())
CAUSES["split-unknown-name"] = lambda: lf.split(lf.models.resnet20(), at=["layer1", "layer4"])
CAUSES["split-order"] = lambda: lf.split(lf.models.resnet20(), at=["layer2", "layer1"])
CAUSES["split-crossing"] = lambda: halves(Skipping())
CAUSES["split-called-twice"] = lambda: halves(Repeating())
CAUSES["split-untraceable"] = lambda: lf.split(Deciding(), at=["low", "high"], how="traced")
CAUSES["split-two-inputs"] = lambda: lf.split(TwoInputs(), at=["low", "high"], how="traced")
CAUSES["split-several-inputs"] = lambda: halves(Net()).run({"x": IMAGES, "mask": IMAGES})
CAUSES["copy-parts"] = lambda: lf.copy_parts(teacher(), halves(Net(classes=7)))


@cause("split-not-called")
def _() -> None:
    net = Net()
    net.blocks = nn.ModuleList([net.low, net.high])
    lf.split(net, at=["blocks"])


CAUSES["split-how"] = lambda: lf.split(Net(), at=["low"], how="watched")
CAUSES["split-two-ways"] = lambda: lf.split(Text(4), at=["layers.1"], blocks="layers")
CAUSES["split-no-stack"] = lambda: lf.split(Text(4), sections=2)
CAUSES["split-no-blocks"] = lambda: lf.split(Text(4), blocks="embed")
CAUSES["split-blocks-twice"] = lambda: lf.split(Text(4), blocks=["layers.0", "layers.0"])
CAUSES["split-sections-or-cuts"] = lambda: lf.split(Text(4), blocks="layers", sections=2, cuts=[2])
CAUSES["split-sections"] = lambda: lf.split(Text(4), blocks="layers", sections=5)
CAUSES["split-cuts"] = lambda: lf.split(Text(4), blocks="layers", cuts=[2, 4])
CAUSES["split-named-twice"] = lambda: lf.split(Net(), at=["low", "low"])
CAUSES["split-string"] = lambda: lf.split(Net(), at="low")
CAUSES["split-again"] = lambda: lf.split(halves(Net()), at=["low"])
CAUSES["split-compiled"] = lambda: lf.split(torch.compile(Net()), at=["low"])
CAUSES["split-script"] = lambda: lf.split(torch.jit.trace(Net(), IMAGES), at=["low"])
CAUSES["split-data-parallel"] = lambda: lf.split(nn.DataParallel(Net()), at=["low"])


@cause("split-example-not-called")
def _() -> None:
    net = Net()
    net.spare = nn.ReLU()
    lf.split(net, at=["low", "spare"], how="recorded", example=IMAGES)


# -- recorded models ---------------------------------------------------------------------------------------------------


class Row(nn.Module):
    """``a``, ``b`` and ``c``, one after the other."""

    def __init__(self, **blocks: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = (blocks.get(name, nn.Linear(4, 4)) for name in "abc")

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Between(Row):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x) * 2))


class Twice(Row):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(self.a(x))))


class Residual(nn.Linear):
    """Hands on two tensors, both of which change."""

    def forward(self, hidden: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        before = hidden if before is None else hidden + before
        return super().forward(before), before


class TwoHidden(Row):
    def __init__(self) -> None:
        super().__init__(**{name: Residual(4, 4) for name in "abc"})

    def forward(self, x: Tensor) -> Tensor:
        return self.c(*self.b(*self.a(x)))[0]


class Nothing(nn.Linear):
    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        return None


class OfNothing(Row):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(x + self.a()))


class Constant(nn.Module):
    def forward(self) -> Tensor:
        return torch.ones(4)


class Counting(nn.Linear):
    """Gives something else each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def recorded(net: nn.Module, blocks: str = "abc") -> lf.SplitModel:
    return lf.split(net, blocks=list(blocks), how="recorded")


def run_row(net: nn.Module, blocks: str = "abc") -> None:
    recorded(net, blocks).run(torch.zeros(2, 4))


CAUSES["recorded-between"] = lambda: run_row(Between())
CAUSES["recorded-two-hidden"] = lambda: run_row(TwoHidden())
CAUSES["recorded-called-twice"] = lambda: run_row(Twice())
CAUSES["recorded-order"] = lambda: run_row(Row(), "bac")
CAUSES["recorded-no-tensor"] = lambda: run_row(Row(a=Nothing(4, 4)))
CAUSES["recorded-no-input"] = lambda: run_row(OfNothing(a=Constant()))
CAUSES["recorded-alone"] = lambda: recorded(Row()).head(torch.zeros(2, 4))
CAUSES["recorded-no-run"] = lambda: recorded(Row()).sections[0](torch.zeros(2, 4))
CAUSES["traced-entered"] = lambda: halves(Net()).entered
CAUSES["recorded-example"] = lambda: lf.split(Between(), at=["a", "c"], how="recorded", example=torch.zeros(2, 4))


@cause("recorded-not-called")
def _() -> None:
    model = Text(2)
    model.spare = nn.Linear(8, 8)
    lf.split(model, blocks=["layers.0", "layers.1", "spare"]).run(text()[0])


@cause("recorded-state")
def _() -> None:
    fixed, counting = recorded(Row()), recorded(Row(b=Counting(4, 4)))
    lf.inspect(fixed.eval().requires_grad_(False), counting, torch.ones(2, 4))


# -- the start of a student --------------------------------------------------------------------------------------------


def copy_blocks(teacher: int | lf.SplitModel, student: int | nn.Module, layers: Any = "spread") -> None:
    theirs = lf.split(Text(teacher), blocks="layers", sections=3) if isinstance(teacher, int) else teacher
    net = Text(student) if isinstance(student, int) else student
    lf.copy_blocks(theirs, lf.split(net, blocks="layers", sections=3), layers)


CAUSES["blocks-unknown"] = lambda: copy_blocks(teacher(), 3)
CAUSES["blocks-choice"] = lambda: copy_blocks(6, 3, "every")
CAUSES["blocks-numbers"] = lambda: copy_blocks(6, 3, [0, 2, 6])
CAUSES["blocks-more"] = lambda: copy_blocks(3, 6)
CAUSES["blocks-sections"] = lambda: copy_blocks(lf.split(Text(6), blocks="layers", sections=2), 3)


@cause("blocks-fit")
def _() -> None:
    student = Text(3)
    student.layers[1].feed = nn.Linear(8, 16)
    copy_blocks(6, student)


# -- pairs and steps ---------------------------------------------------------------------------------------------------


CAUSES["pair-sections"] = lambda: lf.inspect(teacher(), lf.split(Net(), at=["low"]), IMAGES)
CAUSES["pair-width"] = lambda: lf.inspect(teacher(Net(8)), halves(Net()), IMAGES)
CAUSES["pair-train-mode"] = lambda: lf.inspect(halves(Net()), halves(Net()), IMAGES)


@cause("pair-in-place")
def _() -> None:
    student = Net()
    student.high = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    lf.inspect(teacher(), halves(student), IMAGES)


@cause("pair-chance")
def _() -> None:
    batch = (torch.zeros(1000, 3, 8, 8), torch.arange(1000) % 10)
    lf.inspect(teacher(), halves(Net()), IMAGES, loader=[batch])


def step(**options: Any) -> lf.LITStep:
    student = halves(Net())
    settings = {"optimizer": torch.optim.SGD(student.parameters(), lr=0.1), "criterion": lf.LITLoss(), **options}
    return lf.LITStep(teacher(), student, **settings)


@cause("step-optimizer")
def _() -> None:
    student = halves(Net())
    student.freeze("stem", "head")
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    student.unfreeze("stem", "head")
    lf.LITStep(teacher(), student, lf.LITLoss(), optimizer)


CAUSES["step-sections"] = lambda: step(ir_sections=[3])


@cause("step-lbfgs")
def _() -> None:
    student = halves(Net())
    lf.LITStep(teacher(), student, lf.LITLoss(), torch.optim.LBFGS(student.parameters()))


@cause("step-unsplit")
def _() -> None:
    net = Net()
    lf.LITStep(teacher(), net, lf.LITLoss(), torch.optim.SGD(net.parameters()))


@cause("step-thawed")
def _() -> None:
    student = halves(Net())
    student.freeze("stem", "section1")
    model = lf.LITModel(teacher(), student, lf.LITLoss())
    student.unfreeze("section1")
    model(IMAGES, LABELS[:2])


@cause("step-processes")
def _() -> None:
    two = mock.patch.object(torch.distributed, "get_world_size", return_value=2)
    with mock.patch.object(torch.distributed, "is_initialized", return_value=True), two:
        step()


@cause("step-keywords")
def _() -> None:
    lf.LITModel(*texts(), lf.LITLoss())(text()[0], attention_mask=text()[0]["attention_mask"])


@cause("step-no-inputs")
def _() -> None:
    lf.LITModel(*texts(), lf.LITLoss())(labels=torch.zeros(2, dtype=torch.int64))


CAUSES["step-accumulate-captured"] = lambda: step(capture=True, accumulate=4)
CAUSES["step-workers-captured"] = lambda: step(capture=True, workers=parallel.Workers(0, 2, "cpu"))
CAUSES["step-normalizer-captured"] = lambda: step(capture=True)(IMAGES, LABELS[:2], normalizer=lf.LossCounts(8, 8))


def texts(kind: type[Text] = Text, **options: Any) -> tuple[lf.SplitModel, lf.SplitModel]:
    theirs, ours = (lf.split(kind(n, **options), blocks="layers", sections=2) for n in (4, 2))
    return theirs.eval().requires_grad_(False), ours


def text_step(kind: type[Text] = Text, scale: float | None = None, **options: Any) -> lf.LITStep:
    theirs, ours = texts(kind, **({} if scale is None else {"scale": scale}))
    return lf.LITStep(theirs, ours, lf.LITLoss(), torch.optim.SGD(ours.parameters()), **options)


CAUSES["step-recorded-runner"] = lambda: text_step(engine="runner")
CAUSES["step-recorded-streams"] = lambda: text_step(side_by_side=True)
CAUSES["step-fused-head"] = lambda: text_step(Causal, 2.0, targets="causal_lm", fused_head=True)(text()[0])
CAUSES["teacher-recorded"] = lambda: lf.FrozenTeacher(texts()[0])

CAUSES["targets-name"] = lambda: text_step(targets="token")
CAUSES["targets-type"] = lambda: text_step(targets=2)
CAUSES["targets-returned"] = lambda: text_step(targets=lambda output, inputs, labels: output)(*text())
CAUSES["targets-no-logits"] = lambda: lf.targets.classification({"features": LOGITS}, IMAGES, LABELS)
CAUSES["targets-tokens"] = lambda: text_step(targets="tokens")(*text())
CAUSES["targets-dense"] = lambda: step(targets="dense")(IMAGES, LABELS[:2])
CAUSES["targets-labels"] = lambda: text_step(Causal, targets="tokens")(*text())


def frozen_teacher(run: Callable[[tuple[int, ...]], Tensor], strict: bool) -> None:
    """One whose programs do ``run`` with the shape of the stem's result, which is the first that is checked."""

    def program(steps: list[Instruction], output: int) -> Callable[[Tensor], Tensor]:
        return lambda x: run((len(x), 4, 8, 8))

    present = mock.patch.object(programs, "EXTENSION", EXTENSION._replace(loaded=True))
    with present, mock.patch.object(programs, "_program", program):
        lf.FrozenTeacher(teacher(), strict=strict).run(torch.randn(2, 3, 8, 8))


def no_engine(shape: tuple[int, ...]) -> Tensor:
    raise RuntimeError("GET was unable to find an engine to execute this computation")


CAUSES["step-lowered-wrong"] = lambda: frozen_teacher(torch.zeros, strict=True)
CAUSES["step-lowered-fails"] = lambda: frozen_teacher(no_engine, strict=False)


# -- losses ------------------------------------------------------------------------------------------------------------


def irs(width: int = 16) -> list[Tensor]:
    return [torch.zeros(4, width, 2, 2, requires_grad=True)]


LOGITS = torch.zeros(4, 10)
LABELS = torch.arange(4)

CAUSES["loss-no-irs"] = lambda: lf.LITLoss()(None, None, LOGITS, LOGITS, LABELS)
CAUSES["loss-shapes"] = lambda: lf.IRLoss()(irs(16), irs(32))
CAUSES["loss-one-tensor"] = lambda: lf.IRLoss()(irs()[0], irs()[0])
CAUSES["loss-no-labels"] = lambda: lf.KDLoss()(LOGITS, LOGITS)
CAUSES["loss-soft-labels"] = lambda: lf.KDLoss()(LOGITS, LOGITS, torch.full((4, 5), 0.2))
CAUSES["loss-logits"] = lambda: lf.KDLoss()(torch.zeros(4, 5, 10), torch.zeros(4, 5, 10), torch.zeros(4, 5).long())
CAUSES["loss-vocabularies"] = lambda: lf.functional.linear_kd_loss(
    torch.zeros(4, 8), nn.Linear(8, 32000), torch.zeros(4, 16), nn.Linear(16, 32064), LABELS
)
CAUSES["loss-rows"] = lambda: lf.KDLoss()(LOGITS, LOGITS, LABELS, rows=torch.ones(2, 2).bool())
CAUSES["loss-rows-dtype"] = lambda: lf.KDLoss()(LOGITS, LOGITS, LABELS, rows=torch.ones(4).long())
CAUSES["loss-ir-rows"] = lambda: lf.IRLoss()(irs(), irs(), ir_rows=torch.ones(4, 2).bool())
CAUSES["loss-normalizer"] = lambda: lf.KDLoss()(LOGITS, LOGITS, LABELS, normalizer=lf.LossCounts(-1, 4))
CAUSES["loss-alpha"] = lambda: lf.LITLoss(alpha=95)


@cause("loss-double-backward")
def _() -> None:
    inputs = irs()
    torch.autograd.grad(lf.IRLoss()(inputs, [torch.ones(4, 16, 2, 2)]), inputs, create_graph=True)


def without_extension() -> contextlib.AbstractContextManager[Any]:
    said = (False, "lit_fast was installed without its compiled extension")
    return mock.patch.object(native, "available", return_value=said)


@cause("loss-no-native")
def _() -> None:
    with without_extension():
        lf.LITLoss(backend="native")


@cause("loss-fallback")
def _() -> None:
    backends._pick.cache_clear()
    try:
        with without_extension():
            lf.IRLoss()(irs(), irs())
    finally:
        backends._pick.cache_clear()


# -- configs -----------------------------------------------------------------------------------------------------------


CAUSES["config-unknown-key"] = lambda: load_experiment("digits", overrides=["loss.gamma=1"])
CAUSES["config-values"] = lambda: load_experiment("digits", overrides=["loss.alpha=95", "teacher.model=resnet21"])
CAUSES["config-no-data"] = lambda: load_experiment("resnet-cifar10")
CAUSES["config-no-checkpoint"] = lambda: load_experiment("digits", overrides=["teacher.checkpoint=resnet56.th"])
CAUSES["config-recipe"] = lambda: load_experiment("resnet")


@cause("config-no-recipe")
def _() -> None:
    Path("mine.yaml").write_text("epochs: 20\n", encoding="utf-8")
    load_experiment(config=Path("mine.yaml"))


OWN = {"teacher": {"model": "toy_tasks:bert_teacher"}, "student": {"models": "toy_tasks:bert_student"}}


@cause("own-no-module")
def _() -> None:
    load_experiment("digits", None, ["teacher.model=my_nets:teacher"])


@cause("own-no-function")
def _() -> None:
    load_experiment("digits", None, ["teacher.model=toy_tasks:techer"])


@cause("own-no-network")
def _() -> None:
    own_network("toy_tasks:texts")


@cause("own-blocks")
def _() -> None:
    cut(toy_tasks.Bert(2), "toy_tasks:bert_student", {"blocks": "encoder.layers"}, toy_tasks.Texts(2, 0)[0], alone={})


@cause("own-two-ways")
def _() -> None:
    load_experiment("digits", None, [OWN, "blocks=encoder.layer", "at=[encoder]"])


@cause("own-no-blocks")
def _() -> None:
    load_experiment("digits", None, [OWN, "sections=2"])


@cause("own-built-in")
def _() -> None:
    load_experiment("digits", None, ["student.blocks=layer1"])


@cause("own-data-key")
def _() -> None:
    load_experiment("digits", None, [{"data": {"name": "toy_tasks:texts"}}, "data.val_size=100"])


@cause("own-split-already")
def _() -> None:
    split_already = lf.split(toy_tasks.Bert(4), blocks="encoder.layer", sections=2)
    cut(split_already, "my_nets:teacher", {}, None, alone={"blocks": "encoder.layer"})


@cause("items-no-val")
def _() -> None:
    as_data({"train": toy_tasks.Texts(4, 0), "test": toy_tasks.Texts(4, 9)}, "my_data:texts")


@cause("items-no-mapping")
def _() -> None:
    as_data([1, 2, 3], "my_data:texts")


@cause("items-batch")
def _() -> None:
    as_data(dict.fromkeys(("train", "val", "test"), [(torch.zeros(2), torch.zeros(2), 1)] * 4), "my_data:texts")


@cause("items-no-labels")
def _() -> None:
    evaluate_split(toy_tasks.LanguageModel(2), [({"input_ids": torch.zeros(2, 8, dtype=torch.int64)}, None)])


@cause("items-none-counts")
def _() -> None:
    evaluate_split(nn.Linear(2, 2), [(torch.zeros(2, 2), torch.tensor([-100, -100]))])


# -- runs --------------------------------------------------------------------------------------------------------------


def run(*overrides: str, resume: bool = False) -> Any:
    experiment = load_experiment("digits", overrides=[*TINY, *NO_LOGS, *overrides])
    return run_experiment(experiment, Path("runs/mine"), resume=resume, console=Console(file=io.StringIO()))


def begin() -> None:
    """A run folder that an experiment has begun in."""
    with mock.patch.object(Run, "run", side_effect=KeyboardInterrupt), contextlib.suppress(KeyboardInterrupt):
        run()


@cause("run-begun")
def _() -> None:
    begin()
    run()


@cause("run-other")
def _() -> None:
    begin()
    run("loss.beta=0.5")


@cause("run-data")
def _() -> None:
    images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    for count in (10, 9):
        data = lf.data.from_arrays((images, labels), test=(images[:count], labels[:count]))
        RunFolder(Path("runs/mine"), load_experiment("digits"), data, resume=True).claim()


@cause("run-dali")
def _() -> None:
    images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    data = lf.data.from_arrays((images, labels), test=(images, labels))
    for extra in ({DALI: True}, {}):
        RunFolder(Path("runs/mine"), load_experiment("digits"), data, resume=True, extra=extra).claim()


class Photos(lf.data.Split):
    """Photographs that are too many for the memory."""

    def __init__(self, count: int) -> None:
        self.labels = torch.zeros(count, dtype=torch.int64)

    def fetch(self, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), 3, 128, 128, dtype=torch.uint8)

    def digest(self) -> bytes:
        return b"photographs"


@cause("run-not-resident")
def _() -> None:
    normalisation = ((0.5,) * 3, (0.5,) * 3)
    splits = (Photos(180_000), Photos(10_000), Photos(10_000))
    data = lf.data.Data("photos", (3, 128, 128), ("a", "b"), *normalisation, lf.data.Augmentation(), *splits)
    with mock.patch.object(resident, "free_bytes", return_value=8_000_000_000):
        lf.data.open_loader(data, "resident")


@cause("run-not-empty")
def _() -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/notes.txt").touch()
    run()


@cause("run-chance")
def _() -> None:
    torch.save(lf.models.resnet20(in_channels=1).state_dict(), "resnet20.pt")
    run("teacher.checkpoint=resnet20.pt")


@cause("run-not-finite")
def _() -> None:
    run("phases.scratch.lr=1e+30")


@cause("run-interrupted")
def _() -> None:
    with mock.patch.object(LossTally, "add", side_effect=lambda *_: signal.raise_signal(signal.SIGINT)):
        run()


@cause("run-disk-full")
def _() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with mock.patch.object(checkpoint, "_save_tensors", side_effect=full):
        run()


@cause("run-damaged")
def _() -> None:
    run()
    weights = Path("runs/mine/runs/teacher-resnet20/last.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    run(resume=True)


@cause("run-busy")
def _() -> None:
    Path("runs/mine").mkdir(parents=True)
    with RunLock() as lock:
        lock.take(Path("runs/mine"))
        run()


@cause("run-layout")
def _() -> None:
    run = Path("runs/mine/runs/teacher-resnet20")
    run.mkdir(parents=True)
    store = checkpoint.CheckpointStore(run / "checkpoints")
    with mock.patch.object(checkpoint, "_LAYOUT", 1):
        store.save(checkpoint.Checkpoint(2, {"weight": torch.zeros(1)}, None, {}))
    store.load()


# -- several processes -----------------------------------------------------------------------------------------------


@cause("parallel-gpus")
def _() -> None:
    two = mock.patch.object(torch.cuda, "device_count", return_value=2)
    with mock.patch.dict(os.environ, WORLD_SIZE="4"), two, parallel.join("auto"):
        pass


@cause("parallel-batch")
def _() -> None:
    parallel.check_batches(parallel.Workers(0, 3, "cpu"), 32, 1000, sync_batchnorm=False)


@cause("parallel-one-image")
def _() -> None:
    task = mock.Mock(data=mock.Mock(train=range(96)), workers=parallel.Workers(0, 4, "cpu"))
    task.settings.batch_size, task.spec.name, task.spec.phases = 4, "net-lit-seed0", [mock.Mock()]
    task._takes_one_row.return_value = False
    ClassifierTask._check_one_row(task)


@cause("parallel-lost")
def _() -> None:
    said = RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:36485: Connection reset by "
        "peer. This is typically caused by a remote worker hanging or bugs in the application."
    )
    with mock.patch.object(parallel.dist, "all_reduce", side_effect=said):
        parallel.Workers(0, 2, "cpu").sum_(torch.zeros(1))


# -- weights -----------------------------------------------------------------------------------------------------------


def load(content: Any) -> None:
    torch.save(content, "net.pt")
    lf.models.load_checkpoint(lf.models.resnet20(), "net.pt")


CAUSES["weights-missing"] = lambda: lf.models.load_checkpoint(lf.models.resnet20(), "net.pt")
CAUSES["weights-depth"] = lambda: load(lf.models.resnet32().state_dict())
CAUSES["weights-classes"] = lambda: load(lf.models.resnet20(num_classes=100).state_dict())
CAUSES["weights-object"] = lambda: load({"args": argparse.Namespace(lr=0.1)})
CAUSES["weights-beside"] = lambda: load({**lf.models.resnet20().state_dict(), "epoch": 3})
CAUSES["weights-more"] = lambda: load({**lf.models.resnet20().state_dict(), "criterion.weight": torch.ones(10)})


@cause("evaluate-unknown")
def _() -> None:
    torch.save(lf.models.resnet20().state_dict(), "net.pt")
    evaluate(Path("net.pt"))


@cause("export-packages")
def _() -> None:
    with mock.patch.object(export.importlib.util, "find_spec", return_value=None):
        export.export(lf.models.resnet20(), (3, 8, 8), "onnx", Path("net.onnx"))


# -- data --------------------------------------------------------------------------------------------------------------


def images(count: int = 20) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.arange(count) % 2


CAUSES["data-none"] = lambda: lf.data.open_data("cifar10", data_dir=".")
CAUSES["data-size"] = lambda: lf.data.open_data("digits", train_size=5000)


@cause("data-truncated")
def _() -> None:
    folder = Path("cifar-10-batches-bin")
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(bytes(1_000_000))
    lf.data.open_data("cifar10", data_dir=".")


@cause("reviews-malformed")
def _() -> None:
    folder = small_reviews.write(Path("reviews"))
    with (folder / "train.csv").open("a", encoding="utf-8") as file:
        file.write('"2","So good","It said "wow" to me"\n')
    lf.data.open_data("amazon-polarity", data_dir="reviews")


@cause("reviews-other-classes")
def _() -> None:
    small_reviews.write(Path("reviews"), classes=5)
    lf.data.open_data("amazon-polarity", data_dir="reviews")


@cause("data-classes")
def _() -> None:
    for folder in ("train/daisy", "train/tulip", "test/daisy"):
        path = Path("photos") / folder
        path.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path / "1.png")
    lf.data.open_data("folder", data_dir="photos", image_size=32)


@cause("data-deeper")
def _() -> None:
    for folder in ("train/daisy/2020", "test/daisy"):
        path = Path("photos") / folder
        path.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path / "1.png")
    lf.data.open_data("folder", data_dir="photos", image_size=32)


@cause("data-channels-last")
def _() -> None:
    pixels, labels = images()
    lf.data.from_arrays((pixels.permute(0, 2, 3, 1), labels), test=images())


@cause("data-floats")
def _() -> None:
    pixels, labels = images()
    lf.data.from_arrays((pixels / 255, labels), test=images())


@cause("data-random")
def _() -> None:
    class Random(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(3, 8, 8), index % 2

    lf.data.from_datasets(Random(), test=Random())
