"""BERT from 12 layers to 3 with Hugging Face's Trainer, on padded texts.

    python examples/bert.py --teacher my-finetuned-bert --texts train.tsv dev.tsv
    python examples/bert.py --tiny  # 4 -> 2 layers, random weights and texts

The files are those of GLUE's SST-2: a first line of names, then a sentence, a tab and its class in each line.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, Trainer, TrainingArguments

import lit_fast as lf

Texts = list[dict[str, Any]]  # each with input_ids and labels


def read(path: str, tokenizer: Any) -> Texts:
    lines = [line.rsplit("\t", 1) for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
    ids = tokenizer([text for text, _ in lines], truncation=True, max_length=128)["input_ids"]
    return [{"input_ids": row, "labels": int(label)} for row, (_, label) in zip(ids, lines)]


def random_texts(count: int, seed: int) -> Texts:
    """Of two classes, whose words come from different halves of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for number in range(count):
        length = int(torch.randint(4, 12, (), generator=generator))
        words = torch.randint(1, 50, (length,), generator=generator) + 50 * (number % 2)
        texts.append({"input_ids": words.tolist(), "labels": number % 2})
    return texts


def collate(texts: Texts) -> dict[str, Tensor]:
    """Texts padded to the longest; the mask tells the models, and the loss, what is padding."""
    rows = [torch.tensor(text["input_ids"]) for text in texts]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (rows, [torch.ones_like(r) for r in rows])
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([text["labels"] for text in texts])}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class LITTrainer(Trainer):
    """Logs the parts of the loss; without them, a plain Trainer does."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        output = model(**inputs)
        parts = output.parts
        if model.training and self.state.global_step % self.args.logging_steps == 0:
            self.log({"ce": parts.ce.item(), "kl": parts.kl.item(), "ir": parts.ir.sum().item()})
        return (output.loss, output) if return_outputs else output.loss


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="a BERT trained on these classes: a folder, or a name on the hub")
    parser.add_argument("--texts", nargs=2, help="two files: texts to train on, and to evaluate on")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", default="bert-student")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    if args.tiny:
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        teacher_net = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=100, **sizes))
        train, held_out = random_texts(96, 0), random_texts(32, 1)
        args.layers, args.epochs = 2, 4
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.teacher)
        teacher_net = AutoModelForSequenceClassification.from_pretrained(args.teacher)
        train, held_out = (read(path, tokenizer) for path in args.texts)
    config = copy.deepcopy(teacher_net.config)
    config.num_hidden_layers = args.layers
    student_net = AutoModelForSequenceClassification.from_config(config)

    teacher = lf.split(teacher_net, blocks="bert.encoder.layer", sections=args.layers)
    student = lf.split(student_net, blocks="bert.encoder.layer", sections=args.layers)
    lf.copy_parts(teacher, student)
    lf.copy_blocks(teacher, student)

    settings = TrainingArguments(
        output_dir=args.out,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=16 if args.tiny else 32,
        learning_rate=1e-3 if args.tiny else 5e-5,
        logging_steps=6 if args.tiny else 50,
        save_strategy="no",
        report_to="none",
        use_cpu=args.tiny,
        remove_unused_columns=False,  # it would keep only what LITModel.forward names: the labels
    )
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0)
    several = settings.world_size > 1
    model = lf.LITModel(teacher, student.train(), criterion, skip_padding=True, over_processes=several)
    trainer = LITTrainer(
        model,
        settings,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=held_out,
        compute_metrics=accuracy,
    )
    trainer.train()
    scores = trainer.evaluate()
    print(f"eval loss {scores['eval_loss']:.4f}, accuracy {100.0 * scores['eval_accuracy']:.2f} %")
    student.model.save_pretrained(args.out)  # a BERT like any other, of fewer layers


if __name__ == "__main__":
    main()
