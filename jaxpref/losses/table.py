"""The table of losses: look one up by name, bind its hyperparameters, list them all."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any, Protocol

from jax import Array

from jaxpref.losses import (
    ablations,
    contrastive,
    likelihood,
    pairwise,
    reference_free,
    separable,
    transport,
)
from jaxpref.losses.hyperparameters import Range, check
from jaxpref.pairs import PairLogps, PairTokenLogps


@typing.runtime_checkable
class BoundLoss(Protocol):
    """`loss_fn(policy, batch) -> [pairs]`, and what it needs of both."""

    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def batchwise(self) -> bool: ...
    def __call__(self, policy: PairLogps | PairTokenLogps, batch: Any) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss and where it comes from; everything else is read from the function's signature."""

    function: Callable[..., Array]
    title: str
    paper: str
    arxiv: str  # empty where there is none
    where: str  # equation of the paper, or the loss type of a released trainer
    # The loss of a pair depends on the other pairs of its batch.
    batchwise: bool = dataclasses.field(default=False, kw_only=True)
    # The reward is beta times the log-probability PER TOKEN.
    averaged: bool = dataclasses.field(default=False, kw_only=True)
    # The hyperparameter `alpha` bends the reward, as in `power_rewards`.
    bent: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def key(self) -> str:
        """Name in `LOSSES`: the function's without `_loss`."""
        return self.function.__name__.removesuffix("_loss")

    @property
    def needs(self) -> tuple[str, ...]:
        """What the loss takes beside response log-probabilities: "reference", "lengths", "tokens"."""
        positional = [name for name in ("reference", "lengths") if name in self._parameters]
        of_tokens = _type_hints(self.function)["policy"] is PairTokenLogps
        return (*positional, "tokens") if of_tokens else tuple(positional)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Default value of each hyperparameter."""
        keyword_only = inspect.Parameter.KEYWORD_ONLY
        return {name: p.default for name, p in self._parameters.items() if p.kind is keyword_only}

    @property
    def scale(self) -> str | None:
        """The hyperparameter that is TRL's `beta`, the scale of its rewards; None where there is none."""
        return next((name for name in ("beta", "tau") if name in self.hyperparameters), None)

    @property
    def ranges(self) -> dict[str, Range]:
        """Allowed values of each hyperparameter."""
        hints = _type_hints(self.function)
        return {name: hints[name].__metadata__[0] for name in self.hyperparameters}

    @property
    def _parameters(self):
        return inspect.signature(self.function).parameters


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function, include_extras=True)


def _by_key(*objectives: Objective) -> dict[str, Objective]:
    return {objective.key: objective for objective in objectives}


