"""Every exception of lit_fast. The command line takes from its class what a process ends with.

All are `LitFastError`; each is also what Python calls such an error, so that ``except ValueError`` catches it as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar


class LitFastError(Exception):
    """What all errors of this package are.

    Attributes:
        exit_code: of the command that ends with it.
        in_every_process: it comes to all processes of a run alike, so that one of each machine tells of it.
    """

    exit_code: ClassVar[int] = 2
    in_every_process: ClassVar[bool] = False


def choose_from(name: object, known: Iterable[str], end: str = "") -> str:
    """The end of a message about a name that is not known: ``; did you mean lit? Known: scratch, lit``."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=2)
    hint = f"; did you mean {' or '.join(close)}? Known: " if close else "; known: "
    return hint + ", ".join(names) + end


class UnavailableError(LitFastError, RuntimeError):
    """What was asked for is not to be had here; the message says why and what to take instead."""


# --- models and pairs of them


class SplitError(LitFastError, ValueError):
    """A model that cannot be cut as asked; the message names the module and what to do."""


class UntraceableError(SplitError):
    """A forward that cannot be traced; ``how="recorded"`` may cut it."""


class PairError(LitFastError, ValueError):
    """A teacher and a student that do not fit together.

    Attributes:
        problems: every problem found, each naming the part, what was expected, what was got and how to mend it.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) != 1 else "1 problem"
        lines = (f"  {i}. {problem}" for i, problem in enumerate(problems, 1))
        super().__init__("\n".join((f"teacher and student do not fit together ({count}):", *lines)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class CheckpointError(LitFastError, ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


class LoweringError(LitFastError, RuntimeError):
    """A lowered part of a teacher gives other numbers than its module, or fails."""


# --- data


class DataError(LitFastError, ValueError):
    """Data is missing, corrupt, or was asked for in a way that cannot be given; the message names file or argument.

    Attributes:
        file: the one of many that cannot be decoded, where that is the reason.
    """

    file: Path | None = None


class ClassError(DataError):
    """A review of a class above those of its dataset."""


# --- training


class ConfigError(LitFastError, ValueError):
    """A config that cannot be run; the message names each key, what it got and what it takes."""

    in_every_process = True


class RunFolderError(LitFastError, ValueError):
    """The run directory holds something else, or cannot be written."""


class StoreError(LitFastError, OSError):
    """A checkpoint that cannot be written or read; the message says what is still intact."""


class NonFiniteLoss(LitFastError, RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""

    exit_code = 3
    in_every_process = True


class Interrupted(LitFastError, RuntimeError):
    """Training was asked to stop; what it had done is saved."""

    exit_code = 130  # a shell's, of what Ctrl-C ended
    in_every_process = True


class SharingError(LitFastError, ValueError):
    """Processes that cannot share what they are given: too few GPUs, a batch that does not divide."""

    in_every_process = True


class WorkerLost(LitFastError, RuntimeError):
    """Another process of the run is gone; what its last checkpoint holds is kept."""

    exit_code = 4


class FirstFailed(LitFastError, RuntimeError):
    """Rank 0 raised what it alone reports; the others leave silently."""

    in_every_process = True


# --- what is made of trained networks and of results


class ReportError(LitFastError, ValueError):
    """A run folder without results, or with results that cannot be read."""


class ExportError(LitFastError, RuntimeError):
    """The export cannot be made here, or its result disagrees with PyTorch; nothing was written."""


class MetricsError(LitFastError, ValueError):
    """Inception score and FID cannot be computed here; the message says what is missing."""


class StudyFailed(LitFastError, RuntimeError):
    """Runs that several processes were given failed; the others' results are kept."""


# --- between parts of this package: always caught, so one that a user sees is a defect


class Signal(LitFastError):
    """What one part of lit_fast raises for another part to catch."""

    exit_code = 1  # Python's, of an error with a traceback


class NotLowerable(Signal):
    """What a part of a teacher does that the runner has no instruction for."""


class CheckFailed(Signal):
    """What is wrong with a lowered part."""


class NotCapturable(Signal, RuntimeError):
    """The step cannot be captured; the message says why."""


class NotFinite(Signal, ArithmeticError):
    """A loss part of step ``step`` is NaN or infinite: of the updates of kind ``kind``, with parts ``row``."""

    def __init__(self, step: int, kind: str, row: list[float]) -> None:
        super().__init__(f"step {step}, {kind}: {row}")
        self.step, self.kind, self.row = step, kind, row


class OtherLayout(Signal):
    """A checkpoint of another version of lit_fast."""


class ManifestError(Signal):
    """A file of a run that is not as the run wrote it: damaged, cut short, missing, or another run's."""


class MalformedReview(Signal):
    """What is wrong with a line of a file of reviews, and the error that says so."""

    def __init__(self, what: str, error: type[DataError] = DataError) -> None:
        super().__init__(what)
        self.error = error


# --- arguments of another type than they should be, told by name where they are given


def shown(value: Any) -> str:
    """What was got, in few words: small values as they are, else their type."""
    if value is None or isinstance(value, bool | Integral | Real):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def expect(name: str, value: Any, kind: type | tuple[type, ...], wanted: str, mend: str = "") -> None:
    """Raises TypeError where ``value`` is no ``kind``, which ``wanted`` describes."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}" + (f"; {mend}" if mend else ""))


def expect_integer(name: str, value: Any, wanted: str) -> None:
    """Raises TypeError where ``value`` is no whole number; True is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}")


def expect_number(name: str, value: Any, wanted: str) -> None:
    """Raises TypeError where ``value`` is no number; True is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {wanted}, got {shown(value)}")


def expect_switches(**switches: Any) -> None:
    """Raises TypeError where one is neither True nor False: ``"no"`` would count as True."""
    for name, value in switches.items():
        expect(name, value, bool, "True or False")
