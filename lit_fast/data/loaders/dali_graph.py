"""The DALI pipeline of `DaliLoader`: one definition, for the CPU and for a GPU. Importing this imports DALI.

It draws no random number. Crop offsets and flips come in as tensors beside the pixels, so the same tables serve this
pipeline and every other loader, and no state of DALI's has to be saved to go on from a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

AHEAD = 2  # batches that a pipeline works on before they are asked for


@dataclass(frozen=True)
class Graph:
    """What a pipeline does with a batch.

    Attributes:
        shape: (C, H, W) of what it makes of an image, or (L,) of a text.
        encoded: the source gives encoded files, to be decoded and brought to H x W, not pixels [C, H, W].
        crop: pixels of the central square that is taken of a decoded file; None: its shorter side becomes H.
        cropped, flipped: the source also gives the first row and column of each image's crop, int32 [2] (negative or
            too far: zeros are beyond the border), and whether it is mirrored, int32 0 or 1.
        scale, shift: per channel; a pixel x of 0..255 becomes x * scale - shift, float32.
    """

    shape: tuple[int, ...]
    encoded: bool = False
    crop: int | None = None
    cropped: bool = False
    flipped: bool = False
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()


def build(graph: Graph, source: Callable[[], Any], rows: int, gpu: int | None, threads: int) -> Any:
    """A `nvidia.dali.pipeline.Pipeline` with one output: float32 [B, C, H, W], or int64 [B, L].

    Args:
        graph: what it does.
        source: gives the arrays of the next batch: pixels, encoded files or tokens, then offsets, then flips.
        rows: the largest B.
        gpu: number of the GPU it runs on; None: it runs on the CPU, and needs no GPU.
        threads: of the CPU.
    """
    pipeline = Pipeline(rows, threads, gpu, prefetch_queue_depth=AHEAD)
    with pipeline:
        kinds = [(types.UINT8, 1 if graph.encoded or len(graph.shape) == 1 else 3)]
        kinds += [(types.INT32, 1)] * graph.cropped + [(types.INT32, 0)] * graph.flipped
        dtypes, ndims = zip(*kinds)
        raw, *moves = fn.external_source(source, num_outputs=len(kinds), dtype=list(dtypes), ndim=list(ndims))
        pipeline.set_outputs(_made(graph, raw, moves, "cpu" if gpu is None else "gpu"))
    pipeline.build()
    return pipeline


def _made(graph: Graph, raw: Any, moves: list[Any], place: str) -> Any:
    if len(graph.shape) == 1:
        return fn.cast(raw if place == "cpu" else raw.gpu(), dtype=types.INT64)
    if graph.encoded:
        pixels = fn.transpose(_decoded(raw, graph.shape[-1], graph.crop, place), perm=[2, 0, 1], output_layout="CHW")
    else:
        pixels = fn.reshape(raw if place == "cpu" else raw.gpu(), layout="CHW")
    if graph.cropped:
        offsets = moves.pop(0)
        pixels = fn.slice(
            pixels, start=offsets, shape=graph.shape[1:], axes=[1, 2], out_of_bounds_policy="pad", fill_values=0
        )
    if graph.flipped:
        pixels = fn.flip(pixels, horizontal=moves.pop(0))
    # Two roundings, as in `lit_fast.data.augment.normalise`: crop_mirror_normalize has one, and other last bits.
    scale, shift = (
        types.Constant(np.array(values, np.float32).reshape(-1, 1, 1), device=place)
        for values in (graph.scale, graph.shift)
    )
    return pixels * scale - shift


def _decoded(files: Any, size: int, crop: int | None, place: str) -> Any:
    """uint8 [size, size, 3] of encoded files, by the sizes and offsets of `data.formats.images.read_square`."""
    # Pillow does not turn photos by their Exif orientation, so neither does this.
    sides = fn.cast(fn.peek_image_shape(files, adjust_orientation=False)[:2], dtype=types.INT64)  # [height, width]
    device = "cpu" if place == "cpu" else "mixed"
    image = fn.decoders.image(files, device=device, output_type=types.RGB, adjust_orientation=False)
    if crop is not None:
        start = fn.cast((sides - crop) // 2, dtype=types.INT32)
        image = fn.slice(image, start=start, shape=[crop, crop], axes=[0, 1])  # an error where the image is smaller
        sides = types.Constant(np.array([crop, crop], np.int64))
    # The central square of the resized image, without the rest of it: a fifth of the time for photos of 178 x 218.
    scaled = (sides * size) // fn.reductions.min(sides)
    first = fn.cast((scaled - size) // 2, dtype=types.FLOAT)
    zoom = fn.cast(sides, dtype=types.FLOAT) / fn.cast(scaled, dtype=types.FLOAT)
    return fn.resize(
        image,
        size=[float(size)] * 2,
        roi_start=first * zoom,
        roi_end=(first + float(size)) * zoom,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
