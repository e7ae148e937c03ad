"""The CUDA kernels' own source, run on the CPU (tests/cuda_on_cpu) over the matrix of losses and under sanitizers."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import loss_cases
import pytest
import torch
from cuda_on_cpu import emulator
from cuda_on_cpu.emulator import Emulator
from everyday import but_first, exhaustive, in_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_fast.loss.backends import LossOptions

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("g++") is None, reason="needs g++ on Linux"
)

MATRIX = loss_cases.matrix()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("cuda_on_cpu"))


# --- the matrix


@pytest.mark.parametrize("case", in_turn(MATRIX, loss_cases.without_dtype), ids=str)
def test_kernels_are_as_accurate_as_eager(kernels, case):
    loss_cases.check(kernels.backend(), case)


def results(backend, case):
    found = loss_cases.run(backend, loss_cases.build(case), case.options)
    return [*found.parts, *found.grads]


def assert_equal_bits(ours, others):
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@exhaustive
@pytest.mark.parametrize("case", MATRIX[:: len(MATRIX) // 24], ids=str)
def test_blocks_that_run_at_once_give_the_same_bits(kernels, case):
    one_by_one = results(kernels.backend(), case)
    for _ in range(3):
        assert_equal_bits(results(kernels.backend(at_once=True), case), one_by_one)


@pytest.mark.parametrize(("threads", "blocks"), [(32, 1), (32, 6), (64, 2), (128, 3)])
@pytest.mark.parametrize(
    "dtype", but_first([torch.float32, torch.float64, torch.float16, torch.bfloat16]), ids=loss_cases.short
)
def test_any_grid_is_accurate(kernels, dtype, threads, blocks):
    # Gradients do not depend on the grid, so an element that a thread wrongly wrote, or did not write, shows.
    shapes = ((2, 5000), (1,), (3, 33, 9, 9), (7, 31))
    case = loss_cases.Case("grid", dtype, shapes=shapes, batch=37, settings={"ir": "l1", "label_smoothing": 0.1})
    backend = kernels.backend(threads=threads, blocks=blocks)
    loss_cases.check(backend, case)
    assert_equal_bits(results(backend, case)[4:], results(kernels.backend(), case)[4:])


def test_more_sections_than_one_launch_takes_add_up(kernels):
    """130 sections are three launches; what the first one gives does not depend on the others."""
    shapes = tuple((3, 1 + i % 5) for i in range(130))
    settings = {"beta": 0.0}
    many = results(kernels.backend(blocks=1000), loss_cases.Case("many", shapes=shapes, settings=settings))
    few = results(kernels.backend(blocks=1000), loss_cases.Case("few", shapes=shapes[:64], settings=settings))
    irs, gradients = many[3], many[4:]
    assert_equal_bits([irs[:64], *gradients[:64]], [few[3], *few[4:]])
    torch.testing.assert_close(many[0].double(), irs.double().sum(), rtol=1e-6, atol=0)


def test_without_gradient_the_loss_is_the_same(kernels):
    case = loss_cases.Case("plain", shapes=((3, 5000), (3, 11)))
    problem = loss_cases.build(case)
    with torch.no_grad():
        parts = kernels.backend()(problem.inputs(), case.options)
    assert_equal_bits(parts, loss_cases.run(kernels.backend(), problem, case.options).parts)


# --- blocks


PIECES = st.lists(st.tuples(st.integers(0, 10**7), st.floats(1, 1e12)), min_size=1, max_size=65)


@settings(max_examples=200)
@given(PIECES, st.integers(1, 2000))
def test_blocks_are_shared_out_by_work_and_none_waits_for_another(kernels, pieces, blocks):
    wanted, work = [piece[0] for piece in pieces], [piece[1] if piece[0] else 0.0 for piece in pieces]
    shares = kernels.share_blocks(wanted, work, blocks)
    working = sum(number > 0 for number in wanted)
    assert sum(shares) <= max(blocks, working)  # at least one each; beyond that, all run at a time
    for share, number, amount in zip(shares, wanted, work):
        assert (share > 0) == (number > 0)
        assert share <= number
        if sum(wanted) <= blocks:
            assert share == number
        elif 0 < share < number:
            assert abs(share - (blocks - working) * amount / sum(work)) <= 2 or blocks < working


IR_SIZES = [16 * 32 * 32, 32 * 16 * 16, 64 * 8 * 8]  # of a CIFAR ResNet, per image
H200_BLOCKS, H200_THREADS, H200_BYTES_PER_SECOND = 132 * 5, 128, 4.2e12
SECONDS_OF_TURN, SECONDS_OF_STRIP = 8e-6, 1e-6  # of a warp on an H200: a turn of rows, and each strip after the first


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=loss_cases.short)
@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("batch", [32, 128, 512, 1024, 8192])
def test_no_warp_walks_rows_for_longer_than_half_of_what_the_irs_take(kernels, batch, classes, dtype):
    """Rows in turn are for launches whose IRs take twice as long; else every group has one row."""
    numels = [batch * size for size in IR_SIZES]
    (of_rows, *of_sections), lanes = kernels.plan(numels, batch, classes, dtype, H200_THREADS, H200_BLOCKS)
    moved = [3 * numel * dtype.itemsize for numel in numels]  # student, teacher, gradient
    of_block = H200_BYTES_PER_SECOND / H200_BLOCKS
    irs = max(amount / blocks / of_block for amount, blocks in zip(moved, of_sections))
    turns = math.ceil(batch / (of_rows * H200_THREADS // lanes))
    strips = math.ceil(classes / (lanes * 4))
    rows = turns * (SECONDS_OF_TURN + SECONDS_OF_STRIP * (strips - 1))
    assert turns == 1 or rows <= irs / 2


@pytest.mark.parametrize(("batch", "blocks"), [(32, 32), (2640, 2640), (8192, 2640)])
def test_rows_of_many_classes_have_a_block_each_in_up_to_four_waves(kernels, batch, blocks):
    numels = [batch * size for size in IR_SIZES]
    assert kernels.plan(numels, batch, 50257, torch.float16, H200_THREADS, H200_BLOCKS)[0][0] == blocks


@pytest.mark.parametrize("batch", [32, 128, 1024, 8192])
def test_rows_of_few_classes_leave_the_irs_nearly_all_blocks(kernels, batch):
    numels = [batch * size for size in IR_SIZES]
    (of_rows, *_), lanes = kernels.plan(numels, batch, 10, torch.bfloat16, H200_THREADS, H200_BLOCKS)
    wanted = math.ceil(batch / (H200_THREADS // lanes))
    assert min(wanted, 28) <= of_rows <= 34


@pytest.mark.parametrize(("classes", "lanes"), [(1, 1), (4, 1), (5, 2), (10, 4), (100, 32), (256, 32), (257, 128)])
def test_threads_that_share_a_row_have_a_strip_each(kernels, classes, lanes):
    assert kernels.plan([], 8, classes, torch.float32, 128, 660)[1] == lanes


# --- counters of finished blocks


def test_calls_of_one_stream_share_a_counter_and_others_have_their_own(kernels):
    streams = [(0, 1), (0, 2), (1, 1)]
    first = kernels.counters(streams)
    assert len(set(first)) == 3
    assert kernels.counters([*streams, *streams[::-1]]) == first + first[::-1]


def test_captured_calls_have_counters_to_themselves(kernels):
    calls = [(0, 1 + i // 2 if i % 2 else 0) for i in range(2048)]  # every second one captured, each stream once
    found = kernels.counters(calls)
    assert len(set(found)) == 2048
    assert 0 <= min(found) <= max(found) < 16384


def test_counters_that_run_out_are_handed_out_again(kernels):
    found = kernels.counters([(0, i) for i in range(1, 1026)] + [(0, 1)])
    assert len(set(found[:1024])) == 1024
    assert found[1024] == found[0]  # the oldest stream's, which then gets the next
    assert found[1025] == found[1]
    captured = kernels.counters([(0, 0)] * 15361)
    assert len(set(captured)) == 15360
    assert captured[0] == captured[-1]
    assert min(captured) == 1024
    assert max(captured) == 16383


# --- rescaling


@pytest.mark.parametrize("dtype", loss_cases.DTYPES, ids=loss_cases.short)
@pytest.mark.parametrize("factor", [1.0, 0.5, 65536.0, -3.7, float("nan")])
def test_rescale_multiplies_in_place(kernels, dtype, factor):
    memory = [torch.randn(numel + 1).to(dtype) for numel in (0, 1, 7, 1000, 4099, *range(70))]
    grads = [tensor[i % 2 :] for i, tensor in enumerate(memory)]  # every second one is not aligned
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    number = torch.tensor(factor, dtype=wide)
    expected = [(grad.to(wide) * number).to(dtype) for grad in grads]
    kernels.rescale_(grads, number)
    assert_equal_bits(grads, expected)


@pytest.mark.parametrize("dtype", loss_cases.DTYPES, ids=loss_cases.short)
@pytest.mark.parametrize("scale_dtype", loss_cases.DTYPES, ids=loss_cases.short)
def test_rescale_divides_the_factor_by_the_scale_in_float64(kernels, dtype, scale_dtype):
    factor, scale = torch.tensor(0.7), torch.tensor(3.0, dtype=scale_dtype)
    grads = [torch.randn(numel).to(dtype) for numel in (1, 7, 1000)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = [(grad.to(wide) * (factor.item() / 3.0)).to(dtype) for grad in grads]
    kernels.rescale_(grads, factor, scale)
    assert_equal_bits(grads, expected)


def test_rescale_by_equal_factor_and_scale_writes_nothing(kernels):
    bits = torch.full((100,), 0x7FC1, dtype=torch.int16)  # a bfloat16 NaN that a product would change
    grad = bits.clone().view(torch.bfloat16)
    kernels.rescale_([grad], torch.tensor(0.3), torch.tensor(0.3))
    assert torch.equal(grad.view(torch.int16), bits)
    kernels.rescale_([grad], torch.tensor(0.3), torch.tensor(0.6))
    assert not torch.equal(grad.view(torch.int16), bits)


def test_conversions_of_the_stand_in_are_those_of_torch(kernels):
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    wide = halves.float()
    narrow = torch.cat([wide, torch.nextafter(wide, torch.tensor(1e9)), wide * 1.0003, wide * 1e-3])
    to_float, to_half = kernels.library.half_to_float, kernels.library.float_to_half
    to_float.restype, to_float.argtypes = emulator.ctypes.c_float, [emulator.ctypes.c_ushort]
    to_half.restype, to_half.argtypes = emulator.ctypes.c_ushort, [emulator.ctypes.c_float]
    ours = torch.tensor([to_float(bits & 0xFFFF) for bits in halves.view(torch.int16).tolist()])
    assert_equal_bits([ours], [wide])
    back = torch.tensor([to_half(number) for number in narrow.tolist()], dtype=torch.int32).to(torch.int16)
    assert_equal_bits([back.view(torch.float16)], [narrow.half()])


# --- labels out of range


@pytest.mark.parametrize("label", [10, -1, 2**40])
def test_a_label_out_of_range_stops_the_kernel_and_is_named(kernels, label, capfd):
    problem = loss_cases.build(loss_cases.Case("plain"))
    problem.labels[1] = label
    with pytest.raises(RuntimeError, match="device-side assert"):
        kernels.backend()(problem.inputs(), LossOptions())
    emulator.ctypes.CDLL(None).fflush(None)
    assert f"label {label} of row 1 is out of range; expected 0 to 9, or ignore_index = -100" in capfd.readouterr().out


# --- sanitizers: a fixed selection of problems, checked against loops in float64 (selection.cpp)


def program(folder: Path, *options: str) -> Path:
    file = folder / "selection"
    emulator.compile_cpp("selection.cpp", file, "-g1", *options)
    return file


def run(file: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([str(file), *arguments], capture_output=True, text=True, check=False, timeout=280)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def with_address_sanitizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    return program(tmp_path_factory.mktemp("asan"), *options)


@exhaustive
def test_no_access_out_of_bounds_and_no_misaligned_load(with_address_sanitizer):
    status, printed = run(with_address_sanitizer, "all")
    assert status == 0, printed
    assert "problems right" in printed


@exhaustive
def test_a_wrong_loss_is_told(with_address_sanitizer):
    status, printed = run(with_address_sanitizer, "wrong")
    assert status == 1
    assert "part: " in printed
    assert "logits gradient: " in printed


@exhaustive
@pytest.mark.parametrize("what", ["student", "teacher", "gradient", "labels"])
def test_address_sanitizer_finds_a_planted_access_out_of_bounds(with_address_sanitizer, what):
    status, printed = run(with_address_sanitizer, "overrun", what)
    assert status != 0
    assert "AddressSanitizer: heap-buffer-overflow" in printed


@exhaustive
@pytest.mark.parametrize("label", ["5", "-3", "123456789012"])
def test_nothing_is_read_at_a_label_out_of_range(with_address_sanitizer, label):
    status, printed = run(with_address_sanitizer, "label", label)
    assert (status, "Sanitizer" in printed) == (3, False), printed
    assert f"label {label} of row 2 is out of range; expected 0 to 4" in printed


THREADS = ("-O1", "-fsanitize=thread", "-DCUDA_ON_CPU_THREADS")


@exhaustive
def test_no_data_race(tmp_path):
    status, printed = run(program(tmp_path, *THREADS), "some")
    assert status == 0, printed
    assert "problems right" in printed


@exhaustive
def test_thread_sanitizer_finds_a_planted_race(tmp_path):
    _, printed = run(program(tmp_path, *THREADS, "-DPLANT_RACE"), "one")
    assert "ThreadSanitizer: data race" in printed
    assert "sums.cuh" in printed
