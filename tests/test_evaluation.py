"""Accuracy and loss over a split, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_fast.training.evaluation import evaluate, refuse_chance


class Copy(nn.Module):
    """Its logits are its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_accuracy_is_in_percent_and_loss_is_the_mean_over_images() -> None:
    even = torch.zeros(3, 4)
    even[:, 1] = 2.0
    scores = evaluate(Copy(), [(even, torch.tensor([1, 1, 0])), (even[:1], torch.tensor([1]))])
    right, wrong = torch.tensor([0.0, 2.0, 0.0, 0.0]).log_softmax(0)[[1, 0]].neg().tolist()
    assert scores.accuracy == 75.0
    assert scores.images == 4
    assert scores.loss == pytest.approx((3 * right + wrong) / 4)


def test_every_module_keeps_its_own_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), Copy())
    model.train()
    model[0].eval()  # frozen within a model that trains
    evaluate(model, [(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64))])
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_it_evaluates_in_eval_mode() -> None:
    model = nn.Dropout(1.0).train()
    scores = evaluate(model, [(torch.eye(4), torch.arange(4))])
    assert scores.accuracy == 100.0


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(Copy(), [])


@pytest.mark.parametrize(("classes", "images"), [(2, 1), (2, 8), (2, 9), (2, 20), (3, 12), (10, 3), (1000, 1), (1, 50)])
def test_a_good_teacher_is_not_refused_where_images_are_too_few_to_tell(classes: int, images: int) -> None:
    refuse_chance("net", 100.0, images, classes)
    refuse_chance("net", 80.0, images, classes)


@pytest.mark.parametrize(("classes", "images", "accuracy"), [(2, 400, 55.0), (10, 20, 25.0), (1000, 50, 1.0)])
def test_a_teacher_at_chance_is_refused_where_there_are_images_enough(
    classes: int, images: int, accuracy: float
) -> None:
    with pytest.raises(ValueError, match="no better than chance"):
        refuse_chance("net", accuracy, images, classes)
