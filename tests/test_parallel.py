"""Several processes train as one would: shares of every batch, the mean over all rows, failures, resuming."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import parallel_worker
import pytest
import small_reviews
import torch
from everyday import exhaustive
from processes import torchrun
from torch import Tensor, nn
from training_helpers import TINY, checkpoint, tiny, weights

import lit_fast as lf
from lit_fast.cli.errors import explain
from lit_fast.data import Augmentation, Data, DataError, from_arrays
from lit_fast.data.tables import share
from lit_fast.errors import ConfigError, FirstFailed, Interrupted, WorkerLost
from lit_fast.step import parallel
from lit_fast.step.parallel import SharedGradients, Workers, check_batches, join

WORKER = Path(parallel_worker.__file__)
NAME = parallel_worker.NAME

# -- shares ----------------------------------------------------------------------------------------------------------


def numbered(count: int) -> Data:
    """Image number i is of class i."""
    pixels = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(count)
    few = (pixels[:5], labels[:5])
    return from_arrays((pixels, labels), few, test=few, num_classes=count, augmentation=Augmentation(pad=2, flip=True))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [48, 49, 50, 59])
@pytest.mark.parametrize("start_step", [0, 2])
def test_workers_see_the_batches_of_one_process_without_duplicates_or_gaps(
    count: int, size: int, start_step: int
) -> None:
    data = numbered(count)
    options: Any = {"batch_size": 12, "seed": 3, "start_step": start_step}
    shards = [list(data.train_batches(1, **options, shard=(rank, size))) for rank in range(size)]
    whole = list(data.train_batches(1, **options))
    assert {len(batches) for batches in shards} == {len(whole)}
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([batches[step][1] for batches in shards]), labels)
        assert torch.equal(torch.cat([batches[step][0] for batches in shards]), images)
    seen = torch.cat([labels for batches in shards for _, labels in batches])
    assert len(seen.unique()) == len(seen) == count - 12 * start_step


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_is_none_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"shard: expected \(rank, size\)"):
        numbered(20).train_batches(0, batch_size=4, seed=0, shard=shard)


# -- the step --------------------------------------------------------------------------------------------------------


def together(size: int, work: Callable[[Workers], Any]) -> list[Any]:
    """What ``work`` returns in each of several workers that are threads of this process."""
    barrier = threading.Barrier(size)
    given: list[Any] = [None] * size
    out: list[Any] = [None] * size

    class Thread(Workers):
        def sum_(self, tensor: Tensor) -> None:
            given[self.rank] = tensor.clone()
            barrier.wait(20)
            total = torch.stack(given).sum(0)
            barrier.wait(20)
            tensor.copy_(total)

    def body(rank: int) -> None:
        try:
            out[rank] = work(Thread(rank, size, "cpu"))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


Batches = list[tuple[Tensor, Tensor]]
Pair = tuple[lf.SplitModel, lf.SplitModel]


def pairs(count: int) -> list[Pair]:
    """Equal copies of a teacher and a student; made beforehand, since tracing is not for threads."""
    teacher, student = parallel_worker.Net(2), parallel_worker.Net(1)
    return [tuple(lf.split(deepcopy(net), at=["low", "high"]) for net in (teacher, student)) for _ in range(count)]


def steps(workers: Workers, pair: Pair, data: Batches, **options: Any) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Loss parts of each step, and the weights after the last."""
    teacher, student = pair
    criterion = options.pop("criterion", None) or lf.LITLoss(beta=options.pop("beta", 0.5))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step = lf.LITStep(teacher, student, criterion, optimizer, workers=workers, engine="eager", **options)
    logged = []
    for images, labels in data:
        rows = share(len(images), workers.rank, workers.size)
        parts = step(images[rows], labels[rows])
        logged.append([float(parts.total), float(parts.ce), float(parts.kl), *parts.ir.tolist()])
    return logged, student.model.state_dict()


