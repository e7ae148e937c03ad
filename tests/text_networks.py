"""Transformers as libraries write them, small enough for tests: untraceable, and fed with dicts of padded texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES, WORDS, WIDTH = 5, 20, 8


class Block(nn.Module):
    """A transformer's block as libraries write it: other arguments beside the hidden state, a tuple back."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix, self.feed, self.norm = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.decides = True

    def forward(self, hidden: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.decides and mask is not None and mask.sum() == 0:  # on a value: this cannot be traced, nor captured
            raise ValueError("an empty mask")
        scores = hidden @ self.mix(hidden).transpose(1, 2)
        scores = scores if mask is None else scores.masked_fill(~mask[:, None].bool(), -1e4)
        scores = scores if bias is None else scores + bias
        hidden = hidden + self.dropout(scores.softmax(2) @ hidden)
        return (self.norm(hidden + F.gelu(self.feed(hidden))), bias)


class Output(dict):
    """As libraries' outputs are."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Text(nn.Module):
    """A classifier of padded texts: blocks in a list, called in a loop with a mask that forward makes."""

    def __init__(self, blocks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.bias = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList(Block(dropout) for _ in range(blocks))
        self.last = nn.Linear(WIDTH, CLASSES)
        self.checkpointing: bool | None = None  # of the blocks; whether reentrant

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        hidden = self.embed(input_ids)
        steps = torch.arange(hidden.shape[1], device=hidden.device)
        bias = self.bias * (steps[:, None] - steps).abs()
        for layer in self.layers:
            if self.checkpointing is None:
                hidden = layer(hidden, attention_mask, bias=bias)[0]
            else:
                hidden = checkpoint(layer, hidden, attention_mask, bias, use_reentrant=self.checkpointing)[0]
        return Output(logits=self.last(hidden.mean(1)))


def text(rows: int = 4, length: int = 6, seed: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}, torch.randint(0, CLASSES, (rows,), generator=generator)


class Causal(Text):
    """Logits of the next word, made by a linear layer that a wrapper calls."""

    def __init__(self, blocks: int, scale: float = 1.0) -> None:
        super().__init__(blocks)
        self.last, self.scale = nn.Linear(WIDTH, WORDS, bias=False), scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, bias=self.bias)[0]
        logits = self.last(hidden)
        return Output(logits=logits if self.scale == 1.0 else logits * self.scale)
