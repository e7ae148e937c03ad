"""The recipes of the paper (appendix A) and the demo's, each one YAML file in this folder."""

from __future__ import annotations

from lit_fast.named_yaml import NamedYaml

__all__ = ["load", "names", "text"]

_FILES = NamedYaml(__name__, "recipe")
names, text, load = _FILES.names, _FILES.text, _FILES.load
