"""Files appear whole, under the name that was given, and nowhere else: not through links, not in place of a device."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from everyday import but_first, exhaustive
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_report import BASIC, content, with_looks
from training_helpers import quiet, tiny

import lit_fast as lf
from lit_fast.cli.errors import explain
from lit_fast.errors import RunFolderError, StoreError
from lit_fast.files import (
    as_json,
    atomic_write,
    make_folder,
    must_be_regular,
    remove_leftovers,
    system_error,
    write_json,
)
from lit_fast.report.run import write_report
from lit_fast.runs.checkpoint import Checkpoint, CheckpointStore
from lit_fast.runs.export import export
from lit_fast.runs.folder import RunFolder
from lit_fast.runs.lock import RunLock
from lit_fast.training import session
from lit_fast.training.callbacks import RunInfo
from lit_fast.training.callbacks.logs import JsonLog, TensorBoard

MINE = "a file of the user's\n"


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A file that must not change."""
    path = tmp_path / "mine.txt"
    path.write_text(MINE)
    yield path
    assert path.read_text() == MINE
    assert not path.is_symlink()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        atomic_write(path, fails)
    assert path.read_bytes() == as_json({"a": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_the_temporary_name_cannot_be_guessed(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        atomic_write(tmp_path / "x", lambda temporary: seen.append(temporary.name))
    assert len(set(seen)) == 3


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    names = [".x.json.0123456789abcdef.tmp", ".mine.tmp", "x.tmp"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]


def test_only_a_regular_file_is_written_over(tmp_path: Path, mine: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    kinds = {"pipe": "pipe", "link": "symbolic link", "dangling": "symbolic link", "folder": "folder"}
    for name, kind in kinds.items():
        with pytest.raises(OSError, match=f"is a {kind}; only a regular file is written over") as caught:
            write_json(tmp_path / name, {})
        assert caught.value.filename == str(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_made_and_no_link_in_its_place(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "new").is_dir()
    make_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="is a symbolic link, not a folder"):
        make_folder(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "gone" / "new")


def test_what_is_read_is_a_regular_file(tmp_path: Path, mine: Path) -> None:
    (tmp_path / "link").symlink_to(mine)
    must_be_regular(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a pipe, not a regular file"):
        must_be_regular(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a device"):
        must_be_regular(Path(os.devnull))


def test_the_systems_reason_is_found_behind_a_librarys_words() -> None:
    assert system_error(OSError(errno.ENOSPC, "x")) == errno.ENOSPC
    assert system_error(RuntimeError("I/O error: No space left on device (os error 28)")) == 28
    assert system_error(ValueError("x")) is None
    hidden = RuntimeError("[enforce fail at inline_container.cc:672]")
    hidden.__context__ = OSError(errno.EDQUOT, "quota")
    assert system_error(hidden) == errno.EDQUOT


# -- a disk that is full ---------------------------------------------------------------------------------------------


@pytest.fixture
def full() -> Iterator[Path]:
    """A real file system with room for a few hundred kilobytes."""
    folder = Path("/dev/shm") / f"lit-fast-{os.getpid()}"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    try:
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        yield folder
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["model", "state"])
def test_a_full_disk_is_told_as_such(full: Path, where: str) -> None:
    large, small = torch.randn(200_000), torch.zeros(3)
    store = CheckpointStore(full / "c")
    store.save(Checkpoint(1, {"w": small}, None, {}))
    model, state = ({"w": large}, {}) if where == "model" else ({"w": small}, {"large": large})
    with pytest.raises(StoreError, match=r"step-000000002: No space left on device; the last checkpoint"):
        store.save(Checkpoint(2, model, None, state))
    assert [path.name for path in (full / "c").iterdir()] == ["step-000000001"]


@pytest.mark.parametrize("to", but_first(["safetensors", "torch-export"]))
def test_an_export_to_a_full_disk_names_the_reason_in_a_line(
    full: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        export(lf.models.resnet20(), (3, 32, 32), to, full / "x.out")
    assert explain(caught.value) == 2
    assert capsys.readouterr().err == f"error: {full / 'x.out'}: No space left on device\n"
    assert not list(full.iterdir())


def test_a_full_disk_at_the_end_of_a_run_names_the_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_fast.training import experiment as module

    def full(path: Path, *_: object) -> None:
        atomic_write(path, lambda _: (_ for _ in ()).throw(SafetensorError("I/O error: full (os error 28)")))

    monkeypatch.setattr(module, "save_weights", full)
    with pytest.raises(StoreError, match=r"cannot write .*best\.safetensors: No space left .* then --resume"):
        module.run_experiment(tiny("epochs=1"), tmp_path / "run", console=quiet())


def run_info(folder: Path) -> RunInfo:
    return RunInfo("one", folder, {}, {}, steps=4)


def test_a_log_on_a_full_disk_names_itself(full: Path) -> None:
    log = JsonLog()
    log.on_train_begin(run_info(full))
    with pytest.raises(OSError, match="No space left on device") as caught:
        log.on_log(1, {"text": "x" * 400_000})
    assert caught.value.filename == str(full / "log.jsonl")
    log.on_train_end(None)


# -- planted links ---------------------------------------------------------------------------------------------------


def planted(folder: Path, mine: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for link in (name, f".{name}.tmp", f".{name}.new"):
            (folder / link).unlink(missing_ok=True)
            (folder / link).symlink_to(mine)


def test_a_report_follows_no_link(tmp_path: Path, mine: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps(content([*BASIC, with_looks("lit", 1)])))
    for name in ("report.md", "report.png", "sections.png"):
        planted(run, mine, (name,))
        with pytest.raises(OSError, match="is a symbolic link"):
            write_report(run)
        (run / name).unlink()
    write_report(run)


def test_a_run_follows_no_link(tmp_path: Path, mine: Path) -> None:
    pair = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    data = lf.data.from_arrays(pair, test=pair, val_size=8)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    RunFolder(tmp_path / "run", tiny(), data, resume=False).claim()
    for name in ("identity.json", "data.json", "experiment.yaml"):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        (tmp_path / "copy").write_bytes(whole)
        path.unlink()
        path.symlink_to(tmp_path / "copy")
        with pytest.raises(RunFolderError, match=rf"cannot write to the run directory .*{name}: is a symbolic link"):
            RunFolder(tmp_path / "run", tiny(), data, resume=True).claim()
        assert (tmp_path / "copy").read_bytes() == whole
        path.unlink()
        path.write_bytes(whole)
    for link in ("runs", "runs/one"):
        (tmp_path / "run" / link).symlink_to(elsewhere)
        with pytest.raises(RunFolderError, match="is a symbolic link, not a folder"):
            RunFolder(tmp_path / "run", tiny(), data, resume=True).run("one")
        (tmp_path / "run" / link).unlink()
        (tmp_path / "run" / "runs").mkdir(exist_ok=True)
    one = RunFolder(tmp_path / "run", tiny(), data, resume=True).run("one")
    for name in ("log.jsonl", "tensorboard", "checkpoints"):
        planted(one, mine if name == "log.jsonl" else elsewhere, (name,))
    with pytest.raises(OSError, match="is a symbolic link"):
        JsonLog().on_train_begin(run_info(one))
    (one / "log.jsonl").unlink()
    if importlib.util.find_spec("tensorboard") is not None:
        with pytest.raises(OSError, match="is a symbolic link"):
            TensorBoard().on_train_begin(run_info(one))
    with pytest.raises(StoreError, match="is a symbolic link, not a folder"):
        CheckpointStore(one / "checkpoints").save(Checkpoint(1, {"w": torch.zeros(1)}, None, {}))
    assert not list(elsewhere.iterdir())


def test_an_export_goes_to_no_link_and_no_device(tmp_path: Path, mine: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "link", "null"):
        with pytest.raises(OSError, match="only a regular file is written over"):
            export(torch.nn.Linear(2, 2), (2,), "safetensors", tmp_path / name)
    with pytest.raises(OSError, match="is a device; only a regular file"):
        export(torch.nn.Linear(2, 2), (2,), "safetensors", Path(os.devnull))
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


# -- names -----------------------------------------------------------------------------------------------------------

EVIL = "\x1b[2J<script>alert(1)</script>|[x](http://e.com)\n# heading `a` \u202e"


def test_names_are_neither_html_nor_markdown_nor_escape_sequences(tmp_path: Path) -> None:
    runs = [dict(run, model=EVIL if run["role"] == "student" else run["model"], name=EVIL) for run in BASIC]
    runs = [dict(run, files={EVIL: EVIL}) for run in runs]
    whole = content(runs) | {"left_out": [EVIL], "environment": {EVIL: EVIL}}
    whole["experiment"] = {"recipe": EVIL, "data": {"name": EVIL}, "note": "```\n" + EVIL}
    (tmp_path / "results.json").write_text(json.dumps(whole))
    text = write_report(tmp_path).markdown.read_text()
    page, _, config = text.partition("## Config")
    assert "<script>" not in page
    assert "[x](" not in page
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "\n# heading" not in page
    assert config.count("````") == 2  # the fence is longer than the one in it


@pytest.mark.parametrize("terminal", [False, True])
def test_a_table_on_a_terminal_shows_names_as_they_are(
    tmp_path: Path, terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_fast.cli.experiments import report

    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    runs = [dict(run, model="[/x]" + EVIL, files={"last": EVIL}) for run in BASIC]
    (tmp_path / "results.json").write_text(json.dumps(content(runs)))
    report(tmp_path)
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert "[/x]\\x1b[2J<script>" in shown.replace("\n", "") or terminal


def test_an_error_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    explain(ValueError("two\nlines \x1b[2J"))
    assert capsys.readouterr().err == "error: two\nlines \\x1b[2J\n"


@exhaustive
def test_names_that_are_not_utf_8_end_no_run(tmp_path: Path) -> None:
    from lit_fast.settings.classifier import load_experiment
    from lit_fast.training.experiment import run_experiment

    for split in ("train", "test"):
        for name in (b"a\xff", b"b"):
            folder = os.path.join(os.fsencode(tmp_path), split.encode(), name)
            os.makedirs(folder)
            for i in range(4):
                Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(os.fsdecode(os.path.join(folder, b"%d\xfe.png" % i)))
            Path(os.fsdecode(os.path.join(folder, b"bad\xfd.png"))).write_bytes(b"no image")
    sets = [
        "data.name=folder",
        f"data.dir={tmp_path}",
        "data.image_size=8",
        "data.val_size=2",
        "data.on_bad_image=skip",
    ]
    small = ["teacher.model=resnet20", "batch_size=4", "epochs=2", "variants=[lit]", "logging.tensorboard=false"]
    run_experiment(load_experiment("digits", None, [*sets, *small]), tmp_path / "run", console=quiet())
    text = write_report(tmp_path / "run").markdown.read_text()
    assert text.count("\\udcfd.png: cannot be decoded") == 4


# -- one process in a folder -----------------------------------------------------------------------------------------


def test_a_second_process_is_told_in_a_line_and_no_lock_is_left_behind(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lit_fast.runs.lock import RunLock
lock = RunLock()
lock.take(Path({str(tmp_path)!r}))
print("taken", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "taken\n"
    with RunLock() as lock, pytest.raises(RunFolderError, match="another process is training in this folder; wait"):
        lock.take(tmp_path)
    other.kill()
    other.communicate()
    with RunLock() as lock:
        lock.take(tmp_path)
        with RunLock() as second, pytest.raises(RunFolderError, match="another process"):
            second.take(tmp_path)
    assert not list(tmp_path.iterdir())


def test_workers_of_a_loader_do_not_keep_the_lock(tmp_path: Path) -> None:
    began, begins = os.pipe()
    with RunLock() as lock:
        lock.take(tmp_path)
        child = os.fork()
        if not child:
            os.write(begins, b"x")
            os.read(os.pipe()[0], 1)  # for ever
        os.read(began, 1)
    try:
        with RunLock() as again:
            again.take(tmp_path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_refused_experiment_leaves_the_folder_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_fast.training.experiment import Session, run_experiment

    def refuses(self: object) -> None:
        raise ValueError("cannot work")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "check", refuses)
        with pytest.raises(ValueError, match="cannot work"):
            run_experiment(tiny(), tmp_path / "run", console=quiet())
    assert not list((tmp_path / "run").iterdir())
    pair = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
    RunFolder(tmp_path / "run", tiny(), lf.data.from_arrays(pair, test=pair, val_size=8), resume=False).claim()


def test_a_folder_deleted_meanwhile_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_fast.training.experiment import run_experiment

    original = session.BaseSession.record

    def deleting(self: session.BaseSession, result: dict) -> None:
        original(self, result)
        shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(session.BaseSession, "record", deleting)
    with pytest.raises(RunFolderError, match="this folder was deleted or emptied while its experiment ran"):
        run_experiment(tiny("epochs=1"), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_deleted_run_is_not_made_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        CheckpointStore(tmp_path / "gone" / "checkpoints").save(Checkpoint(1, {"w": torch.zeros(1)}, None, {}))
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert not (tmp_path / "gone").exists()
