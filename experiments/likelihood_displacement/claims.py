"""What the study's claims have in common: the paper."""

from typing import Any

from jaxpref.results import ClaimSpec


def claim(
    text: str,
    where: str,
    statistic: str,
    metric: str,
    relation: str,
    threshold: float,
    *,
    artefact: str,
    **options: Any,
) -> ClaimSpec:
    """A claim on `summary/<metric>`; `options` are the other fields of `ClaimSpec`."""
    return ClaimSpec(
        claim=text, paper=f"Razin et al. 2025, arXiv:2410.08847, {where}", artefact=artefact,
        statistic=statistic, metric=f"summary/{metric}", relation=relation, threshold=threshold, **options,
    )  # fmt: skip