def batches(*sizes: int) -> Batches:
    return [(torch.randn(size, 3, 8, 8), torch.randint(5, (size,))) for size in sizes]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("sizes", [(12, 12, 7), (12, 1, 12), (1, 12)])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_steps_on_shares_are_steps_on_the_whole_batch(size: int, sizes: tuple[int, ...], beta: float) -> None:
    """Also where a batch is smaller than the number of workers, and where the loss does not reach the head (beta 0)."""
    data, (alone, *copies) = batches(*sizes), pairs(1 + size)
    before = deepcopy(alone[1].model.state_dict())
    logged, expected = steps(Workers(), alone, data, beta=beta)
    for parts, found in together(size, lambda workers: steps(workers, copies[workers.rank], data, beta=beta)):
        torch.testing.assert_close(parts, logged, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(expected["low.0.weight"], before["low.0.weight"])
    assert torch.equal(expected["last.weight"], before["last.weight"]) == (beta == 0.0)


@pytest.mark.parametrize("ignored", [(), (0, 1, 2, 3), (0, 5, 9)])
def test_class_weights_and_ignored_labels_count_over_all_workers(ignored: tuple[int, ...]) -> None:
    """Also where a worker has none but ignored labels."""
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0, 0.25], dtype=torch.float64)
    data, (alone, *copies) = batches(8, 7), pairs(3)
    for _, labels in data:
        labels[[i for i in ignored if i < len(labels)]] = -100
    criterion = lf.LITLoss(beta=0.5, class_weight=weight)
    logged, expected = steps(Workers(), alone, data, criterion=criterion)
    for parts, found in together(
        2, lambda workers: steps(workers, copies[workers.rank], data, criterion=deepcopy(criterion))
    ):
        torch.testing.assert_close(parts, logged, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [(8, 8, 8, 3), (8, 1, 1, 8)])
def test_workers_accumulate(sizes: tuple[int, ...]) -> None:
    """Also where a worker has rows in one of the calls of an update alone."""
    data, (alone, *copies) = batches(*sizes), pairs(3)
    logged, expected = steps(Workers(), alone, data, accumulate=2)
    for parts, found in together(2, lambda workers: steps(workers, copies[workers.rank], data, accumulate=2)):
        torch.testing.assert_close(parts, logged, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_all_workers_skip_the_step_in_which_one_overflows() -> None:
    """A gradient that is not finite anywhere halves every worker's loss scale, and no update is made."""
    copies, data = pairs(2), batches(8)
    data[0][0][0] = torch.inf  # a row of rank 0
    before = deepcopy(copies[0][1].model.state_dict())

    def work(workers: Workers) -> tuple[dict[str, Tensor], float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        _, found = steps(workers, copies[workers.rank], data, precision="fp16", scaler=scaler)
        return found, scaler.get_scale()

    for found, scale in together(2, work):
        assert scale == 4.0
        assert all(torch.equal(found[name], tensor) for name, tensor in before.items())


def test_a_gradient_that_comes_late_is_refused() -> None:
    used, late = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def work(workers: Workers) -> str:
        mean = SharedGradients(workers, [used, late], 1)
        used.grad = torch.ones(2)
        mean.mean(torch.ones(1), 1)
        late.grad = torch.ones(2)
        try:
            mean.mean(torch.ones(1), 1)
        except RuntimeError as error:
            return str(error)
        finally:
            late.grad = None
        return ""

    assert "build a new LITStep" in work(Workers())


# -- starting --------------------------------------------------------------------------------------------------------


TWO = Workers(0, 2, "cpu")


def test_several_workers_cannot_be_captured() -> None:
    teacher, student = (lf.split(lf.models.resnet20()) for _ in range(2))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, fused=True)
    with pytest.raises(ValueError, match="capture: the sum over several workers is not captured"):
        lf.LITStep(teacher, student, lf.LITLoss(), optimizer, capture=True, workers=TWO)


@pytest.mark.parametrize(
    ("workers", "batch_size", "images", "sync", "message"),
    [
        (TWO, 33, 100, False, r"batch_size: .* expected a multiple of 2, got 33; 32 is one"),
        (TWO, 32, 100, True, r"SyncBatchNorm needs CUDA, got device 'cpu'; set step.sync_batchnorm=false"),
        (Workers(0, 4, "cuda:0"), 32, 99, True, r"last batch of an epoch has 3 images, too few for 4 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    workers: Workers, batch_size: int, images: int, sync: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_batches(workers, batch_size, images, sync_batchnorm=sync)


def test_one_process_may_do_all_of_it() -> None:
    check_batches(Workers(), 33, 100, sync_batchnorm=True)


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("auto", 1, r"2 processes on this machine need as many GPUs, found 1; .* step.device=cpu"),
        ("cuda", 0, r"2 processes on this machine need as many GPUs, found 0"),
        ("cuda:1", 2, r"step.device: expected auto, cuda or cpu with 2 processes, got 'cuda:1'"),
    ],
)
def test_devices_that_do_not_go_round_are_refused(
    device: str, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=message), join(device):
        pass


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:1"), ("cuda", 2, "cuda:1")],
)
def test_every_process_gets_a_device_of_its_own(
    device: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert parallel._own_device(device) == expected


def test_variables_without_torchrun_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    message = r"WORLD_SIZE is 2, and the processes cannot meet .* start them with torchrun"
    with pytest.raises(RuntimeError, match=message), join("cpu"):
        pass


# -- whole runs, in processes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    parallel_worker.run(folder)
    return folder


def log(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "runs" / NAME / "log.jsonl").read_text().splitlines()]
    measured = ("seconds", "images_per_second")
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]


