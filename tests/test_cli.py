"""``lit-fast`` from the outside: what it prints, writes and answers, and what it says to bad input."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cifar
import pytest
import torch
from everyday import exhaustive
from rich.console import Console
from typer.testing import CliRunner, Result

import lit_fast
from lit_fast import models, recipes
from lit_fast.cli import app
from lit_fast.cli.experiments import _rich_table
from lit_fast.errors import Interrupted, NonFiniteLoss, NotCapturable, NotFinite, WorkerLost
from lit_fast.gan import any_experiment
from lit_fast.paper.search.run import Space
from lit_fast.runs.results import table
from lit_fast.runs.weights import WeightInfo, save_weights
from lit_fast.settings.classifier import load_experiment
from lit_fast.training import experiment as experiments

COMMANDS = (
    "distill",
    "train",
    "evaluate",
    "inspect",
    "bench",
    "export",
    "report",
    "reproduce",
    "recipes",
    "build-info",
)
# 96 tiny digits, two epochs: a whole experiment in a few seconds.
SMALL = [
    *("--teacher", "resnet20", "--student", "resnet20", "--epochs", "2", "--batch-size", "32"),
    *("--set", "data.train_size=96", "--set", "data.image_size=8", "--set", "logging.tensorboard=false"),
]


def lit_fast_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object, code: int = 2) -> str:
    """The one-paragraph message of a command that must fail with ``code``, without traceback or output."""
    result = lit_fast_command(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert "\n\n" not in result.stderr
    return result.stderr.removeprefix("error: ")


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lit_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run folder with a teacher and a scratch and a lit student, and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    result = lit_fast_command("distill", *SMALL, "--variant", "scratch", "--variant", "lit", "--run-dir", folder)
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-20 for tiny digits, not trained, in a file of ours."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = models.create("resnet20", num_classes=10, in_channels=1)
    save_weights(path, model.state_dict(), WeightInfo("resnet20", 10, 1, 8, "digits", (0.25,), (0.5,)))
    return path


# -- the program ---------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_nothing_heavy_is_loaded_for_it() -> None:
    code = "import sys\nfrom lit_fast.cli import main\nsys.argv[1:] = ['--help']\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'pydantic', 'matplotlib', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stdout.endswith("[]\n")


def test_no_command_at_all_prints_the_help() -> None:
    result = lit_fast_command()
    assert result.exit_code == 0
    assert "distill" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = lit_fast_command(command, "--help")
    assert result.exit_code == 0
    assert f"lit-fast {command}" in result.stdout


def test_the_defaults_of_training_are_in_the_help_and_are_those_of_the_settings() -> None:
    told = {name: " ".join(lit_fast_command(name, "--help").stdout.split()) for name in ("distill", "train", "search")}
    for help_text in told.values():
        assert "[default: (the file's, else digits)]" in help_text
        assert "[default: (the recipe's)]" in help_text
    fields = load_experiment("digits")
    assert f"(step.precision). [default: ({fields.step.precision})]" in told["distill"]
    assert f"(step.engine). [default: ({fields.step.engine})]" in told["distill"]
    assert f"(seeds). [default: ({fields.seeds[0]})]" in told["distill"]
    assert f"Of weights and data order. [default: ({fields.teacher.seed})]" in told["train"]
    for values in Space():
        assert f"[default: ({','.join(f'{value:g}' for value in values)})]" in told["search"]


def test_the_module_runs_as_the_command_and_tells_its_version() -> None:
    result = process("--version")
    assert (result.returncode, result.stdout) == (0, f"lit-fast {lit_fast.__version__}\n")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m lit_fast recipes --show digits | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lit-fast dis", ["distill"]),
        ("lit-fast distill --batch", ["--batch-size"]),
        ("lit-fast distill --recipe resnet-", ["resnet-cifar10", "resnet-cifar100"]),
    ],
)
def test_bash_completes_commands_options_and_recipes(
    words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_LIT_FAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert lit_fast_command().stdout.split() == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_asks_for_completions(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LIT_FAST_COMPLETE", f"source_{shell}")
    script = lit_fast_command().stdout
    assert f"_LIT_FAST_COMPLETE=complete_{shell}" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_build_info_tells_version_and_backend() -> None:
    result = lit_fast_command("build-info")
    assert result.exit_code == 0
    fields = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert fields["version"] == lit_fast.__version__
    assert fields["torch"] == torch.__version__
    assert fields["backend"] in ("native", "eager")


def test_recipes_are_listed_with_what_they_are_and_shown_as_they_stand() -> None:
    listed = lit_fast_command("recipes").stdout
    assert [line.split()[0] for line in listed.splitlines()] == recipes.names()
    assert "ResNet on CIFAR-10 (paper, appendix A.1)." in listed
    assert lit_fast_command("recipes", "--show", "digits").stdout.strip() == recipes.text("digits").strip()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["distil"], "No such command 'distil'"),
        (["distill", "--foo"], "--foo"),
        (["distill", "--epochs", "many"], "--epochs"),
        (["distill", "--seed"], "--seed"),
        (["evaluate"], "--checkpoint"),
        (["inspect", "--teacher", "resnet20"], "--student"),
        (["export", "--checkpoint", "x", "--out", "y", "--to", "zip"], "torch-export"),
        (["recipes", "--show", "vgg"], "unknown recipe 'vgg'; known: digits"),
        (["report"], "RUN_DIR"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_paragraph(arguments: list[str], says: str) -> None:
    assert says in refused(*arguments)


# -- distill -------------------------------------------------------------------------------------------------------


def test_distill_prints_the_table_and_where_everything_lies(distilled: tuple[Path, Result]) -> None:
    folder, result = distilled
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["resnet20", "teacher", "20"],
        ["resnet20", "scratch", "20"],
        ["resnet20", "lit", "20"],
    ]
    assert f"report   {folder / 'report.md'}" in lines
    assert f"figure   {folder / 'report.png'}" in lines
    assert f"weights  {folder / 'runs/resnet20-lit-seed0/last.safetensors'}" in lines
    assert "\x1b" not in result.stdout  # plain in a pipe
    for line in lines:
        kind, _, path = line.partition("  ")
        if kind.strip() in ("report", "figure", "weights"):
            assert Path(path.strip()).is_file()


def test_progress_goes_to_stderr(distilled: tuple[Path, Result]) -> None:
    _, result = distilled
    assert "resnet20-lit-seed0  epoch 1/2" in result.stderr
    assert "epoch 1/2" not in result.stdout


def test_resuming_what_has_ended_gives_the_same_results(distilled: tuple[Path, Result]) -> None:
    folder, first = distilled
    before = json.loads((folder / "results.json").read_text())["results"]
    arguments = ["distill", *SMALL, "--variant", "scratch", "--variant", "lit", "--run-dir", folder]
    assert "pass --resume" in refused(*arguments)
    again = lit_fast_command(*arguments, "--resume")
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert json.loads((folder / "results.json").read_text())["results"] == before


def test_the_saved_config_is_the_same_experiment(distilled: tuple[Path, Result]) -> None:
    folder, first = distilled
    again = lit_fast_command("distill", "--config", folder / "experiment.yaml", "--run-dir", folder, "--resume")
    assert (again.exit_code, again.stdout) == (0, first.stdout)


def test_the_folder_of_another_experiment_is_refused_by_what_differs(distilled: tuple[Path, Result]) -> None:
    folder, _ = distilled
    changed = ["--variant", "scratch", "--set", "loss.beta=0.5"]
    message = refused("distill", *SMALL, *changed, "--run-dir", folder, "--resume")
    assert "holds another experiment" in message
    assert "loss.beta (0.75 there, 0.5 now)" in message
    assert "variants" in message


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_experiment` or `train_model` was called with, in their place; nothing is trained."""
    calls: dict[str, Any] = {}

    def stand_in(experiment: Any, run_dir: Path, **options: Any) -> None:
        calls.update(experiment=experiment, run_dir=run_dir, **options)
        raise Interrupted("stop here")

    monkeypatch.setattr(any_experiment, "run_experiment", stand_in)
    monkeypatch.setattr(experiments, "train_model", stand_in)
    return calls