LOSSES: dict[str, Objective] = _by_key(
    Objective(pairwise.dpo_loss, "DPO", "Rafailov et al. 2023", "2305.18290", "eq. 7"),
    Objective(
        pairwise.cdpo_loss,
        "conservative DPO",
        "Mitchell 2023 (note)",
        "2305.18290",
        "TRL 0.28 `label_smoothing`",
    ),
    Objective(pairwise.rdpo_loss, "robust DPO", "Ray Chowdhury et al. 2024", "2403.00409", "TRL `robust`"),
    Objective(pairwise.ipo_loss, "IPO, summed", "Azar et al. 2023", "2310.12036", "eq. 17"),
    Objective(pairwise.ipo_mean_loss, "IPO, per token", "Azar et al. 2023", "2310.12036", "TRL `ipo`"),
    Objective(pairwise.dpo_hinge_loss, "DPO hinge (RSO)", "Liu et al. 2023", "2309.06657", "TRL `hinge`"),
    Objective(pairwise.exo_pair_loss, "EXO", "Ji et al. 2024", "2402.00856", "TRL `exo_pair`"),
    Objective(
        pairwise.r_dpo_len_loss,
        "R-DPO, length-regularized",
        "Park et al. 2024",
        "2403.19159",
        "2410.13828 table 2",
    ),
    Objective(
        pairwise.sigmoid_norm_loss,
        "length-normalized DPO",
        "Lambert et al. 2024",
        "2411.15124",
        "TRL `sigmoid_norm`",
    ),
    Objective(pairwise.discopop_loss, "DiscoPOP", "Lu et al. 2024", "2406.08414", "eq. 5; TRL `discopop`"),
    Objective(pairwise.dpop_loss, "DPO-positive (Smaug)", "Pal et al. 2024", "2402.13228", "loss of DPOP"),
    Objective(
        transport.aot_loss, "AOT, paired", "Melnyk et al. 2024", "2406.05882", "TRL `aot`", batchwise=True
    ),
    Objective(
        transport.aot_unpaired_loss,
        "AOT, unpaired",
        "Melnyk et al. 2024",
        "2406.05882",
        "TRL `aot_unpaired`",
        batchwise=True,
    ),
    Objective(reference_free.simpo_loss, "SimPO", "Meng et al. 2024", "2405.14734", "eq. 6", averaged=True),
    Objective(
        reference_free.alphapo_loss,
        "AlphaPO",
        "Gupta et al. 2025",
        "2501.03884",
        "TRL `alphapo`",
        averaged=True,
        bent=True,
    ),
    Objective(reference_free.cpo_loss, "CPO, mean likelihood", "Xu et al. 2024", "2401.08417", "eq. 5"),
    Objective(
        reference_free.cpo_sum_loss,
        "CPO, summed likelihood",
        "Xu et al. 2024",
        "2401.08417",
        "2410.13828 table 2",
    ),
    Objective(
        contrastive.cpo_sigmoid_loss,
        "CPO, batch likelihood",
        "Xu et al. 2024",
        "2401.08417",
        "TRL `CPOTrainer`, `sigmoid`",
        batchwise=True,
        bent=True,
    ),
    Objective(
        contrastive.cpo_hinge_loss,
        "CPO, hinge",
        "Xu et al. 2024",
        "2401.08417",
        "TRL `CPOTrainer`, `hinge`",
        batchwise=True,
        bent=True,
    ),
    Objective(
        contrastive.cpo_ipo_loss,
        "CPO, squared per token",
        "Xu et al. 2024",
        "2401.08417",
        "TRL `CPOTrainer`, `ipo`",
        batchwise=True,
        averaged=True,
        bent=True,
    ),
    Objective(
        contrastive.cpo_simpo_loss,
        "CPO-SimPO",
        "Xu et al. 2024",
        "2401.08417",
        "TRL `CPOTrainer`, `simpo`",
        batchwise=True,
        averaged=True,
        bent=True,
    ),
    Objective(reference_free.slic_hf_loss, "SLiC-HF", "Zhao et al. 2023", "2305.10425", "2410.13828 table 2"),
    Objective(reference_free.rrhf_loss, "RRHF", "Yuan et al. 2023", "2304.05302", "rank loss + SFT loss"),
    Objective(reference_free.orpo_loss, "ORPO", "Hong et al. 2024", "2403.07691", "eqs. 6, 7", averaged=True),
    Objective(
        reference_free.odds_ratio_loss,
        "ORPO's odds term",
        "Hong et al. 2024",
        "2403.07691",
        "eq. 7; TRL `ORPOTrainer`",
        averaged=True,
    ),
    Objective(
        reference_free.odds_loss,
        "plain odds ratio",
        "Hong et al. 2024",
        "2403.07691",
        "odds term alone, summed",
    ),
    Objective(
        separable.sppo_hard_loss, "SPPO, hard labels", "Wu et al. 2024", "2405.00675", "TRL `sppo_hard`"
    ),
    Objective(separable.kto_loss, "KTO", "Ethayarajh et al. 2024", "2402.01306", "loss of KTO"),
    Objective(
        separable.kto_unpaired_loss,
        "KTO, response by response",
        "Ethayarajh et al. 2024",
        "2402.01306",
        "TRL `KTOTrainer`",
    ),
    Objective(
        separable.kto_pair_loss,
        "KTO, batch KL",
        "Ethayarajh et al. 2024",
        "2402.01306",
        "TRL 0.7.11 `kto_pair`",
        batchwise=True,
    ),
    Objective(
        separable.bco_pair_loss, "BCO, given shift", "Jung et al. 2024", "2404.04656", "TRL `bco_pair`"
    ),
    Objective(
        separable.bco_loss,
        "BCO, batch shift",
        "Jung et al. 2024",
        "2404.04656",
        "loss of BCO",
        batchwise=True,
    ),
    Objective(separable.nca_pair_loss, "NCA", "Chen et al. 2024", "2402.05369", "TRL `nca_pair`"),
    Objective(
        separable.apo_zero_loss, "APO-zero", "D'Oosterlinck et al. 2024", "2408.06266", "TRL `apo_zero`"
    ),
    Objective(
        separable.apo_zero_unpaired_loss,
        "APO-zero, response by response",
        "D'Oosterlinck et al. 2024",
        "2408.06266",
        "TRL `apo_zero_unpaired`",
    ),
    Objective(
        separable.apo_down_loss, "APO-down", "D'Oosterlinck et al. 2024", "2408.06266", "TRL `apo_down`"
    ),
    Objective(
        likelihood.sft_loss, "SFT on the chosen", "maximum likelihood", "", "TRL `sft`", batchwise=True
    ),
    Objective(
        likelihood.unlikelihood_loss, "unlikelihood", "Welleck et al. 2019", "1908.04319", "token-level loss"
    ),
    Objective(
        likelihood.rpo_reg_loss, "RPO, regularized", "Liu et al. 2024", "2405.16436", "authors' handbook code"
    ),
    Objective(
        likelihood.rpo_iter_loss,
        "iterative RPO, DPO + SFT",
        "Pang et al. 2024",
        "2404.19733",
        "TRL `rpo_alpha`",
    ),
    Objective(
        ablations.ratio_ablation_loss,
        "DPO, scaled reference",
        "Chen et al. 2024",
        "2405.19534",
        "eq. 4",
    ),
    Objective(ablations.ipo_nsr_loss, "IPO, no reference", "Chen et al. 2024", "2405.19534", "`ipo_nsr`"),
    Objective(
        ablations.ratio_unlikelihood_loss,
        "DPO, unlikelihood",
        "Chen et al. 2024",
        "2405.19534",
        "`unlikelihood`",
    ),
    Objective(
        ablations.unlikelihood_nsr_loss,
        "unlikelihood, no reference",
        "Chen et al. 2024",
        "2405.19534",
        "`no_sft_ratio_w_unlikelihood`",
    ),
)


