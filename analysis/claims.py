"""The table of claims."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def interval(claim: Mapping[str, Any]) -> str:
    """The value with its 95 % interval, where it has one."""
    value = _number(claim["value"])
    if claim["ci_low"] == claim["ci_high"]:
        return value
    return f"{value} [{_number(claim['ci_low'])}, {_number(claim['ci_high'])}]"


def verdict(claim: Mapping[str, Any]) -> str:
    return "holds" if claim["holds"] else "DOES NOT HOLD"


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    """A line a claim: what is said, the number that decides it, the verdict."""
    table = Table(title=f"{sum(c['holds'] for c in claims)} of {len(claims)} claims hold", show_lines=False)
    for column in ("id", "claim", "value [95 % interval]", "needed", "n", "verdict"):
        table.add_column(column, overflow="fold")
    for claim in claims:
        control = "control: " if claim["control"] else ""
        table.add_row(
            claim["artefact"], control + claim["claim"], interval(claim),
            f"{claim['relation']} {claim['threshold']:g}", f"{claim['seeds']} {claim['unit']}",
            verdict(claim),
            style=None if claim["holds"] else "bold",
        )  # fmt: skip
    return table


def claims_markdown(claims: Sequence[Mapping[str, Any]]) -> str:
    """The same table for a document."""
    lines = ["| id | claim | value [95 % interval] | needed | n | verdict |", "|---|---|---|---|---|---|"]
    for claim in claims:
        said = ("control: " if claim["control"] else "") + claim["claim"]
        needed = f"{claim['relation']} {claim['threshold']:g}"
        n, said_verdict = f"{claim['seeds']} {claim['unit']}", verdict(claim).lower()
        lines.append(
            f"| {claim['artefact']} | {said} | {interval(claim)} | {needed} | {n} | {said_verdict} |"
        )
    return "\n".join(lines)
