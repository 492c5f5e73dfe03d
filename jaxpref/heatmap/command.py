"""`jaxpref heatmap` on a terminal."""

from collections.abc import Callable

from rich import progress, table
from rich.console import Console

from jaxpref import results
from jaxpref.heatmap import runner
from jaxpref.heatmap.config import Config
from jaxpref.heatmap.prepare import prepare

BAD_INPUT, FAILED = 2, 1
DESCRIPTION = "Inner products of the gradients of all response tokens of one pair, into a run folder."


def main(config: Config, say: Callable[[str, int], int]) -> int:
    """Runs the command; `say(message, code)` prints one line and returns the code."""
    try:
        prepared = prepare(config)
    except (ValueError, OSError) as error:  # all that can be wrong with the input, before anything is written
        return say(str(error), BAD_INPUT)
    columns = *progress.Progress.get_default_columns(), progress.TimeElapsedColumn()
    try:
        with progress.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("products", total=1.0)
            runner.run(
                prepared, lambda fraction, text: bar.update(task, completed=fraction, description=text)
            )
    except (FloatingPointError, OSError) as error:
        return say(str(error), FAILED)
    try:
        _tell(Console(), results.Run(config.out))
    except (OSError, ValueError, LookupError):  # a finished run whose files somebody changed
        return say(f"{config.out} holds a damaged run; remove it or name another folder", BAD_INPUT)
    return 0


def _tell(console: Console, run: results.Run) -> None:
    (found,) = run.rows
    title = f"pair {run.config['pair']} under {run.config['model']}"
    shown = table.Table("metric", table.Column("value", justify="right"), title=title)
    for name, value in found.items():
        shown.add_row(name, f"{value:.4g}")
    console.print(shown, markup=False)
    console.print(f"{run.folder}: tokens.parquet, products.parquet, metrics.jsonl", highlight=False)
