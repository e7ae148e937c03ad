"""Results become a table, report.md and report.png."""

from __future__ import annotations

import builtins
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lit_fast.errors import ReportError
from lit_fast.figure import panels
from lit_fast.report import plots
from lit_fast.report.run import load_results, table, write_report
from lit_fast.report.section_plots import draw_sections
from lit_fast.runs.results import Spread, behind_labels, grouped, legend, plain_table

SIZES = {"resnet20": (20, 269_722, 40.6), "resnet32": (32, 464_154, 68.9), "resnet56": (56, 853_018, 125.5)}


def history(phases: dict[str, int], *, ir: int, level: float) -> list[dict[str, Any]]:
    """Smooth curves of a run: ``phases`` maps a name to its epochs; the phase "lit" has ``ir`` IR losses."""
    out: list[dict[str, Any]] = []
    epoch = 0
    for phase, epochs in phases.items():
        for _ in range(epochs):
            epoch += 1
            fall = math.exp(-epoch / 6)
            out.append(
                {
                    "epoch": epoch,
                    "phase": phase,
                    "lr": 0.1,
                    "loss": (1.0 if phase != "lit" else 0.6) * fall + 0.02,
                    "ce": fall,
                    "kl": fall,
                    "ir": [0.3 * fall / (i + 1) for i in range(ir)] if phase == "lit" else [],
                    "val_accuracy": level * (1 - 0.8 * fall),
                    "val_loss": fall,
                    "seconds": 3.0 * epoch,
                    "images": 1000 * epoch,
                }
            )
    return out


def result(variant: str, seed: int, model: str = "resnet20", *, test: float, level: float = 90.0) -> dict[str, Any]:
    layers, parameters, mmacs = SIZES[model]
    has_ir = variant not in ("scratch", "kd")
    phases = {"lit": 14, "finetune": 6} if has_ir else {variant: 20}
    curves = history(phases, ir={"lit": 3, "multi_ir": 3}.get(variant, 1), level=level + seed)
    name = f"{model}-{variant}-seed{seed}"
    return {
        "name": name,
        "role": "student",
        "model": model,
        "variant": variant,
        "seed": seed,
        "teacher": "teacher-resnet56",
        "layers": layers,
        "parameters": parameters,
        "mmacs": mmacs,
        "compression": SIZES["resnet56"][1] / parameters,
        "accuracy": {
            "val_last": test + 1,
            "val_best": test + 2,
            "best_epoch": 18,
            "test_last": test,
            "test_best": test + 0.25,
        },
        "epochs": 20,
        "seconds": 60.0 + seed,
        "images_per_second": 333.3,
        "history": curves,
        "files": {"last": f"runs/{name}/last.safetensors", "best": f"runs/{name}/best.safetensors"},
    }


def teacher(*, trained: bool = True) -> dict[str, Any]:
    entry = result("scratch", 0, "resnet56", test=97.0) | {
        "name": "teacher-resnet56",
        "role": "teacher",
        "teacher": None,
    }
    if not trained:
        entry |= {"variant": "checkpoint", "seed": None, "epochs": 0, "seconds": 0.0, "images_per_second": None}
        entry |= {"history": [], "files": {}}
    return entry


def content(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "experiment": {"recipe": "digits", "data": {"name": "digits"}, "loss": {"beta": 0.75}},
        "environment": {"torch": "2.6.0", "processor": "A | B", "threads": 2},
        "results": results,
    }


def run_folder(path: Path, results: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "results.json").write_text(json.dumps(content(results)))
    return path


BASIC = [teacher(), *(result(v, 0, test=t) for v, t in (("scratch", 91.0), ("kd", 92.0), ("lit", 93.0)))]
SEEDS = [teacher(trained=False), *(result(v, s, test=90 + s) for v in ("kd", "lit") for s in (0, 1, 2))]


# -- table ----------------------------------------------------------------------------------------------------


def test_one_row_for_each_network_and_way_of_training_teacher_first() -> None:
    rows = table([*BASIC[1:], BASIC[0]])
    assert [(row.network, row.training) for row in rows] == [
        ("resnet56", "scratch"),
        ("resnet20", "scratch"),
        ("resnet20", "kd"),
        ("resnet20", "lit"),
    ]
    assert rows[0].role == "teacher"
    assert rows[3].cells() == (*("resnet20", "lit", "20", "0.270M", "40.6", "3.16x", "93.00", "93.25", "60", "333"),)


