"""Everything the documentation shows is real: code runs, commands work, messages and tables are those of the program.

A page is run from its first block to its last in a folder of its own. Its ``python`` blocks share one namespace, its
``lit-fast`` commands go through the real command line. The folder holds what the pages take as given, small and made
here: CIFAR-10 under ``data``, image folders under ``photos``, reviews under ``reviews``, CelebA under ``celeba``, and a
teacher's checkpoint, ``resnet56.th``.

With LIT_FAST_RENEW=1 in the environment, quoted output and messages are written into the pages instead of compared.

What trains is shortened: SHORT (and SMALL_IMAGES) is put behind every ``lit-fast distill`` and ``lit-fast train``, and
behind the overrides of every ``lit_fast.distill``; SHORT_BENCH behind every ``lit-fast bench``, which measures one
round, SHORT_SEARCH behind every ``lit-fast search``. The commands and calls themselves stand on the page as they are
run.
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import io
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import doc_pages
import documented_errors
import fake_celeba
import fake_cifar
import numpy as np
import pytest
import small_reviews
import torch
from doc_pages import PAGES, ROOT, Block
from everyday import exhaustive
from PIL import Image
from pydantic import BaseModel
from torch import nn
from torch.distributed import run as torchrun
from typer.testing import CliRunner

import lit_fast
from lit_fast import models, recipes
from lit_fast.bench import pairing
from lit_fast.cli import app
from lit_fast.data import IMAGENET_MEAN, IMAGENET_STD
from lit_fast.data.augment import normalise, resize
from lit_fast.data.formats import cifar, digits
from lit_fast.gan.report import table as gan_table
from lit_fast.paper.overview import overview
from lit_fast.paper.plan import load_study
from lit_fast.runs.results import HEADERS, load_results, plain_table, table, trains_generators
from lit_fast.settings.classifier import Experiment, load_experiment
from lit_fast.settings.gan import GanExperiment
from lit_fast.training import distill as distilling

SHORT = ("epochs=1", "teacher.epochs=1", "logging.tensorboard=false", "data.train_size=40", "data.val_size=20")
SHORT_BENCH = ("--batch-size", "2", "--image-size", "8", "--seconds", "0.1", "--no-compile", "--threads", "1")
SHORT_SEARCH = ("data.image_size=8", "data.train_size=96", "teacher.model=resnet20", "teacher.epochs=12")
SMALL_IMAGES = "data.image_size=8"  # where images are larger than the digits
SHORT_TEXTS = "data.length=64"
SMALL_GAN = ("data.image_size=16", "width=2")
LANGUAGES = ("python", "bash", "yaml", "text", "bibtex")
# What only looks like text but is code would never be run.
CODE_LIKE = re.compile(r"^\s*(\$ |>>> |lit-fast |pip |import |from \w+ import )", re.MULTILINE)

# -- what the pages take as given ------------------------------------------------------------------------------------


def class_patterns(name: str, file: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `fake_cifar.records`, but with something to learn: each class is a coarse pattern under noise."""
    generator = np.random.default_rng([len(name), file])
    classes = len(cifar.FAMILIES[name].classes)
    patterns = np.random.default_rng(0).integers(40, 200, (classes, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    labels = np.arange(count) % classes
    pixels = patterns[labels] + generator.integers(-20, 20, (count, 3, 32, 32))
    return pixels.reshape(count, 3072).astype(np.uint8), labels


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cifar, "records", class_patterns)
    monkeypatch.setitem(fake_cifar.TRAIN, "cifar10", 12)
    fake_cifar.shrink(monkeypatch)
    monkeypatch.setattr(cifar, "VAL_SIZE", 20)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all that the pages take as given; copied for each of them."""
    folder = tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_cifar, "records", class_patterns)
        patch.setitem(fake_cifar.TRAIN, "cifar10", 12)
        fake_cifar.write(folder / "data", "cifar10", "cifar-10-batches-py")
    weights = {f"module.{key}": value for key, value in fitted_resnet56().state_dict().items()}
    torch.save({"state_dict": weights, "best_prec1": 93.39}, folder / "resnet56.th")
    for split, count in (("train", 40), ("test", 10)):
        for label, tint in (("daisy", 60), ("tulip", 190)):
            target = folder / "photos" / split / label
            target.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 16), (tint, 128, 255 - tint - i)).save(target / f"{i}.png")
    small_reviews.write(folder / "reviews")
    fake_celeba.write(folder / "celeba", 90, size=(178, 218), names=("Gray_Hair", *fake_celeba.NAMES))
    return folder


def fitted_resnet56() -> nn.Module:
    """A ResNet-56 that knows the patterns at 32 and at 8 pixels, without training: random sections, a fitted head."""
    torch.manual_seed(0)
    net = models.resnet56()
    pixels, labels = class_patterns("cifar10", 0, 40)
    images = torch.from_numpy(pixels).view(-1, 3, 32, 32)
    inputs = [normalise(resize(images, size), IMAGENET_MEAN, IMAGENET_STD) for size in (32, 8)]
    head, net.linear = net.linear, nn.Identity()
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = None  # the mean over both sizes
        for x in inputs:
            net.train()(x)
        features = torch.cat([net.eval()(x) for x in inputs])
        design = torch.cat((features, torch.ones(len(features), 1)), 1)
        targets = 6.0 * nn.functional.one_hot(torch.from_numpy(labels).repeat(2), 10).float()
        fit = torch.linalg.solve(design.T @ design + 0.1 * torch.eye(65), design.T @ targets)
        head.weight.copy_(fit[:-1].T)
        head.bias.copy_(fit[-1])
    net.linear = head
    return net


@pytest.fixture
def page_folder(given: Path, small_cifar: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `given` as the working folder, with all that takes long shortened."""
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    real = load_experiment

    def shortened(recipe: Any, config: Any, overrides: Any, **options: Any) -> Experiment:
        # Of lf.distill, whose dataset and teacher are given.
        of_distill = [setting for setting in SHORT if not setting.startswith(("data.", "teacher."))]
        return real(recipe, config, [*overrides, *of_distill], **options)

    monkeypatch.setattr(distilling, "load_experiment", shortened)
    monkeypatch.setattr(pairing, "FEWEST", 1)
    return tmp_path


# -- running a page --------------------------------------------------------------------------------------------------


class PageRun:
    """Runs the blocks of one page in the working folder and keeps what the last one printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        getattr(self, f"_{block.language}")(block)

    def _python(self, block: Block) -> None:
        # Compiled under the page's name and line, so that a traceback points at the page.
        named = re.match(r"# (\S+\.py)\n", block.text)
        if named:  # a module that later commands import
            Path(named[1]).write_text(block.text, encoding="utf-8")
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec", dont_inherit=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, self.namespace)
        self.printed = out.getvalue()

    def _bash(self, block: Block) -> None:
        self.printed = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                self.monkeypatch.setenv(name, value)
            if words:
                self.printed += command(words)

    def _yaml(self, block: Block) -> None:
        """A whole experiment or study; a comment on its first line may name the file that later commands read."""
        name = re.match(r"# (\S+\.yaml)\b", block.text)
        path = Path(name[1] if name else "block.yaml")
        path.write_text(block.text, encoding="utf-8")
        if "\ngroups:\n" in block.text:
            load_study(str(path))
        else:
            load_experiment(None, path)

    def _text(self, block: Block) -> None:
        """Output and lists of files are compared; what is not marked is a drawing or a formula."""
        kind, _, argument = block.mark.partition(" ")
        if kind == "output":
            hold(block, shown(self.printed))
        elif kind == "results":
            folder = block.page.parent / argument
            generators = trains_generators(folder)
            found = load_results(folder, generators=generators)["results"]
            hold(block, gan_table(found) if generators else plain_table(table(found)))
        elif kind == "study":
            hold(block, studies_at(block.page.parent / "results" / "studies")[argument])
        elif kind == "files":
            for line in block.text.splitlines():
                pattern = re.sub(r"<[^>]+>|NNNNNNNNN", "*", line.split()[0])
                assert list(Path(argument).glob(pattern)), f"no {pattern} in {argument}"
        else:
            assert not CODE_LIKE.search(block.text), "code in a text block is never run: name its language"

    def _bibtex(self, block: Block) -> None:
        assert block.text.count("{") == block.text.count("}")


studies_at = functools.cache(overview)  # planning every study takes seconds


def hold(block: Block, real: str) -> None:
    """The block shows ``real``; with LIT_FAST_RENEW=1 in the environment it is made to."""
    if os.environ.get("LIT_FAST_RENEW") and block.text != real:
        doc_pages.replace(block, real)
    else:
        assert block.text == real


def shown(printed: str) -> str:
    """Output as a page shows it: without spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in printed.strip().splitlines())


