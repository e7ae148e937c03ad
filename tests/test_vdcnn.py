"""VDCNN: its sizes, its sections, its pooling, what it refuses; as teacher, in bf16, captured, exported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from everyday import but_first, exhaustive
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_graphs import RecordedGraphs
from teacher_networks import settle

import lit_fast as lf
from lit_fast import models
from lit_fast.models.vdcnn import BLOCKS, KMaxPool
from lit_fast.pair.counting import count_layers, count_parameters
from lit_fast.runs.export import TOLERANCE, export
from lit_fast.runs.weights import WeightInfo, read_info
from lit_fast.step import capture

LENGTH = 64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def tokens(batch: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 69, (batch, length), generator=torch.Generator().manual_seed(batch))


def parameters(blocks: tuple[int, ...], classes: int) -> int:
    """The formula of VDCNN's docstring."""
    total, before = 69 * 16 + 3 * 16 * 64, 64
    for c, n in zip((64, 128, 256, 512), blocks):
        total += 3 * before * c + 3 * c**2 + 4 * c + (n - 1) * (6 * c**2 + 4 * c)
        before = c
    return total + (8 * 512 + 1) * 2048 + 2049 * 2048 + 2049 * classes


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(9, 14.2), (17, 16.3), (29, 16.6)])
@pytest.mark.parametrize("classes", [2, 5])
def test_sizes_are_those_of_the_formula_and_of_the_papers(depth, millions, classes):
    with torch.device("meta"):
        model = models.create(f"vdcnn{depth}", num_classes=classes)
    assert count_parameters(model) == parameters(BLOCKS[depth], classes)
    assert round(count_parameters(model) / 1e6, 1) == millions
    assert count_layers(model) == depth + 3  # the name counts the convolutions, without the three linear layers


@pytest.mark.parametrize("length", [57, 64, 101])
def test_irs_of_all_depths_have_one_shape_with_max_pooling_before_the_later_sections(length):
    expected, size = [], length
    for channels in (64, 128, 256, 512):
        expected.append((2, channels, size))
        size = -(-size // 2)
    for name in ("vdcnn9", "vdcnn17", "vdcnn29"):
        irs, logits = lf.split(models.create(name, num_classes=3)).run(tokens(2, length))
        assert [tuple(ir.shape) for ir in irs] == expected
        assert logits.shape == (2, 3)


def test_the_parts_in_sequence_are_the_model_and_the_pair_fits():
    teacher, student = lf.split(models.vdcnn17(2)).eval().requires_grad_(False), lf.split(models.vdcnn9(2))
    assert torch.equal(teacher.run(tokens())[1], teacher(tokens()))
    report = lf.inspect(teacher, student, tokens())
    assert "not lowered" not in str(report)
    lf.copy_parts(teacher, student)  # embedding, first convolution and classifier
    assert torch.equal(student.model.embedding.weight, teacher.model.embedding.weight)
    assert torch.equal(student.model.conv1.weight, teacher.model.conv1.weight)
    assert torch.equal(student.model.fc1.weight, teacher.model.fc1.weight)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=8, max_size=30), st.integers(1, 8))
def test_kmax_pooling_keeps_the_largest_in_their_order_and_the_first_of_equal_ones(values, k):
    largest = sorted(range(len(values)), key=lambda place: (-values[place], place))[:k]
    pooled = KMaxPool(k)(torch.tensor([[values]], dtype=torch.float32))
    assert pooled.flatten().tolist() == [values[place] for place in sorted(largest)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 56, dtype=torch.int64), "expected at least 57 characters .* got 56; pad the text"),
        (torch.zeros(2, 1, 64, dtype=torch.int64), r"expected tokens int64 \[B, L\], got int64 \(2, 1, 64\)"),
        (torch.zeros(2, 64), r"expected tokens int64 \[B, L\], got float32 \(2, 64\)"),
        (torch.full((2, 64), 69), r"expected tokens 0..68, got 69..69"),
        (torch.full((2, 64), -1), r"expected tokens 0..68, got -1..-1"),
    ],
)
def test_what_is_no_text_is_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        models.vdcnn9(2).eval()(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 3}, "in_channels=3 given for vdcnn9, which reads text"),
        ({"cardinality": 8}, "cardinality=8 given for vdcnn9: only the resnext"),
        ({"num_classes": 0}, "num_classes: expected an integer above 0, got 0"),
    ],
)
def test_options_it_does_not_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.create("vdcnn9", **options)


