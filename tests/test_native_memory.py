"""The memory of large gradients: it is used again, and never while somebody still has it."""

from __future__ import annotations

import threading

import pytest
import torch
from everyday import exhaustive

from lit_fast.loss.backends import Inputs, LossOptions, native

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")

IR_ONLY = LossOptions(beta=0.0)


def gradient(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    loss = native.lit_loss(Inputs([student], [teacher]), IR_ONLY).total
    return torch.autograd.grad(loss, student)[0]


def irs(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape, requires_grad=True), torch.randn(shape)


@pytest.mark.parametrize("shape", [(8, 16, 32, 32), (32, 16, 32, 32), (33, 17, 31, 31)], ids=str)
def test_the_memory_of_a_freed_gradient_is_used_again(shape):
    student, teacher = irs(*shape)
    first = gradient(student, teacher)
    address = first.data_ptr()
    del first
    assert gradient(student, teacher).data_ptr() == address


@pytest.mark.parametrize("size", [1 << 15, 1 << 19, (1 << 20) + 1])
def test_gradients_that_are_kept_stay_as_they_are(size):
    student, teacher = irs(size)
    kept = [gradient(student, teacher + number) for number in range(4)]
    expected = [2 * (student - teacher - number).detach() / size for number in range(4)]
    gradient(student, teacher)
    for grad, right in zip(kept, expected):
        torch.testing.assert_close(grad, right)
    assert len({grad.data_ptr() for grad in kept}) == 4


def test_a_gradient_can_be_resized_viewed_and_outlive_its_graph():
    student, teacher = irs(1 << 18)
    grad = gradient(student, teacher)
    view, right = grad[: 1 << 10], grad[: 1 << 10].clone()
    del grad, student
    gradient(*irs(1 << 18))
    torch.testing.assert_close(view, right, rtol=0, atol=0)
    grown = gradient(*irs(1 << 18)).resize_(1 << 19)
    assert grown.fill_(1).sum() == 1 << 19


def test_channels_last_gradients_keep_their_layout():
    student = torch.randn(8, 32, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = gradient(student, torch.randn(8, 32, 32, 32))
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_threads_share_the_memory():
    failures = []

    def work() -> None:
        student, teacher = irs(1 << 18)
        right = (2 * (student - teacher) / (1 << 18)).detach()
        for _ in range(50):
            if not torch.allclose(gradient(student, teacher), right):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@exhaustive
def test_no_more_than_half_a_gibibyte_waits_for_another_use():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    pytest.importorskip("resource")
    sizes = [(36 + number) << 20 for number in range(6)]  # 4 bytes each: 0.9 GiB in all
    before = resident()
    for size in sizes:
        gradient(*irs(size))
    assert resident() - before < 700 << 20
