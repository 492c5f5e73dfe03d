"""Figures of what `jaxpref heatmap` wrote: which tokens of a pair entangle its responses.

Yuan et al. 2024, arXiv:2410.13828, section 4.3 and figure 4b, on a real pair.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from analysis import figures, token_maps
from jaxpref.results import Run

STUDY = "heatmap"
CELL, MOST = 0.115, 9.0  # inches: a token's row, the map's longest side
SHOWN = 14  # characters of a token


class Map:
    """One run's numbers, chosen tokens first."""

    def __init__(self, run: Run):
        tokens, products = run.table("tokens"), run.table("products")
        size = len(tokens["token"])
        self.run, self.texts = run, [shown(text) for text in tokens["text"].tolist()]
        self.chosen = tokens["response"] == "chosen"
        self.inner = np.zeros((size, size))
        self.inner[products["first"], products["second"]] = products["inner"]
        self.norms = np.sqrt(np.maximum(np.diagonal(self.inner), 0.0))

    def texts_of(self, chosen: bool) -> list[str]:
        return [text for text, own in zip(self.texts, self.chosen, strict=True) if own == chosen]

    def products(self, rows: bool, columns: bool) -> np.ndarray:
        """Inner products of one response's tokens with another's; True is the chosen one."""
        return self.inner[np.ix_(self.chosen == rows, self.chosen == columns)]

    def cosines(self, rows: bool, columns: bool) -> np.ndarray:
        """0 where a token has no gradient."""
        scale = np.outer(self.norms[self.chosen == rows], self.norms[self.chosen == columns])
        products = self.products(rows, columns)
        return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)


def shown(text: str) -> str:
    """A token as it is to be read on an axis: white space seen, and nothing that a font or TeX would eat."""
    seen = text.replace("\n", "↵").replace("\t", "→").replace(" ", "␣").replace("$", r"\$")
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in seen)
    return printable if len(printable) <= SHOWN else printable[: SHOWN - 1] + "…"


def plot_shares(ax: plt.Axes, values: np.ndarray, color: str, *, upright: bool) -> None:
    """Each token's part of the responses' inner product."""
    places = np.arange(len(values))
    (ax.bar if upright else ax.barh)(places, values, 0.8, color=color, linewidth=0)
    (ax.axhline if upright else ax.axvline)(0.0, **figures.ZERO_LINE)
    ax.tick_params(labelbottom=not upright, labelleft=upright, labelsize=5)
    ax.ticklabel_format(axis="y" if upright else "x", style="sci", scilimits=(-2, 3))


def _sizes(rows: int, columns: int) -> tuple[float, float, float]:
    """Inches of the map, height and width, and points of its letters."""
    cell = min(CELL, MOST / max(rows, columns))
    return cell * rows, cell * columns, min(5.5, 0.8 * 72 * cell)


def chosen_rejected(run: Run) -> plt.Figure:
    """The map of chosen with rejected tokens; beside it each token's part of the inner product."""
    data = Map(run)
    cosines, inner = data.cosines(True, False), data.products(True, False)
    height, width, letters = _sizes(*cosines.shape)
    figure, axes = plt.subplots(
        2, 2, figsize=(max(width + 2.3, 4.2), height + 2.0), width_ratios=(width, 0.7),
        height_ratios=(0.6, height), sharex="col", sharey="row",
    )  # fmt: skip
    ax = axes[1, 0]
    axes[0, 1].axis("off")
    plot_shares(axes[0, 0], inner.sum(0), figures.REJECTED, upright=True)
    plot_shares(axes[1, 1], inner.sum(1), figures.CHOSEN, upright=False)
    texts = data.texts_of(True), data.texts_of(False)
    image = token_maps.draw_cosines(ax, cosines, *texts, aspect="auto", interpolation="nearest")
    ax.tick_params(labelsize=letters, length=1.5)
    ax.set(xlabel="rejected token", ylabel="chosen token")
    axes[0, 0].set_title("part of the inner product")
    figure.colorbar(image, ax=axes, label="cosine of token gradients", shrink=0.6, aspect=30)
    figures.caption(figure, _caption(data))
    return figure


def _caption(data: Map) -> str:
    (found,) = data.run.rows
    sizes = f"{found['tokens/chosen']} by {found['tokens/rejected']} tokens"
    name = f"pair {data.run.config['pair']} under {data.run.config['model']}".replace("$", r"\$")
    return f"{name}; {sizes}; the parts sum to {found['grads/inner']:.3g}, cosine {found['grads/cos']:.2f}"


def within(run: Run) -> plt.Figure:
    """The maps of each response's tokens with its own."""
    data = Map(run)
    sizes = [len(data.texts_of(chosen)) for chosen in (True, False)]
    height, _, letters = _sizes(max(sizes), max(sizes))
    figure, axes = figures.panels(2, width=2 * height + 2.6, height=height + 1.2)
    for ax, chosen, name in zip(axes.flat, (True, False), ("chosen", "rejected"), strict=True):
        texts: Sequence[str] = data.texts_of(chosen)
        cosines = data.cosines(chosen, chosen)
        image = token_maps.draw_cosines(ax, cosines, texts, texts, interpolation="nearest")
        ax.tick_params(labelsize=letters, length=1.5)
        ax.set(xlabel=f"{name} token", ylabel=f"{name} token")
    figures.letter(axes)
    figure.colorbar(image, ax=axes, label="cosine of token gradients", shrink=0.7, aspect=30)
    figures.caption(figure, _caption(data))
    return figure


FIGURES: dict[str, figures.Draw] = {"chosen_rejected": chosen_rejected, "within": within}


def find(folder: Path) -> list[Run]:
    """The folder's own run, or those one below."""
    paths = sorted(
        path.parent for pattern in ("config.json", "*/config.json") for path in folder.glob(pattern)
    )
    runs = [Run(path) for path in paths if not path.name.endswith(".partial")]
    return [run for run in runs if run.stored["study"] == STUDY]


def draw(folder: Path, out: Path) -> list[Path]:
    """Draws every heat map at `folder`; into `out` itself where there is one."""
    runs = find(folder)
    into = {run.folder: out if len(runs) == 1 else out / run.folder.name for run in runs}
    return [path for run in runs for path in figures.draw(run, FIGURES, into[run.folder])]
