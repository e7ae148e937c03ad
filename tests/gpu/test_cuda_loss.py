"""The fused loss on a real GPU, native and Triton, against eager in float64 on the same device."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import loss_cases
import pytest
import torch
from loss_cases import Case

import lit_fast
from lit_fast.loss import backends
from lit_fast.loss.backends import Inputs, LossOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MATRIX = loss_cases.matrix()
SOME = MATRIX[:: len(MATRIX) // 24]
SHAPES = ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))  # of a CIFAR ResNet


@pytest.fixture(params=["native", "triton"])
def lit_loss(request):
    return loss_of(request.param)


@pytest.fixture
def native_loss():
    return loss_of("native")


def loss_of(name):
    try:
        return backends.select(torch.device("cuda"), name).lit_loss
    except RuntimeError as error:
        pytest.skip(str(error))


def results(lit_loss, problem, options):
    found = loss_cases.run(lit_loss, problem, options)
    return [*found.parts, *found.grads]


def assert_equal_bits(ours, others):
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def refill(problem, other):
    """Puts the numbers of another problem of the same shapes into the memory of this one."""
    with torch.no_grad():
        for mine, new in zip(problem.tensors(), other.tensors(), strict=True):
            mine.copy_(new)


# --- right, and the same every time


@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_as_accurate_as_eager(lit_loss, case):
    loss_cases.check(lit_loss, case, "cuda")


@pytest.mark.parametrize("dtype", loss_cases.DTYPES, ids=loss_cases.short)
@pytest.mark.parametrize("classes", [10, 1000, 1025, 50257])
def test_sizes_of_real_models(lit_loss, dtype, classes):
    loss_cases.check(lit_loss, Case("real", dtype, shapes=SHAPES, batch=32, classes=classes), "cuda")


@pytest.mark.parametrize("case", [*SOME, Case("real", torch.float16, shapes=SHAPES, batch=128, classes=1000)], ids=str)
def test_repeat_runs_are_equal_bit_for_bit(lit_loss, case):
    problem = loss_cases.build(case, "cuda")
    first = results(lit_loss, problem, case.options)
    for _ in range(5):
        assert_equal_bits(results(lit_loss, problem, case.options), first)


def test_calls_on_two_streams_at_once_do_not_disturb_each_other(lit_loss):
    cases = [Case("one", shapes=SHAPES, batch=32), Case("two", shapes=SHAPES[::-1], batch=64, classes=1000)]
    problems = [loss_cases.build(case, "cuda") for case in cases]
    alone = [results(lit_loss, problem, LossOptions()) for problem in problems]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream, problem in zip(streams, problems):
            with torch.cuda.stream(stream):
                found.append(results(lit_loss, problem, LossOptions()))
    torch.cuda.synchronize()
    for i, found_now in enumerate(found):
        assert_equal_bits(found_now, alone[i % 2])


# --- streams, synchronisation, graphs


def test_runs_on_the_current_stream(lit_loss):
    case = Case("plain", shapes=SHAPES, batch=32)
    problem, later = loss_cases.build(case, "cuda"), loss_cases.build(case, "cuda", seed=1)
    expected = results(lit_loss, later, case.options)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # the inputs below come late: a kernel on another stream would not see them
        refill(problem, later)
        found = results(lit_loss, problem, case.options)
    torch.cuda.synchronize()
    assert_equal_bits(found, expected)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_nothing_waits_for_the_device(lit_loss, case):
    problem = loss_cases.build(case, "cuda")
    results(lit_loss, problem, case.options)  # compiles Triton's kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(lit_loss, problem, case.options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", loss_cases.DTYPES, ids=loss_cases.short)
def test_graph_of_forward_and_backward_replays_on_changed_inputs(lit_loss, dtype):
    case = Case("captured", dtype, shapes=SHAPES, batch=32, grad_scale=1024.0, labels="some ignored")
    problem = loss_cases.build(case, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(lit_loss, problem, case.options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = results(lit_loss, problem, case.options)
    for seed in (1, 2, 3):
        changed = loss_cases.build(case, "cuda", seed=seed)
        changed.grad_scale.fill_(2.0**seed)
        refill(problem, changed)
        graph.replay()
        assert_equal_bits(captured, results(lit_loss, changed, case.options))


@pytest.mark.parametrize("name", ["native", "triton"])
def test_graph_of_counting_and_loss_replays_with_other_rows(name):
    loss_of(name)  # skips where there is none
    irs = [torch.randn(2, 8, 7, 64, device="cuda") for _ in range(2)]
    z_s, z_t = torch.randn(2, 56, 1000, device="cuda")
    labels, mask = torch.randint(1000, (56,), device="cuda"), torch.ones(8, 7, dtype=torch.bool, device="cuda")
    leaves = [z_s.requires_grad_(), *(ir[0].requires_grad_() for ir in irs)]

    def results():
        what = {"rows": mask.flatten(), "ir_rows": mask}
        teacher_irs = [ir[1] for ir in irs]
        loss = lit_fast.lit_loss(leaves[1:], teacher_irs, z_s, z_t, labels, **what, backend=name)
        return [loss, *torch.autograd.grad(loss, leaves)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = results()
    for share in (0.2, 0.9):
        mask.copy_(torch.rand(8, 7, device="cuda") < share)
        graph.replay()
        assert_equal_bits(captured, results())


def test_replays_beside_calls_on_another_stream_do_not_disturb_each_other(lit_loss):
    def made():
        return [loss_cases.build(Case("plain", shapes=SHAPES, batch=32), "cuda", seed=seed) for seed in (0, 1)]

    # On leaves of their own: those of a loss that is still there would make the capture wait for this stream.
    alone = [results(lit_loss, problem, LossOptions()) for problem in made()]
    problems = made()
    stream, side = torch.cuda.Stream(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(lit_loss, problems[0], LossOptions())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = results(lit_loss, problems[0], LossOptions())
    torch.cuda.synchronize()
    replayed, called = [], []
    for _ in range(20):
        with torch.cuda.stream(side):
            graph.replay()
            replayed.append([number.clone() for number in captured])
        with torch.cuda.stream(stream):  # the one that was captured on
            called.append(results(lit_loss, problems[1], LossOptions()))
    torch.cuda.synchronize()
    for ours, theirs in zip(replayed, called):
        assert_equal_bits(ours, alone[0])
        assert_equal_bits(theirs, alone[1])


def device_work(run):
    """Names of the kernels, memsets and copies that `run` puts on the device."""
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def test_native_loss_is_one_kernel(native_loss):
    problem = loss_cases.build(Case("plain", torch.float16, shapes=SHAPES, batch=32), "cuda")
    with torch.no_grad():
        work = device_work(lambda: native_loss(problem.inputs(), LossOptions()))
    assert len(work) == 1, work
    assert "lit_loss" in work[0]


def test_native_loss_with_gradients_is_one_launch_and_backward_one(native_loss):
    problem = loss_cases.build(Case("plain", torch.float16, shapes=SHAPES, batch=32), "cuda")
    names = device_work(lambda: loss_cases.run(native_loss, problem, LossOptions()))
    work = [name for name in names if "lit_fast" in name or "emset" in name]
    assert sum("lit_loss" in name for name in work) == 1, names
    assert sum("rescale" in name for name in work) == 1, names
    assert len(work) == 2, names


def test_backward_of_a_scaled_loss_is_one_launch_and_nothing_else(native_loss):
    problem = loss_cases.build(Case("scaled", torch.float16, shapes=SHAPES, batch=32, grad_scale=1024.0), "cuda")
    totals = [native_loss(problem.inputs(), LossOptions()).total for _ in range(2)]
    work = device_work(lambda: torch.autograd.grad(totals.pop(), problem.leaves(), problem.grad_scale))
    assert len(work) == 1, work
    assert "rescale" in work[0]


# --- extremes


def test_130_sections(lit_loss):
    shapes = tuple((3, 1 + i % 5) for i in range(130))
    for dtype in loss_cases.DTYPES:
        loss_cases.check(lit_loss, Case("many", dtype, shapes=shapes), "cuda")


def need_memory(gigabytes):
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of free device memory, there are {free / 2**30:.0f}")


def test_irs_of_more_than_two_to_the_31_elements(lit_loss):
    need_memory(16)
    numel = 2**31 + 4099
    student = torch.zeros(numel, dtype=torch.float16, device="cuda", requires_grad=True)
    teacher = torch.zeros(numel, dtype=torch.float16, device="cuda")
    places = [0, 2**31 - 1, 2**31, numel - 1]
    for place in places:
        teacher[place] = -1.0
    scale = torch.tensor(float(2**31), device="cuda")
    parts = lit_loss(Inputs([student], [teacher], grad_scale=scale), LossOptions(beta=0.0))
    (grad,) = torch.autograd.grad(parts.total, student, scale)
    torch.testing.assert_close(parts.total.item(), len(places) / numel, rtol=1e-6, atol=0)
    assert grad.nonzero().flatten().tolist() == places
    assert grad[places].tolist() == [2.0] * len(places)


def test_logits_of_more_than_two_to_the_31_elements(lit_loss):
    need_memory(20)
    classes = 50257
    rows = 2**31 // classes + 7
    logits = torch.zeros(rows, classes, dtype=torch.float16, device="cuda", requires_grad=True)
    labels = torch.full((rows,), -100, device="cuda")
    labels[-1] = classes - 1
    scale = torch.tensor(1024.0, device="cuda")
    parts = lit_loss(Inputs(student_logits=logits, labels=labels, grad_scale=scale), LossOptions(alpha=1.0, beta=1.0))
    (grad,) = torch.autograd.grad(parts.total, logits, scale)
    torch.testing.assert_close(parts.ce.item(), torch.tensor(float(classes)).log().item(), rtol=1e-6, atol=0)
    assert grad[:-1].count_nonzero() == 0
    expected = torch.full((classes,), 1024.0 / classes)
    expected[-1] -= 1024.0
    torch.testing.assert_close(grad[-1].float().cpu(), expected, rtol=1e-3, atol=0)


def test_scale_saves_float16_gradients_from_underflow(lit_loss):
    numel = 2**20
    student = torch.full((numel,), 1e-2, dtype=torch.float16, device="cuda", requires_grad=True)
    teacher = torch.zeros_like(student)
    exact = 2 * student.detach().double() / numel
    for number in (1.0, 65536.0):
        scale = torch.tensor(number, device="cuda")
        total = lit_loss(Inputs([student], [teacher], grad_scale=scale), LossOptions(beta=0.0)).total
        (grad,) = torch.autograd.grad(total, student, scale)
        if number == 1.0:
            assert grad.count_nonzero() == 0  # 1.9e-8 is below half of float16's smallest number
        else:
            torch.testing.assert_close(grad.double() / number, exact, rtol=1e-3, atol=0)


def test_another_grad_output_than_the_scale_is_right_too(lit_loss):
    student = torch.randn(5000, device="cuda", requires_grad=True)
    teacher = torch.randn(5000, device="cuda")
    scale = torch.tensor(1024.0, device="cuda")
    total = lit_loss(Inputs([student], [teacher], grad_scale=scale), LossOptions(beta=0.0)).total
    (grad,) = torch.autograd.grad(total, student, torch.tensor(3.0, device="cuda"))
    torch.testing.assert_close(grad, 3 * 2 * (student.detach() - teacher) / 5000)


@pytest.mark.parametrize("dtype", loss_cases.DTYPES, ids=loss_cases.short)
@pytest.mark.parametrize("factor", [1.0, 0.5, 65536.0, float("nan")])
def test_rescale_multiplies_in_place(native_loss, dtype, factor):
    memory = [torch.randn(numel + 1, device="cuda").to(dtype) for numel in (0, 1, 7, 1000, 10**6 + 3, *range(70))]
    grads = [tensor[i % 2 :] for i, tensor in enumerate(memory)]  # every second one is not aligned
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    number = torch.tensor(factor, dtype=wide, device="cuda")
    expected = [(grad.to(wide) * number).to(dtype) for grad in grads]
    torch.ops.lit_fast.rescale_(grads, number)
    assert_equal_bits(grads, expected)


@pytest.mark.parametrize("dtype", loss_cases.DTYPES, ids=loss_cases.short)
def test_rescale_divides_the_factor_by_the_scale(native_loss, dtype):
    factor, scale = torch.tensor(0.75, device="cuda"), torch.tensor(3.0, device="cuda")
    grads = [torch.randn(numel, device="cuda").to(dtype) for numel in (1, 7, 10**6 + 3)]
    expected = [(grad.double() / 4).to(dtype) for grad in grads]
    torch.ops.lit_fast.rescale_(grads, factor, scale)
    assert_equal_bits(grads, expected)


# --- errors


@pytest.mark.parametrize("where", ["student_irs", "teacher_irs", "teacher_logits", "labels", "grad_scale"])
def test_a_tensor_on_the_cpu_is_named(native_loss, where):
    problem = loss_cases.build(Case("plain", grad_scale=2.0), "cuda")
    value = getattr(problem, where)
    moved = [*value[:1], value[1].cpu(), *value[2:]] if isinstance(value, list) else value.cpu()
    setattr(problem, where, moved)
    named = {"student_irs": "section 2, student IR", "teacher_irs": "section 2, teacher IR"}.get(where, where)
    with pytest.raises(ValueError, match=f"{named}: expected device cuda:0, got cpu"):
        native_loss(problem.inputs(), LossOptions())
    with pytest.raises(ValueError, match="expected device cuda:0 as the student's, got cpu"):
        lit_fast.lit_loss(*problem.inputs()[:5], grad_scale=problem.grad_scale)


def test_a_label_out_of_range_ends_in_an_error_on_the_host(native_loss):
    code = """
        import torch, lit_fast
        logits = torch.zeros(4, 10, device="cuda")
        labels = torch.tensor([1, 2, 10, 3], device="cuda")
        lit_fast.lit_loss([], [], logits, logits, labels, beta=1.0, backend="native")
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print("error on the host:", error)
        """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    printed = child.stdout + child.stderr
    assert "error on the host: CUDA error" in printed
    assert "label 10 of row 2 is out of range; expected 0 to 9, or ignore_index = -100" in printed
