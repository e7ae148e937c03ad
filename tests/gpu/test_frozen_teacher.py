"""The lowered teacher on a GPU: cuDNN's fused convolutions give what the modules give."""

from __future__ import annotations

import pytest
import torch
from teacher_networks import NETWORKS, network

from lit_fast.loss.backends import native
from lit_fast.teacher import programs
from lit_fast.teacher.frozen import FrozenTeacher

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}"),
]


@pytest.fixture(autouse=True)
def full_float32():
    """No TF32: the tolerances are those of float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_every_part_gives_what_the_module_gives(name, dtype, tolerance):
    model, images = network(name)
    model = model.to("cuda", dtype)
    images = images.to("cuda", dtype) if images.is_floating_point() else images.cuda()
    teacher = FrozenTeacher(model)
    irs, logits = teacher.run(images)
    right, right_logits = model.run(images)
    assert all(plan.lowered for plan in teacher.parts), teacher.describe()
    for ours, expected in zip([*irs, logits], [*right, right_logits]):
        assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_as_close_as_autocast(name, dtype):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bfloat16 on this GPU")
    model, images = network(name)
    model, images = model.cuda(), images.cuda()
    exact, _ = model.run(images)
    with torch.autocast("cuda", dtype):
        plain, _ = model.run(images)
    ours, _ = FrozenTeacher(model, dtype).run(images)
    for mine, auto, right in zip(ours, plain, exact):
        assert mine.dtype == dtype
        assert (mine - right).abs().max() <= 2 * (auto - right).abs().max() + 0.01 * right.abs().max()


def test_prefetched_results_are_those_of_run():
    model, images = network("resnet8")
    teacher = FrozenTeacher(model.cuda())
    images = images.cuda()
    right = teacher.run(images)[1].clone()
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            teacher.prefetch(images)
            found = teacher.run(images)[1]
            stream.synchronize()
        torch.testing.assert_close(found, right, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_further_sizes_run_the_same_programs(monkeypatch, dtype):
    lowered = []
    lower = programs.lower
    monkeypatch.setattr(programs, "lower", lambda part, x: lowered.append(part.name) or lower(part, x))
    model, _ = network("resnet8")
    teacher = FrozenTeacher(model.cuda(), dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for width in (16, 20, 33, 16, 48):
        images = torch.randn(4, 3, 16, width, device="cuda")
        for ours, right in zip(teacher.run(images)[0], model.run(images)[0], strict=True):
            assert (ours - right).abs().max() <= tolerance * right.abs().max()
    assert all(plan.lowered for plan in teacher.parts), teacher.describe()
    # Once each, and once more where cuDNN fuses the convolutions of some sizes alone.
    assert set(lowered) == {"stem", "section1", "section2", "section3", "head"}
    assert max(map(lowered.count, lowered)) <= 2
