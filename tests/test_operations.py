"""What a part does, written down: equal for what can share a program, different for what cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_fast.teacher.operations import watch

NUMBER, WEIGHT = torch.tensor(2.0), torch.ones(4, 4, 1, 1)


class Does(nn.Module):
    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.what = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.norm(self.conv(x)))


SAME = {
    "nothing": lambda x: x,
    "in place": lambda x: F.relu_(x) + x,
    "option A": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
    "head": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "view": lambda x: x.mean((2, 3)).view(x.shape[0], -1),
    "constants": lambda x: x * 0.5 + F.conv2d(x, WEIGHT) * NUMBER,
    "loop": lambda x: sum([x, x * 2, x * 3]),
}
OTHER = {
    "slice": lambda x: x[:, :, : x.shape[2] // 2],
    "kernel": lambda x: F.avg_pool2d(x, x.shape[2]),
    "factor": lambda x: x * (1 / x.shape[2]),
    "constant": lambda x: x * torch.tensor(1 / x.shape[2]),
    "loop": lambda x: sum(x * i for i in range(x.shape[2])),
    "rows": lambda x: x.mean(2).view(-1, 4),
    "broadcast": lambda x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) if x.shape[2] == 8 else x + x[:, :1],
    "result": lambda x: (x + 1, x + 2)[x.shape[2] > 8],
    "operand": lambda x: (lambda a, b: a * a if x.shape[2] > 8 else a * b)(x + 1, x + 2),
}


def described(part: nn.Module, size: int) -> str | None:
    generator = torch.Generator().manual_seed(size)
    with torch.no_grad():
        return watch(part, torch.randn(2, 4, size, size, generator=generator)).operations


@pytest.mark.parametrize("what", SAME)
def test_the_same_at_two_sizes(what: str) -> None:
    part = Does(SAME[what]).eval()
    assert described(part, 8) == described(part, 12) is not None


@pytest.mark.parametrize("what", OTHER)
def test_something_else_at_another_size(what: str) -> None:
    part = Does(OTHER[what]).eval()
    assert described(part, 8) != described(part, 12)
    assert described(part, 8) == described(part, 8)


def test_shapes_that_are_equal_at_one_size_alone() -> None:
    part = Does(lambda x: x + x.mean((2, 3), keepdim=True)).eval()
    assert described(part, 1) != described(part, 4) == described(part, 8)


def test_other_weights_under_the_same_name_are_told_by_values_only_where_they_have_no_name() -> None:
    part = Does(SAME["constants"]).eval()
    before = described(part, 8)
    with torch.no_grad():
        part.conv.weight.mul_(2)
    assert described(part, 8) == before
    part.what = lambda x: x * 0.5 + F.conv2d(x, WEIGHT * 1) * NUMBER.clone()
    assert described(part, 8) != before


def test_the_output_is_the_parts_and_its_input_stays() -> None:
    part, x = Does(SAME["in place"]).eval(), torch.randn(2, 4, 8, 8)
    before = x.clone()
    with torch.no_grad():
        watched = watch(part, x)
        torch.testing.assert_close(watched.output, part(x), rtol=0, atol=0)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert watched.shapes.count(x.shape) >= 4


def test_a_part_that_does_not_run_while_it_is_watched_runs_unwatched() -> None:
    def only_alone(x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("watched")
        return x + 1

    watched = watch(Does(only_alone).eval(), torch.zeros(2, 4, 8, 8))
    assert watched.operations is None
    assert watched.output.shape == (2, 4, 8, 8)


def test_a_parts_own_error_is_raised() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("odd")

    with pytest.raises(KeyError, match="odd"):
        watch(Does(broken), torch.zeros(2, 4, 8, 8))
