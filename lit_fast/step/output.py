"""What a `lit_fast.LITModel` gives for a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from lit_fast.loss.backends.options import LossParts

__all__ = ["LITOutput"]


class LITOutput(dict[str, Any]):
    """``loss, parts, logits = output``; the same as attributes, by number, and by key.

    It is a dict for Hugging Face's Trainer, which evaluates a model on all keys but ``loss``. So the output of a model
    in eval mode has no key for its parts; as an attribute, and when it is unpacked, they are there all the same.

    Attributes:
        loss: 0-d, differentiable.
        parts: detached: total, ce, kl: 0-d; ir: [number of sections with an IR loss].
        logits: of the student, as its model returns them (or as a function makes them of that, with own ``targets``);
            None where they are not needed, or never there as a whole.
    """

    loss: Tensor
    parts: LossParts
    logits: Tensor | None

    def __init__(self, loss: Any, parts: Any = None, logits: Any = None, *, training: bool = True) -> None:
        """Of its three values, or of a mapping, as what goes through a dict's tensors makes a new one."""
        if isinstance(loss, Mapping):
            training = "parts" in loss
            loss, parts, logits = (loss.get(name) for name in ("loss", "parts", "logits"))
        super().__init__({"loss": loss, **({"parts": parts} if training else {}), "logits": logits})
        self.loss, self.parts, self.logits = loss, parts, logits

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return iter((self.loss, self.parts, self.logits))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self)[key]


def _flatten(output: LITOutput) -> tuple[list[Any], bool]:
    return list(output), "parts" in output


def _unflatten(values: Any, training: bool) -> LITOutput:
    return LITOutput(*values, training=training)


# FSDP2 and torch.compile look for the tensors in it.
pytree.register_pytree_node(LITOutput, _flatten, _unflatten, serialized_type_name="lit_fast.LITOutput")
