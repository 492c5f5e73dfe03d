"""The losses that a config names, with their modifiers and hyperparameters, as one objective."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpref import losses
from jaxpref.data import files, pair_set
from jaxpref.data.pair_set import PairSet
from jaxpref.losses import modifiers, trl_names
from jaxpref.pairs import PairLogps, PairTokenLogps
from jaxpref.trainer.config import Config
from jaxpref.trainer.objective import LossInputs, Objective

KL = "kl"  # the hyperparameter that is estimated at every step unless a user sets it
SFT = "sft"  # a mean over all chosen tokens of a batch
# That mean times this hyperparameter is a term of theirs.
WITH_SFT = dict.fromkeys(("cpo_sigmoid", "cpo_hinge", "cpo_ipo", "cpo_simpo"), "lam") | {
    "mpo_mixed": "sft_weight", "rpo_iter_batch": "alpha"
}  # fmt: skip
# What a run knows of its pairs, and the columns of the file that it is made of.
GIVEN: dict[str, tuple[str, ...]] = {
    "reference": (), "lengths": (), "tokens": (), "scores": files.SCORES, "vote_share": files.COUNTS
}  # fmt: skip
STRENGTHS = ("beta", "tau")  # what scales the reward: IPO calls it tau


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of a weighted sum."""

    key: str
    weight: float
    values: Mapping[str, float]  # hyperparameters that differ from the loss's defaults
    prompt_nll: float = 0.0
    default_beta: float = 1.0  # scale of the rewards where the loss itself has none
    measured: bool = False  # its rewards are measured from a reference, even if its loss has none

    @property
    def entry(self) -> losses.Objective:
        """The loss's line of the table."""
        return losses.get(self.key)

    @property
    def estimates_kl(self) -> bool:
        """Whether the KL to the reference has to be estimated at every step."""
        return KL in self.entry.hyperparameters and KL not in self.values

    @property
    def alpha(self) -> float:
        """Bend of the reward, where the loss bends it."""
        return {**self.entry.hyperparameters, **self.values}["alpha"] if self.entry.bent else 0.0

    @property
    def beta(self) -> float:
        """Scale of the reward."""
        values = {**self.entry.hyperparameters, **self.values}
        return float(next((values[name] for name in STRENGTHS if name in values), self.default_beta))


def bind(config: Config) -> Objective:
    """The objective of a run. Raises ValueError: unknown loss or hyperparameter, value out of range."""
    terms = _terms(config)
    keys = [term.key for term in terms]
    modifiers.check_divergence(config.divergence, keys)
    if config.wpo:
        modifiers.check_wpo(keys)
    if config.ld_alpha is not None:
        modifiers.check_length_desensitized(keys)
    return Objective(
        losses=functools.partial(_losses, terms, config),
        response_logps=functools.partial(_response_logps, config.ld_alpha),
        beta=terms[0].beta,
        needs_reference=any("reference" in term.entry.needs or term.measured for term in terms),
        averaged=terms[0].entry.averaged,
        trl_metrics=config.loss[0].startswith(trl_names.PREFIX),
        reward_alpha=terms[0].alpha,
        batchwise=any(term.entry.batchwise for term in terms),
        prompt_nll=config.prompt_nll + sum(term.weight * term.prompt_nll for term in terms),
        mismatched=any(term.estimates_kl for term in terms),
        of_sums=not _looks_at_tokens(config, terms),
    )


def _looks_at_tokens(config: Config, terms: Sequence[Term]) -> bool:
    """Whether tokens of one response may weigh differently in the gradient."""
    by_token = any("tokens" in term.entry.needs or term.prompt_nll for term in terms)
    return by_token or config.ld_alpha is not None or config.prompt_nll != 0


def check_weights(config: Config, weights: np.ndarray) -> None:
    """Raises ValueError where pairs weigh differently and a loss compares them by ranks or plain means."""
    keys = {trl_names.resolve(name)[0] for name in config.loss} - {SFT, *WITH_SFT}
    if (refused := sorted(filter(_compares_pairs, keys))) and len(np.unique(weights)) > 1:
        raise ValueError(f"pairs must all have one weight for {', '.join(refused)}, which compares them")


def _compares_pairs(key: str) -> bool:
    return losses.get(key).batchwise


