"""Exported networks are read back and compared with PyTorch before they are kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_fast import models
from lit_fast.errors import ExportError
from lit_fast.runs import export as exporting
from lit_fast.runs.export import TOLERANCE, export
from lit_fast.runs.weights import WeightInfo, read_info

SHAPE = (1, 16, 16)
INFO = WeightInfo("resnet20", 10, 1, 16, "digits", (0.3,), (0.4,))


@pytest.fixture
def network() -> nn.Module:
    """A ResNet-20 with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = models.create("resnet20", num_classes=10, in_channels=1)
    with torch.no_grad():
        model.train()(torch.randn(16, *SHAPE))
    return model.eval()


def images(batch: int) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(99))


def logits(network: nn.Module, batch: int) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(images(batch))
    return out


def test_safetensors_hold_every_weight_and_say_what_they_are_of(network: nn.Module, tmp_path: Path) -> None:
    done = export(network, SHAPE, "safetensors", tmp_path / "deep" / "net.safetensors", INFO)
    again = models.create("resnet20", num_classes=10, in_channels=1).eval()
    models.load_checkpoint(again, done.path)
    assert torch.equal(logits(again, 3), logits(network, 3))
    assert read_info(done.path) == INFO
    assert (done.difference, done.size) == (0.0, done.path.stat().st_size)


def test_safetensors_without_known_origin_load_as_well(network: nn.Module, tmp_path: Path) -> None:
    done = export(network, SHAPE, "safetensors", tmp_path / "net.safetensors")
    again = models.create("resnet20", num_classes=10, in_channels=1).eval()
    models.load_checkpoint(again, done.path)
    assert torch.equal(logits(again, 3), logits(network, 3))
    assert read_info(done.path) is None


def test_a_torch_export_program_takes_any_batch_and_gives_the_same_logits(network: nn.Module, tmp_path: Path) -> None:
    done = export(network, SHAPE, "torch-export", tmp_path / "net.pt2")
    program = torch.export.load(done.path).module()
    for batch in (1, 7):
        torch.testing.assert_close(program(images(batch)), logits(network, batch))
    assert done.difference <= done.tolerance
    assert list(tmp_path.iterdir()) == [done.path]


def test_onnx_takes_any_batch_and_gives_the_same_logits(
    network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = export(network, SHAPE, "onnx", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(done.path)
    for batch in (1, 7):
        (found,) = session.run(["logits"], {"images": images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(network, batch), rtol=1e-4, atol=1e-4)
    assert done.difference <= done.tolerance
    assert list(tmp_path.iterdir()) == [done.path]  # one file, weights inside
    assert capfd.readouterr() == ("", "")
    assert not recwarn


def test_a_network_in_train_mode_is_exported_as_it_is_deployed(network: nn.Module, tmp_path: Path) -> None:
    expected = logits(network, 4)
    network.train()
    done = export(network, SHAPE, "torch-export", tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(done.path).module()(images(4)), expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: x.new_zeros(len(x), 10), "from PyTorch"),
        (lambda x: x.new_full((len(x), 10), torch.nan), "from PyTorch"),
        (lambda x: x.new_zeros(len(x), 3), "gives"),
    ],
    ids=["other logits", "NaN", "other shape"],
)
def test_a_result_that_disagrees_is_not_kept(
    wrong: Any, says: str, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_write_program", lambda model, x, path: path.write_bytes(b"new"))
    monkeypatch.setattr(exporting, "_read_program", lambda path: wrong)
    out = tmp_path / "net.pt2"
    out.write_bytes(b"before")
    with pytest.raises(ExportError, match=says):
        export(network, SHAPE, "torch-export", out)
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


def test_the_tolerance_grows_with_the_logits_and_is_reported(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slightly_off(x: Tensor) -> Tensor:
        with torch.no_grad():
            out = network(x)
        return out + 0.5 * TOLERANCE * max(1.0, float(out.abs().max()))

    monkeypatch.setattr(exporting, "_write_program", lambda model, x, path: path.write_bytes(b"new"))
    monkeypatch.setattr(exporting, "_read_program", lambda path: slightly_off)
    done = export(network, SHAPE, "torch-export", tmp_path / "net.pt2")
    assert 0.0 < done.difference <= done.tolerance


def test_missing_onnx_packages_are_named_with_the_extra_that_brings_them(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(ExportError, match=r"not installed: onnxruntime\..*pip install .\.\[export\]"):
        export(network, SHAPE, "onnx", tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_and_a_folder_as_file_are_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="safetensors, onnx, torch-export"):
        export(network, SHAPE, "tflite", tmp_path / "net")
    with pytest.raises(ValueError, match="is a folder"):
        export(network, SHAPE, "safetensors", tmp_path)
