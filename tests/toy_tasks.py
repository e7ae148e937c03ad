"""Small networks and datasets of three kinds, as a user's own module has them: ``toy_tasks:bert_teacher`` and the like.

Texts with an attention mask whose network returns an object with logits, texts of which the next token is told, images
whose pixels are classified.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import lit_fast as lf

VOCABULARY, WIDTH, LENGTH = 12, 16, 8
AT_MOST = 60  # steps that a teacher is trained for


@dataclass
class Output:
    """What a library's networks return."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()


class Block(nn.Module):
    """Attention over the tokens that the mask (bool [B, 1 or T, T]) shows, then an MLP; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> tuple[Tensor]:
        x = self.norm(hidden_states)
        scores = self.query(x) @ self.key(x).mT / WIDTH**0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        hidden_states = hidden_states + self.out(weights @ self.value(x))
        return (hidden_states + self.mlp(self.norm2(hidden_states)),)


class Stack(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, mask=mask)[0]
        return hidden


class Bert(nn.Module):
    """Classifies a padded text by its first token; with ``classes`` of each token, every token."""

    def __init__(self, depth: int, *, each_token: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.encoder = Stack(depth)
        self.head = nn.Linear(WIDTH, 2)
        self.each_token = each_token

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        hidden = self.drop(self.embed(input_ids) + self.place.weight[: input_ids.shape[1]])
        hidden = self.encoder(hidden, attention_mask.bool()[:, None])
        return Output(self.head(hidden if self.each_token else hidden[:, 0]))


class LanguageModel(nn.Module):
    """Tells the next token; the head's weights are the embedding's."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.encoder = Stack(depth)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.2)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        length = input_ids.shape[1]
        seen = torch.ones(1, length, length, dtype=torch.bool).tril()
        return {"logits": self.head(self.encoder(self.embed(input_ids) + self.place.weight[:length], seen))}


class Segmenter(nn.Module):
    """Classifies each pixel."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.low, self.high = (
            nn.Sequential(*(layer for _ in range(depth) for layer in self.block())) for _ in range(2)
        )
        self.last = nn.Conv2d(8, 2, 1)

    @staticmethod
    def block() -> list[nn.Module]:
        return [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.last(self.high(self.low(self.first(x))))}


# -- datasets --------------------------------------------------------------------------------------------------------


class Texts(Dataset[dict[str, Tensor]]):
    """Text i has 4 to 8 tokens, padded to 8; its class is the parity of its first token."""

    def __init__(self, count: int, first: int, *, each_token: bool = False) -> None:
        self.count, self.first, self.each_token = count, first, each_token

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.first + index)
        tokens = torch.randint(1, VOCABULARY, (LENGTH,), generator=draw)
        mask = torch.arange(LENGTH) < 4 + index % 5
        tokens = tokens * mask
        labels = (tokens % 2).masked_fill(~mask, -100) if self.each_token else tokens[0] % 2
        return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}


class Sequences(Dataset[dict[str, Tensor]]):
    """Each token is the one before it plus a step of its own text."""

    def __init__(self, count: int, first: int) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = self.first + index
        return {"input_ids": (number + (1 + number % 2) * torch.arange(LENGTH)) % VOCABULARY}


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """Noisy images 8 x 8 whose bright pixels are class 1; the border counts for nothing."""

    def __init__(self, count: int, first: int) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(self.first + index)
        image = torch.rand(1, 8, 8, generator=draw)
        labels = torch.full((8, 8), -100)
        labels[1:-1, 1:-1] = (image[0] > 0.5).long()[1:-1, 1:-1]
        return image, labels


def texts() -> dict[str, Texts]:
    return {"train": Texts(48, 0), "val": Texts(24, 100), "test": Texts(24, 200)}


def tagged_texts() -> dict[str, Texts]:
    return {
        "train": Texts(48, 0, each_token=True),
        "val": Texts(16, 100, each_token=True),
        "test": Texts(16, 200, each_token=True),
    }


def sequences() -> dict[str, Sequences]:
    return {"train": Sequences(48, 0), "val": Sequences(16, 48), "test": Sequences(16, 64)}


class squares:  # a class, whose attributes are the datasets, is a function without arguments, too
    train, val, test, num_classes = Squares(48, 0), Squares(16, 100), Squares(16, 200), 2


# -- trained teachers, fresh students --------------------------------------------------------------------------------


def trained(net: nn.Module, dataset: Dataset, targets: str) -> nn.Module:
    """By its labels alone, for some steps: better than chance."""
    data = lf.data.from_datasets(dataset, dataset, dataset, collate=torch.utils.data.default_collate)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rows = getattr(lf.targets, targets)
    steps = 0
    for epoch in range(AT_MOST):
        for inputs, labels in data.train_batches(epoch, batch_size=16, seed=0):
            output = net(**inputs) if isinstance(inputs, dict) else net(inputs)
            logits, wanted, _ = rows(output, inputs, labels)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, wanted).backward()
            optimizer.step()
            steps += 1
            if steps == AT_MOST:
                return net.eval()
    return net


def bert_teacher() -> nn.Module:
    torch.manual_seed(0)
    return trained(Bert(4), Texts(48, 0), "classification")


def bert_student() -> nn.Module:
    return Bert(2)


def tagger_teacher() -> nn.Module:
    torch.manual_seed(0)
    return trained(Bert(4, each_token=True), Texts(48, 0, each_token=True), "tokens")


def tagger_student() -> nn.Module:
    return Bert(2, each_token=True)


def lm_teacher() -> nn.Module:
    torch.manual_seed(0)
    return trained(LanguageModel(4), Sequences(48, 0), "causal_lm")


def lm_student() -> nn.Module:
    return LanguageModel(2)


def segmenter_teacher() -> lf.SplitModel:
    torch.manual_seed(0)
    return lf.split(trained(Segmenter(2), Squares(48, 0), "dense"), at=["low", "high"])


def segmenter_student() -> nn.Module:
    return Segmenter(1)
