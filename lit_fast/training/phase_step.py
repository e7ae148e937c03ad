"""The training step of a phase, from the settings of its experiment."""

from __future__ import annotations

import torch

from lit_fast.losses import LITLoss
from lit_fast.parallel import Workers
from lit_fast.projector import Projectors
from lit_fast.sections import SplitModel
from lit_fast.step import LITStep
from lit_fast.training.config import Experiment
from lit_fast.training.variants import Switches

__all__ = ["build_step"]

_FUSED_SGD = ("cuda",)  # devices where SGD is one kernel, which a captured step needs


def build_step(
    settings: Experiment,
    switches: Switches,
    student: SplitModel,
    teacher: SplitModel | None,
    projector: Projectors | None,
    workers: Workers,
    *,
    in_lit: bool,
) -> LITStep:
    """The step of one phase of a variant.

    Args:
        settings: loss, optimizer and step.
        switches: of the variant.
        student: its frozen parts are frozen already.
        teacher: needed unless ``switches.needs_teacher`` is false.
        projector: where the widths differ.
        workers: the processes that share each batch.
        in_lit: with the IR loss; a scratch, KD or fine-tune phase has none.

    Raises:
        ValueError: settings that do not fit the pair.
    """
    loss, chosen = settings.loss, settings.optimizer
    count = student.num_sections
    sections = switches.ir_sections(count)
    weights = loss.section_weights
    if weights is not None and len(weights) != count:
        raise ValueError(f"loss.section_weights: expected {count} (one per section), got {len(weights)}")
    if weights is not None:
        trained = [n for n in sections if f"section{n}" not in student.frozen]
        weights = tuple(weights[n - 1] for n in trained) if in_lit else None
    device = next(student.parameters()).device
    criterion = LITLoss(
        alpha=loss.alpha if switches.needs_teacher else 1.0,
        beta=loss.beta if in_lit else 1.0,
        tau=loss.tau,
        ir=loss.ir,
        tau_squared=loss.tau_squared,
        section_weights=weights,
        label_smoothing=loss.label_smoothing,
    ).to(device)
    parameters = [p for p in student.parameters() if p.requires_grad]
    if projector is not None and in_lit:
        parameters += projector.parameters()
    optimizer = torch.optim.SGD(
        parameters,
        lr=1.0,  # set before every step
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
        nesterov=chosen.nesterov,
        fused=device.type in _FUSED_SGD,
    )
    return LITStep(
        teacher if switches.needs_teacher else None,
        student,
        criterion,
        optimizer,
        ir_sections=sections if in_lit else "all",
        student_input=switches.student_input,
        bn_policy=settings.step.bn_policy,
        precision=settings.step.precision,
        projector=projector if in_lit else None,
        engine=settings.step.engine,
        capture=settings.step.capture and workers.size == 1,  # the sum over processes is not captured
        side_by_side=settings.step.side_by_side and in_lit,
        workers=workers,
    )
