"""What all figures share: colours that anybody tells apart, panels, and writing them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from lit_fast import figure

pytestmark = pytest.mark.usefixtures("drawn")

# Simulated dichromats' view of linear RGB (Machado et al. 2009, severity 1).
VIEWS = {
    "all cones": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("colors", [figure.SERIES, tuple(figure.WAY_COLORS.values())], ids=["series", "ways"])
def test_colors_differ_for_every_colour_vision(colors: tuple[str, ...], view: str) -> None:
    rgb = torch.tensor([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ torch.tensor(VIEWS[view]).T).clamp(0.0, 1.0) ** (1 / 2.2)
    for (a, x), (b, y) in combinations(zip(colors, seen), 2):
        assert (x - y).norm() > 0.11, (a, b)


def test_a_long_legend_lies_below_its_panel(tmp_path: Path) -> None:
    drawing, axes = figure.panels(1, 2, (8.0, 3.0))
    for ax, entries in zip(axes[0], (4, 5)):
        for i in range(2 * entries):
            ax.plot([0, 1], [i, i], label=f"way {i % entries}")
        figure.legend(ax)
        assert len(ax.get_legend().get_texts()) == entries
    figure.save(drawing, tmp_path / "two.png")
    inside = [ax.get_legend().get_window_extent().y1 > ax.bbox.y0 for ax in axes[0]]
    assert inside == [True, False]


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_ending_is_the_format(name: str, start: bytes, tmp_path: Path) -> None:
    drawing, _ = figure.panels(1, 1, (2.0, 2.0))
    figure.save(drawing, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]