def assert_same_run(run_dir: Path, whole: Path) -> None:
    for which in ("last", "best"):
        found, expected = weights(run_dir, NAME, which), weights(whole, NAME, which)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for line, expected in zip(log(run_dir), log(whole), strict=True):
        assert (line.pop("event"), line.pop("phase")) == (expected.pop("event"), expected.pop("phase"))
        torch.testing.assert_close(line, expected, rtol=1e-9, atol=1e-12)


def test_two_processes_are_one_at_twice_the_batch(whole: Path, tmp_path: Path) -> None:
    done = torchrun(2, str(WORKER), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    # Both write to one pipe, and a line and its end are two writes.
    assert sorted(re.findall(r"rank \d done", done.stdout)) == ["rank 0 done", "rank 1 done"]
    assert_same_run(tmp_path / "run", whole)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["environment"]["processes"] == 2


@exhaustive
@pytest.mark.parametrize(
    ("number", "message", "resumed_by"),
    [
        (signal.SIGKILL, "error: another process of this run has ended (", 2),
        (signal.SIGTERM, "error: net-lit-seed0: stopped by a signal to another process after step 7;", 1),
    ],
)
def test_a_run_that_lost_a_process_resumes_with_as_many_or_another_number(
    whole: Path, tmp_path: Path, number: signal.Signals, message: str, resumed_by: int
) -> None:
    failed = torchrun(2, str(WORKER), str(tmp_path / "two"), FAIL=f"1 7 {number.value}", SAVE="1")
    assert failed.returncode == 1
    assert "done" not in failed.stdout
    told = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert told[0].startswith(message)
    assert "--resume" in told[0]
    saved = checkpoint(tmp_path / "two", NAME)
    assert saved is not None
    assert saved.step == (6 if number == signal.SIGKILL else 7)

    if resumed_by == 1:
        parallel_worker.run(tmp_path / "two")
    else:
        resumed = torchrun(resumed_by, str(WORKER), str(tmp_path / "two"))
        assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "two", whole)


@exhaustive
def test_a_run_of_one_process_goes_on_with_three(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(lf.LITStep, "__call__", lf.LITStep.__call__)  # put back what the next line replaces
    monkeypatch.setenv("FAIL", f"0 7 {signal.SIGTERM.value}")
    parallel_worker.fail_as_told()
    with pytest.raises(RuntimeError, match=r"stopped by SIGTERM after step 7"):
        parallel_worker.run(tmp_path / "run")
    monkeypatch.undo()
    resumed = torchrun(3, str(WORKER), str(tmp_path / "run"))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "run", whole)


