"""Figures of likelihood_displacement/single_example: one preference pair, one prompt, a real model."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from analysis import figures
from jaxpref.results import Arrays, Run, t_interval

OPPOSITE = figures.ORANGE
COLORS = {"chosen": figures.CHOSEN, "opposite": OPPOSITE, "rejected": figures.REJECTED}
COLUMNS = 4
NAMES = {"adam": "Adam", "sgd": "SGD", "rmsprop": "RMSProp"}
VISIBLE = 1e-3  # smaller gains of probability are no bars
Setting = tuple[str, str]  # pair, optimizer


def settings(table: Arrays) -> list[Setting]:
    """Pairs and optimizers in the order in which they ran."""
    return list(dict.fromkeys(zip(table["pair"].tolist(), table["optimizer"].tolist(), strict=True)))


def of(table: Arrays, setting: Setting) -> Arrays:
    """The rows of one setting."""
    rows = (table["pair"] == setting[0]) & (table["optimizer"] == setting[1])
    return {name: column[rows] for name, column in table.items()}


def title(setting: Setting) -> str:
    pair, optimizer = setting
    return f"{pair.replace('>', ' over ')}, {NAMES[optimizer]}"


def curves(table: Arrays, name: str) -> np.ndarray:
    """A column as [prompts, steps]."""
    return table[name].reshape(len(np.unique(table["prompt"])), -1)


def answers(setting: Setting) -> dict[str, str]:
    """What the roles are called in a legend; the opposite only where it is not the rejected answer."""
    chosen, rejected = setting[0].split(">")
    return {"chosen": f"chosen {chosen}", "rejected": f"rejected {rejected}"}


def plot_logps(ax: plt.Axes, table: Arrays, role: str, label: str) -> None:
    """Log-probability of one answer: every prompt thin, their mean with its interval."""
    steps, values = np.unique(table["step"]), curves(table, f"logps/{role}")
    ax.plot(steps, values.T, color=COLORS[role], linewidth=0.4, alpha=0.45)
    figures.band(ax, steps, values, COLORS[role], label)


def plot_likely(ax: plt.Axes, table: Arrays, setting: Setting) -> None:
    """The chosen answer and, where it is a third one, the opposite answer."""
    plot_logps(ax, table, "chosen", answers(setting)["chosen"])
    if not np.array_equal(table["logps/opposite"], table["logps/rejected"]):
        opposite = "No" if setting[0].split(">")[0] in ("Yes", "Sure") else "Yes"
        plot_logps(ax, table, "opposite", f"opposite {opposite}")
    ax.set_title(title(setting))
    ax.tick_params(labelbottom=False)
    ax.legend(loc="best")


def plot_rejected(ax: plt.Axes, table: Arrays, setting: Setting) -> None:
    plot_logps(ax, table, "rejected", answers(setting)["rejected"])
    ax.set(xlabel="training step")
    ax.legend(loc="upper right")  # it falls


def count(table: Arrays) -> str:
    prompts = len(np.unique(table["prompt"]))
    return f"{prompts} prompt{'s' if prompts > 1 else ''}"


def footnote(run: Run, table: Arrays) -> str:
    """What every caption of this run says."""
    config = run.config
    rates = ", ".join(
        f"{NAMES[optimizer]} {config[f'{optimizer}_learning_rate']:g}"
        for optimizer in dict.fromkeys(table["optimizer"].tolist())
    )
    return (
        f"Model {run.stored['notes']['model']}, all weights trained by DPO on one pair of one-word answers, "
        f"beta {config['beta']:g}, learning rate: {rates}. n = {count(table)}, each with a run of its own; "
        "nothing is drawn at random, so there are no seeds."
    )


def width(columns: int) -> float:
    """A single panel needs room for its caption."""
    return figures.PAGE if columns > 1 else 0.7 * figures.PAGE


def trajectories(run: Run) -> plt.Figure:
    """As Figure 1 of Razin et al. 2025: log-probabilities of the answers while one pair is trained on."""
    table = run.table("trajectories")
    blocks = [settings(table)[i : i + COLUMNS] for i in range(0, len(settings(table)), COLUMNS)]
    columns = min(COLUMNS, len(blocks[0]))
    figure, axes = figures.panels(
        columns,
        2 * len(blocks),
        width(columns),
        1.55,
        sharex=True,
        sharey="row",
        gridspec_kw={"height_ratios": [3, 2] * len(blocks)},
    )
    for block, pair_of_rows in zip(blocks, axes.reshape(-1, 2, columns), strict=True):
        plot_block(pair_of_rows, table, block)
    thin = "Thin: single prompts. Bold: mean with its 95 % interval. "
    figures.caption(figure, (thin if len(np.unique(table["prompt"])) > 1 else "") + footnote(run, table))
    return figure


def plot_block(axes: np.ndarray, table: Arrays, block: Sequence[Setting]) -> None:
    """A column a setting: likely answers above, the rejected answer below."""
    for ax in axes[:, len(block) :].flat:
        ax.set_axis_off()
    for column, setting in enumerate(block):
        plot_likely(axes[0, column], of(table, setting), setting)
        plot_rejected(axes[1, column], of(table, setting), setting)
    for ax in axes[:, 0]:
        ax.set_ylabel(r"$\log\pi(y\,|\,x)$ (nats)")


def gains_by_token(table: Arrays, k: int) -> list[tuple[str, float, int, bool]]:
    """(token, mean gain over prompts, prompts in which it was among the three best, opposite), best first."""
    prompts = len(np.unique(table["prompt"]))
    rows = []
    for token in dict.fromkeys(table["token"].tolist()):
        of_token = table["token"] == token
        gain = float(table["gain"][of_token].sum()) / prompts
        rows.append((token, gain, int(of_token.sum()), bool(table["says_opposite"][of_token][0])))
    return sorted((row for row in rows if row[1] > VISIBLE), key=lambda row: -row[1])[:k]


def plot_gainers(ax: plt.Axes, table: Arrays, setting: Setting, k: int = 4) -> None:
    """The tokens that gained most probability by the last step."""
    last = {name: column[table["step"] == table["step"].max()] for name, column in table.items()}
    gainers = gains_by_token(last, k)
    chosen = setting[0].split(">")[0]
    colors = [OPPOSITE if g[3] else figures.CHOSEN if g[0] == chosen else figures.OTHER for g in gainers]
    places = np.arange(len(gainers))
    ax.barh(places, [g[1] for g in gainers], color=colors)
    for place, (_, gain, times, _) in zip(places, gainers, strict=True):
        ax.annotate(f" {times}", (gain, place), va="center", fontsize=6.5)
    ax.set_yticks(places, [spelled(g[0]) for g in gainers])
    ax.set(title=title(setting), xlim=(0, 1), ylim=(max(len(gainers), 3) - 0.4, -0.6))


def spelled(token: str) -> str:
    """White space made visible, and what no font has written in ASCII."""
    shown = token.replace(" ", "_")
    return shown if shown.isprintable() else ascii(shown)


def gainers(run: Run) -> plt.Figure:
    """As the token columns of Tables 2 and 4 to 9: where the probability mass went."""
    table = run.table("gainers")
    names = settings(table)
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, axes = figures.panels(columns, rows, width(columns), 1.6 if rows > 1 else 2.2, sharex=True)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, setting in zip(axes.flat, names, strict=False):
        plot_gainers(ax, of(table, setting), setting)
        ax.set_xlabel("mean gain of probability")
    legend(figure, table)
    figures.caption(
        figure,
        "Gain since step 0 at the last step; number at a bar: prompts in which the token was among the top "
        "three; _ is a leading space. " + footnote(run, table),
    )
    return figure


def legend(figure: plt.Figure, table: Arrays) -> None:
    colors = {"the chosen token": figures.CHOSEN, "opposite meaning": OPPOSITE, "other": figures.OTHER}
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles, list(colors), loc="outside upper center", ncols=3)


def plot_drops(ax: plt.Axes, run: Run, names: Sequence[Setting]) -> None:
    """The paper's number: the largest fall of p(chosen) between any two steps."""
    for place, (pair, optimizer) in enumerate(names):
        drops = run.values(f"summary/max_drop/{optimizer}/{pair}")
        spread = np.linspace(-0.15, 0.15, len(drops)) if len(drops) > 1 else np.zeros(1)
        ax.plot(place + spread, drops, "o", color=figures.CHOSEN, alpha=0.5, markersize=2.5)
        low, high = t_interval(drops)
        ax.errorbar(
            place, drops.mean(), [[drops.mean() - low], [high - drops.mean()]], fmt="_", color=figures.BLACK,
            capsize=2, markersize=9,
        )  # fmt: skip
    ax.set_xticks(range(len(names)), [title(name) for name in names], rotation=40, ha="right")
    ax.set(ylabel="largest drop of p(chosen)", title="displacement", xlim=(-0.6, len(names) - 0.4))
    ax.axhline(0.0, **figures.ZERO_LINE)