def command(words: list[str]) -> str:
    """Run or check one command of a page; what it printed. A command that is not known fails."""
    checks: dict[str, Callable[[list[str]], None]] = {
        "make": check_make,
        "pip": check_pip,
        "python": check_python,
        ".ci/run": check_script,
        "benchmarks/gpu/run.sh": check_script,
        "benchmarks/gpu/prepare.sh": check_script,
        "ruff": check_tool,
        "mypy": check_tool,
    }
    if words[0] == "torchrun":
        return run_torchrun(words[1:])
    if words[0] == "lit-fast":
        return run_lit_fast(words[1:])
    assert words[0] in checks, f"tests/test_docs.py knows no way to check {words[0]!r}"
    checks[words[0]](words)
    return ""


def run_lit_fast(arguments: list[str]) -> str:
    if arguments[0] in ("distill", "train"):
        small = [SMALL_IMAGES] if {"--data-dir", "--config"} & set(arguments) else []
        if any(argument.startswith("vdcnn") for argument in arguments):
            small = [SHORT_TEXTS]
        if "stargan-celeba" in arguments:
            small = list(SMALL_GAN)
        own_data = any(":" in name for option, name in pairwise(arguments) if option == "--dataset")
        short = [setting for setting in (*SHORT, *small) if not (own_data and setting.startswith("data."))]
        arguments = [*arguments, *(word for setting in short for word in ("--set", setting))]
    if arguments[0] == "search":
        arguments = [*arguments, *(word for setting in SHORT_SEARCH for word in ("--set", setting))]
    if arguments[0] == "bench":
        shallow = ["resnet32" if argument == "resnet110" else argument for argument in arguments]
        arguments = [*shallow, *SHORT_BENCH]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"lit-fast {shlex.join(arguments)}: {result.output}"
    return result.stdout


