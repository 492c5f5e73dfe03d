"""`jaxpref score` on a terminal."""

import dataclasses
from collections.abc import Callable

import pyarrow as pa
from rich import progress, table
from rich.console import Console

from jaxpref import results
from jaxpref.scoring import ranking, runner
from jaxpref.scoring.config import Config
from jaxpref.scoring.prepare import Prepared, prepare
from jaxpref.scoring.summary import METRICS

BAD_INPUT, FAILED = 2, 1
DESCRIPTION = "Score a pairs file under a model into a run folder, and rank its pairs."
SHOWN = 5  # skipped lines that are listed on the terminal; config.json has them all
BEST = 10  # pairs of a ranking that are listed
UNITS = {
    "logps/chosen": "nats",
    "logps/rejected": "nats",
    "logps/margin": "nats",
    "edit_distance": "of the longer response",
    "length_difference": "tokens, rejected less chosen",
    "grads/chosen_falls": "share of pairs, first order, equal weights",
    "grads/rejected_rises": "share of pairs, first order, equal weights",
    "entanglement/frac": "share of pairs",
    "ranking/accuracy": "share of pairs",
    "ranking/accuracy_normalized": "share of pairs",
}


def main(config: Config, say: Callable[[str, int], int]) -> int:
    """Runs the command; `say(message, code)` prints one line and returns the code."""
    try:
        prepared = prepare(config)
        ranking.check(prepared)
    except (ValueError, OSError) as error:  # all that can be wrong with the input, before anything is written
        return say(str(error), BAD_INPUT)
    console = Console()
    _tell_input(console, prepared)
    try:
        _with_progress(prepared)
    except (FloatingPointError, OSError) as error:
        return say(str(error), FAILED)
    try:
        _tell_results(console, results.Run(config.out))
        ranked = None if config.rank is None else ranking.rank(prepared)
    except (OSError, ValueError, LookupError):  # a finished run whose files somebody changed
        return say(f"{config.out} holds a damaged run; remove it or name another folder", BAD_INPUT)
    try:
        if ranked is not None:
            ranking.write(prepared, ranked)
            _tell_ranking(console, config, ranked)
    except OSError as error:
        return say(str(error), FAILED)
    return 0


def _tell_input(console: Console, prepared: Prepared) -> None:
    report = prepared.pairs.report
    counts = [f"{name} {n}" for name, n in dataclasses.asdict(report).items() if n and name != "pairs"]
    pairs = f"{report.pairs} pairs of {prepared.path.name} under {prepared.model.name}"
    console.print(f"{pairs}{' (' + ', '.join(counts) + ')' if counts else ''}", highlight=False, markup=False)
    bad = prepared.pairs.bad
    for line in bad[:SHOWN]:
        console.print(f"  skipped line {line.line}: {line.reason}", highlight=False, markup=False)
    if bad:
        console.print(f"  {len(bad)} bad lines skipped in all", highlight=False)


def _with_progress(prepared: Prepared) -> None:
    columns = (
        *progress.Progress.get_default_columns(), progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[speed]}"),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring", total=1.0, speed="")
        runner.run(prepared, lambda fraction, text: bar.update(task, completed=fraction, speed=text))


def _tell_results(console: Console, run: results.Run) -> None:
    means = run.rows[-1]
    shown = table.Table(
        "metric", table.Column("mean", justify="right"), "unit", title=f"{means['pairs']} pairs"
    )
    for name in METRICS:
        if name in means:
            shown.add_row(name, f"{means[name]:.4g}", UNITS.get(name, ""))
    console.print(shown)
    speed, packing = (run.stored["notes"][name] for name in ("throughput", "packing"))
    padding, shared = (packing[f"{name}_share"] for name in ("padding", "shared"))
    told = f"{speed['pairs_per_second']:.3g} pairs/s; {padding:.0%} of the packed rows was padding"
    console.print(f"{told}, shared prompts saved {shared:.0%} of the tokens", highlight=False)
    files = "pairs.parquet, tokens.parquet, metrics.jsonl, config.json"
    layers = "layers.parquet, " if (run.folder / "layers.parquet").exists() else ""
    console.print(f"{run.folder}: {layers}{files}", highlight=False)


def _tell_ranking(console: Console, config: Config, ranked: pa.Table) -> None:
    first = "least" if ranking.least_first(config.rank or "") else "largest"
    number = table.Column("line", justify="right")
    shown = table.Table(
        table.Column("rank", justify="right"), "id", number, table.Column(config.rank or "", justify="right"),
        title=f"best of {len(ranked)} pairs, {first} first",
    )  # fmt: skip
    for row in ranked.slice(0, BEST).to_pylist():
        value = "" if row["value"] is None else f"{row['value']:.4g}"
        shown.add_row(str(row["rank"]), row["id"], str(row["line"]), value)
    console.print(shown, markup=False)
    console.print(f"{config.out}: ranked.parquet, ranked.jsonl", highlight=False)
    if config.keep is not None:
        kept = ranking.kept(config.keep, len(ranked))
        console.print(f"{config.keep_out}: {kept} of {len(ranked)} pairs, as they were", highlight=False)
