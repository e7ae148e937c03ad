"""A stand-in for Triton's driver that names a GPU: enough to compile for it, not to launch."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget


class Driver:
    """Names a GPU."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, _device: int) -> int:
        return 0