def run_torchrun(arguments: list[str]) -> str:
    """torchrun itself reads its options; what it would start is run in one process (several: test_parallel.py)."""
    options = torchrun.get_args_parser().parse_args(arguments)
    assert options.module
    assert options.training_script == "lit_fast"
    assert int(options.nproc_per_node) > 1
    return run_lit_fast(options.training_script_args)


def check_make(words: list[str]) -> None:
    """Targets of the Makefile; variables it has."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) [?:]?=", makefile, re.MULTILINE)
    for word in words[1:]:
        assert word in targets or word.partition("=")[0] in variables, f"the Makefile has no {word}"


def check_pip(words: list[str]) -> None:
    """An installation of this checkout with extras that there are."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert words[1] == "install"
    for word in words[2:]:
        what = re.fullmatch(r"\.(?:\[([a-z,]+)\])?|-e|--editable", word)
        assert what, word
        for extra in (what[1] or "").split(","):
            assert not extra or re.search(rf"^{extra} = ", extras, re.MULTILINE), f"no extra {extra!r}"


def check_python(words: list[str]) -> None:
    """pytest or build as a module, or a script of ours, on paths that there are."""
    if words[1] == "-m":
        assert words[2] in ("pytest", "build"), words
    for word in words[1:]:
        assert "/" not in word or (ROOT / word).exists(), word


def check_script(words: list[str]) -> None:
    assert os.access(ROOT / words[0], os.X_OK), words[0]


def check_tool(words: list[str]) -> None:
    assert f'"{words[0]}>=' in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), words[0]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# These train for long; what they show is shown by the tests of those parts, too.
LONG_PAGES = {
    *(
        "checkpoints.md",
        "own-model.md",
        "deploying.md",
        "quick-start.md",
        "recipes.md",
        "scale-out.md",
        "stargan.md",
        "step.md",
        "studies.md",
        "text.md",
    )
}


