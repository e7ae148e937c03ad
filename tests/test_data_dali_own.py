"""Pipelines of one's own: batches, sharing, exact resume, refusals."""

from __future__ import annotations

import pytest
import torch
from image_files import write_folder
from training_helpers import differing, quiet, weights

import lit_fast as lf
from lit_fast.data import Data, DataError, open_data
from lit_fast.data.loaders.own_pipeline import EpochRequest, PipelineLoader
from lit_fast.training import experiment as experiment_module

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install '.[dali]'")

from nvidia.dali import fn, pipeline_def, types


@pytest.fixture
def data(tmp_path) -> Data:
    root = write_folder(tmp_path, "jpg", train=19)
    for name in ("ant", "bee"):
        (root / "val" / name).mkdir(parents=True)
        for file in (root / "test" / name).iterdir():
            (root / "val" / name / file.name).write_bytes(file.read_bytes())
    return open_data("folder", data_dir=root, image_size=16)


def make_for(data: Data, *, padded: bool = True, labels=None, size: int = 16):
    files = [str(file) for file in data.train.files]
    classes = data.train.labels.tolist() if labels is None else labels

    @pipeline_def
    def pipeline(request: EpochRequest):
        encoded, label = fn.readers.file(
            files=files,
            labels=classes,
            shuffle_after_epoch=False,
            random_shuffle=True,
            seed=request.seed,
            shard_id=request.rank,
            num_shards=request.size,
            pad_last_batch=padded,
        )
        image = fn.resize(fn.decoders.image(encoded), size=[size, size])
        turned = fn.rotate(image, angle=fn.random.uniform(range=(-20, 20)), keep_size=True, fill_value=0)
        out = fn.crop_mirror_normalize(turned, mirror=fn.random.coin_flip(), mean=128.0, std=64.0, dtype=types.FLOAT)
        return out, label

    def make(request: EpochRequest):
        return pipeline(
            request,
            batch_size=request.rows,
            num_threads=request.num_threads,
            device_id=request.device_id,
            seed=request.seed,
        )

    return make


def equal(got, expected) -> bool:
    got, expected = list(got), list(expected)
    return len(got) == len(expected) and all(
        torch.equal(a, b) for one, other in zip(got, expected) for a, b in zip(one, other)
    )


def test_an_epoch_has_the_rows_and_labels_of_the_data(data):
    with PipelineLoader(data, make_for(data)) as loader:
        batches = list(loader.train_batches(0, batch_size=8, seed=0))
    assert [len(images) for images, _ in batches] == [8, 8, 8, 8, 6]
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    assert images.dtype is torch.float32
    assert images.shape[1:] == (3, 16, 16)
    assert labels.dtype is torch.int64
    assert torch.bincount(labels).tolist() == [19, 19]


def test_a_resumed_epoch_is_bit_identical_and_epochs_and_seeds_differ(data):
    with PipelineLoader(data, make_for(data)) as loader:
        whole = list(loader.train_batches(2, batch_size=8, seed=3))
        other_epoch = list(loader.train_batches(1, batch_size=8, seed=3))
        other_seed = list(loader.train_batches(2, batch_size=8, seed=4))
    for start in range(6):
        with PipelineLoader(data, make_for(data)) as again:
            assert equal(again.train_batches(2, batch_size=8, seed=3, start_step=start), whole[start:])
    assert not equal(whole, other_epoch)
    assert not equal(whole, other_seed)


def test_processes_share_an_epoch(data):
    with PipelineLoader(data, make_for(data)) as loader:
        ranks = [list(loader.train_batches(0, batch_size=8, seed=0, shard=(rank, 2))) for rank in range(2)]
    assert [[len(labels) for _, labels in batches] for batches in ranks] == [[4, 4, 4, 4, 3]] * 2
    assert torch.bincount(torch.cat([labels for batches in ranks for _, labels in batches])).tolist() == [19, 19]


def test_a_network_is_distilled_on_a_pipeline_and_the_run_resumed_exactly(data, tmp_path, monkeypatch):
    def run(folder, **options):
        torch.manual_seed(1)
        networks = [lf.models.resnet20(num_classes=2) for _ in range(2)]
        overrides = ["epochs=2", "batch_size=8", "step.device=cpu", "logging.tensorboard=false"]
        loader = PipelineLoader(data, make_for(data))
        lf.distill(
            *networks, loader, recipe="resnet-cifar10", run_dir=folder, overrides=overrides, console=quiet(), **options
        )
        return weights(folder, "resnet-lit-seed0")

    monkeypatch.setattr(experiment_module, "refuse_chance", lambda *_: None)  # the teacher is not trained here
    whole = run(tmp_path / "whole")
    checked, calls = PipelineLoader._checked, []

    def stops(self, *given):
        calls.append(given)
        if len(calls) == 4:
            raise DataError("pulled out")
        return checked(self, *given)

    monkeypatch.setattr(PipelineLoader, "_checked", stops)
    with pytest.raises(DataError, match="pulled out"):
        run(tmp_path / "cut")
    monkeypatch.setattr(PipelineLoader, "_checked", checked)
    assert differing(run(tmp_path / "cut", resume=True), whole) == []


def test_evaluation_is_the_datasets_own(data):
    with PipelineLoader(data, make_for(data), channels_last=True) as loader:
        assert equal(loader.eval_batches("val", batch_size=4), data.eval_batches("val", batch_size=4))
        assert next(loader.eval_batches("val", batch_size=4))[0].is_contiguous(memory_format=torch.channels_last)
        assert next(loader.train_batches(0, batch_size=4, seed=0))[0].is_contiguous(memory_format=torch.channels_last)


def test_outputs_that_do_not_fit_are_refused(data):
    with pytest.raises(DataError, match=r"batch 0 of your pipeline: expected at least 8 x \(3, 16, 16\).*\(8, 3, 12"):
        next(PipelineLoader(data, make_for(data, size=12)).train_batches(0, batch_size=8, seed=0))
    wrong = [5] * len(data.train)
    with pytest.raises(DataError, match=r"expected one label of 0\.\.1 per image"):
        next(PipelineLoader(data, make_for(data, labels=wrong)).train_batches(0, batch_size=8, seed=0))


def test_a_pipeline_that_ends_too_early_is_refused(data):
    def make(request):
        @pipeline_def(batch_size=request.rows, num_threads=1, device_id=None)
        def pipeline():
            images = fn.external_source(iter([torch.zeros(8, 3, 16, 16).numpy()] * 2), dtype=types.FLOAT, ndim=3)
            return images, types.Constant(0)

        return pipeline()

    batches = PipelineLoader(data, make).train_batches(0, batch_size=8, seed=0)
    with pytest.raises(DataError, match="ended after 2 of 5 batches of 8"):
        list(batches)


def test_switching_the_augmentation_off_is_refused(data):
    with pytest.raises(DataError, match="augments as it likes"):
        PipelineLoader(data, make_for(data)).train_batches(0, batch_size=8, seed=0, augment=False)


def test_an_evaluation_of_no_split_is_refused_at_the_call(data):
    with pytest.raises(DataError, match="no split 'training'"):
        PipelineLoader(data, make_for(data)).eval_batches("training", batch_size=4)
