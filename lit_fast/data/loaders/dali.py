"""The loader "dali": NVIDIA DALI reads, decodes, crops, flips and normalises, on the CPU or on a GPU."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lit_fast.data.ahead import read_ahead
from lit_fast.data.base import Batch, Data, Split, TrainingPlan
from lit_fast.data.formats.images import in_threads, read_square
from lit_fast.data.loaders.base import Loader
from lit_fast.errors import DataError

if TYPE_CHECKING:
    from lit_fast.data.loaders.dali_graph import Graph

# How files begin that DALI decodes as Pillow does, whatever their names: JPEG, PNG, BMP, TIFF, PNM, JPEG 2000. It reads
# no GIF and not every AVIF; its WebP differs from Pillow's by more than rounding.
_DECODED = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"P", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
_MOST_THREADS = 16


def missing() -> str | None:
    """Why DALI cannot be used here; None where it can."""
    try:
        from nvidia.dali import fn  # noqa: F401
    except ImportError as error:
        return f"NVIDIA DALI cannot be imported ({error}); pip install '.[dali]' in a checkout of lit_fast"
    return None


@dataclass(frozen=True)
class Rows:
    """What one batch is made of.

    `indices` are int64 [B], into the split; `offsets` int32 [B, 2], first row and column of each crop relative to the
    image (None: no crop); `flips` int32 [B] (None: none).
    """

    indices: Tensor
    offsets: Tensor | None = None
    flips: Tensor | None = None


class DaliLoader(Loader):
    """Feeds DALI's pipelines from the tables of `Data`, so every batch is a function of (seed, epoch, step).

    Splits of image files are decoded by DALI; any other split gives its pixels or tokens by `Split.fetch`. Pixels of
    arrays are those of the loader "torch", bit by bit. Those of resized files differ by at most 2 of 255 levels, for
    Pillow rounds twice, and by more in the outermost rows and columns of shrunk ones, where DALI's filter repeats the
    edge and Pillow's is cut off.

    Args:
        threads: of the CPU, for DALI; None: one per core, at most 16.

    Raises:
        DataError: DALI is not installed. While batches are made: a file that cannot be read or decoded, by name and
            with DALI's operator.
    """

    name = "dali"

    def __init__(
        self,
        data: Data,
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        reason: str = "requested",
        threads: int | None = None,
    ) -> None:
        super().__init__(data, device=device, channels_last=channels_last, reason=reason)
        why = missing()
        if why is not None:
            raise DataError(f"loader 'dali': {why}")
        self._threads = threads or min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._idle: dict[tuple[Graph, int], _Pipe] = {}
        self._decodable = cache(_decodable)  # it looks into every file

    def _train(self, plan: TrainingPlan) -> Iterator[Batch]:
        tables = plan.tables
        offsets = flips = None
        if tables.rows is not None and tables.columns is not None:
            offsets = (torch.stack([tables.rows, tables.columns], 1) - plan.pad).to(torch.int32)
        if tables.flips is not None:
            flips = tables.flips.to(torch.int32)
        batches = [
            Rows(tables.order[at], None if offsets is None else offsets[at], None if flips is None else flips[at])
            for at in plan.left
        ]
        return self._batches(self.data.train, batches)

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        places = self.data.eval_places(split, batch_size=batch_size)
        return self._batches(self.data.split(split), [Rows(torch.arange(at.start, at.stop)) for at in places])

    def close(self) -> None:
        self._idle.clear()

    def _batches(self, split: Split, batches: list[Rows]) -> Iterator[Batch]:
        full = [rows for rows in batches if len(rows.indices)]
        if full:
            graph, most = self._graph(split, full[0]), max(len(rows.indices) for rows in full)
            # A pipeline that was left in the middle of an epoch still holds batches of it: it is not used again.
            pipe = self._idle.pop((graph, most), None) or _Pipe(graph, most, self.device, self._threads)
            made = pipe.run(split, full)
        for rows in batches:
            labels = split.labels[rows.indices].to(self.device, non_blocking=True)
            if len(rows.indices):
                # A copy, for DALI uses its buffers again.
                yield next(made).clone(memory_format=self._layout), labels
            else:  # DALI has no empty batches
                nothing = torch.empty((0, *self.data.shape), dtype=torch.uint8, device=self.device)
                yield self.data.network_input(nothing), labels
        if full and next(made, None) is None:
            self._idle[graph, most] = pipe

    def _graph(self, split: Split, rows: Rows) -> Graph:
        from lit_fast.data.loaders.dali_graph import Graph

        data = self.data
        encoded = self._decodable(split)
        return Graph(
            shape=data.shape,
            encoded=encoded,
            crop=split.crop if encoded else None,  # type: ignore[attr-defined]
            cropped=rows.offsets is not None,
            flipped=rows.flips is not None,
            scale=tuple(1 / (255 * s) for s in data.std),
            shift=tuple(m / s for m, s in zip(data.mean, data.std)),
        )


class _Source:
    """What DALI calls for the arrays of the next batch. It knows nothing of the pipeline: no cycle keeps either."""

    def __init__(self) -> None:
        self.arrays: Generator[tuple[Any, ...], None, None] | None = None

    def __call__(self) -> tuple[Any, ...]:
        if self.arrays is None:
            raise StopIteration
        return next(self.arrays)


class _Pipe:
    """A pipeline and the source that feeds it."""

    def __init__(self, graph: Graph, most: int, device: torch.device, threads: int) -> None:
        from lit_fast.data.loaders import dali_graph

        self._graph = graph
        self._threads = threads
        self._source = _Source()
        self._device = device if device.type == "cuda" else None
        gpu = None if self._device is None else device.index or 0
        self._ahead = dali_graph.AHEAD
        self._pipeline = dali_graph.build(graph, self._source, most, gpu, threads)

    def run(self, split: Split, batches: list[Rows]) -> Iterator[Tensor]:
        """What DALI makes of each batch, in its own memory; gone through to the end, the pipeline is as new."""
        arrays = read_ahead(lambda rows: self._arrays(split, rows), batches)
        self._source.arrays = arrays
        try:
            for number in range(len(batches)):
                stream = None if self._device is None else torch.cuda.current_stream(self._device)
                try:
                    (made,) = self._pipeline.run(stream)
                except (RuntimeError, IndexError) as error:
                    raise self._failure(split, batches[number : number + 1 + self._ahead], error) from error
                yield torch.from_dlpack(made.as_tensor())
            with suppress(StopIteration):
                self._pipeline.run()
            self._pipeline.reset()
        finally:
            arrays.close()  # its thread ends

    def _arrays(self, split: Split, rows: Rows) -> tuple[Any, ...]:
        first: Any
        if self._graph.encoded:
            first = [_content(split.files[at]) for at in rows.indices.tolist()]  # type: ignore[attr-defined]
        else:
            first = split.read(rows.indices, self._graph.shape).numpy()
        return (first, *(table.numpy() for table in (rows.offsets, rows.flips) if table is not None))

    def _failure(self, split: Split, batches: list[Rows], error: Exception) -> DataError:
        """DALI's error with the operator and the file. DALI names a sample at best, so the files of the batches that it
        was at work on are decoded one by one, by Pillow and then by DALI, until one fails."""
        found = re.search(r"operator `([^`]+)`", str(error))
        operator = found[1] if found else "its pipeline"
        said = " ".join(re.sub(r"Stacktrace.*", "", str(error), flags=re.DOTALL).split())
        files: Any = split
        rows = [at for batch in batches for at in batch.indices.tolist()] if self._graph.encoded else []
        for at in rows:
            try:
                read_square(files.files[at], files.size, files.crop)
            except DataError as bad:
                return _about(bad.file, f"{bad} (reported by DALI, {operator})")
        for at in rows:
            if not self._decodes(files.files[at]):
                return _about(
                    files.files[at],
                    f"{files.files[at]}: DALI, {operator}, cannot decode it, though Pillow can: save it again as PNG "
                    f"or JPEG, or begin with --loader torch ({said})",
                )
        first, last = int(batches[0].indices[0]), int(batches[0].indices[-1])
        return DataError(f"DALI, {operator}, failed in the batch of images {first} ... {last}: {said}")

    def _decodes(self, path: Path) -> bool:
        from lit_fast.data.loaders import dali_graph

        alone = replace(self._graph, cropped=False, flipped=False)
        gpu = None if self._device is None else self._device.index or 0
        try:
            dali_graph.build(alone, lambda: ([_content(path)],), 1, gpu, self._threads).run()
        except (RuntimeError, IndexError):
            return False
        return True


def _decodable(split: Split) -> bool:
    """Whether DALI reads the split's files itself: a split of files has `files`, `size` and `crop` as `FolderSplit`."""
    files: list[Path] = getattr(split, "files", [])
    return bool(files) and all(in_threads(_begins_as_decoded, files))


def _begins_as_decoded(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return True  # reading it as a whole says why
    return not head or head.startswith(_DECODED)


def _about(file: Path | None, message: str) -> DataError:
    error = DataError(message)
    error.file = file
    return error


def _content(path: Path) -> Any:
    """A file as uint8 [bytes]."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); put the file back or remove it") from error
    if not len(content):
        raise DataError(f"{path}: cannot be decoded as an image (it is empty); replace the file or remove it")
    return content