def get(name: str) -> Objective:
    """The loss of that name; ValueError with the choices where there is none."""
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(sorted(LOSSES))}; got {name!r}")
    return LOSSES[name]


@dataclasses.dataclass(frozen=True, eq=False)
class _Bound:
    """A loss of the table with its hyperparameters."""

    objective: Objective
    values: dict[str, Any]

    @property
    def needs(self) -> tuple[str, ...]:
        return self.objective.needs

    @property
    def batchwise(self) -> bool:
        return self.objective.batchwise

    def __call__(self, policy: PairLogps | PairTokenLogps, batch: Any) -> Array:
        others = [_from_batch(self.objective, batch, need) for need in self.needs if need != "tokens"]
        return self.objective.function(_as_needed(self.objective, policy), *others, **self.values)


def bind(name: str, **values: Any) -> BoundLoss:
    """`loss_fn(policy, batch) -> [pairs]`, hyperparameters bound, which is what a train step takes.

    Args:
      name: key of `LOSSES`.
      **values: hyperparameters that differ from the defaults. Ranges are checked, but not those of
        traced values, so that a sweep can vmap over them.

    Returns:
      A function of the policy's log-probabilities (of tokens, where the loss needs them; else token
      log-probabilities are summed) and of a batch, which holds `reference` and `lengths` where needed.
    """
    objective = get(name)
    check_hyperparameters(objective, values)
    return _Bound(objective, values)


def check_hyperparameters(objective: Objective, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name not in objective.ranges:
            choices = ", ".join(sorted(objective.ranges)) or "nothing"
            raise ValueError(f"the loss {objective.key!r} takes {choices}; got {name}={value}")
        check(objective.key, name, value, objective.ranges[name])


def _from_batch(objective: Objective, batch: Any, need: str) -> Any:
    value = getattr(batch, need, None)
    if value is None:
        raise ValueError(
            f"the loss {objective.key!r} needs batch.{need}; this {type(batch).__name__} has none"
        )
    return value


def _as_needed(objective: Objective, policy: PairLogps | PairTokenLogps) -> PairLogps | PairTokenLogps:
    if "tokens" not in objective.needs:
        return policy.sum() if isinstance(policy, PairTokenLogps) else policy
    if not isinstance(policy, PairTokenLogps):
        raise ValueError(f"the loss {objective.key!r} needs PairTokenLogps; got {type(policy).__name__}")
    return policy


def rows() -> list[tuple[str, ...]]:
    """One row a loss: key, title, needs, default hyperparameters, paper, where."""
    return [_row(objective) for objective in LOSSES.values()]


def _row(objective: Objective) -> tuple[str, ...]:
    defaults = ", ".join(f"{name}={value:g}" for name, value in objective.hyperparameters.items())
    paper = f"{objective.paper}, arXiv:{objective.arxiv}" if objective.arxiv else objective.paper
    return (objective.key, objective.title, ", ".join(objective.needs), defaults, paper, objective.where)


HEADER = ("loss", "title", "needs", "defaults", "paper", "where")


def markdown_table() -> str:
    """The table of losses in Markdown, a line a loss."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def listing() -> str:
    """The table of losses in plain columns, for a terminal."""
    lines = [HEADER, *rows()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