def distill(run_dir: Path, *settings: str) -> list[str]:
    sets = [word for setting in (*TINY, "epochs=1", *settings) for word in ("--set", setting)]
    return ["-m", "lit_fast", "distill", "--run-dir", str(run_dir), *sets]


@exhaustive
def test_the_command_line_trains_together_and_rank_0_alone_writes(tmp_path: Path) -> None:
    """Built-in networks with per-rank BatchNorm, recalibrated at the end; a teacher that is trained first."""
    done = torchrun(2, *distill(tmp_path / "run", "step.device=cpu", "step.bn_policy=recalibrate"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test %") == 2  # one table
    assert done.stderr.count("resnet20-lit-seed0  epoch 1/1") == 1
    lines = (tmp_path / "run" / "runs" / "resnet20-lit-seed0" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3]
    assert json.loads(lines[-1])["images"] == 96
    found = weights(tmp_path / "run", "resnet20-lit-seed0")
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert [result["role"] for result in results] == ["teacher", "student"]


@exhaustive
def test_texts_are_shared_as_images_are(tmp_path: Path) -> None:
    """Both processes also make the file of tokens, or find it."""
    folder = small_reviews.write(tmp_path / "data" / "amazon_review_polarity_csv", train=60, test=20).parent
    settings = [
        *(f"data.dir={folder}", "data.length=64", "data.train_size=28", "data.val_size=12", "batch_size=8"),
        *("teacher.model=vdcnn9", "student.models=[vdcnn9]", "student.sequence=false", "epochs=1"),
        *("variants=[lit]", "step.device=cpu", "logging.every=2", "logging.tensorboard=false"),
    ]
    sets = [word for setting in settings for word in ("--set", setting)]
    recipe = ["--recipe", "vdcnn-amazon-polarity", "--run-dir", str(tmp_path / "run")]
    done = torchrun(2, "-m", "lit_fast", "distill", *recipe, *sets)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["environment"]["processes"] == 2
    assert [(result["model"], result["role"]) for result in found["results"]] == [
        ("vdcnn9", "teacher"),
        ("vdcnn9", "student"),
    ]
    (epoch,) = found["results"][1]["history"]
    assert epoch["images"] == 28  # of the batches of 8, 8, 8 and 4, each once
    assert all(value > 0 for value in (epoch["loss"], *epoch["ir"]))
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run", "vdcnn9-lit-seed0").values())


@pytest.mark.parametrize(
    ("local_rank", "error", "told", "code"),
    [
        ("0", ConfigError("loss.alpha"), "error: loss.alpha\n", 2),
        ("1", ConfigError("loss.alpha"), "", 2),
        ("1", FirstFailed("rank 0"), "", 2),
        ("1", Interrupted("stopped"), "", 130),
        ("1", ValueError("no such file here"), "error: rank 1: no such file here\n", 2),
        ("1", WorkerLost("another process has ended"), "error: rank 1: another process has ended\n", 4),
    ],
)
def test_what_happens_to_all_processes_is_told_by_one(
    local_rank: str,
    error: Exception,
    told: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", local_rank), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value)
    assert explain(error) == code
    assert capsys.readouterr().err == told


def test_sync_batchnorm_on_networks_of_ones_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"convert_sync_batchnorm\(student\), before it is split"):
        parallel_worker.run(tmp_path / "run", "step.sync_batchnorm=true")
    assert not (tmp_path / "run").exists()


def test_sync_batchnorm_is_built_only_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_fast.training.experiment import Session

    session = Session.__new__(Session)
    for size, kind in ((1, nn.BatchNorm2d), (2, nn.SyncBatchNorm)):
        session.experiment, session.workers = tiny("step.sync_batchnorm=true"), Workers(0, size, "cpu")
        net = session.prepare(lf.models.resnet20())
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert {type(m) for m in norms} == {kind}
        assert net.state_dict().keys() == lf.models.resnet20().state_dict().keys()
