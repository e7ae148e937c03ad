"""Checkpoints: there whole or not at all, and never at the cost of the one before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from lit_fast.errors import StoreError
from lit_fast.runs import checkpoint as module
from lit_fast.runs.checkpoint import Checkpoint, CheckpointStore
from lit_fast.runs.manifest import write_manifest


def made(step: int, best: bool = True) -> Checkpoint:
    model = {"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)}
    return Checkpoint(
        step, model, {"w": torch.zeros(2)} if best else None, {"position": {"step": step}, "list": [1, 2.5]}
    )


def signed(folder: Path) -> None:
    """With a manifest that fits the files as they are, as only one who forges them writes it."""
    write_manifest(folder, folder.name, ["model.safetensors", "best.safetensors", "state.pt"])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c")
    assert store.load() is None
    store.save(made(7))
    loaded = store.load()
    assert loaded is not None
    assert loaded.step == 7
    assert loaded.state == {"position": {"step": 7}, "list": [1, 2.5]}
    assert torch.equal(loaded.model["w"], torch.full((3, 2), 7.0))
    assert loaded.best is not None


def test_without_a_best_there_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(made(1, best=False))
    assert store.load().best is None


def test_channels_last_weights_keep_their_values(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    store = CheckpointStore(tmp_path)
    store.save(Checkpoint(1, {"w": weight}, None, {}))
    assert torch.equal(store.load().model["w"], weight)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 5, 12):
        store.save(made(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000005", "step-000000012"]


def test_one_cut_off_while_being_written_is_not_seen(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(made(3))
    half = tmp_path / ".tmp-step-000000004"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert store.load().step == 3
    store.save(made(4))
    assert store.load().step == 4


def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CheckpointStore(tmp_path)
    store.save(made(3))
    store.save(made(4))
    (tmp_path / "step-000000004" / "model.safetensors").write_bytes(b"\x00" * 5)
    assert store.load().step == 3
    assert "step-000000004 cannot be read" in caplog.text


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(made(3))
    (tmp_path / "step-000000003" / "state.pt").write_bytes(b"junk")
    with pytest.raises(StoreError, match=r"no checkpoint of this run can be read:\n.*step-000000003"):
        store.load()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_names_the_reason_and_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(made(3))

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.torch, "save", fail)
    with pytest.raises(StoreError, match=rf"{os.strerror(code)}; the last checkpoint, .*step-000000003, is intact"):
        store.save(made(4))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003"]
    assert store.load().step == 3


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """/dev/full accepts no byte: the file system's own error must come through."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    store = CheckpointStore(tmp_path)
    store.save(made(1))
    (tmp_path / ".tmp-step-000000002").mkdir()
    original = module._save_tensors
    try:
        module._save_tensors = lambda path, tensors: Path("/dev/full").write_bytes(b"x" * 100_000)
        with pytest.raises(StoreError, match=r"No space left on device; the last checkpoint"):
            store.save(made(2))
    finally:
        module._save_tensors = original
    assert store.load().step == 1


def test_pickled_code_in_a_state_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    store = CheckpointStore(tmp_path / "c")
    store.save(made(1))
    torch.save(Evil(), tmp_path / "c" / "step-000000001" / "state.pt")
    signed(tmp_path / "c" / "step-000000001")
    with pytest.raises(StoreError, match="Weights only load failed"):
        store.load()
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_layout_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Not passed over for an older one: what is there was trained, and may be trained to its end elsewhere."""
    (tmp_path / "mine").mkdir()
    store = CheckpointStore(tmp_path / "mine" / "checkpoints")
    store.save(made(1))
    store.save(made(2))
    state = tmp_path / "mine" / "checkpoints" / "step-000000002" / "state.pt"
    content = torch.load(state, weights_only=True)
    assert content.pop("layout") == 2
    torch.save(content, state)  # as the first layout was
    signed(state.parent)
    message = rf"step-000000002 was written by another version.*remove the folder {tmp_path / 'mine'}, then --resume"
    with pytest.raises(StoreError, match=message):
        store.load()