def test_a_checkpoint_of_other_classes_says_how_to_build_the_model(tmp_path: Path):
    torch.save(models.vdcnn9(5).state_dict(), tmp_path / "five.pt")
    with pytest.raises(models.CheckpointError, match=r"fc3.weight: .*; build the model with num_classes=5"):
        models.load_checkpoint(models.vdcnn9(2), tmp_path / "five.pt")


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match="depth is one of 9, 17, 29, got 49"):
        models.VDCNN(49)


# -- in training -------------------------------------------------------------------------------------------------------


def step(captured: bool, precision: str, lr: float = 0.0078125) -> lf.LITStep:
    """A LIT step over a pair with one block less than its teacher, stem and head copied and frozen."""
    torch.manual_seed(0)
    teacher, student = lf.split(settle(models.vdcnn17(2))), lf.split(models.vdcnn9(2)).train()
    lf.copy_parts(teacher, student)
    student.freeze("stem", "head")
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-4, fused=True)
    criterion = lf.LITLoss(alpha=0.98, beta=0.02, tau=6.0)
    return lf.LITStep(teacher, student, criterion, optimizer, precision=precision, capture=captured)


@pytest.mark.parametrize("precision", but_first(["fp32", "bf16"]))
def test_a_captured_step_is_the_eager_one_bit_for_bit(monkeypatch, precision):
    graphs = RecordedGraphs()
    monkeypatch.setattr(capture, "graphs_for", lambda device: graphs)
    eager, captured = step(False, precision), step(True, precision)
    labels = torch.tensor([0, 1, 1, 0])
    for number in range(3):
        texts = tokens(4, LENGTH).roll(number)
        ours, theirs = captured(texts, labels), eager(texts, labels)
        assert torch.equal(ours.total, theirs.total)
    assert captured.captured, captured.capture_reason
    for (name, a), b in zip(captured.student.state_dict().items(), eager.student.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("precision", but_first(["bf16", "fp32"]))
def test_the_ir_losses_fall_and_frozen_parts_stay(precision):
    lit = step(False, precision, lr=0.5)
    before = lit.student.model.fc1.weight.clone()
    texts, labels = tokens(8), torch.arange(8) % 2
    losses = [float(lit(texts, labels).total) for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(lit.student.model.fc1.weight, before)


# -- export ------------------------------------------------------------------------------------------------------------

INFO = WeightInfo("vdcnn9", 2, None, None, "amazon-polarity", (), (), length=LENGTH)


def test_weights_tell_that_they_read_text(tmp_path: Path):
    model = models.vdcnn9(2)
    done = export(model, (LENGTH,), "safetensors", tmp_path / "net.safetensors", INFO)
    assert read_info(done.path) == INFO
    assert INFO.shape == (LENGTH,)


def test_a_torch_export_program_takes_texts_of_any_batch(tmp_path: Path):
    model = settle(models.vdcnn9(2))
    done = export(model, (LENGTH,), "torch-export", tmp_path / "net.pt2")
    assert done.difference <= done.tolerance
    program = torch.export.load(str(done.path)).module()
    assert torch.allclose(program(tokens(7)), model(tokens(7)), rtol=0, atol=10 * TOLERANCE)


@exhaustive
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_onnx_takes_tokens(tmp_path: Path):
    import onnxruntime

    model = settle(models.vdcnn9(2))
    model.layer4[1].bn2.bias.data -= 1.0  # most of what is pooled is then zero, as in trained networks
    done = export(model, (LENGTH,), "onnx", tmp_path / "net.onnx")
    assert done.difference <= done.tolerance
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type) for i in session.get_inputs()] == [("tokens", "tensor(int64)")]
