"""`copy_blocks`: the blocks that a student starts from; refusals by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from text_networks import WIDTH, Text
from tiny_networks import Net
from torch import nn

import lit_fast as lf
from lit_fast.errors import SplitError


def numbered(blocks: int, **cut: Any) -> lf.SplitModel:
    """Blocks whose weights tell which they are."""
    model = Text(blocks)
    for i, layer in enumerate(model.layers):
        for parameter in layer.parameters():
            nn.init.constant_(parameter, float(i))
    return lf.split(model, **({"blocks": "layers"} | cut))


@pytest.mark.parametrize(
    ("layers", "student", "expected"),
    [
        ("spread", {"sections": 3}, [0, 4, 8]),
        ("spread", {"cuts": [1, 3]}, [0, 4, 6, 8, 10]),
        ("first", {"sections": 3}, [0, 1, 2]),
        ("last", {"sections": 3}, [9, 10, 11]),
        ([11, 3, 3], {"sections": 3}, [11, 3, 3]),
    ],
)
def test_blocks_start_as_the_teachers(layers: Any, student: dict[str, Any], expected: list[int]) -> None:
    teacher, ours = numbered(12, sections=3), numbered(len(expected), **student)
    before = ours.model.embed.weight.clone()
    assert lf.copy_blocks(teacher, ours, layers) == expected
    assert [layer.mix.weight[0, 0].item() for layer in ours.model.layers] == expected
    assert [layer.norm.bias[0].item() for layer in ours.model.layers] == expected
    assert torch.equal(ours.model.embed.weight, before)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("every", "layers: expected one of 'spread', 'first', 'last' or a list of numbers, got 'every'"),
        ([0, 1], "layers: expected 3 numbers from 0 to 5, one for each block of the student, got"),
        ([0, 1, 6], "layers: expected 3 numbers from 0 to 5"),
    ],
)
def test_blocks_that_are_not_there_are_refused(layers: Any, words: str) -> None:
    with pytest.raises(SplitError, match=words):
        lf.copy_blocks(numbered(6, sections=3), numbered(3), layers)


def test_blocks_that_do_not_fit_are_refused() -> None:
    other = numbered(3)
    other.model.layers[1].feed = nn.Linear(WIDTH, 2 * WIDTH)
    before = other.model.layers[0].mix.weight.clone()
    with pytest.raises(
        SplitError, match=r"block 'layers.1' from 'layers.2': feed.bias is \(8,\) in the teacher, \(16,\)"
    ):
        lf.copy_blocks(numbered(6, sections=3), other)
    assert torch.equal(other.model.layers[0].mix.weight, before)
    with pytest.raises(SplitError, match="the student has more blocks than the teacher"):
        lf.copy_blocks(numbered(3), numbered(6, sections=3))
    with pytest.raises(SplitError, match="the teacher has 2 sections, the student 3; split both alike"):
        lf.copy_blocks(numbered(6, sections=2), numbered(3))
    with pytest.raises(SplitError, match=r"the teacher's blocks are not known; split it with blocks="):
        lf.copy_blocks(lf.split(Net(), ["layer1", "layer2", "layer3"]), numbered(3))
