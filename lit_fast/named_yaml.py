"""YAML files that come with the package and are known by their names."""

from __future__ import annotations

import copy
from importlib.resources import files
from typing import Any

from lit_fast.errors import choose_from

__all__ = ["NamedYaml"]


class NamedYaml:
    """The ``.yaml`` files of a package.

    Args:
        package: its name.
        kind: what a file is called in messages.
    """

    def __init__(self, package: str, kind: str) -> None:
        self._package, self._kind = package, kind
        self._trees: dict[str, dict[str, Any]] = {}

    def names(self) -> list[str]:
        """Names of the files, without their ending."""
        found = (entry.name for entry in files(self._package).iterdir())
        return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))

    def text(self, name: str) -> str:
        """The YAML text of file ``name``.

        Raises:
            KeyError: no such file; the message lists those there are.
        """
        if name not in self.names():
            raise KeyError(f"unknown {self._kind} {name!r}{choose_from(name, self.names())}")
        return (files(self._package) / f"{name}.yaml").read_text(encoding="utf-8")

    def load(self, name: str) -> dict[str, Any]:
        """File ``name`` as nested plain dictionaries; see `text` for what is raised."""
        import yaml

        if name not in self._trees:  # a study's plan asks for the same recipes hundreds of times
            self._trees[name] = yaml.safe_load(self.text(name))
        return copy.deepcopy(self._trees[name])
