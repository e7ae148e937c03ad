"""Reviews cut into byte pairs, and BERT-shaped classifiers of them, for `lit-fast distill`.

Run it in the folder that holds `train.csv` and `test.csv`, or name that folder in REVIEWS; each line of them is
`class,title,text` with the classes 1 and 2.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification

LENGTH = 64  # tokens of a review: more are cut off
TOKENS = 4000
VAL = 2_000  # reviews of the training file; the test file is used whole
STUDENTS = 12_000  # of the others, that students are trained on; the teacher has all


def read(name: str) -> list[tuple[str, int]]:
    """(text, class from 0) of each line."""
    with (Path(os.environ.get("REVIEWS", ".")) / name).open(newline="", encoding="utf-8") as lines:
        return [(f"{title} {text}".strip(), int(label) - 1) for label, title, text in csv.reader(lines)]


def tokenizer_of(texts: list[str]) -> Tokenizer:
    """Byte pairs of these texts: the same texts give the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return tokenizer


def splits(train: int | None) -> dict[str, Any]:
    """Dicts of the models' inputs, with the first so many training texts, whose tokenizer has seen all of them."""
    reviews, test = read("train.csv"), read("test.csv")
    order = torch.randperm(len(reviews), generator=torch.Generator().manual_seed(0)).tolist()
    val, rest = ([reviews[i] for i in part] for part in (order[:VAL], order[VAL:]))
    tokenizer = tokenizer_of([text for text, _ in rest])

    def items(split: list[tuple[str, int]]) -> list[dict[str, Any]]:
        rows = tokenizer.encode_batch([text for text, _ in split])
        return [
            {"input_ids": torch.tensor(row.ids), "attention_mask": torch.tensor(row.attention_mask), "labels": label}
            for row, (_, label) in zip(rows, split)
        ]

    return {"train": items(rest[:train]), "val": items(val), "test": items(test), "num_classes": 2}


def data() -> dict[str, Any]:
    return splits(STUDENTS)


def teachers_data() -> dict[str, Any]:
    return splits(None)


def bert(layers: int) -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=TOKENS,
            hidden_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=LENGTH,
        )
    )


def teacher() -> BertForSequenceClassification:
    return bert(8)


def student() -> BertForSequenceClassification:
    return bert(2)
