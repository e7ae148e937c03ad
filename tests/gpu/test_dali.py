"""The loader "dali" on a real GPU: the same pipeline, the same batches."""

from __future__ import annotations

import pytest
import torch
from image_files import write_folder
from small_data import coloured, texts

from lit_fast.data import open_data
from lit_fast.data.loaders import open_loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install '.[dali]'")


@pytest.mark.parametrize("make", [coloured, texts])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_arrays_and_texts_are_those_of_the_data(make, shard):
    data = make()
    with open_loader(data, "dali", device="cuda") as loader:
        for epoch in range(2):
            arguments = {"batch_size": 8, "seed": 0, "start_step": epoch, "shard": shard}
            got = list(loader.train_batches(epoch, **arguments))
            right = list(data.train_batches(epoch, **arguments))
            for (inputs, labels), (right_inputs, right_labels) in zip(got, right, strict=True):
                assert inputs.device.type == "cuda"
                # A compiler may fuse product and difference on the GPU: one rounding instead of two.
                torch.testing.assert_close(inputs.cpu(), right_inputs, rtol=0, atol=1e-6)
                assert torch.equal(labels.cpu(), right_labels)


def test_batches_are_kept_while_the_pipeline_goes_on():
    data = coloured()
    with open_loader(data, "dali", device="cuda") as loader:
        kept = [images for images, _ in loader.train_batches(0, batch_size=4, seed=0)]
        right = [images for images, _ in data.train_batches(0, batch_size=4, seed=0)]
    for images, right_images in zip(kept, right, strict=True):
        torch.testing.assert_close(images.cpu(), right_images, rtol=0, atol=1e-6)


def test_files_are_decoded_on_the_gpu(tmp_path):
    data = open_data("folder", data_dir=write_folder(tmp_path, "png"), image_size=24, mean=[0.0] * 3, std=[1 / 255] * 3)
    with open_loader(data, "dali", device="cuda") as loader:
        got = list(loader.train_batches(0, batch_size=8, seed=0))
    for (images, labels), (right, right_labels) in zip(got, data.train_batches(0, batch_size=8, seed=0), strict=True):
        # Rounding as on the CPU, and the edges of shrunk images (docs/dali.md).
        assert float((images.cpu() - right).abs().mean()) < 1.0
        assert torch.equal(labels.cpu(), right_labels)