def test_every_option_of_distill_sets_its_key(started: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "teacher.pt"
    checkpoint.touch()
    options = {
        "--recipe": "resnet-cifar100",
        "--data-dir": "/data",
        "--dataset": "cifar10",
        "--teacher": "resnet56",
        "--teacher-checkpoint": checkpoint,
        "--epochs": 8,
        "--batch-size": 64,
        "--precision": "bf16",
        "--engine": "eager",
        "--loader": "torch",
        "--track": "wandb",
        "--set": "loss.beta=0.5",
        "--run-dir": tmp_path / "run",
    }
    repeated = ["--student", "resnet32", "--student", "resnet20", "--variant", "kd", "--variant", "lit"]
    flat = [part for pair in options.items() for part in pair]
    refused("distill", *flat, *repeated, "--seed", 1, "--seed", 2, "--set", "step.device=cpu", "--resume", code=130)
    ours = started["experiment"]
    assert ours.recipe == "resnet-cifar100"
    assert (ours.data.name, ours.data.dir) == ("cifar10", Path("/data"))
    assert (ours.teacher.model, ours.teacher.checkpoint) == ("resnet56", checkpoint)
    assert [s.model for s in ours.student.models] == ["resnet32", "resnet20"]
    assert (ours.variants, ours.seeds) == (("kd", "lit"), (1, 2))
    assert (ours.epochs, ours.batch_size, ours.step.precision, ours.step.engine) == (8, 64, "bf16", "eager")
    assert ours.data.loader == "torch"
    assert ours.logging.trackers == ("wandb",)
    assert (ours.loss.beta, ours.step.device) == (0.5, "cpu")
    assert started["run_dir"] == tmp_path / "run"
    assert started["resume"] is True


def test_a_networks_name_may_carry_its_cardinality(started: dict[str, Any]) -> None:
    refused("distill", "--teacher", "resnext56-c16", "--student", "resnext20-c8", "--student", "resnext32", code=130)
    ours = started["experiment"]
    assert ours.teacher.label == "resnext56-c16"
    assert [(s.model, s.cardinality) for s in ours.student.models] == [("resnext20", 8), ("resnext32", None)]
    refused("train", "--model", "resnext20-c16", code=130)
    assert started["experiment"].teacher.label == "resnext20-c16"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["distill"], "runs/digits"),
        (["distill", "--recipe", "resnet-cifar10", "--data-dir", "/d"], "runs/resnet-cifar10"),
        (["distill", "--config", "mine.yaml"], "runs/mine"),
        (["train"], "runs/digits-resnet56"),
        (["train", "--model", "resnet20"], "runs/digits-resnet20"),
    ],
)
def test_the_default_run_folder_is_named_after_the_experiment(
    arguments: list[str], folder: str, started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("recipe: digits\n")
    refused(*arguments, code=130)
    assert started["run_dir"] == Path(folder)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "vgg"], "unknown recipe 'vgg'"),
        (["--config", "none.yaml"], "none.yaml: No such file"),
        (["--set", "loss.beta"], "key=value"),
        (["--set", "loss.beta=3", "--precision", "fp8"], "step.precision"),
        (["--variant", "magic"], "variants"),
        (["--student", "resnet21"], "resnet21'; did you mean resnet32 or resnet20?"),
        (["--recipe", "digit"], "unknown recipe 'digit'; did you mean digits?"),
        (["--variant", "lits"], "did you mean lit? (got 'lits')"),
        (["--set", "lose.beta=1"], "lose: unknown key; did you mean loss"),
        (["--set", "beta=1"], "beta: unknown key; did you mean loss.beta?"),
        (["--set", "phases.lit.lrr=1"], "phases.lit.lrr: unknown key; did you mean phases.lit.lr?"),
        (["--student", f"resnext20-c{10**23}"], "cardinality"),
        (["--dataset", "cifar10"], "--data-dir"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "nowhere"),
        (["--teacher-checkpoint", "none.pt"], "no such file: none.pt"),
        (["--epochs", "0"], "epochs"),
        (["--set", "step.device=tpu9"], "tpu9"),
    ],
)
def test_distill_refuses_what_cannot_run_before_any_work(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("distill", *arguments)
    assert says in message
    assert "after validation" not in message  # what follows from the first mistake is none of the user's
    assert not list(tmp_path.glob("runs/*/runs"))


def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert str(file) in refused("distill", *SMALL, "--run-dir", file)


def raising(error: BaseException) -> Callable[..., Any]:
    def stand_in(*_: Any, **__: Any) -> None:
        raise error

    return stand_in


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Interrupted("stopped by SIGTERM; --resume goes on"), 130, "stopped by SIGTERM; --resume goes on"),
        (NonFiniteLoss("the loss is not finite at step 7"), 3, "the loss is not finite at step 7"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), 2, "/full: No space left on device"),
        (WorkerLost("another process of this run has ended"), 4, "another process of this run has ended"),
        (ValueError(""), 2, "ValueError"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 2, "CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "can't allocate memory"),
        (ModuleNotFoundError("No module named 'sklearn'", name="sklearn"), 2, "'sklearn' is not installed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_kind_of_end_has_its_message_and_exit_code(
    error: BaseException, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_experiment, "run_experiment", raising(error))
    assert says in refused("distill", "--run-dir", tmp_path / "run", code=code)


@pytest.mark.parametrize(
    "defect", [KeyError("defect"), NotFinite(0, "update", [1.0]), NotCapturable("caught elsewhere")]
)
def test_a_defect_of_ours_keeps_its_traceback(
    defect: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_experiment, "run_experiment", raising(defect))
    assert lit_fast_command("distill", "--run-dir", tmp_path / "run").exception is defect


@pytest.mark.parametrize("message", ["GET was unable to find an engine to execute this computation", ""])
def test_what_may_be_a_defect_of_torch_is_told_with_its_traceback(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_experiment, "run_experiment", raising(RuntimeError(message)))
    result = lit_fast_command("distill", "--run-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith(f"\nerror: {message or 'RuntimeError'}\n")


def test_the_traceback_of_a_user_error_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_FAST_TRACEBACK", "1")
    result = lit_fast_command("report", tmp_path)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "\nerror: " in result.stderr


def test_a_loss_that_is_not_finite_ends_with_code_3_and_says_what_to_try(tmp_path: Path) -> None:
    arguments = ["--set", "phases.scratch.lr=1e30", "--variant", "scratch", "--run-dir", tmp_path / "run"]
    result = lit_fast_command("distill", *SMALL, *arguments)
    assert result.exit_code == 3
    assert "error: teacher-resnet20: the loss is not finite at step" in result.stderr
    assert "smaller learning rate" in result.stderr


@exhaustive
def test_ctrl_c_saves_exits_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["distill", *SMALL, "--variant", "scratch", "--run-dir", tmp_path / "run"]
    arguments[arguments.index("--epochs") + 1] = "40"
    command = [sys.executable, "-m", "lit_fast", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert "loader: resident" in running.stderr.readline()
        assert "epoch 1/40" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
        assert running.wait(timeout=60) == 130
    assert "error: teacher-resnet20: stopped by SIGINT" in rest
    assert "--resume" in rest
    assert list((tmp_path / "run/runs/teacher-resnet20/checkpoints").glob("step-*"))


# -- the table on a terminal ---------------------------------------------------------------------------------------


def test_the_table_fits_a_terminal_of_100_columns_without_cutting_a_number(distilled: tuple[Path, Result]) -> None:
    results = json.loads((distilled[0] / "results.json").read_text())["results"]
    widest = [r | {"variant": "one_ir_teacher_input", "seed": s} for r in results for s in (0, 1)]
    for i, result in enumerate(widest):
        result["accuracy"] = {"test_last": 90.0 + i, "test_best": 90.5 + i}
    rows = table(widest)
    out = io.StringIO()
    Console(file=out, width=100).print(_rich_table(rows))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    for row in rows:
        assert all(cell in text for cell in row.cells()[2:])


# -- train, evaluate, report ---------------------------------------------------------------------------------------


def test_train_trains_one_network_whose_accuracy_evaluate_confirms(tmp_path: Path) -> None:
    small = SMALL[SMALL.index("--epochs") :]
    result = lit_fast_command("train", "--model", "resnet20", "--seed", 3, *small, "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "run/results.json").read_text())["results"]
    assert [(r["name"], r["seed"], r["epochs"]) for r in found] == [("teacher-resnet20", 3, 2)]
    last = tmp_path / "run/runs/teacher-resnet20/last.safetensors"
    assert f"weights  {last}" in result.stdout
    told = lit_fast_command("evaluate", "--checkpoint", last).stdout
    assert f"{found[0]['accuracy']['test_last']:.2f} % (" in told
    assert "digits, test split, 360 images" in told


def test_evaluate_confirms_the_accuracies_of_a_distilled_student(distilled: tuple[Path, Result]) -> None:
    folder, _ = distilled
    found = {r["name"]: r for r in json.loads((folder / "results.json").read_text())["results"]}["resnet20-lit-seed0"]
    for which in ("last", "best"):
        told = lit_fast_command("evaluate", "--checkpoint", folder / found["files"][which])
        assert told.exit_code == 0, told.output
        assert f"test accuracy  {found['accuracy']['test_' + which]:.2f} % (" in told.stdout


def test_evaluate_tells_split_count_and_the_checkpoints_own_normalisation(weights: Path) -> None:
    told = lit_fast_command("evaluate", "--checkpoint", weights, "--split", "val", "--val-size", 100).stdout
    assert "digits, val split, 100 images" in told
    assert "mean 0.25, std 0.5 (the checkpoint's own)" in told
    assert "val accuracy" in told


def test_evaluate_takes_another_normalisation(weights: Path) -> None:
    told = lit_fast_command("evaluate", "--checkpoint", weights, "--mean", "0.1", "--std", "0.9").stdout
    assert "mean 0.1, std 0.9 (as given)" in told


def test_evaluate_takes_a_file_that_says_nothing_of_itself(tmp_path: Path) -> None:
    plain = tmp_path / "net.pt"
    torch.save(models.create("resnet20", in_channels=1).state_dict(), plain)
    told = lit_fast_command("evaluate", "--checkpoint", plain, "--model", "resnet20", "--dataset", "digits")
    assert told.exit_code == 0, told.output
    assert "(the dataset's own" in told.stdout


def test_evaluate_knows_the_normalisation_of_the_published_resnets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cifar.shrink(monkeypatch)
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin")
    published = tmp_path / "resnet20.th"
    state = {f"module.{k}": v for k, v in models.create("resnet20").state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.73}, published)
    told = lit_fast_command(
        *("evaluate", "--checkpoint", published, "--model", "resnet20"),
        *("--dataset", "cifar10", "--data-dir", folder, "--val-size", 20),
    )
    assert told.exit_code == 0, told.output
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (of the published CIFAR ResNets)" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--checkpoint", "none.pt"], "none.pt: there is no such file"),
        (["--checkpoint", "plain.pt"], "does not tell its dataset"),
        (["--checkpoint", "plain.pt", "--dataset", "digits"], "does not tell its network: give --model"),
        (["--checkpoint", "plain.pt", "--dataset", "digits", "--model", "resnet56"], "another architecture or depth"),
        (["--checkpoint", "plain.pt", "--dataset", "digits", "--model", "vgg"], "unknown model 'vgg'"),
        (["--checkpoint", "junk.pt", "--dataset", "digits", "--model", "resnet20"], "junk.pt: cannot be read"),
        (["--checkpoint", "net.safetensors", "--dataset", "mnist"], "no dataset 'mnist'"),
        (["--checkpoint", "net.safetensors", "--dataset", "cifar10"], "cifar10"),
        (["--checkpoint", "net.safetensors", "--mean", "0.1"], "belong together"),
        (["--checkpoint", "net.safetensors", "--mean", "a", "--std", "1"], "--mean: expected numbers"),
        (["--checkpoint", "net.safetensors", "--mean", "0.1,0.2", "--std", "1,1"], "mean needs 1"),
        (["--checkpoint", "net.safetensors", "--cardinality", "16"], "cardinality"),
        (["--checkpoint", "net.safetensors", "--device", "tpu9"], "tpu9"),
        (["--checkpoint", "net.safetensors", "--split", "dev"], "--split"),
        (["--checkpoint", "classes.safetensors"], "a network for 7 classes (digits), dataset digits has 10"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(
    arguments: list[str], says: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights, "net.safetensors")
    torch.save(models.create("resnet20", in_channels=1).state_dict(), "plain.pt")
    Path("junk.pt").write_bytes(b"junk")
    seven = models.create("resnet20", num_classes=7, in_channels=1).state_dict()
    save_weights(Path("classes.safetensors"), seven, WeightInfo("resnet20", 7, 1, 8, "digits", (0.2,), (0.5,)))
    assert says in refused("evaluate", *arguments)


@pytest.mark.usefixtures("drawn")
def test_report_renders_the_same_report_again(distilled: tuple[Path, Result], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(distilled[0], folder)
    before = (folder / "report.md").read_bytes()
    for name in ("report.md", "report.png"):
        (folder / name).unlink()
    result = lit_fast_command("report", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[3:6] == distilled[1].stdout.splitlines()[3:6]
    assert (folder / "report.md").read_bytes() == before
    assert (folder / "report.png").is_file()


def test_report_refuses_a_folder_without_results(tmp_path: Path) -> None:
    assert "results.json does not exist" in refused("report", tmp_path)


def test_report_says_what_it_may_not_write(distilled: tuple[Path, Result], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(distilled[0], folder)
    (folder / "report.md").unlink()
    (folder / "report.md").mkdir()
    assert "report.md" in refused("report", folder)


# -- inspect, export -----------------------------------------------------------------------------------------------


def test_inspect_prints_a_pairs_sections_and_sizes() -> None:
    result = lit_fast_command("inspect", "--teacher", "resnet56", "--student", "resnet20")
    assert result.exit_code == 0, result.output
    assert "teacher resnet56, student resnet20, images 3 x 32 x 32, 10 classes" in result.stdout
    assert "853,018" in result.stdout
    assert "269,722" in result.stdout
    assert "copied, frozen" in result.stdout


def test_inspect_takes_classes_image_size_and_channels() -> None:
    options = ["--num-classes", 100, "--image-size", 16, "--in-channels", 1]
    result = lit_fast_command("inspect", "--teacher", "resnet32", "--student", "resnet20", *options)
    assert "images 1 x 16 x 16, 100 classes" in result.stdout


def test_inspect_knows_cardinality_and_what_the_teachers_file_tells(weights: Path) -> None:
    pair = ["--teacher", "resnext20", "--student", "resnext20-c16", "--image-size", 8]
    assert "4,775,754" in lit_fast_command("inspect", *pair).stdout
    told = lit_fast_command(
        "inspect", "--teacher", "resnet20", "--student", "resnet20", "--teacher-checkpoint", weights
    )
    assert "images 1 x 8 x 8, 10 classes" in told.stdout


def test_inspect_takes_unequal_widths_only_with_a_projector() -> None:
    pair = ["inspect", "--teacher", "resnext20", "--student", "resnet20", "--image-size", "8"]
    assert "stem" in refused(*pair)
    result = lit_fast_command(*pair, "--projector")
    assert result.exit_code == 0, result.output
    assert "projector" in result.stdout


def test_inspect_tells_a_teacher_that_was_never_trained(weights: Path) -> None:
    pair = ["inspect", "--teacher", "resnet20", "--student", "resnet20", "--dataset", "digits"]
    assert "untrained" in refused(*pair, "--teacher-checkpoint", weights)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--teacher", "vgg", "--student", "resnet20"], "unknown model 'vgg'"),
        (["--teacher", f"resnext20-c{10**23}", "--student", "resnet20"], "cardinality: expected at most"),
        (["--teacher", "os:system", "--student", "resnet20"], "os:system: expected a function without arguments"),
        (["--teacher", "resnet56", "--student", "resnet20", "--teacher-checkpoint", "none.pt"], "none.pt"),
        (["--teacher", "resnet56", "--student", "resnet20", "--data-dir", "d"], "--dataset"),
        (["--teacher", "resnet56", "--student", "resnet20", "--image-size", "0"], "--image-size"),
    ],
)
def test_inspect_refuses_what_does_not_fit(arguments: list[str], says: str) -> None:
    assert says in refused("inspect", *arguments)


def test_export_writes_and_tells_how_far_it_is_from_pytorch(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pt2"
    result = lit_fast_command("export", "--checkpoint", weights, "--to", "torch-export", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"resnet20  {out}" in result.stdout
    assert "largest difference" in result.stdout
    assert "tolerance" in result.stdout
    assert torch.export.load(out).module()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_export_turns_a_published_file_into_safetensors_that_evaluate_understands(tmp_path: Path) -> None:
    published, out = tmp_path / "resnet20.th", tmp_path / "net.safetensors"
    state = models.create("resnet20").state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.73}, published)
    arguments = ["--checkpoint", published, "--model", "resnet20", "--to", "safetensors", "--out", out]
    result = lit_fast_command("export", *arguments)
    assert result.exit_code == 0, result.output
    assert "bit by bit" in result.stdout
    again = lit_fast_command("evaluate", "--checkpoint", out)
    assert "does not tell its dataset" in again.stderr  # the network and its normalisation are known


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--checkpoint", "none.pt", "--out", "x.pt2"], "none.pt: there is no such file"),
        (["--checkpoint", "net.safetensors", "--out", "."], "is a folder"),
        (["--checkpoint", "net.safetensors", "--out", "/proc/net.pt2"], "/proc/net.pt2: "),
        (
            ["--checkpoint", "net.safetensors", "--out", "queue"],
            "queue: is a pipe; only a regular file",
        ),
        (["--checkpoint", "net.safetensors", "--out", "net.safetensors/x.pt2"], "net.safetensors"),
    ],
)
def test_export_refuses_what_it_cannot_read_or_write(
    arguments: list[str], says: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights, "net.safetensors")
    os.mkfifo("queue")
    assert says in refused("export", "--to", "safetensors", *arguments)


def test_help_is_there_at_once() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        assert process("--help").returncode == 0
        after = os.times()  # of the processor: other tests run at the same time
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 1.0