def plot_forecast(ax: plt.Axes, run: Run, names: Sequence[Setting]) -> None:
    """The first step's change of log p(chosen) against its forecast; the line is equality."""
    for index, (pair, optimizer) in enumerate(names):
        at = f"{optimizer}/{pair}"
        ax.plot(
            run.values(f"summary/forecast/{at}"), run.values(f"summary/first_step_delta/{at}"),
            figures.MARKERS[index], color=figures.CYCLE[index], label=title((pair, optimizer)), alpha=0.8,
        )  # fmt: skip
    ax.axline((0, 0), slope=1, **figures.ZERO_LINE)
    ax.axhline(0.0, **figures.ZERO_LINE)
    ax.axvline(0.0, **figures.ZERO_LINE)
    ax.set(xlabel="forecast (nats)", ylabel="measured (nats)", title=r"first step: $\Delta\log\pi$(chosen)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def summary(run: Run) -> plt.Figure:
    """The drop of each setting, and whether one derivative could have told."""
    table = run.table("trajectories")
    figure, axes = figures.panels(2, 1, figures.PAGE, 2.9)
    plot_drops(axes[0, 0], run, settings(table))
    plot_forecast(axes[0, 1], run, settings(table))
    figures.letter(axes)
    figures.caption(
        figure,
        "(a) Dots: prompts. Bars: mean with its 95 % interval. (b) Forecast: one derivative of log pi "
        "along the optimizer's first update. " + footnote(run, table),
    )
    return figure


FIGURES = {
    "single_example": {
        "single_example_trajectories": trajectories,
        "single_example_gainers": gainers,
        "single_example_summary": summary,
    }
}
