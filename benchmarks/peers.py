"""The step beside those of other libraries that distil: ``python -m benchmarks.peers --out DIR``.

They are optional: ``pip install nvidia-modelopt torchdistill``. The same pair, batch, losses and SGD; before anything
is timed, the loss, all gradients and the running statistics of a first step in float64 are compared with ModelOpt's.

| setting | what is trained |
|---|---|
| ir | the sections alone, each on the teacher's IR before it, stem copied and frozen (ModelOpt's ``layerwise_kd``) |
| multi-ir | cross-entropy, KL and the IRs of the student's own pass (its ``kd_loss``, torchdistill's DistillationBox) |

A variant with "-cl" has its networks and images in ``channels_last``, as lit_fast puts them by itself.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf
from benchmarks import machine, run
from benchmarks.pairs import PAIRS, TINY
from benchmarks.step import half_precision
from lit_fast.bench import pairing, probes, ways
from lit_fast.bench.pairing import Pairs
from lit_fast.bench.ways import Problem

INSTALL = "pip install nvidia-modelopt torchdistill"
LIBRARIES = {"modelopt": "modelopt.torch.distill", "torchdistill": "torchdistill.core.distillation"}
DISTRIBUTIONS = {"modelopt": "nvidia-modelopt", "torchdistill": "torchdistill"}
ALPHA, BETA, TAU = 0.95, 0.75, 6.0
SECTIONS = ("layer1", "layer2", "layer3")
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
EXACT = 1e-9  # of a tensor's largest number, in float64: a hundred layers amplify the rounding of another layout
LOSS = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}  # of the loss, in the precision that is timed


class Peer(NamedTuple):
    """A way to train the problem's student.

    Attributes:
        step: trains on the batch and gives its loss.
        student: what is trained.
        optimizer: whose momenta are, after the first step, the gradients with their weight decay.
    """

    step: Callable[[], Tensor]
    student: nn.Module
    optimizer: torch.optim.Optimizer


def library(name: str) -> Any:
    """One of `LIBRARIES`.

    torchvision, which torchdistill needs, may be built for CUDA: beside a torch without it, describing its compiled
    operators fails, which no network here uses.
    """
    register = torch.library.register_fake

    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
        return (lambda f: f) if str(op).startswith("torchvision::") else register(op, *args, **kwargs)

    torch.library.register_fake = register_fake  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(LIBRARIES[name])
    finally:
        torch.library.register_fake = register


def missing() -> str | None:
    """Why the libraries cannot be measured, and how to install them; None if they can."""
    for name in LIBRARIES:
        try:
            library(name)
        except Exception as error:
            return f"{DISTRIBUTIONS[name]}: {type(error).__name__}: {error}; {INSTALL}"
    return None


# -- the ways ----------------------------------------------------------------------------------------------------------


def builders(problem: Problem, setting: str) -> dict[str, Callable[[], Peer]]:
    """What builds each way of a setting; the first is what the others are compared with."""
    theirs: dict[str, Callable[[Problem, bool], Peer]] = {"modelopt": modelopt_ir if setting == "ir" else modelopt_kd}
    if setting == "multi-ir":
        theirs["torchdistill"] = torchdistill_kd
    found: dict[str, Callable[[], Peer]] = {}
    for name, build in theirs.items():
        found[name] = lambda build=build: build(problem, False)  # type: ignore[misc]
        found[f"{name}-cl"] = lambda build=build: build(problem, True)  # type: ignore[misc]
    found["lit_fast"] = lambda: ours(problem, setting)
    if problem.device == "cuda":
        found["lit_fast-captured"] = lambda: ours(problem, setting, capture=True)
    return found


def networks(problem: Problem, setting: str) -> tuple[lf.SplitModel, lf.SplitModel]:
    teacher, student, _ = problem.networks()
    if setting == "ir":
        lf.copy_parts(teacher, student, ["stem"])
    return teacher, student


def ours(problem: Problem, setting: str, *, capture: bool = False) -> Peer:
    teacher, student = networks(problem, setting)
    options: dict[str, Any] = {"student_input": "composed"}
    if setting == "ir":
        student.freeze("stem", "head")
        options = {"bn_policy": "teacher_fed"}
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, **SGD, fused=capture)  # type: ignore[arg-type]
    beta = 0.0 if setting == "ir" else BETA
    criterion = lf.LITLoss(alpha=ALPHA, beta=beta, tau=TAU, section_weights=(1 / 3,) * 3)
    step = lf.LITStep(
        teacher, student, criterion, optimizer, precision=problem.precision, engine="runner", capture=capture, **options
    )
    labels = None if setting == "ir" else problem.labels
    return Peer(lambda: step(problem.inputs, labels).total, student.model, optimizer)


def modelopt_ir(problem: Problem, channels_last: bool) -> Peer:
    criterion = {(name, name): nn.MSELoss() for name in SECTIONS}
    weights = [1 / 3] * 3
    return _modelopt(problem, "ir", "layerwise_kd", criterion, weights, channels_last)


def modelopt_kd(problem: Problem, channels_last: bool) -> Peer:
    criterion: dict[tuple[str, str], nn.Module] = {(name, name): nn.MSELoss() for name in SECTIONS}
    criterion["linear", "linear"] = library("modelopt").LogitsDistillationLoss(TAU, reduction="batchmean")
    weights = [(1 - BETA) / 3] * 3 + [BETA * (1 - ALPHA)]
    return _modelopt(problem, "multi-ir", "kd_loss", criterion, weights, channels_last)


def _modelopt(
    problem: Problem,
    setting: str,
    mode: str,
    criterion: Mapping[tuple[str, str], nn.Module],
    weights: list[float],
    channels_last: bool,
) -> Peer:
    mtd = library("modelopt")
    teacher, student, images = _laid_out(problem, setting, channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a loss of the labels will be needed
        balancer = mtd.StaticLossBalancer(weights)
        chosen = {"teacher_model": teacher, "criterion": dict(criterion), "loss_balancer": balancer}
        model = mtd.convert(student, [(mode, chosen)])
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, **SGD)  # type: ignore[arg-type]

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(problem):
            logits = model(images)
            hard = None if setting == "ir" else F.cross_entropy(logits, problem.labels)
            loss = model.compute_kd_loss(student_loss=hard)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Peer(step, model, optimizer)


def torchdistill_kd(problem: Problem, channels_last: bool) -> Peer:
    teacher, student, images = _laid_out(problem, "multi-ir", channels_last)

    def wrapped(module: str) -> dict[str, Any]:
        end = {"module_path": module, "io": "output"}
        ends = {"input": {"is_from_teacher": False, **end}, "target": {"is_from_teacher": True, **end}}
        return {"key": "SimpleLossWrapper", "kwargs": ends}

    loss = {"key": "MSELoss", "kwargs": {}}
    terms = {
        name: {"criterion": loss, "criterion_wrapper": wrapped(name), "weight": (1 - BETA) / 3} for name in SECTIONS
    }
    ends = {f"{role}_module_{what}": {"path": "linear", "io": "output"}[what] for role in ("student", "teacher")
            for what in ("path", "io")}  # fmt: skip
    kd = {"key": "KDLoss", "kwargs": {**ends, "temperature": TAU, "alpha": ALPHA}}
    hooks = {
        "forward_proc": "forward_batch_only",
        "forward_hook": {"input": [], "output": [*SECTIONS, "linear"]},
    }
    config = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, **hooks},
        "student": hooks,
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {**terms, "kd": {"criterion": kd, "weight": BETA}}},
        },
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
    }
    device = torch.device(problem.device)
    box = library("torchdistill").DistillationBox(teacher, student, {}, config, device, None, False, 1.0)
    box.teacher_model.eval()
    box.student_model.train()

    def step() -> Tensor:
        with _autocast(problem):
            loss = box.forward_process(images, problem.labels, None)
        box.post_forward_process(loss=loss)
        return loss.detach()

    return Peer(step, box.student_model, box.optimizer)


def _laid_out(problem: Problem, setting: str, channels_last: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    teacher, student = (split.model for split in networks(problem, setting))
    images = problem.inputs
    assert isinstance(images, Tensor)
    if channels_last:
        for network in (teacher, student):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    return teacher, student, images


@contextmanager
def _autocast(problem: Problem) -> Iterator[None]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(problem.precision)
    with torch.autocast(problem.device, dtype, enabled=dtype is not None):
        yield


# -- comparing and timing ----------------------------------------------------------------------------------------------


def first_step(peer: Peer) -> dict[str, Tensor]:
    """What a step computed: its loss, the sections' gradients with weight decay, and their running statistics."""
    found = {"loss": peer.step().clone()}
    for name, tensor in (*peer.student.named_parameters(), *peer.student.named_buffers()):
        if not name.startswith(SECTIONS) or not tensor.is_floating_point():
            continue
        if not isinstance(tensor, nn.Parameter):
            found[name] = tensor.clone()
        elif tensor.requires_grad:
            found[f"gradient of {name}"] = peer.optimizer.state[tensor]["momentum_buffer"].clone()
    return found


