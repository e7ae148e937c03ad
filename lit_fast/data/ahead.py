"""Read what comes next while the present is used."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def read_ahead(read: Callable[[A], R], wanted: list[A]) -> Generator[R, None, None]:
    """`read` of each of `wanted` in turn, one ahead in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="lit_fast-fetch") as thread:
        pending = None
        for one in wanted:
            following = thread.submit(read, one)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
