"""The house of lit_fast: floors and circles by the table in CONTRIBUTING.md, lengths of files, sizes of folders."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_fast"
MAX_LINES = 420
MAX_FILES = 14

# What is not yet as it should be. These lists only shrink: what has been mended must be taken out of them.
WRONG_IMPORTS: list[tuple[str, str]] = []
LONG_FILES: dict[str, int] = {}
FULL_FOLDERS: dict[str, int] = {}

Imports = dict[str, set[str]]
Floors = list[tuple[str, ...]]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_table(text: str) -> Floors:
    """The files and folders of each floor, from the highest down, of the first table with a column "floor"."""
    rows = text.partition("| floor |")[2].partition("\n\n")[0].splitlines()[2:]
    return [tuple(re.findall(r"`([^`]+)`", row.split("|")[2])) for row in rows]


def read_imports(package: Path) -> Imports:
    """What of the package each of its files imports, as paths; imports for types and in functions as well."""
    paths = [path.relative_to(package) for path in sorted(package.rglob("*.py"))]
    modules = {_module(package.name, path): path.as_posix() for path in paths}
    return {
        path: {modules[name] for name in _imported(package / path, module, modules)} - {path}
        for module, path in modules.items()
    }


def _module(package: str, path: Path) -> str:
    parts = [package, *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path, module: str, modules: Collection[str]) -> Iterator[str]:
    face = "." not in module  # its strings are what loads a name when it is first used
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports of lit_fast have its name: {ast.unparse(node)}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.append(name if name in modules else str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and not face:
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        yield from (name for name in names if name in modules)


# -- judging -----------------------------------------------------------------------------------------------------------


def faults(imports: Imports, floors: Floors, excepted: Collection[tuple[str, str]] = ()) -> list[str]:
    """What is wrong with files and imports, the excepted imports left out."""
    kept = {path: {other for other in others if (path, other) not in excepted} for path, others in imports.items()}
    levels = {path: _level(path, floors) for path in kept}
    homeless = [f"{path} is on no floor" for path, level in levels.items() if level is None]
    return [*_table_faults(imports, floors), *homeless, *_arrows_up(kept, levels), *_circles(kept)]


def _level(path: str, floors: Floors) -> int | None:
    """The floor of a file, counted from the top: that of its own entry, else of the nearest folder above it."""
    for place in (path, *(f"{folder}/" for folder in Path(path).parents)):
        for level, entries in enumerate(floors):
            if str(place) in entries:
                return level
    return None


def _table_faults(imports: Imports, floors: Floors) -> Iterator[str]:
    entries = [entry for floor in floors for entry in floor]
    for entry in sorted(set(entries)):
        if entries.count(entry) > 1:
            yield f"{entry} is on {entries.count(entry)} floors"
        if not any(path == entry or (entry.endswith("/") and path.startswith(entry)) for path in imports):
            yield f"the table has {entry}, which is not there"


def _arrows_up(imports: Imports, levels: dict[str, int | None]) -> Iterator[str]:
    for path, others in imports.items():
        for other in sorted(others):
            mine, its = levels[path], levels[other]
            if mine is not None and its is not None and its < mine:
                yield f"{path} imports {other}, from a floor above its own"


def _circles(imports: Imports) -> Iterator[str]:
    """In each folder, its files and subfolders, a subfolder as one: every circle of files is one of these."""
    folders = {f"{folder}/" for path in imports for folder in Path(path).parents if folder != Path()}
    for folder in ["", *sorted(folders)]:
        graph: Imports = {}
        for path, others in imports.items():
            if path.startswith(folder):
                child = _child(path, folder)
                graph.setdefault(child, set()).update(_child(o, folder) for o in others if o.startswith(folder))
                graph[child].discard(child)
        try:
            TopologicalSorter({child: sorted(others) for child, others in sorted(graph.items())}).prepare()
        except CycleError as error:
            yield f"a circle: {' -> '.join(folder + child for child in reversed(error.args[1]))}"


def _child(path: str, folder: str) -> str:
    first, deeper, _ = path.removeprefix(folder).partition("/")
    return first + deeper


def too_large(sizes: dict[str, int], limit: int, excepted: dict[str, int]) -> list[str]:
    """What is over the limit, or over what it was excepted for; and exceptions that are none any more."""
    limits = {name: excepted.get(name, limit) for name in sizes}
    over = [f"{name}: {size}, expected {limits[name]} at most" for name, size in sizes.items() if size > limits[name]]
    return [*over, *(f"{name}: no exception any more" for name in excepted if sizes.get(name, 0) <= limit)]


def lines(package: Path) -> dict[str, int]:
    return {path.relative_to(package).as_posix(): len(path.read_bytes().splitlines()) for path in package.rglob("*.py")}


def files(package: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in lines(package):
        folder = path[: path.rfind("/") + 1]
        counts[folder] = counts.get(folder, 0) + 1
    return counts


# -- the package -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imports() -> Imports:
    return read_imports(PACKAGE)


@pytest.fixture(scope="module")
def floors() -> Floors:
    return read_table((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_every_file_is_on_its_floor_and_no_import_goes_up_or_in_a_circle(imports: Imports, floors: Floors) -> None:
    assert faults(imports, floors, WRONG_IMPORTS) == []


@pytest.mark.parametrize("wrong", WRONG_IMPORTS, ids=" imports ".join)
def test_a_mended_import_is_no_exception_any_more(wrong: tuple[str, str], imports: Imports, floors: Floors) -> None:
    path, other = wrong
    assert other in imports.get(path, ())
    assert faults(imports, floors, [known for known in WRONG_IMPORTS if known != wrong]) != []


def test_no_file_is_long() -> None:
    assert too_large(lines(PACKAGE), MAX_LINES, LONG_FILES) == []


def test_no_folder_is_full() -> None:
    assert too_large(files(PACKAGE), MAX_FILES, FULL_FOLDERS) == []


# -- that faults are found ---------------------------------------------------------------------------------------------

TABLE = """
| floor | files and folders | what is there |
|---|---|---|
| top | `__init__.py` `run.py` | runs |
| middle | `data/` | data; not `here.py` |
| ground | `errors.py` `data/tables.py` | what all use |

