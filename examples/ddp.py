"""LIT in several processes: LITModel in DistributedDataParallel, or sharded by FSDP2.

    torchrun --standalone --nproc-per-node 4 examples/ddp.py
    torchrun --standalone --nproc-per-node 2 examples/ddp.py --tiny --fsdp

Each process has rows of its own. With ``over_processes=True`` the gradient is that of all rows together, also where
processes have unequal numbers of rows, ignored labels or padding.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lit_fast as lf


class Encoder(nn.Module):
    """A stack of transformer layers over a sequence [B, T, 8]; the class is that of the whole sequence."""

    def __init__(self, depth: int, width: int, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x.mean(1))


def batch(step: int, rank: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of four classes; the last process has fewer rows, as at the end of an epoch."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    labels = torch.randint(4, (rows - rank,), generator=generator)
    x = torch.randn(len(labels), 6, 8, generator=generator)
    x[:, :, :4] += nn.functional.one_hot(labels, 4)[:, None]
    return x.to(device), labels.to(device)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--fsdp", action="store_true", help="shard the parameters instead of copying them")
    parser.add_argument("--save", default="student.pt")
    parser.add_argument("--tiny", action="store_true", help="on CPUs")
    args = parser.parse_args(argv)
    on_gpus = torch.cuda.is_available() and not args.tiny
    dist.init_process_group("nccl" if on_gpus else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpus else torch.device("cpu")
    steps, width, rows = (20, 16, 16) if args.tiny else (args.steps, 256, 64)

    torch.manual_seed(0)  # all processes begin with the same weights
    nets = [Encoder(depth, width).to(device) for depth in (6, 2)]  # yours is a trained teacher
    teacher, student = (lf.split(net, blocks="layers", sections=2, how="recorded") for net in nets)
    lf.copy_parts(teacher, student)
    lf.copy_blocks(teacher, student)
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0)
    model = lf.LITModel(teacher, student.train(), criterion, over_processes=True)

    if args.fsdp:  # from the inside out: blocks, the network, the module with the loss
        for sharded in (*student.model.layers, student.model, model):
            fully_shard(sharded)
        wrapped: nn.Module = model
    else:
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=3e-3)  # after sharding
    for step in range(steps):
        optimizer.zero_grad()
        loss, parts, _ = wrapped(*batch(step, rank, rows, device))
        loss.backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        if step % (steps // 4) == 0:
            total = parts.total.clone()
            dist.all_reduce(total)  # of the processes' shares
            if rank == 0:
                print(f"step {step}: loss {total.item():.4f}", flush=True)

    weights = get_model_state_dict(student.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(weights, args.save)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