def disagreement(ours: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float) -> str | None:
    """What differs most, beyond the tolerance."""
    if ours.keys() != right.keys():
        return f"other tensors: {sorted(ours.keys() ^ right.keys())[:3]}"
    off = {
        name: ((ours[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-8)).item()
        for name, value in right.items()
    }
    worst = max(off, key=lambda name: off[name])
    return f"{worst} is off by {off[worst]:.2g}" if not off[worst] <= tolerance else None


def in_float64(problem: Problem) -> Problem:
    """The same networks, on a few of the images."""
    assert isinstance(problem.inputs, Tensor)
    assert problem.labels is not None
    networks = (copy.deepcopy(network).double() for network in (problem.teacher, problem.student))
    return Problem(*networks, problem.inputs[:4].double(), problem.labels[:4])


def unlike(built: Mapping[str, Callable[[], Peer]], tolerance: float) -> dict[str, str]:
    """The ways whose first step differs from that of the first of them, and in what."""
    right: dict[str, Tensor] = {}
    wrong = {}
    for name, build in built.items():
        found = first_step(build())
        right = right or found
        why = disagreement(found, right, tolerance)
        if why is not None:
            wrong[name] = why
    return wrong


def rows(device: str, seconds: float, *, tiny: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of each setting; a way that does not compute the same is named and not timed."""
    pair, batches = (TINY, (4,)) if tiny else (PAIRS[0], (32,) if device == "cpu" else (32, 128, 1024))
    precision = "fp32" if device == "cpu" else half_precision()
    for setting in ("ir", "multi-ir"):
        for batch in batches:
            problem = pair.problem(batch, precision, device)
            heading = {"suite": "peers", "setting": f"{pair.name}, batch {batch}, {precision}, {setting}"}
            heading |= {"family": setting, "device": device, "batch": batch, "dtype": precision, "mode": None}
            yield from ({**heading, **row} for row in _measured(problem, setting, device, seconds))


def _measured(problem: Problem, setting: str, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    peers: dict[str, Peer] = {}
    right: dict[str, Tensor] = {}
    wrong = unlike(builders(in_float64(problem), setting), EXACT)
    for name, build in builders(problem, setting).items():
        peers[name] = build()
        if name not in wrong:
            first = {"loss": peers[name].step().clone()}
            right = right or first
            why = disagreement(first, right, LOSS[problem.precision])
            wrong |= {} if why is None else {name: why}
        if name in wrong:
            yield {"variant": name, "status": f"does not compute what modelopt does: {wrong[name]}"}
            del peers[name]
    calls = 10 if device == "cuda" else 1
    pairs = Pairs({name: ways.repeated(peer.step, calls) for name, peer in peers.items()}, device)
    pairs.run(seconds)
    for name, times in pairs.times.items():
        median, low, high = (time / calls for time in pairs.spread(name))
        row = {
            "variant": name,
            "status": "measured",
            "rounds": len(times),
            "median_us": median * 1e6,
            "quartiles_us": [low * 1e6, high * 1e6],
            "images_s": problem.batch / median,
            "peak_bytes": probes.peak_bytes(lambda step=peers[name].step: [step()], device),  # type: ignore[misc]
            "best": True,
        }
        yield row | {f"times_{other}": pairs.ratio(name, other) for other in pairs.times if other != name}
    yield from ({"variant": name, "status": why} for name, why in pairs.failed.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/<device>-peers.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rounds at one setting")
    parser.add_argument("--tiny", action="store_true", help="sizes and rounds that only try the code")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.tiny:
        pairing.FEWEST = 1
    why = missing()
    if why is not None:
        sys.exit(why)
    measured = []
    for row in rows(options.device, options.seconds, tiny=options.tiny):
        print(run.line(row), flush=True)
        measured.append(row)
    if options.out:
        command = f"python -m benchmarks.peers {' '.join(sys.argv[1:])}"
        content = run.results(options.device, command, measured, tiny=options.tiny)
        content["versions"] |= {name: importlib.metadata.version(name) for name in DISTRIBUTIONS.values()}
        run.write(options.out / f"{machine.slug(options.device)}-peers.json", content)


if __name__ == "__main__":
    main()