def test_seeds_are_averaged_with_the_sample_deviation() -> None:
    rows = table(SEEDS)
    assert [row.seeds for row in rows] == [1, 3, 3]
    assert rows[1].last == Spread(91.0, 1.0)
    assert str(rows[1].last) == "91.00±1.00"
    assert rows[1].seconds == Spread(61.0, 1.0)
    assert "3 seeds" in legend(rows)
    assert "seeds" not in legend(table(BASIC))


def test_a_teacher_from_a_checkpoint_has_no_speed() -> None:
    cells = table(SEEDS)[0].cells()
    assert cells[1] == "checkpoint"
    assert cells[-1] == "-"


def test_students_of_different_networks_are_kept_apart() -> None:
    rows = table([result("lit", 0, "resnet20", test=90), result("lit", 0, "resnet32", test=91)])
    assert [row.network for row in rows] == ["resnet20", "resnet32"]


def test_the_plain_table_is_aligned_and_fits_100_columns_with_deviations() -> None:
    lines = plain_table(table(SEEDS)).splitlines()
    assert max(map(len, lines)) <= 100
    assert len({line.index("0.270M") for line in lines if "0.270M" in line}) == 1
    assert [line.split()[0] for line in lines[3:]] == ["resnet56", "resnet20", "resnet20"]


def test_spread_of_nothing_is_nothing() -> None:
    assert Spread.of([None, None]) is None
    assert Spread.of([None, 2.0]) == Spread(2.0, None)


# -- files ----------------------------------------------------------------------------------------------------


def test_the_report_holds_table_runs_environment_and_config(tmp_path: Path) -> None:
    paths = write_report(run_folder(tmp_path / "run", SEEDS))
    text = paths.markdown.read_text()
    assert text.startswith("# lit_fast: digits on digits\n")
    assert "| resnet20 | lit | 3 | 20 | 269,722 | 40.6 | 3.16x | 91.00±1.00 | 91.25±1.00 | 61 | 333 |" in text
    assert "[last](runs/resnet20-lit-seed2/last.safetensors)" in text
    assert "93.00 (18)" in text  # best on validation, its epoch
    assert "| processor | A \\| B |" in text
    assert "```yaml\nrecipe: digits\n" in text
    assert "![" in text
    assert "(report.png)" in text


def test_every_markdown_table_is_rectangular(tmp_path: Path) -> None:
    text = write_report(run_folder(tmp_path / "run", BASIC)).markdown.read_text()
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        cells = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


