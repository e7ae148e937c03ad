"""YAML files that come with the package and are known by their names."""

from __future__ import annotations

import copy
from importlib.resources import files
from typing import Any

from lit_fast.errors import choose_from

__all__ = ["NamedYaml", "parse_yaml"]

_MOST_BYTES = 256 << 10
_MOST_NODES = 100_000  # a value that aliases repeat counts each time: what is made of them goes through all
_DEEPEST = 40


def parse_yaml(text: str) -> Any:
    """What a YAML file of a user's says, in lists, mappings and plain values.

    Raises:
        ValueError: it is not YAML, gives a key twice, or is larger than settings are: also by what its aliases repeat.
    """
    import yaml

    if len(text) > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES >> 10} KiB of settings, got {len(text):,} characters")
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # at once: each level takes the scanner longer than the one before
                raise ValueError(f"lists and mappings are more than {_DEEPEST} deep")
        _size(yaml.compose(text, yaml.SafeLoader), {}, 0)
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"lists and mappings are more than {_DEEPEST} deep") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _size(node: Any, known: dict[int, int], depth: int) -> int:
    """How many nodes a YAML node has once its aliases are written out."""
    if node is None or isinstance(node.value, str):
        return 1
    if depth > _DEEPEST:
        raise ValueError(f"lists and mappings are more than {_DEEPEST} deep")
    if id(node) not in known:
        keys: list[str] = []
        size = 1
        for part in node.value:
            if isinstance(part, tuple):
                keys.append(str(part[0].value))
            size += sum(_size(inner, known, depth + 1) for inner in (part if isinstance(part, tuple) else (part,)))
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise ValueError(f"the key {twice[0]!r} is given twice{_line(node)}")
        if size > _MOST_NODES:
            raise ValueError(f"with its aliases written out it has more than {_MOST_NODES:,} values")
        known[id(node)] = size
    return known[id(node)]


def _line(node: Any) -> str:
    return f", in the mapping at line {node.start_mark.line + 1}"


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
