"""What is given to a public function is looked at where it is given: wrong types are told by the argument's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import Net, split
from torch import nn

import lit_fast as lf

WRONG: dict[str, Any] = {
    "text": "nonsense",
    "number": 0.5,
    "negative": -3,
    "too large": 2**70,
    "none": None,
    "list": ["a"],
    "dict": {"a": 1},
    "module": nn.CrossEntropyLoss(),
    "tensor": torch.zeros(3),
    "object": object(),
    "class": nn.Linear,
    "true": True,
}
IMAGES, LABELS = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2
Z = torch.randn(4, 2)


def step_options() -> dict[str, Any]:
    student = split(Net()).train()
    return {
        "teacher": split(Net()),
        "student": student,
        "criterion": lf.LITLoss(),
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
    }


def model_options() -> dict[str, Any]:
    return {key: value for key, value in step_options().items() if key != "optimizer"}


def stack() -> lf.SplitModel:
    return lf.split(nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), blocks="1")


LOSS = {"student_irs": [Z], "teacher_irs": [Z], "student_logits": Z, "teacher_logits": Z, "labels": LABELS[:4]}
STEP = (
    "ir_sections student_input bn_policy projector engine side_by_side frozen fused_norm targets skip_padding precision"
)
UPDATE = "scaler capture workers clip_grad_norm accumulate scheduler fused_head"
SETTINGS = "alpha beta tau ir tau_squared section_weights class_weight ignore_index label_smoothing backend reduction"
# A function, what makes its arguments, and the names of its others.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], str]] = {
    "LITStep": (lf.LITStep, step_options, f"{STEP} {UPDATE}"),
    "LITModel": (lf.LITModel, model_options, f"{STEP} fused_head over_processes"),
    "LITLoss": (lf.LITLoss, dict, SETTINGS),
    "lit_loss": (lf.lit_loss, lambda: dict(LOSS), f"{SETTINGS} grad_scale rows ir_rows normalizer"),
    "copy_parts": (lf.copy_parts, lambda: {"teacher": split(Net()), "student": split(Net())}, "parts"),
    "copy_blocks": (lf.copy_blocks, lambda: {"teacher": stack(), "student": stack()}, "layers"),
    "FrozenTeacher": (lf.FrozenTeacher, lambda: {"teacher": split(Net())}, "dtype"),
    "recalibrate": (lf.recalibrate, lambda: {"student": split(Net()), "batches": []}, ""),
    "from_arrays": (
        lf.data.from_arrays,
        lambda: {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS)},
        "val num_classes val_size val_seed train_size mean std augmentation",
    ),
}
RIGHT = {
    **{
        f"{call} {name}": ["none"] for call in ("LITStep", "LITModel") for name in ("projector", "frozen", "fused_head")
    },
    **{f"LITStep {name}": ["none"] for name in ("scaler", "workers", "scheduler")},
    "LITStep clip_grad_norm": ["none", "number", "too large"],
    "LITStep accumulate": ["too large"],
    **{f"{call} targets": ["module", "class"] for call in ("LITStep", "LITModel")},
    **{f"{call} alpha": ["number"] for call in ("LITLoss", "lit_loss")},
    **{f"{call} beta": ["number"] for call in ("LITLoss", "lit_loss")},
    **{f"{call} label_smoothing": ["number"] for call in ("LITLoss", "lit_loss")},
    **{f"{call} tau": ["number", "too large"] for call in ("LITLoss", "lit_loss")},
    **{f"{call} ignore_index": ["negative"] for call in ("LITLoss", "lit_loss")},
    **{f"{call} section_weights": ["none"] for call in ("LITLoss", "lit_loss")},
    "LITLoss class_weight": ["none", "tensor"],
    "lit_loss class_weight": ["none"],
    **{f"lit_loss {name}": ["none"] for name in ("grad_scale", "rows", "ir_rows", "normalizer")},
    "FrozenTeacher dtype": ["none"],
    **{f"from_arrays {name}": ["none"] for name in ("val", "num_classes", "val_size", "train_size")},
    **{f"from_arrays {name}": ["none"] for name in ("mean", "std", "augmentation")},
    "from_arrays val_seed": ["negative", "too large"],
}
SWITCHES = "capture side_by_side fused_norm skip_padding fused_head over_processes tau_squared"


@pytest.mark.parametrize(
    ("call", "name"), [(call, name) for call, (_, given, names) in CALLS.items() for name in [*given(), *names.split()]]
)
def test_a_wrong_type_is_told_by_name(call: str, name: str) -> None:
    function, given, _ = CALLS[call]
    right = [*RIGHT.get(f"{call} {name}", []), *(["true"] if name in SWITCHES.split() else [])]
    for kind, value in WRONG.items():
        if kind in right:
            continue
        with pytest.raises((TypeError, ValueError, lf.UnavailableError)) as caught:
            function(**{**given(), name: value})
        said = str(caught.value)
        told = name.removeprefix("student_").removeprefix("teacher_") in said or "got" in said
        assert told, f"{call}({name}={kind}): {said}"
        assert any(word in said for word in ("expected", "needs", "not available", "no part")), (
            f"{call}({name}={kind}): {said}"
        )


@pytest.mark.parametrize(
    ("criterion", "mend"),
    [(lf.KDLoss(), r"LITLoss\(beta=1"), (lf.IRLoss(), r"LITLoss\(beta=0"), (nn.CrossEntropyLoss(), "class_weight")],
)
def test_another_criterion_is_refused_with_what_to_write(criterion: nn.Module, mend: str) -> None:
    with pytest.raises(TypeError, match=f"criterion: expected a lit_fast.LITLoss, got .*{mend}"):
        lf.LITStep(**{**step_options(), "criterion": criterion})


def test_a_schedule_that_needs_a_metric_is_refused() -> None:
    options = step_options()
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(options["optimizer"])
    with pytest.raises(TypeError, match="scheduler: ReduceLROnPlateau needs a metric"):
        lf.LITStep(**options, scheduler=schedule)


# -- data ------------------------------------------------------------------------------------------------------------


class Floats(lf.data.Split):
    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        self.labels, self.images = LABELS, torch.zeros(40, *shape).to(dtype)

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        return self.images[indices]

    def digest(self) -> bytes:
        return b""


@pytest.mark.parametrize("loader", ["resident", "torch"])
@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.float32, (1, 8, 8)), (torch.uint8, (8, 8)), (torch.uint8, (3, 8, 8))]
)
def test_what_a_split_of_ones_own_gives_is_looked_at(loader: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    own = Floats(dtype, shape)
    plain = lf.data.Augmentation()
    data = lf.data.Data("own", (1, 8, 8), ("0", "1"), (0.0,), (1.0,), plain, own, own, own)
    said = r"Floats: expected fetch to give uint8 \(\d+, 1, 8, 8\), got "
    with pytest.raises(lf.DataError, match=said), lf.data.open_loader(data, loader) as opened:
        next(iter(opened.train_batches(0, batch_size=8, seed=0)))


def test_a_tensor_split_of_floats_is_refused() -> None:
    with pytest.raises(lf.DataError, match="TensorSplit: expected images as uint8"):
        lf.data.TensorSplit(IMAGES.float(), LABELS)


@pytest.mark.parametrize("values", [{"mean": [125.3]}, {"std": [63.0]}])
def test_normalisation_in_units_of_pixels_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(lf.DataError, match=r"units of full scale, 0..1, got .* divide .* by 255"):
        lf.data.from_arrays((IMAGES, LABELS), test=(IMAGES, LABELS), **values)


@pytest.mark.parametrize("num_classes", [None, 2, 3_000_000_001])
def test_a_label_of_billions_does_not_fill_the_memory(num_classes: int | None) -> None:
    labels = torch.where(LABELS == 1, 3_000_000_000, 0)
    with pytest.raises(
        lf.DataError, match=r"labels: expected classes numbered from 0, fewer than 1,000,000, got 30000000"
    ):
        lf.data.from_arrays((IMAGES, labels), test=(IMAGES, LABELS), num_classes=num_classes)


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.to(torch.int8), r"not floating-point \(1\): linear.weight \(torch.int8\)"),
        (lambda w: w > 0, r"not floating-point \(1\): linear.weight \(torch.bool\)"),
        (lambda w: w.to(torch.complex64), r"not floating-point \(1\): linear.weight \(torch.complex64\)"),
        (lambda w: w.masked_fill(w > 0, torch.nan), r"NaN or infinite \(1\): linear.weight"),
        (lambda w: w.masked_fill(w > 0, torch.inf), r"NaN or infinite \(1\): linear.weight"),
    ],
)
def test_weights_that_are_no_weights_are_refused(change: Callable[..., Any], said: str, tmp_path: Path) -> None:
    model = lf.models.resnet20()
    before = model.linear.weight.detach().clone()
    torch.save({**model.state_dict(), "linear.weight": change(before)}, tmp_path / "w.pt")
    with pytest.raises(lf.CheckpointError, match=said):
        lf.models.load_checkpoint(model, tmp_path / "w.pt")
    assert torch.equal(model.linear.weight, before)