NEEDED = {
    "frameworks.md": ("accelerate", "lightning", "transformers"),
    "deploying.md": ("onnxruntime", "torchao", "transformers"),
}


def pages_to_run() -> list[Any]:
    return [pytest.param(page, marks=exhaustive) if page.name in LONG_PAGES else page for page in PAGES]


@pytest.mark.parametrize("page", pages_to_run(), ids=page_name)
def test_every_block_of_a_page_runs(page: Path, page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "dali.md":
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install '.[dali]'")
    for module in NEEDED.get(page.name, ()):
        pytest.importorskip(module, reason=f"{module} is not installed")
    if page.name in LONG_PAGES:
        monkeypatch.setattr(digits, "IMAGE_SIZE", 8)
        monkeypatch.setattr(digits, "TEST_SIZE", 40)
    run_page(page, PageRun(monkeypatch))


def run_page(page: Path, run: PageRun) -> None:
    """Run all blocks of a page; code that would not be run (other fences, indented blocks) fails."""
    other = re.search(r"^(~~~.*| {4}\s*(?:lit-fast|pip|python|import|make) .*)$", doc_pages.prose(page), re.MULTILINE)
    assert not other, f"{page.name}: {other[0]!r} is not in a fenced block"
    for block in doc_pages.blocks(page):
        assert block.language in LANGUAGES, f"{block}: language {block.language!r}, known: {', '.join(LANGUAGES)}"
        try:
            run.run(block)
        except BaseException:
            print(f"in the block at {block}", file=sys.stderr)
            raise


def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    monkeypatch.setattr(doc_pages, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_in_lists_are_found_and_comments_above_them_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "- so\n\n  <!-- output -->\n  ```text\n  a\n    b\n  ```\n\n```python\nprint()\n```\n"
    found = doc_pages.blocks(page_of(tmp_path, monkeypatch, text))
    assert [(b.language, b.text, b.mark, b.line) for b in found] == [
        ("text", "a\n  b", "output", 5),
        ("python", "print()", "", 10),
    ]


@pytest.mark.parametrize("text", ["```\nx\n```\n", "```sh\nx\n```\n", "~~~python\nx\n~~~\n", "    lit-fast x\n"])
def test_no_block_is_skipped(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        run_page(page_of(tmp_path, monkeypatch, text), PageRun(monkeypatch))


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "pip install .[no]",
        "pip install torch",
        "lit-fast distil",
        "torchrun --standalone --nproc-per-node 2 x.py",
        "curl x",
        "ruff-x .",
    ],
)
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        command(line.split())


# -- what the pages say of the program ---------------------------------------------------------------------------------


def quoted_errors() -> dict[str, Block]:
    marked = (block for page in PAGES for block in doc_pages.blocks(page) if block.mark.startswith("error "))
    return {block.mark.partition(" ")[2]: block for block in marked}


def test_every_documented_error_has_a_cause_and_the_other_way_round() -> None:
    assert set(quoted_errors()) == set(documented_errors.CAUSES)


@pytest.mark.parametrize("name", sorted(documented_errors.CAUSES))
def test_a_documented_error_is_what_the_program_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hold(quoted_errors()[name], documented_errors.message(name))


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, default or ... where it is required); the four phases are one: they have the same keys."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = list(keys(kind, f"{prefix}{name}."))
            default = None if field.is_required() else field.default
            yield from ((key, _at(default, key.removeprefix(f"{prefix}{name}.")) if default else d) for key, d in inner)
        else:
            yield f"{prefix}{name}", ... if field.is_required() else field.default


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = getattr(tree, part)
    return tree


SETTINGS = {"recipes.md": Experiment, "stargan.md": GanExperiment}


def config_keys(model: type[BaseModel]) -> dict[str, Any]:
    found = {re.sub(r"^phases\.\w+\.", "phases.*.", key): default for key, default in keys(model)}
    del found["phases.*.name"]  # set by the program: a phase is named by its key
    return found


def documented_keys(page: str) -> dict[str, str]:
    """Key -> default, of the tables of a page whose first column is headed "key"."""
    rows: dict[str, str] = {}
    inside = False
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == "key":
            inside = True
        elif inside and not cells[0].startswith("---"):
            rows[cells[0].strip("`")] = cells[1].strip("`")
    return rows


