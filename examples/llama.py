"""A causal language model with a quarter of its layers: schedule, clipping, and accumulation that is exact.

    python examples/llama.py --teacher meta-llama/Llama-3.2-1B --texts train.txt --layers 4 --sections 4
    python examples/llama.py --tiny  # a Llama of 8 -> 2 layers, random weights and texts

Texts, one in each line, have unequal lengths. All micro-batches of an update are divided by the tokens that count in
all of them, so that accumulation gives the gradient of one large batch, however the padding falls.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import lit_fast as lf


def read(path: str, tokenizer: Any, length: int) -> list[Tensor]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [torch.tensor(tokenizer(line, truncation=True, max_length=length)["input_ids"]) for line in lines if line]


def counting(texts: int) -> list[Tensor]:
    """Sequences in which each number is followed by the next."""
    generator = torch.Generator().manual_seed(0)
    starts, lengths = (torch.randint(low, 32, (texts,), generator=generator).tolist() for low in (0, 4))
    return [(start + torch.arange(length)) % 64 for start, length in zip(starts, lengths)]


def padded(texts: list[Tensor], device: str) -> dict[str, Tensor]:
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        for rows in (texts, [torch.ones_like(text) for text in texts])
    )
    return {"input_ids": ids, "attention_mask": mask}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="a causal language model: a folder, or a name on the hub")
    parser.add_argument("--texts", help="a file with a text in each line")
    parser.add_argument("--length", type=int, default=512, help="tokens that are kept of a text")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sections", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=4, help="batches that make one update")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", default="llama-student")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    if args.tiny:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
        teacher_net = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, num_hidden_layers=8, **sizes))
        texts, args.epochs, args.lr = counting(64), 6, 1e-2
    else:
        texts = read(args.texts, AutoTokenizer.from_pretrained(args.teacher), args.length)
        teacher_net = AutoModelForCausalLM.from_pretrained(args.teacher)
    config = copy.deepcopy(teacher_net.config)
    config.num_hidden_layers, config.layer_types = args.layers, None
    student_net = AutoModelForCausalLM.from_config(config)

    cut = {"blocks": "model.layers", "sections": args.sections}
    teacher = lf.split(teacher_net.to(args.device).eval(), **cut)
    student = lf.split(student_net.to(args.device), **cut)
    lf.copy_parts(teacher, student)
    print("the student's layers start as the teacher's", lf.copy_blocks(teacher, student))

    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr)
    updates = args.epochs * -(-len(texts) // (args.batch_size * args.accumulate))
    step = lf.LITStep(
        teacher,
        student.train(),
        lf.LITLoss(alpha=0.5, beta=0.5, tau=1.0),
        optimizer,
        targets="causal_lm",  # logits against the next token; the logits of all tokens are never there as a whole
        skip_padding=True,
        precision="bf16" if args.device == "cuda" else "fp32",
        clip_grad_norm=1.0,
        accumulate=args.accumulate,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates),
    )
    for epoch in range(args.epochs):
        order = torch.randperm(len(texts)).tolist()
        batches = [
            padded([texts[i] for i in order[at : at + args.batch_size]], args.device)
            for at in range(0, len(texts), args.batch_size)
        ]
        for at in range(0, len(batches), args.accumulate):
            together = batches[at : at + args.accumulate]
            counts = sum(step.model.counts(batch) for batch in together)
            loss = sum(step(batch, normalizer=counts).total for batch in together)
            step.update()  # of fewer batches, at the end of an epoch
        print(f"epoch {epoch + 1}: loss {loss:.4f}, lr {optimizer.param_groups[0]['lr']:.1e}", flush=True)
    student.model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
