"""TRL's own loss code on prescribed log-probabilities: its methods, called on stand-ins for the models."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np


class Prescribed(NamedTuple):
    """What the two models say of each response token; rows are chosen, then rejected, [2 pairs, tokens]."""

    policy: np.ndarray  # nats, 0 where the mask is False
    reference: np.ndarray
    mask: np.ndarray
    log_sum_sq: np.ndarray  # of the policy, nats


class TrlResult(NamedTuple):
    loss: float
    grads: np.ndarray  # with respect to the policy's log-probabilities, [2 pairs, tokens]


def prescribe(num_pairs: int = 9, width: int = 11, spread: float = 3.0, seed: int = 0) -> Prescribed:
    """Ragged responses, and log-ratios of responses of about `spread` nats."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(1, width + 1, (2 * num_pairs, 1)) > np.arange(width)
    policy = -rng.exponential(1.5, mask.shape)
    ratio = rng.normal(0.0, spread, (2 * num_pairs, 1)) / mask.sum(-1, keepdims=True)
    log_sum_sq = -rng.exponential(1.0, mask.shape)
    inside = lambda x: np.where(mask, x, 0.0).astype(np.float32)
    return Prescribed(inside(policy), inside(policy - ratio), mask, inside(log_sum_sq))


def dpo(given: Prescribed, loss_types: list[str], *, loss_weights: list[float] | None = None, **values: Any):
    """`DPOTrainer._compute_loss`; `values` are fields of DPOConfig."""
    from trl.trainer.dpo_trainer import DPOTrainer

    defaults = dict(
        beta=0.1, label_smoothing=0.0, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5,
        use_weighting=False, ld_alpha=None,
    )  # fmt: skip
    policy = _Model(given.policy, given.log_sum_sq)
    trainer = _Trainer(
        policy, _Model(given.reference, given.log_sum_sq), loss_types=loss_types,
        loss_weights=loss_weights or [1.0] * len(loss_types), **(defaults | values),
    )  # fmt: skip
    trainer.args.discopop_tau = values.get("discopop_tau", 0.05)
    return policy.result(DPOTrainer._compute_loss(trainer, policy, _rows(given.mask), False))


def kto(given: Prescribed, loss_type: str, *, shift: float = 0.0, **values: Any) -> TrlResult:
    """`KTOTrainer._compute_loss`, mismatched rows having a mean log-ratio of `shift` nats."""
    import torch
    from trl.trainer.kto_trainer import KTOTrainer

    defaults = dict(beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    policy, reference = (_Model(x, given.log_sum_sq) for x in (given.policy, given.reference))
    trainer = _Trainer(
        policy, reference, loss_type=loss_type, calculate_KL=loss_type == "kto", **(defaults | values)
    )
    kl_logps = lambda model, batch: torch.full((4,), shift if model is policy else 0.0)
    trainer._compute_kl_logps = kl_logps
    pairs = len(given.mask) // 2
    batch = _rows(given.mask) | {"label": torch.arange(2 * pairs) < pairs}
    return policy.result(KTOTrainer._compute_loss(trainer, policy, batch, False))


def cpo(given: Prescribed, loss_type: str, *, cpo_alpha: float = 1.0, **values: Any) -> TrlResult:
    """`CPOTrainer.get_batch_loss_metrics`, the forward pass alone replaced."""
    from trl.experimental.cpo import CPOTrainer

    defaults = dict(beta=0.1, label_smoothing=0.0, simpo_gamma=0.5, alpha=0.0)
    policy = _Model(given.policy, given.log_sum_sq)
    trainer = _Trainer(policy, None, loss_type=loss_type, cpo_alpha=cpo_alpha, **(defaults | values))
    trainer.cpo_loss = lambda *logps: CPOTrainer.cpo_loss(trainer, *logps)
    logps = policy.responses(given.mask, mean=loss_type in ("ipo", "simpo"))
    nll = policy.chosen_nll(given.mask)
    trainer.concatenated_forward = lambda model, batch: (*logps, *policy.logits, nll)
    return policy.result(CPOTrainer.get_batch_loss_metrics(trainer, policy, {})[0])


def orpo(given: Prescribed, *, beta: float = 0.1) -> TrlResult:
    """`ORPOTrainer.get_batch_loss_metrics`, the forward pass alone replaced; the likelihood is left out."""
    from trl.experimental.orpo import ORPOTrainer

    policy = _Model(given.policy, given.log_sum_sq)
    trainer = _Trainer(policy, None, beta=beta)
    trainer.odds_ratio_loss = lambda *logps: ORPOTrainer.odds_ratio_loss(trainer, *logps)
    logps = policy.responses(given.mask, mean=True)
    trainer.concatenated_forward = lambda model, batch: (*logps, *policy.logits, policy.zero)
    return policy.result(ORPOTrainer.get_batch_loss_metrics(trainer, policy, {})[0])


class _Model:
    """Returns what it was given, as TRL's fused head would."""

    training = True
    is_gradient_checkpointing = False
    _modules = None  # accelerate looks there for compiled parts

    def __init__(self, log_probs: np.ndarray, log_sum_sq: np.ndarray):
        import torch

        self.log_probs = torch.tensor(log_probs, dtype=torch.float32, requires_grad=True)
        self.zero = torch.zeros(())
        self.logits = (torch.zeros(1), torch.zeros(1))
        rest = torch.zeros(log_probs.shape)
        self.output = SimpleNamespace(
            log_probs=self.log_probs, log_sum_sq_probs=torch.tensor(log_sum_sq), entropy=rest,
            mean_logits=rest, is_top1=rest.bool(),
        )  # fmt: skip

    def __call__(self, **kwargs: Any) -> SimpleNamespace:
        return self.output

    def responses(self, mask: np.ndarray, mean: bool):
        import torch

        counts = torch.tensor(mask.sum(-1) if mean else 1)
        return (self.log_probs.sum(-1) / counts).chunk(2)

    def chosen_nll(self, mask: np.ndarray):
        pairs = len(mask) // 2
        return -self.log_probs[:pairs].sum() / int(mask[:pairs].sum())

    def result(self, loss: Any) -> TrlResult:
        loss.backward()
        return TrlResult(float(loss.detach()), self.log_probs.grad.numpy())


class _Trainer(SimpleNamespace):
    """What the methods look up on themselves."""

    def __init__(self, model: _Model, ref_model: _Model | None, **values: Any):
        alone = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
        super().__init__(
            model=model, ref_model=ref_model, accelerator=alone, aux_loss_enabled=False,
            precompute_ref_logps=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
            _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **values,
        )  # fmt: skip


def _rows(mask: np.ndarray) -> dict[str, Any]:
    """One prompt token, then the responses."""
    import torch

    completion = torch.tensor(np.pad(mask, ((0, 0), (1, 0))).astype(np.int64))
    ones = torch.ones_like(completion)
    return {"input_ids": ones, "attention_mask": ones, "completion_mask": completion}
