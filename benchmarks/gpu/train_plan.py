"""How many epochs each student gets, and which runs that makes: from a trial of each way of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WAYS = ("lit", "kd", "scratch")  # in the order of training: should time end, LIT is there
PAPER_EPOCHS = 250  # of LIT with its fine-tuning, and of KD
_LIT_SHARE = 175 / 250  # of LIT's epochs that have the IR loss; the others cost what KD's do
_SPARE = 0.9  # of the time is planned: trials are short
_CAPTURES = 1.5  # a run captures a shape of batch more than its trial: an epoch's last


@dataclass(frozen=True)
class Speed:
    """What a trial found, in seconds: of training for an image, beside it for an epoch, and until the first epoch."""

    image: float
    epoch: float
    start: float


@dataclass(frozen=True)
class Run:
    """A student: its way of training, its epochs, its seed, and what it is compared at."""

    way: str
    epochs: int
    seed: int
    compared_at: str

    @property
    def name(self) -> str:
        return f"{self.way}-{self.epochs}-epochs-seed{self.seed}"


EPOCHS, TIME = "equal epochs", "LIT's time"


def epochs_that_fit(speeds: Mapping[str, Speed], images: int, seconds: float) -> int:
    """The most epochs N (1 to the paper's) with which all of a seed's runs take no more than `seconds`.

    Those are LIT, KD and scratch with N epochs, and KD and scratch with as many as LIT's time allows.
    """
    lit = _LIT_SHARE * speeds["lit"].image + (1 - _LIT_SHARE) * speeds["kd"].image
    each = images * lit + speeds["lit"].epoch
    for way in ("kd", "scratch"):
        epoch = images * speeds[way].image + speeds[way].epoch
        partner = max(1.0, lit / speeds[way].image)  # its epochs for one of LIT's
        each += epoch * (1 + partner)
    starts = _CAPTURES * (speeds["lit"].start + 2 * speeds["kd"].start + 2 * speeds["scratch"].start)
    return min(PAPER_EPOCHS, max(1, int((_SPARE * seconds - starts) / each)))


def expected_seconds(run: Run, speeds: Mapping[str, Speed], images: int) -> float:
    """Of a whole run."""
    speed = speeds[run.way]
    return _CAPTURES * speed.start + run.epochs * (images * speed.image + speed.epoch)


def runs(plan: Mapping[str, Any], seeds: int) -> Iterator[Run]:
    """Every run, in order; a partner at LIT's time once the plan knows its epochs.

    The plan is read anew at each step, so that it may be completed meanwhile.
    """
    for seed in range(seeds):
        for way in WAYS:
            yield Run(way, plan["epochs"], seed, EPOCHS)
        for way in ("kd", "scratch"):
            epochs = plan["equal_time"].get(way)
            if epochs is not None and epochs > plan["epochs"]:
                yield Run(way, epochs, seed, TIME)


def partner_epochs(plan: Mapping[str, Any], finished: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Epochs of KD and scratch that take as long as LIT's took, from what the first seed's runs took."""
    known = dict(plan["equal_time"])
    seconds = {
        way: finished[name]["seconds"] for way in WAYS if (name := Run(way, plan["epochs"], 0, EPOCHS).name) in finished
    }
    for way in ("kd", "scratch"):
        if way not in known and way in seconds and "lit" in seconds:
            known[way] = max(plan["epochs"], round(plan["epochs"] * seconds["lit"] / seconds[way]))
    return known