@pytest.mark.usefixtures("drawn")
def test_the_figure_is_a_png_of_a_readable_size(tmp_path: Path) -> None:
    from matplotlib import image

    figure = write_report(run_folder(tmp_path / "run", BASIC)).figure
    assert figure is not None
    height, width, _ = image.imread(figure).shape
    assert width >= 1200
    assert height >= 800


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "results",
    [
        [teacher(trained=False)],
        [teacher()],
        [result(v, 0, m, test=90) for m in ("resnet20", "resnet32") for v in ("hint", "one_ir_teacher_input", "lit")],
        [result("lit", 0, test=90) | {"history": []}],
        [result("scratch", s, test=90) | {"history": history({"scratch": 1}, ir=0, level=50)} for s in (0, 1)],
        [result("lit", 0, test=90) | {"history": [
            entry | {"loss": math.nan} for entry in history({"lit": 3}, ir=3, level=50)]}],
    ],
    ids=["given teacher", "only a teacher", "two networks", "no history", "one epoch, two seeds", "NaN"],
)  # fmt: skip
def test_any_set_of_results_can_be_drawn_without_a_warning(
    results: list[dict[str, Any]], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    plots.draw(content(results), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert not [str(w.message) for w in recwarn]


def sizes(*results: dict[str, Any]) -> Any:
    """The panel of accuracy against size."""
    figure, ((ax,),) = panels(1, 1, (6.0, 4.5))
    plots._sizes(ax, grouped(results))
    figure.draw_without_rendering()
    return ax


def test_equal_sizes_lie_together_in_the_figure() -> None:
    ax = sizes(teacher() | {"parameters": 269_722}, *(result(way, 0, test=90) for way in ("scratch", "kd", "lit")))
    places = [line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 1]
    left, right = ax.get_xlim()
    assert math.log(max(places) / min(places)) < 0.1 * math.log(right / left)


def test_networks_of_one_name_have_a_tick_for_each_size() -> None:
    own = {"model": "net", "parameters": 900}, {"model": "net", "parameters": 2100}
    ax = sizes(result("lit", 0, test=90) | own[0], teacher() | own[1])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["net\n900", "net\n2,100"]


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    rows = table(SEEDS)
    narrow = plain_table(rows, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "91.00±1.00" in narrow
    assert plain_table(rows, 200) == plain_table(rows)


def test_without_matplotlib_the_report_is_written_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    paths = write_report(run_folder(tmp_path / "run", BASIC))
    assert paths.figure is None
    assert paths.note is not None
    assert "matplotlib" in paths.note
    assert paths.note in paths.markdown.read_text()
    assert not (tmp_path / "run" / "report.png").exists()


@pytest.mark.usefixtures("drawn")
def test_rendering_again_gives_the_same_files(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", BASIC)
    first = write_report(folder)
    before = (first.markdown.read_bytes(), first.figure and first.figure.read_bytes())
    again = write_report(folder)
    assert (again.markdown.read_bytes(), again.figure and again.figure.read_bytes()) == before
    assert sorted(p.name for p in folder.iterdir()) == ["report.md", "report.png", "results.json"]


# -- sections ----------------------------------------------------------------------------------------------------


def looked_at(entry: dict[str, Any], *, sections: int = 3) -> dict[str, Any]:
    """An epoch at whose end the sections were looked at: errors n and n + 1/2, gaps of 1/2 behind the first."""
    fed = [float(n) for n in range(1, sections + 1)]
    in_lit = entry["phase"] == "lit"
    return entry | {
        "sections": {
            "teacher_fed": fed,
            "composed": [fed[0], *(error + 0.5 for error in fed[1:])],
            "cosines": [0.25, None, -0.5][:sections] if in_lit else [None] * sections,
            "cosine": 0.125 if in_lit else None,
        }
    }


def with_looks(variant: str, seed: int, *, sections: int = 3) -> dict[str, Any]:
    run = result(variant, seed, test=90.0)
    return run | {"history": [looked_at(entry, sections=sections) for entry in run["history"]]}


@pytest.mark.usefixtures("drawn")
def test_sections_get_a_table_and_a_figure(tmp_path: Path) -> None:
    text = write_report(run_folder(tmp_path / "run", [with_looks("lit", 0), with_looks("lit", 1)])).markdown.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| resnet20 | lit | ") and line.count("|") == 9]
    assert rows == [
        "| resnet20 | lit | lit | 1 | 1 | 1 | 0 | +0.25 |",
        "| resnet20 | lit | lit | 2 | 2 | 2.5 | 0.5 | - |",
        "| resnet20 | lit | lit | 3 | 3 | 3.5 | 0.5 | -0.50 |",
        "| resnet20 | lit | finetune | 1 | 1 | 1 | 0 | - |",
        "| resnet20 | lit | finetune | 2 | 2 | 2.5 | 0.5 | - |",
        "| resnet20 | lit | finetune | 3 | 3 | 3.5 | 0.5 | - |",
    ]
    assert "(sections.png)" in text
    assert (tmp_path / "run" / "sections.png").stat().st_size > 10_000


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("sections", [1, 2])
def test_few_sections_and_several_ways_can_be_drawn_without_a_warning(
    sections: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    runs = [with_looks(variant, 0, sections=sections) for variant in ("kd", "lit", "hint")]
    draw_sections([result("scratch", 0, test=90.0), *runs], tmp_path / "sections.png")
    assert (tmp_path / "sections.png").stat().st_size > 10_000
    assert not [str(w.message) for w in recwarn]


def test_without_looks_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run has section diagnostics"):
        draw_sections([result("lit", 0, test=90.0)], tmp_path / "sections.png")


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not exist"),
        ("{", "not JSON"),
        ("[]", "expected a mapping"),
        ('{"results": []}', "no result yet"),
        ('{"results": [{"name": "x"}]}', r"results\.1 lacks .*role, model"),
    ],
)
def test_a_folder_without_readable_results_is_refused_by_name(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(ReportError, match=says) as caught:
        load_results(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_it_is_said_where_labels_alone_end_ahead(tmp_path: Path) -> None:
    ahead = [result("scratch", seed, test=80.0 + seed) for seed in (0, 1)]
    runs = [*ahead, result("lit", 0, test=79.0), result("lit", 1, test=81.0), result("kd", 0, test=80.5)]
    (sentence,) = behind_labels(runs)  # validation has two points more
    assert sentence.startswith("resnet20: labels alone end ahead on validation, 82.50 % against lit 82.00 %; ")
    assert behind_labels([*ahead, result("lit", 0, test=80.1), result("lit", 0, "resnet32", test=10.0)]) == []
    pruned = {**result("lit", 0, test=10.0), "sparsity": 0.5}
    assert behind_labels([*ahead, pruned, {**result("scratch", 0, test=10.0), "role": "teacher"}]) == []
    (tmp_path / "results.json").write_text(json.dumps({"results": runs, "experiment": {}, "environment": {}}))
    assert sentence in write_report(tmp_path).markdown.read_text()
