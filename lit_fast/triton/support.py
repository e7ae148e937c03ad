"""Whether Triton can run the kernels on a device, and launching them there. Triton is imported when it is asked for."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch

_VERSION = (3, 4)  # of Triton: the first whose compiler takes the kernels
_CAPABILITY = (7, 0)  # of the GPUs that Triton supports


def available(device_type: str | None = None, device_index: int | None = None) -> tuple[bool, str]:
    """Whether the kernels can be used for tensors on such a device (None: on any at all), and why or why not."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    try:
        import triton
    except ImportError as error:
        return False, f"Triton does not load: {error}"
    if tuple(map(int, triton.__version__.split(".")[:2])) < _VERSION:
        return False, f"the kernels need Triton {_VERSION[0]}.{_VERSION[1]}, this is Triton {triton.__version__}"
    from lit_fast.triton.maths import INTERPRETED

    if INTERPRETED:
        return True, "Triton's interpreter runs the kernels on the CPU"
    if device_type is None:
        return True, f"Triton {triton.__version__} is installed"
    if device_type != "cuda":
        return False, f"Triton's kernels run on CUDA GPUs, not on {device_type}; TRITON_INTERPRET=1 interprets them"
    if torch.version.hip is not None:
        return False, "Triton's kernels are tested on NVIDIA's GPUs alone"
    capability = torch.cuda.get_device_capability(device_index)
    if capability < _CAPABILITY:
        return False, f"Triton needs a GPU of capability 7.0, this one has {capability[0]}.{capability[1]}"
    return True, f"Triton compiles for capability {capability[0]}.{capability[1]}"


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, whatever the device of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
