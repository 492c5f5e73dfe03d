"""Token by token maps of cosines, drawn alike for toys and for real pairs."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.image import AxesImage

from analysis import figures

COSINES = TwoSlopeNorm(0.0, -1.0, 1.0)


def draw_cosines(
    ax: plt.Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], **options
) -> AxesImage:
    """Cells colored from -1 to 1 about 0, a token's text at each row and column."""
    image = ax.imshow(values, cmap=figures.DIVERGING, norm=COSINES, **options)
    ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_yticks(range(len(rows)), rows)
    return image


def write_numbers(ax: plt.Axes, values: np.ndarray) -> None:
    """Each cell's cosine, where there are few."""
    for (row, column), value in np.ndenumerate(values):
        color = "white" if abs(value) > 0.6 else "black"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=4.5, color=color)
