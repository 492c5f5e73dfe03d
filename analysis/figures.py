"""The one style of all figures: sizes, colors, saving. Colors are Okabe and Ito's."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

from jaxpref.results import Run, t_interval

logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the dates of the font that we embed

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
CHOSEN, REJECTED, OTHER = BLUE, VERMILION, "#7F7F7F"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
ZERO_LINE: Any = {"color": "0.6", "linewidth": 0.8, "linestyle": ":", "zorder": 0}
DIVERGING, SEQUENTIAL = "RdBu_r", "cividis"
COLUMN, PAGE = 3.35, 6.9  # inches: one column, the width of a page

STYLE: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.4, "lines.markersize": 3.5, "figure.dpi": 110, "savefig.dpi": 200,
    "pdf.fonttype": 42, "axes.prop_cycle": cycler(color=CYCLE),
    "figure.constrained_layout.use": True,
}  # fmt: skip

Draw = Callable[[Run], plt.Figure]


def panels(columns: int, rows: int = 1, width: float = PAGE, height: float = 2.3, **options):
    """A figure and its axes as an array [rows, columns], `height` inches a row."""
    return plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **options)


def band(
    ax: plt.Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    color: str,
    label: str | None = None,
    **line,
):
    """The mean over seeds of `values` [seeds, x], with its 95 % interval shaded."""
    mean = np.nanmean(values, axis=0)
    low, high = np.array([t_interval(column) for column in values.T]).T
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    return ax.plot(x, mean, color=color, label=label, **line)[0]


def letter(axes: np.ndarray) -> None:
    """(a), (b), ... above the panels."""
    for index, ax in enumerate(axes.flat):
        title = ax.get_title()
        ax.set_title("")
        ax.set_title(f"({chr(97 + index)}) {title}".rstrip(), loc="left")


def caption(figure: plt.Figure, text: str) -> None:
    """What a reader must know beside the axes: seeds, n, what the band is."""
    figure.supxlabel(text, fontsize=6.5, color="0.35", wrap=True)


def save(figure: plt.Figure, folder: Path, name: str) -> list[Path]:
    """PNG for the screen, PDF for print; dates left out so that the same data gives the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    figure.savefig(paths[0], metadata={"Software": None})
    figure.savefig(paths[1], metadata={"CreationDate": None})
    plt.close(figure)
    return paths


def draw(run: Run, figures: dict[str, Draw], folder: Path) -> list[Path]:
    """Draws and saves the named figures of one run; one that is newer than the run and this code is kept."""
    paths = []
    for name, plot in figures.items():
        saved = [folder / f"{name}.png", folder / f"{name}.pdf"]
        if not _up_to_date(saved, run):
            with plt.rc_context(STYLE):
                saved = save(plot(run), folder, name)
        paths += saved
    return paths


def _up_to_date(saved: Sequence[Path], run: Run) -> bool:
    made_from = [*run.folder.iterdir(), *Path(__file__).parent.glob("*.py")]
    changed = max(path.stat().st_mtime for path in made_from)
    return all(path.exists() and path.stat().st_mtime > changed for path in saved)
