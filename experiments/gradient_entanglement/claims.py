"""What the study's claims have in common: the paper."""

from typing import Any

from jaxpref.results import ClaimSpec


def claim(
    artefact: str,
    text: str,
    where: str,
    statistic: str,
    metric: str,
    relation: str,
    threshold: float,
    **options: Any,
) -> ClaimSpec:
    """A claim on `summary/<metric>`; `options` are the other fields of `ClaimSpec`."""
    return ClaimSpec(
        artefact=artefact, claim=text, paper=f"Yuan et al. 2024, arXiv:2410.13828, {where}",
        statistic=statistic, metric=f"summary/{metric}", relation=relation, threshold=threshold, **options,
    )  # fmt: skip
