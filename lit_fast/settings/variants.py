"""The six variants of the paper's table 3 as two switches over one step (method, "Variants")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_fast.literals import StudentInput

__all__ = ["VARIANTS", "Switches", "Variant"]

Variant = Literal["scratch", "kd", "hint", "one_ir_teacher_input", "multi_ir", "lit"]


@dataclass(frozen=True)
class Switches:
    """Which sections carry an IR loss in the LIT phase, what their input is, and whether there is a teacher at all."""

    ir: Literal["none", "middle", "all"] = "none"
    student_input: StudentInput = "composed"
    needs_teacher: bool = True

    def ir_sections(self, count: int) -> tuple[int, ...]:
        """1-based numbers of the sections with an IR loss, of ``count``."""
        if self.ir == "none":
            return ()
        return tuple(range(1, count + 1)) if self.ir == "all" else ((count + 1) // 2,)


VARIANTS: dict[str, Switches] = {
    "scratch": Switches(needs_teacher=False),
    "kd": Switches(),
    "hint": Switches("middle"),
    "one_ir_teacher_input": Switches("middle", "teacher"),
    "multi_ir": Switches("all"),
    "lit": Switches("all", "teacher"),
}
