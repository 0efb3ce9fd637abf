"""Plots: the bars are the counters, and a picture fits any page and leaves no trace."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib import style as styles
from matplotlib.colors import to_hex
from matplotlib.image import imread

from hf_specplug import DraftTree, Stats
from hf_specplug.errors import PlotError, SpecPlugError
from hf_specplug.telemetry import plots

PANELS = ("lengths", "depths", "widths", "phases", "drafters", "calibration")


def counted() -> dict[str, Any]:
    """Ten forward passes: five without a draft, four that accept two of three, one that fails."""
    stats = Stats(calls=2)
    tree = DraftTree(
        np.array([5, 6, 7], np.int32),
        np.array([-1, 0, -1], np.int32),
        np.array([0.8, 0.6, 0.2], np.float32),
        np.array([1, 3, 2], np.uint16),
    )
    none = tree.select(np.array([], np.intp))
    for _ in range(5):
        stats.observe(none, [0], ["context", "mine", "idle"])
    for visited in [[0, 1, 2]] * 4 + [[0]]:
        stats.observe(tree, visited, ["context", "mine", "idle"])
    seconds = (0.5, 0.01, 0.08, 0.02, 0.03)
    stats.seconds = dict(zip(stats.seconds, seconds, strict=True))
    return stats.to_dict()


def drawn(panel: str, stats: dict[str, Any]) -> Any:
    """The axes of one panel."""
    with plots.style():
        figure, (axes,) = plots.subplots(1, 1, (4, 3))
        getattr(plots, panel)(axes, stats)
        figure.draw_without_rendering()
    return axes


def bars(axes: Any) -> dict[float, float]:
    return {
        round(bar.get_x() + bar.get_width() / 2, 6): round(float(bar.get_height()), 6)
        for bar in axes.patches
    }


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_bars_are_shares_of_forward_passes() -> None:
    stats = counted()
    assert bars(drawn("lengths", stats)) == {1: 60, 3: 40}
    assert bars(drawn("depths", stats)) == {1: 40, 2: 40}
    assert bars(drawn("widths", stats)) == {1: 50, 4: 50}
    axes = drawn("lengths", stats)
    assert axes.get_ylabel() == "forward passes (%)"
    assert texts(axes) == ["mean 1.80"]
    assert axes.lines[0].get_xdata()[0] == 1.8


def test_times_by_phase() -> None:
    axes = drawn("phases", counted())
    assert bars(axes) == {0: 1, 1: 8, 2: 2, 3: 3}
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "draft",
        "verify",
        "accept",
        "observe",
    ]
    assert axes.get_ylabel() == "ms per forward pass"
    assert axes.get_xlabel() == "prefill apart: 250.0 ms a call"
    axes = drawn("phases", counted() | {"prepared": 3, "preparing": 1.25})
    assert "1.2 s of capturing" in axes.get_xlabel()


def test_drafters_that_drafted() -> None:
    axes = drawn("drafters", counted())
    assert [round(bar.get_width()) for bar in axes.patches] == [10, 10, 8, 4]
    assert texts(axes) == ["8 of 10: 80%", "4 of 10: 40%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["context", "mine"]
    assert to_hex(axes.patches[2].get_facecolor()) == plots.colour("context", ["context"])
    assert "counts for both" in axes.get_xlabel()


def test_calibration_by_bin() -> None:
    axes = drawn("calibration", counted())
    dots = axes.collections[0]
    np.testing.assert_allclose(dots.get_offsets(), [[0.2, 0], [0.6, 1], [0.8, 0.8]], atol=1e-6)
    sizes = dots.get_sizes()
    assert sizes[0] == sizes[2] > sizes[1]  # five nodes, four, five
    assert f"{counted()['calibration']['ece']:.3f}" in axes.get_title(loc="left")


@pytest.mark.parametrize("panel", PANELS)
def test_nothing_to_draw_is_said(panel: str) -> None:
    axes = drawn(panel, Stats().to_dict())
    assert not axes.patches
    assert texts(axes)[0] in ("no forward passes yet", "nothing drafted yet")


def test_drafts_that_all_failed() -> None:
    stats = Stats()
    stats.observe(DraftTree.path(np.array([5], np.int32)), [0], [])
    assert bars(drawn("depths", stats.to_dict())) == {1: 0}
    assert texts(drawn("drafters", stats.to_dict())) == ["nothing drafted yet"]


def test_figure_of_all_panels() -> None:
    figure = plots.stats_figure(counted())
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == len(PANELS) == len(set(titles))
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_notebooks_show_dark_on_white() -> None:
    with styles.context("dark_background"):  # the user's own style
        page = plots.stats_figure(counted())._repr_png_()  # type: ignore[attr-defined]
    pixels = imread(io.BytesIO(page))[..., :3]
    assert (pixels[0] == 1).all()
    assert (pixels.max(axis=-1) < 0.3).any()


def test_settings_outside_stay() -> None:
    def settings() -> dict[str, Any]:
        names = set(matplotlib.rcParams) - {"backend"}  # looked at, it is chosen
        return {name: matplotlib.rcParams[name] for name in names}

    before = settings()
    plots.svg(plots.stats_figure(counted()), "figures")
    assert settings() == before


def test_pyplot_is_not_touched_and_matplotlib_only_when_drawing() -> None:
    code = (
        "import sys; from hf_specplug import Stats; stats = Stats();"
        "assert 'matplotlib' not in sys.modules; stats.plot()._repr_png_();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r'pip install "hf-specplug\[plot\]"') as caught:
        Stats().plot()
    assert isinstance(caught.value, SpecPlugError)
    assert "\n" not in str(caught.value)


def test_svg_fits_any_page() -> None:
    text = plots.svg(plots.stats_figure(counted()), 'six <panels> & "more"')
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert root.attrib["aria-label"] == 'six <panels> & "more"'
    assert root[0].text == 'six <panels> & "more"'
    assert "viewBox" in root.attrib
    colours = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert colours <= set(plots.PALETTE)  # no text or background of a fixed colour
    assert not re.search(r"(fill|stroke): (black|white)", text)
    assert "currentColor" in text
    assert "<style" not in text  # it would hold for the whole page
    assert "1.80" in text


def test_svgs_share_a_page() -> None:
    pages = [plots.svg(plots.stats_figure(stats), "t") for stats in (counted(), Stats().to_dict())]
    assert pages[0] == plots.svg(plots.stats_figure(counted()), "t")  # nothing of the day
    found = [set(re.findall(r'\bid="([^"]*)"', page)) for page in pages]
    assert found[0]
    assert not found[0] & found[1]
    for page, ids in zip(pages, found, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]*)', page)) <= ids


def test_names_are_text() -> None:
    stats = counted()
    stats["drafted_by"] = {"$\\nonsense$": 3, "<script>": 2}
    stats["accepted_by"] = {"$\\nonsense$": 1, "<script>": 0}
    text = plots.svg(plots.stats_figure(stats), "t")
    assert "<script>" not in text
    assert "$\\nonsense$" in "".join(ElementTree.fromstring(text).itertext())


def test_colours_are_stable_and_apart() -> None:
    assert len(set(plots.PALETTE)) == len(plots.PALETTE)
    names = ["mine", "stand", "yours", "context"]
    colours = [plots.colour(name, names) for name in names]
    assert len(set(colours)) == 4
    assert set(colours) <= set(plots.PALETTE)
    assert plots.colour("stand", names) == plots.colour("stand", ["stand"])
    many = [f"drafter {i}" for i in range(20)]
    assert {plots.colour(name, many) for name in many} == set(plots.PALETTE)