| floor | another table |
"""
HOUSE = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.run import run\n",
    "run.py": "import house.errors\nfrom house.data import base\n",
    "data/__init__.py": "",
    "data/base.py": "import torch\nfrom house.data.tables import row\nfrom house.errors import Wrong\n",
    "data/tables.py": "from house import errors\n",
    "data/formats/__init__.py": "",
    "data/formats/cifar.py": "from house.data.base import Data\n",
    "errors.py": "",
}


def found(folder: Path, table: str = TABLE, excepted: Collection[tuple[str, str]] = (), **planted: str) -> list[str]:
    """The faults of a house with these lines added; a path has __ for /."""
    package = folder / "house"
    content = dict(HOUSE)
    for name, text in planted.items():
        path = name.replace("__", "/") + ".py"
        content[path] = content.get(path, "") + text + "\n"
    for path, text in content.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    return faults(read_imports(package), read_table(table), excepted)


def test_the_example_is_sound_and_read_as_it_is(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    assert read_table(TABLE) == [("__init__.py", "run.py"), ("data/",), ("errors.py", "data/tables.py")]
    assert read_imports(tmp_path / "house") == {
        "__init__.py": {"run.py"},
        "run.py": {"errors.py", "data/base.py"},
        "data/__init__.py": set(),
        "data/base.py": {"data/tables.py", "errors.py"},
        "data/tables.py": {"errors.py"},
        "data/formats/__init__.py": set(),
        "data/formats/cifar.py": {"data/base.py"},
        "errors.py": set(),
    }


@pytest.mark.parametrize(
    "line",
    [
        "from house.run import run",
        "from house import run",
        "import house.run as r",
        "def f():\n    from house.run import run",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.run import run",
        "from importlib import import_module\nimport_module('house.run')",
        "import importlib\nimportlib.import_module('house.run')",
    ],
)
def test_an_arrow_up_is_found_however_it_is_written(line: str, tmp_path: Path) -> None:
    arrow, circle = found(tmp_path, errors=line)
    assert arrow == "errors.py imports run.py, from a floor above its own"
    assert circle.startswith("a circle: ")
    assert "errors.py -> run.py" in circle
    assert found(tmp_path, excepted=[("errors.py", "run.py")], errors=line) == []


def test_the_lazy_names_of_the_package_itself_are_no_imports(tmp_path: Path) -> None:
    line = "from importlib import import_module\ndef __getattr__(name):\n    return import_module('house.run')"
    assert found(tmp_path, __init__=line) == []


def test_a_file_has_its_own_floor_before_that_of_its_folder(tmp_path: Path) -> None:
    assert found(tmp_path, data__tables="from house.data import formats") == [
        "data/tables.py imports data/formats/__init__.py, from a floor above its own",
        "a circle: data/base.py -> data/tables.py -> data/formats/ -> data/base.py",
    ]


def test_a_circle_of_files_is_found(tmp_path: Path) -> None:
    planted = {"data__one": "from house.data import two", "data__two": "def f():\n    import house.data.one"}
    assert found(tmp_path, **planted) == ["a circle: data/one.py -> data/two.py -> data/one.py"]


def test_a_circle_of_folders_without_one_of_files_is_found(tmp_path: Path) -> None:
    planted = {"data__formats__other": "", "data__base": "from house.data.formats import other"}
    assert found(tmp_path, **planted) == ["a circle: data/base.py -> data/formats/ -> data/base.py"]


def test_a_file_on_no_floor_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, new="") == ["new.py is on no floor"]


def test_a_row_of_what_is_not_there_or_on_two_floors_is_found(tmp_path: Path) -> None:
    table = TABLE.replace("`data/`", "`data/` `gone.py` `old/` `run.py`")
    assert found(tmp_path, table) == [
        "the table has gone.py, which is not there",
        "the table has old/, which is not there",
        "run.py is on 2 floors",
    ]


def test_what_is_too_large_is_found_and_what_is_not_any_more() -> None:
    sizes = {"short.py": 3, "grown.py": 9, "known.py": 8, "mended.py": 5}
    assert too_large(sizes, 5, {"known.py": 8, "mended.py": 7, "gone.py": 7}) == [
        "grown.py: 9, expected 5 at most",
        "mended.py: no exception any more",
        "gone.py: no exception any more",
    ]
    assert too_large(sizes | {"known.py": 9}, 5, {"known.py": 8, "grown.py": 9}) == ["known.py: 9, expected 8 at most"]


def test_files_are_counted_by_folder_and_lines_by_file(tmp_path: Path) -> None:
    found(tmp_path)
    assert files(tmp_path / "house") == {"": 3, "data/": 3, "data/formats/": 2}
    assert lines(tmp_path / "house")["data/base.py"] == 3
