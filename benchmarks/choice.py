"""What of a suite is measured: all of it, or some settings and variants by name, and within the time there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """Names; ``None`` stands for all.

    Attributes:
        settings: names of settings.
        variants: names of variants; "compile" stands for each of its modes.
        known: (suite, setting, variant) of what an earlier run has measured.
        turn: entered around the timing of a setting, once its variants are compiled.
    """

    settings: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    known: frozenset[tuple[str, str, str]] = frozenset()
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext

    def setting(self, suite: str, name: str) -> bool:
        """Whether a setting is asked for and not known yet; it is when all that is asked of it is."""
        if self.settings is not None and name not in self.settings:
            return False
        known = {variant for of, setting, variant in self.known if (of, setting) == (suite, name)}
        asked = {variant.partition(":")[0] for variant in self.variants or ()}
        return not known or not asked <= known

    def variant(self, name: str) -> bool:
        """Whether a variant is asked for; "compile:default" is also by "compile"."""
        return self.variants is None or name in self.variants or name.partition(":")[0] in self.variants


ALL = Choice()


def in_time(
    heading: dict[str, Any], deadline: float, measure: Callable[[], Iterable[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The rows of one setting; with `heading`, one that says what failed, or that `deadline` is past."""
    if time.monotonic() > deadline:
        yield {**heading, "variant": "all", "status": "out of time"}
        return
    try:
        yield from measure()
    except Exception as error:
        yield {**heading, "variant": "all", "status": f"{type(error).__name__}: {error}"[:500]}
