"""Language models: a fused head gives what logits give, and padding that is skipped changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from text_networks import WORDS, Causal, text
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lit_fast as lf

# -- a fused head -----------------------------------------------------------------------------------------------------


def causal_step(dtype: torch.dtype = torch.float32, scale: float = 1.0, **options: Any) -> lf.LITStep:
    torch.manual_seed(0)
    teacher, student = (lf.split(Causal(n, scale).to(dtype), blocks="layers", sections=2) for n in (4, 2))
    options.setdefault("criterion", lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0))
    return lf.LITStep(
        teacher,
        student.train(),
        options.pop("criterion"),
        torch.optim.SGD(student.parameters(), lr=0.1),
        targets="causal_lm",
        **options,
    )


def gradients(step: lf.LITStep, batch: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    step.loss(batch).backward()
    return step.criterion.parts, {name: p.grad for name, p in step.student.model.named_parameters()}


@pytest.mark.parametrize("criterion", [{}, {"alpha": 1.0}, {"alpha": 0.0}, {"beta": 1.0}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("frozen", [(), ("stem", "head")])
def test_a_fused_head_gives_what_logits_give(criterion: dict[str, Any], frozen: tuple[str, ...]) -> None:
    batch, _ = text()
    results = []
    for fused in (None, False):
        step = causal_step(
            torch.float64, fused_head=fused, criterion=lf.LITLoss(**({"alpha": 0.5, "beta": 0.5} | criterion))
        )
        step.student.freeze(*frozen)
        results.append(gradients(step, batch))
        assert (step.model.heads is None) == (fused is False)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_fused_head_makes_no_logits() -> None:
    step, (batch, _) = causal_step(), text(7, 9)  # no other tensor has 9 x 20 elements for each row

    def logits_made() -> bool:
        made = Made()
        with made:
            step.loss(batch).backward()
        return any(shape[-1:] == (WORDS,) and len(shape) > 1 and shape[:-1].numel() >= 7 * 8 for shape in made.shapes)

    assert step.loss(batch).isfinite()  # finds the head
    step.model.heads.of(None, step.student, batch).loss = chunked(step.model.heads.of(None, step.student, batch).loss)
    assert not logits_made()
    step.model.heads = None
    assert logits_made()


def chunked(loss: Any) -> Any:
    """With few rows at a time, for batches as small as a test's."""

    def in_chunks(*args: Any) -> Tensor:
        from lit_fast.step import linear_heads

        whole = linear_heads.linear_kd_loss
        try:
            linear_heads.linear_kd_loss = lambda *a, **k: whole(*a, chunk=5, **k)
            return loss(*args)
        finally:
            linear_heads.linear_kd_loss = whole

    return in_chunks


class Made(TorchDispatchMode):
    """The shapes of all that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.shapes |= {t.shape for t in tree_leaves(out) if isinstance(t, Tensor)}
        return out


def test_logits_that_a_linear_layer_does_not_make_are_computed() -> None:
    step, (batch, _) = causal_step(scale=2.0), text()
    step(batch)
    assert step.model.heads.of(step.teacher, step.student, batch) is None
    step = causal_step(scale=2.0, fused_head=True)
    with pytest.raises(ValueError, match=r"fused_head: the student's logits are not what an nn.Linear"):
        step(batch)


# -- padding ----------------------------------------------------------------------------------------------------------


def padded(lengths: list[int], width: int) -> dict[str, Tensor]:
    """Texts of these lengths, filled up to one width with words that mean nothing."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, WORDS, (len(lengths), 12), generator=generator)[:, :width]
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def short(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some of its texts, no wider than they need be."""
    part = {name: value[rows] for name, value in batch.items()}
    width = int(part["attention_mask"].sum(1).max())
    return {name: value[:, :width] for name, value in part.items()}


@pytest.mark.parametrize("fused", [None, False])
def test_skipped_padding_changes_nothing(fused: bool | None) -> None:
    """Neither how wide it is, nor what stands there."""
    narrow, wide = padded([5, 3, 4], 5), padded([5, 3, 4], 12)
    wide["input_ids"] = wide["input_ids"].masked_fill(wide["attention_mask"] == 0, 7)
    results = [gradients(causal_step(torch.float64, skip_padding=True, fused_head=fused), b) for b in (narrow, wide)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    counted = [gradients(causal_step(torch.float64, fused_head=fused), b)[0].kl for b in (narrow, wide)]
    assert abs(counted[0] - counted[1]) > 1e-6  # padding counts unless it is skipped


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_micro_batches_of_unequal_padding_add_up_to_the_whole(fused: bool | None, dtype: torch.dtype) -> None:
    batch = padded([9, 2, 5, 3, 12, 4], 12)
    whole, parts = (causal_step(dtype, skip_padding=True, fused_head=fused, accumulate=n) for n in (1, 3))
    micro = [short(batch, slice(i, i + 2)) for i in (0, 2, 4)]
    counts = sum(parts.model.counts(each) for each in micro)
    whole(batch)
    losses = [parts(each, normalizer=counts).total for each in micro]
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.stack(losses).sum(), whole.criterion.parts.total, **tolerance)
    ours, right = (dict(step.student.model.state_dict()) for step in (parts, whole))
    torch.testing.assert_close(ours, right, **tolerance)
    assert parts.updated


def test_diagnostics_skip_padding() -> None:
    narrow, wide = padded([5, 3, 4], 5), padded([5, 3, 4], 12)
    found = [lf.section_diagnostics(causal_step(torch.float64, skip_padding=True), batch) for batch in (narrow, wide)]
    torch.testing.assert_close(found[0].composed, found[1].composed, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0].cosines, found[1].cosines, rtol=1e-6, atol=1e-9)
