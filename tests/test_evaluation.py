"""Accuracy and loss over a split, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_fast.training.evaluation import evaluate


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
