"""TRL's names for losses and hyperparameters, and the defaults that it gives them."""

from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "trl:"
TRL_BETA = 0.1  # the default of all its trainers; of the rewards that it logs for sft, too


class TrlLoss(NamedTuple):
    """One of TRL's losses in terms of the table's."""

    key: str  # in `LOSSES`
    fixed: Mapping[str, float]  # TRL's values, under our names, which a user may change
    names: Mapping[str, str]  # TRL's hyperparameters that the loss looks at, and ours
    prompt_nll: float = 0.0  # weight of the likelihood of whole chosen rows, which ORPO adds
    measured: bool = False  # rewards are measured from a reference that the loss does not look at


_SMOOTHED = {"beta": "beta", "label_smoothing": "eps"}


def _of_beta(key: str) -> TrlLoss:
    return TrlLoss(key, {"beta": TRL_BETA}, {"beta": "beta"})


def _of_tau(key: str) -> TrlLoss:
    return TrlLoss(key, {"tau": TRL_BETA}, {"beta": "tau"})


def _smoothed(key: str, eps: float = 0.0) -> TrlLoss:
    return TrlLoss(key, {"beta": TRL_BETA, "eps": eps}, _SMOOTHED)


_RESPONSE_WEIGHTS = {
    "beta": "beta", "desirable_weight": "desirable_weight", "undesirable_weight": "undesirable_weight"
}  # fmt: skip
_CPO = {"cpo_alpha": "lam", "alpha": "alpha"}


def _simpo(lam: float) -> TrlLoss:
    names = {**_SMOOTHED, **_CPO, "simpo_gamma": "gamma"}
    return TrlLoss("cpo_simpo", {"beta": TRL_BETA, "gamma": 0.5, "lam": lam}, names)


_CPO_SIGMOID = TrlLoss("cpo_sigmoid", {"beta": TRL_BETA, "lam": 1.0}, {**_SMOOTHED, **_CPO})

TRL_LOSSES: dict[str, TrlLoss] = {
    # DPOTrainer; label_smoothing is read by robust, exo_pair and the two aot, and by no other
    "sigmoid": _of_beta("dpo"),
    "hinge": _of_beta("dpo_hinge"),
    "ipo": _of_tau("ipo_mean"),
    "exo_pair": _smoothed("exo_pair", eps=1e-3),  # TRL's default of 0 is an error there
    "nca_pair": _of_beta("nca_pair"),
    "robust": _smoothed("rdpo"),
    "bco_pair": _of_beta("bco_pair"),
    "sppo_hard": _of_beta("sppo_hard"),
    "aot": _smoothed("aot"),
    "aot_unpaired": _smoothed("aot_unpaired"),
    "apo_zero": _of_beta("apo_zero"),
    "apo_down": _of_beta("apo_down"),
    "discopop": TrlLoss("discopop", {"beta": TRL_BETA, "tau": 0.05}, {"beta": "beta", "discopop_tau": "tau"}),
    "sft": TrlLoss("sft", {}, {}, measured=True),
    "sigmoid_norm": _of_beta("sigmoid_norm"),
    # KTOTrainer, on the two responses of each pair
    "kto": TrlLoss("kto_unpaired", {"beta": TRL_BETA}, _RESPONSE_WEIGHTS),
    "apo_zero_unpaired": TrlLoss("apo_zero_unpaired", {"beta": TRL_BETA}, _RESPONSE_WEIGHTS),
    # experimental CPOTrainer; its names that DPOTrainer has too get cpo_ in front
    "cpo": _CPO_SIGMOID,
    "cpo_sigmoid": _CPO_SIGMOID,
    "cpo_hinge": TrlLoss("cpo_hinge", {"beta": TRL_BETA, "lam": 1.0}, {"beta": "beta", **_CPO}),
    "cpo_ipo": TrlLoss("cpo_ipo", {"tau": TRL_BETA, "lam": 1.0}, {"beta": "tau", **_CPO}),
    "cpo_simpo": _simpo(lam=1.0),
    "simpo": _simpo(lam=0.0),  # as TRL says to set cpo_alpha for SimPO; its default makes it CPO-SimPO
    "alphapo": _simpo(lam=0.0),
    # experimental ORPOTrainer
    "orpo": TrlLoss("odds_ratio", {"beta": TRL_BETA}, {"beta": "beta"}, prompt_nll=1.0),
}


def find(name: str) -> TrlLoss | None:
    """What stands behind `trl:NAME`; None where `name` has no such prefix.

    Raises:
      ValueError: TRL has no loss of that name; the choices are named.
    """
    if not name.startswith(PREFIX):
        return None
    if (own := name.removeprefix(PREFIX)) not in TRL_LOSSES:
        choices = ", ".join(PREFIX + known for known in sorted(TRL_LOSSES))
        raise ValueError(f"loss with TRL's name must be one of {choices}; got {name!r}")
    return TRL_LOSSES[own]


def resolve(name: str) -> tuple[str, dict[str, float]]:
    """Our key of a loss, and the values that TRL gives its hyperparameters; our own names pass unchanged."""
    loss = find(name)
    return (name, {}) if loss is None else (loss.key, dict(loss.fixed))


def own_name(name: str, hyperparameter: str) -> str:
    """What the loss `name` calls TRL's `hyperparameter`; itself where it is no name of TRL's."""
    loss = find(name)
    return hyperparameter if loss is None else loss.names.get(hyperparameter, hyperparameter)
