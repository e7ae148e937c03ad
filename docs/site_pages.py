"""A hook of MkDocs: pages of the site that are made of what lies outside docs/, and the reference of the public names.

The pages in docs/ link to files outside the folder, as they lie in the repository: README.md, the examples, results.
Each of these files becomes a page of the site, or a file beside the pages, and links to it lead there.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
NAMES = {"README.md": "about.md"}  # the site has an index already
SOURCES: dict[str, str] = {}  # of each page, by its path in the site, its path in the repository


def on_config(config: Any) -> Any:
    """Pages that the navigation does not name are added to it."""
    named = str(config.nav)
    others = sorted(path.name for path in (ROOT / "docs").glob("*.md") if f"'{path.name}'" not in named)
    if others:
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: Any) -> Files:
    SOURCES.update({file.src_uri: f"docs/{file.src_uri}" for file in files})
    for path in sorted(outside()):
        if path.endswith((".json", ".png")):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, page_of(path), content=text_of(path)))
            SOURCES[page_of(path)] = path
    files.append(File.generated(config, "api.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of docs/ lead to the page of that file."""
    here = page.file.src_uri
    return LINK.sub(lambda link: relinked(link[1], SOURCES[here], here), markdown) if here in SOURCES else markdown


def reference() -> str:
    """The public names, in the order in which the package lists them."""
    tree = ast.parse((ROOT / "lit_fast" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = (ast.literal_eval(node.value) for node in tree.body if _assigns(node, "__all__"))
    return "# Reference\n\n" + "\n".join(f"::: lit_fast.{name}\n" for name in names)


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name


class ExampleSections(griffe.Extension):
    """Our docstrings say "Example:"; griffe's parser knows only "Examples:" as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


# -- files outside docs/, by their paths in the repository ------------------------------------------------------------


def outside() -> set[str]:
    """What pages link to beside docs/, and what those files link to in turn."""
    found: set[str] = set()
    new = set(SOURCES.values())
    while new:
        targets = {target_of(link, source) for source in new if source.endswith(".md") for link in links(source)}
        new = {path for path in targets if not path.startswith("docs/") and (ROOT / path).is_file()} - found
        found |= new
    return found


def links(source: str) -> list[str]:
    return LINK.findall((ROOT / source).read_text(encoding="utf-8"))


def target_of(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def page_of(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/") or path.endswith((".json", ".png")):
        return path.removeprefix("docs/")
    return NAMES.get(path, path if path.endswith(".md") else f"{path}.md")


def text_of(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    language = "python" if path.endswith(".py") else "text"
    return text if path.endswith(".md") else f"# {path}\n\n````{language}\n{text}````\n"


def relinked(link: str, source: str, page: str) -> str:
    target = target_of(link, source)
    if not (ROOT / target).is_file() or (source.startswith("docs/") and target.startswith("docs/")):
        return link
    return posixpath.relpath(page_of(target), posixpath.dirname(page) or ".")