def check_columns(config: Config, pairs: PairSet, path: Path) -> None:
    """Raises ValueError where a loss needs a column that the file lacks, or votes that nobody gave."""
    for key in (trl_names.resolve(name)[0] for name in config.loss):
        for names in filter(None, (GIVEN[need] for need in losses.get(key).needs)):
            values = pairs.columns[:, [pair_set.COLUMNS.index(name) for name in names]]
            lacking = ~np.isfinite(values).all(-1) | ((names == files.COUNTS) & (values.sum(-1) == 0))
            if lacking.any():
                first, columns = pairs.ids[int(lacking.argmax())], " and ".join(names)
                raise ValueError(f"{path}: the loss {key!r} needs {columns} of every pair; {first} has none")


def _terms(config: Config) -> tuple[Term, ...]:
    given = [_assignment(text) for text in config.loss_args]
    found = [
        _term(name, weight, config, given) for name, weight in zip(config.loss, config.weights, strict=True)
    ]
    for name, value in given:
        if not any(_own(name, loss, term.key) for loss, term in zip(config.loss, found, strict=True)):
            choices = ", ".join(sorted({h for term in found for h in term.entry.hyperparameters})) or "none"
            raise ValueError(f"loss_args of {', '.join(config.loss)} are {choices}; got {name}={value:g}")
    return tuple(found)


def _assignment(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"loss_args must be name=number; got {text!r}") from None


def _term(name: str, weight: float, config: Config, given: Sequence[tuple[str, float]]) -> Term:
    key, fixed = trl_names.resolve(name)
    _check_needs(key)
    values = dict(fixed)
    beta = trl_names.own_name(name, "beta")
    if config.beta is not None and beta in losses.get(key).hyperparameters:
        values[beta] = config.beta
    values |= {own: value for text, value in given if (own := _own(text, name, key))}
    losses.bind(key, **values)  # checks names and ranges now
    theirs = trl_names.find(name)
    if theirs is None:
        return Term(key, weight, values)
    default_beta = trl_names.TRL_BETA if config.beta is None else config.beta
    return Term(key, weight, values, theirs.prompt_nll, default_beta, theirs.measured)


def _check_needs(key: str) -> None:
    if missing := [need for need in losses.get(key).needs if need not in GIVEN]:
        choices = ", ".join(
            sorted(name for name, loss in losses.LOSSES.items() if set(loss.needs) <= {*GIVEN})
        )
        raise ValueError(
            f"loss {key!r} needs {', '.join(missing)}, which a run does not have; it can train {choices}"
        )


def _own(text: str, loss: str, key: str) -> str | None:
    """Our name of the hyperparameter that `name` or `loss.name` means to this loss; None if it means none."""
    of, dot, name = text.rpartition(".")
    own = trl_names.own_name(loss, name)
    return own if own in losses.get(key).hyperparameters and (not dot or of in (loss, key)) else None


def _losses(
    terms: Sequence[Term], config: Config, tokens: PairTokenLogps, inputs: LossInputs, log_sum_sq: PairLogps
) -> Array:
    """Weighted sum of the losses of each pair, [pairs]."""
    policy: Any = tokens if config.ld_alpha is None else _response_logps(config.ld_alpha, tokens)
    with_reference = _diverged(config, policy, inputs)
    total = jnp.zeros(tokens.chosen.shape[0])
    for term in terms:  # a likelihood has no log-ratio that another divergence or LD-DPO could change
        seen = with_reference if "reference" in term.entry.needs else (tokens, inputs)
        scale = inputs.token_scale if term.key == SFT else 1.0
        total = total + scale * term.weight * _bound(term, inputs)(*seen)
    return total * modifiers.wpo_weights(tokens, log_sum_sq) if config.wpo else total


def _bound(term: Term, inputs: LossInputs) -> Any:
    values: dict[str, Any] = dict(term.values)
    if term.estimates_kl:
        values[KL] = jax.lax.stop_gradient(inputs.kl)
    if term.key in WITH_SFT:
        weight = WITH_SFT[term.key]
        values[weight] = inputs.token_scale * values.get(weight, term.entry.hyperparameters[weight])
    return losses.bind(term.key, **values)


def _response_logps(ld_alpha: float | None, tokens: PairTokenLogps) -> PairLogps:
    return tokens.sum() if ld_alpha is None else modifiers.length_desensitized(tokens, alpha=ld_alpha)


def _diverged(config: Config, policy: Any, inputs: LossInputs):
    """Where the penalty is not the reverse KL, its scores take the place of the log-ratios."""
    if config.divergence == "reverse_kl" or inputs.reference is None:
        return policy, inputs
    whole = policy.sum() if isinstance(policy, PairTokenLogps) else policy
    scores = modifiers.divergence_scores(
        whole, inputs.reference, kind=config.divergence, alpha=config.divergence_alpha
    )
    return scores, inputs._replace(reference=jax.tree.map(jnp.zeros_like, scores))
