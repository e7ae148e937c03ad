"""A trained network as safetensors, ONNX or a torch.export program, each read back and checked before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_fast.data.formats.alphabet import SYMBOLS
from lit_fast.errors import ExportError
from lit_fast.files import atomic_write, refuse_odd
from lit_fast.runs.weights import WeightInfo, save_weights
from lit_fast.sections.dryrun import untouched

__all__ = ["FORMATS", "TOLERANCE", "Exported", "export", "random_input"]

FORMATS = ("safetensors", "onnx", "torch-export")
# Largest |exported - PyTorch| of a logit, as a part of the largest |logit| (at least 1): fp32 convolutions summed in
# another order stay two orders of magnitude below, a wrong graph does not.
TOLERANCE = 1e-4
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class Exported:
    """What was written and how far it is from PyTorch (of safetensors: the largest difference of a weight)."""

    path: Path
    size: int  # bytes
    difference: float
    tolerance: float


def export(
    model: nn.Module,
    shape: tuple[int, ...],
    to: str,
    out: Path,
    info: WeightInfo | None = None,
    output: str = "logits",
) -> Exported:
    """Write ``model`` to ``out``, whole or not at all.

    The batch size stays free in ONNX (input ``images`` or ``tokens``, output ``output``) and in the torch.export
    program. Both are read back from the written file and compared with PyTorch on random input of several batch sizes.

    Args:
        model: images [B, C, H, W] fp32, or tokens [B, L] int64, -> logits [B, classes] or images; put on the CPU here,
            exported as it is in eval mode, otherwise left as it was.
        shape: (C, H, W) of an image, or (L,) of a text.
        to: one of ``FORMATS``.
        out: the file; its folder is made if absent.
        info: what a safetensors file says about itself; ``None`` where it is not known.
        output: the name of the output in ONNX.

    Raises:
        ExportError: packages are missing (named, with the extra that brings them), or the result is further than the
            tolerance from PyTorch.
        ValueError: unknown format, or ``out`` is a folder.
        OSError: the file cannot be written, or is a link, a pipe or a device.
    """
    if to not in FORMATS:
        raise ValueError(f"export format: expected one of {', '.join(FORMATS)}, got {to!r}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the name of a file in it")
    refuse_odd(out)
    if to == "onnx":
        _require_onnx()
    out.parent.mkdir(parents=True, exist_ok=True)
    with untouched(model.cpu()):
        return _export(model.eval(), shape, to, out, info, output)


def _export(
    model: nn.Module, shape: tuple[int, ...], to: str, out: Path, info: WeightInfo | None, output: str
) -> Exported:
    if to == "safetensors":
        difference, tolerance = _export_safetensors(model, out, info), 0.0
    else:
        inputs = {batch: random_input(batch, shape) for batch in _BATCHES}
        with torch.no_grad():
            expected = {batch: model(x) for batch, x in inputs.items()}
        tolerance = TOLERANCE * max(1.0, *(float(y.abs().max()) for y in expected.values()))
        write, read = (partial(_write_onnx, output), _read_onnx) if to == "onnx" else (_write_program, _read_program)
        found: list[float] = []

        def write_and_check(path: Path) -> None:
            with _quiet():
                write(model, inputs[2], path)
                run = read(path)
                found.append(max(_distance(run(inputs[batch]), expected[batch]) for batch in _BATCHES))
            if not found[0] <= tolerance:  # also refuses NaN
                raise ExportError(
                    f"{to}: the exported network is up to {found[0]:.2e} from PyTorch, the tolerance is "
                    f"{tolerance:.2e}; nothing was written to {out}"
                )

        atomic_write(out, write_and_check)
        difference = found[0]
    return Exported(out, out.stat().st_size, difference, tolerance)


def random_input(batch: int, shape: tuple[int, ...]) -> Tensor:
    """Images [batch, C, H, W] of normal values, or texts [batch, L] of any tokens; the same at every call."""
    random = torch.Generator().manual_seed(batch)
    if len(shape) == 1:
        return torch.randint(SYMBOLS, (batch, *shape), generator=random)
    return torch.randn(batch, *shape, generator=random)


def _name(example: Tensor) -> str:
    return "tokens" if example.dim() == 2 else "images"


def _distance(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        raise ExportError(f"the exported network gives {tuple(got.shape)}, PyTorch {tuple(expected.shape)}")
    return float((got - expected).abs().max())


def _export_safetensors(model: nn.Module, out: Path, info: WeightInfo | None) -> float:
    from safetensors.torch import load_file, save_file

    tensors = model.state_dict()
    if info is not None:
        save_weights(out, tensors, info)
    else:
        dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
        atomic_write(out, lambda p: save_file(dense, p, metadata={"format": "pt"}))
    again = load_file(out)
    differing = [name for name in tensors if name not in again or not torch.equal(again[name], tensors[name])]
    if differing:
        raise ExportError(f"{out} reads back differently in {', '.join(differing[:3])}: check the disk")
    return 0.0


def _require_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export to ONNX, with its check, needs {', '.join(_ONNX_PACKAGES)}; not installed: "
            f"{', '.join(missing)}. Install them with: pip install '.[export]' in a checkout of lit_fast"
        )


def _write_onnx(output: str, model: nn.Module, example: Tensor, path: Path) -> None:
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=[_name(example)],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    program.save(path, external_data=False)  # one file


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {_name(x): x.numpy()})[0])


def _write_program(model: nn.Module, example: Tensor, path: Path) -> None:
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()  # given a path, torch insists on the ending .pt2, which a temporary name lacks
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def _read_program(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(x)
        return logits

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of their own deprecations and of packages nobody asked for; what fails still raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
