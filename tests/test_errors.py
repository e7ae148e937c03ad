"""The exceptions of lit_fast: all in one file, each also what Python calls such an error, and documented."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import re
from pathlib import Path

import pytest

import lit_fast as lf
from lit_fast import errors

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
PUBLIC = [kind for kind in ALL if not issubclass(kind, errors.Signal) and kind is not errors.ClassError]


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(below) for below in type.__subclasses__(kind)))


def test_every_exception_class_of_the_package_is_defined_in_one_file() -> None:
    for module in pkgutil.walk_packages(lf.__path__, "lit_fast."):
        if not module.name.endswith(("._C", ".__main__")):
            importlib.import_module(module.name)
    ours = {kind for kind in subclasses(BaseException) if kind.__module__.split(".")[0] == "lit_fast"}
    assert ours == set(ALL)


def test_each_has_one_base_class_and_what_a_signal_says_is_no_message_for_users() -> None:
    assert all(issubclass(kind, lf.LitFastError) for kind in ALL)
    assert {kind.exit_code for kind in ALL if issubclass(kind, errors.Signal)} == {1}
    assert not any(hasattr(lf, kind.__name__) for kind in ALL if kind not in PUBLIC)


def test_what_a_library_call_raises_is_at_the_top_level() -> None:
    at_top = {name for name in lf.__all__ if name in vars(errors)}
    only_commands = {"ExportError", "FirstFailed", "MetricsError", "ReportError", "StudyFailed"}
    assert at_top == {kind.__name__ for kind in PUBLIC} - only_commands
    assert all(getattr(lf, name) is getattr(errors, name) for name in at_top)
    assert lf.data.DataError is lf.DataError
    assert lf.models.CheckpointError is lf.CheckpointError


def documented() -> dict[str, tuple[str, str]]:
    """What the page's table says of each class: what it is also, and the exit code."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (also.strip("`"), code) for name, also, code in rows}


def test_the_page_lists_every_class_with_its_exit_code() -> None:
    assert {name: code for name, (_, code) in documented().items()} == {k.__name__: str(k.exit_code) for k in PUBLIC}


@pytest.mark.parametrize("kind", [kind for kind in PUBLIC if kind is not errors.LitFastError])
def test_each_is_also_what_python_calls_such_an_error(kind: type[Exception]) -> None:
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    assert builtin in (ValueError, RuntimeError, OSError)
    assert documented()[kind.__name__][0] == builtin.__name__


@pytest.mark.parametrize("kind", PUBLIC)
def test_each_survives_the_way_to_another_process(kind: type[Exception]) -> None:
    error = kind(["one", "two"]) if kind is errors.PairError else kind("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))
