"""The op that makes batches of a resident dataset on a real GPU, Triton's and in plain PyTorch, and within a graph."""

from __future__ import annotations

import gather_cases
import pytest
import torch
from gather_cases import CASES
from small_data import attributes, coloured, texts

from lit_fast.data.gather import eager_gather, gather_for
from lit_fast.data.loaders import open_loader, resident
from lit_fast.triton import support

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["triton", "eager"])
def gather(request):
    usable, reason = support.available("cuda", 0)
    if request.param == "triton" and not usable:
        pytest.skip(reason)
    return gather_for(torch.device("cuda")) if request.param == "triton" else eager_gather


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_bit_is_right(gather, case):
    gather_cases.check(gather, case, "cuda")


@pytest.mark.parametrize("make", [attributes, coloured, texts])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_resident_loader_gives_the_batches_of_the_data(make, channels_last):
    data = make()
    with open_loader(data, "resident", device="cuda", channels_last=channels_last) as loader:
        for epoch in range(2):
            got = list(loader.train_batches(epoch, batch_size=8, seed=0, start_step=epoch))
            right = list(data.train_batches(epoch, batch_size=8, seed=0, start_step=epoch))
            for pair, right_pair in zip(got, right, strict=True):
                assert all(torch.equal(a.cpu(), b) for a, b in zip(pair, right_pair))


def test_a_graph_goes_through_the_epochs():
    """The op and the addition to the position, recorded once; the tables are refilled between epochs."""
    data = coloured()
    with open_loader(data, "resident", device="cuda", channels_last=True) as loader:
        feed = loader.training
        images = torch.empty(8, 3, 6, 10, dtype=torch.float16, device="cuda", memory_format=torch.channels_last)
        labels = torch.empty(8, dtype=torch.int64, device="cuda")

        def step() -> None:
            feed.write(images, labels)
            feed.position.add_(8)

        feed.begin(data.training_plan(0, batch_size=8, seed=3))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for epoch in range(3):
            feed.begin(data.training_plan(epoch, batch_size=8, seed=3))
            feed.position.zero_()
            for right, right_labels in data.train_batches(epoch, batch_size=8, seed=3):
                if len(right) < 8:
                    break
                graph.replay()
                assert torch.equal(images.cpu(), right.half())
                assert torch.equal(labels.cpu(), right_labels)


def test_a_batch_waits_for_nothing():
    with open_loader(coloured(), "resident", device="cuda") as loader:
        batches = loader.train_batches(0, batch_size=8, seed=0)
        next(batches)  # compiles the kernel
        torch.cuda.set_sync_debug_mode("error")
        try:
            next(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_what_does_not_fit_on_the_gpu_is_streamed(monkeypatch):
    monkeypatch.setattr(resident, "free_bytes", lambda _device: 1000)  # torch may hold some that it does not use
    with open_loader(coloured(), device="cuda") as loader:
        assert loader.name == "torch"
        assert "free on cuda" in loader.reason