@pytest.mark.parametrize("page", SETTINGS)
def test_the_table_of_keys_names_exactly_the_keys_there_are(page: str) -> None:
    assert sorted(documented_keys(page)) == sorted(config_keys(SETTINGS[page]))


@pytest.mark.parametrize("page", SETTINGS)
def test_the_table_of_keys_has_the_right_defaults(page: str) -> None:
    def text(default: Any) -> str:
        if default is ...:
            return "from the recipe"
        if isinstance(default, bool):
            return str(default).lower()
        if isinstance(default, tuple):
            return f"[{', '.join(map(str, default))}]"
        return "none" if default is None else str(default) or "none"

    assert documented_keys(page) == {key: text(default) for key, default in config_keys(SETTINGS[page]).items()}


def recipe_row(name: str) -> str:
    """A recipe as the table of recipes.md shows it."""
    folder = [] if name == "digits" else [{"data": {"dir": "somewhere"}}]
    one = load_experiment(name, overrides=folder)
    loss = one.loss
    pair = " to ".join([one.teacher.label, *(student.label for student in one.student.models)])
    phases = (getattr(one.phases, phase) for phase in ("scratch", "kd", "lit", "finetune"))
    schedules = (
        f"{p.lr:g}; {p.epochs}; {', '.join(f'{m:g}' for m in p.milestones)}{' (x 0.5)' if p.gamma == 0.5 else ''}"
        for p in phases
    )
    return f"| `{name}` | {pair} | {loss.tau:g}, {loss.alpha:g}, {loss.beta:g} | {' | '.join(schedules)} |"


def test_the_table_of_recipes_has_every_recipe_with_its_numbers() -> None:
    lines = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| recipe |"))
    classifiers = [name for name in recipes.names() if recipes.load(name).get("task") != "gan"]
    rows = [line for line in lines[start + 2 : start + 2 + len(recipes.names())] if line.startswith("|")]
    assert rows == [recipe_row(name) for name in classifiers]


def test_the_quick_start_explains_every_column_of_the_table() -> None:
    page = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
    for above, name in HEADERS:
        column = f"{above.removesuffix('-')}{'' if above.endswith('-') else ' '}{name}".strip()
        assert f"| `{column}` |" in page, column


def test_the_commands_of_the_command_line_are_all_documented() -> None:
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    listed = CliRunner().invoke(app, ["--help"]).stdout.split("Commands:")[1]
    for name in re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE):
        assert f"lit-fast {name}" in everything, name


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", doc_pages.prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", doc_pages.prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page_name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{page_name(page)} links to {target}"


def test_the_chart_of_the_readme_shows_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """After new results: python docs/results/chart.py docs/results/cifar10-short docs/results/accuracy.svg"""
    pytest.importorskip("matplotlib")
    results = ROOT / "docs" / "results"
    monkeypatch.syspath_prepend(results)
    bars = runpy.run_path(str(results / "chart.py"))["bars"](results / "cifar10-short")
    drawn = re.findall(r">([\d.]+ %|\d+ epochs)<", (results / "accuracy.svg").read_text(encoding="utf-8"))
    shown = [
        (f"{np.mean(found):.1f} %", f"{epochs} epochs") for ways in bars.values() for epochs, found in ways.values()
    ]
    assert drawn == [text for pair in shown for text in pair]


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{lit_fast.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- examples in docstrings --------------------------------------------------------------------------------------------


def modules_with_examples() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(lit_fast.__path__, "lit_fast.") if not m.name.endswith(("_C", "__"))]
    sources = ((name, importlib.import_module(name)) for name in ["lit_fast", *names])
    return [name for name, module in sources if ">>> " in Path(str(module.__file__)).read_text(encoding="utf-8")]


# Examples that are only shown: what they need is not at hand. The pages run the same calls.
ONLY_SHOWN = ("lit_fast.models.checkpoint.load_checkpoint", "lit_fast.training.distill.distill")


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_run(name: str) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module):
        shown = any(example.options.get(doctest.SKIP) for example in test.examples)
        assert not shown or test.name in ONLY_SHOWN, f"{test.name} skips an example"
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
