"""TRL's own trainers on a tiny Llama, step by step: what `jaxpref train` is compared with.

    python tests/helpers/trl_runs.py --out FOLDER [--only NAME ...]

writes the model, another one to serve as the reference, the pairs, and for each case a NAME.json with what
was asked for and the list of dicts that TRL logged. Needs torch, transformers and trl; no JAX.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, STEPS = 97, 10
MAX_LENGTH = 19  # except for KTO: see `Case.max_length`
PAD, EOS = "<pad>", "</s>"
LEARNING_RATE = 1e-3
# prompt, chosen, rejected tokens before the end token; the fifth chosen and sixth rejected row are cut
LENGTHS = ((5, 3, 7), (2, 6, 1), (7, 4, 4), (1, 1, 2), (9, 14, 3), (4, 2, 17), (3, 8, 5))


@dataclasses.dataclass(frozen=True)
class Case:
    """A run of one of TRL's trainers, and the same in words of `jaxpref train`."""

    trainer: str  # DPO, KTO, CPO or ORPO
    trl: Mapping[str, Any]  # fields of the trainer's config
    ours: Mapping[str, Any]  # fields of jaxpref's train config
    other_reference: bool = False  # rather than the model before the first step

    @property
    def max_length(self) -> int:
        """KTO puts responses behind other prompts: TRL as they were, jaxpref as cut for their own."""
        return 32 if self.trainer == "KTO" else MAX_LENGTH


def _dpo(loss: str, *args: str, trl: Mapping[str, Any] | None = None, **ours: Any) -> Case:
    """One of DPOTrainer's losses; what is said with `loss_args` is said to TRL under the same names."""
    values = {name: float(value) for name, value in (text.split("=") for text in args)}
    fields = {"loss": (f"trl:{loss}",), "loss_args": args, **ours}
    return Case("DPO", {"loss_type": [loss], **values, **(trl or {})}, fields)


def _modified(loss: str, trl: Mapping[str, Any], **ours: Any) -> Case:
    return dataclasses.replace(_dpo(loss, trl=trl, **ours), other_reference=True)


def _of(trainer: str, loss: str, name: str, *args: str) -> Case:
    """A loss of another trainer, which goes by `name` here."""
    values = {key: float(value) for key, value in (text.split("=") for text in args)}
    kind = {} if trainer == "ORPO" else {"loss_type": loss}
    return Case(trainer, {**kind, **values}, {"loss": (f"trl:{name}",), "loss_args": args})


_PLAIN = "sigmoid hinge ipo nca_pair bco_pair sppo_hard apo_zero apo_down discopop sft sigmoid_norm".split()
CASES: dict[str, Case] = {
    **{loss: _dpo(loss) for loss in (*_PLAIN, "aot", "aot_unpaired")},
    "exo_pair": _dpo("exo_pair", "label_smoothing=0.01"),
    "robust": _dpo("robust", "label_smoothing=0.1"),
    "aot_smoothed": dataclasses.replace(_dpo("aot", "label_smoothing=0.2"), other_reference=True),
    "aot_unpaired_smoothed": dataclasses.replace(
        _dpo("aot_unpaired", "label_smoothing=0.2"), other_reference=True
    ),
    "sigmoid_beta": _dpo("sigmoid", trl={"beta": 0.7}, beta=0.7),
    "ipo_beta": _dpo("ipo", trl={"beta": 0.7}, beta=0.7),
    "other_reference": _modified("sigmoid", {}),
    "forward_kl": _modified("sigmoid", {"f_divergence_type": "forward_kl"}, divergence="forward_kl"),
    "js_divergence": _modified("ipo", {"f_divergence_type": "js_divergence"}, divergence="js_divergence"),
    "alpha_divergence": _modified(
        "sigmoid_norm",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        divergence="alpha_divergence",
        divergence_alpha=0.3,
    ),
    "wpo": _modified("sigmoid", {"use_weighting": True}, wpo=True),
    "ld_dpo": _modified("sigmoid", {"ld_alpha": 0.3}, ld_alpha=0.3),
    "ld_ipo": _modified("ipo", {"ld_alpha": 0.0}, ld_alpha=0.0),
    "mpo": Case(
        "DPO",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss": ("trl:sigmoid", "trl:bco_pair", "trl:sft"), "loss_weights": (0.8, 0.2, 1.0)},
    ),
    "js_and_sft": Case(
        "DPO",
        {"loss_type": ["sigmoid", "sft"], "f_divergence_type": "js_divergence", "ld_alpha": 0.5},
        {"loss": ("trl:sigmoid", "trl:sft"), "divergence": "js_divergence", "ld_alpha": 0.5},
        other_reference=True,
    ),
    "kto": _of("KTO", "kto", "kto"),
    "kto_weights": dataclasses.replace(
        _of("KTO", "kto", "kto", "desirable_weight=1.3", "undesirable_weight=0.7"), other_reference=True
    ),
    "apo_zero_unpaired": _of("KTO", "apo_zero_unpaired", "apo_zero_unpaired"),
    "cpo": _of("CPO", "sigmoid", "cpo", "label_smoothing=0.1"),
    "cpo_hinge": _of("CPO", "hinge", "cpo_hinge", "cpo_alpha=0.5"),
    "cpo_ipo": _of("CPO", "ipo", "cpo_ipo"),
    "cpo_simpo": _of("CPO", "simpo", "cpo_simpo", "simpo_gamma=0.3"),
    "simpo": _of("CPO", "simpo", "simpo", "cpo_alpha=0", "beta=2.0"),
    "alphapo": _of("CPO", "alphapo", "alphapo", "alpha=0.25", "beta=2.5", "simpo_gamma=0.1"),
    "orpo": _of("ORPO", "orpo", "orpo", "beta=0.3"),
}


def pairs(seed: int = 0) -> list[dict[str, list[int]]]:
    """Tokenised pairs, responses ended, in TRL's format."""
    rng = np.random.default_rng(seed)
    words = lambda n: rng.integers(2, VOCAB, n).tolist()
    return [
        {"prompt_ids": words(p), "chosen_ids": [*words(w), 1], "rejected_ids": [*words(l), 1]}
        for p, w, l in LENGTHS
    ]


def _text(ids: list[int]) -> str:
    return "".join(EOS if i == 1 else f" w{i}" for i in ids)


def make_tokenizer():
    """A word a token; nothing merges, and nothing stands before the prompt."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {PAD: 0, EOS: 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=PAD))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=PAD)


def make_model(seed: int):
    """A Llama of two layers with odd sizes, float32, weights from NumPy."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=53, num_attention_heads=4, num_key_value_heads=2)
    config = LlamaConfig(
        vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=64, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.float32)
    rng = np.random.default_rng(seed)
    for _, weight in sorted(model.named_parameters()):
        scale, offset = (0.1, 1.0) if weight.ndim == 1 else (0.15, 0.0)
        weight.data = torch.tensor(offset + scale * rng.normal(size=weight.shape), dtype=torch.float32)
    return model


def write_inputs(folder: Path) -> None:
    """`model`, `reference` and `pairs.jsonl`, as `jaxpref train` reads them."""
    for name, seed in (("model", 1), ("reference", 2)):
        make_model(seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    lines = [json.dumps(row) + "\n" for row in pairs()]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")


def trl_history(case: Case, *, steps: int = STEPS, **more: Any) -> list[dict[str, float]]:
    """What TRL logs of `steps` steps over all pairs in one batch, a dict a step.

    AdamW, linear schedule without warm-up, clipping at 1: the defaults of transformers.
    """
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TQDM_DISABLE="1")
    import datasets

    datasets.disable_progress_bars()
    trainer_class, config_class = _classes(case.trainer)
    rows = 2 * len(LENGTHS) if case.trainer == "KTO" else len(LENGTHS)
    with tempfile.TemporaryDirectory() as folder:
        common = dict(
            output_dir=folder, per_device_train_batch_size=rows, max_steps=steps, logging_steps=1,
            learning_rate=LEARNING_RATE, max_length=case.max_length, bf16=False, gradient_checkpointing=False,
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        args = config_class(**(common | dict(case.trl) | more))
        texts = [{name[:-4]: _text(ids) for name, ids in row.items()} for row in pairs()]
        has_reference = case.trainer in ("DPO", "KTO")
        reference = {"ref_model": make_model(2 if case.other_reference else 1)} if has_reference else {}
        trainer = trainer_class(
            model=make_model(1), args=args, train_dataset=datasets.Dataset.from_list(texts),
            processing_class=make_tokenizer(), **reference,
        )  # fmt: skip
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _classes(trainer: str):
    if trainer == "CPO":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig
    if trainer == "ORPO":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    import trl

    return getattr(trl, f"{trainer}Trainer"), getattr(trl, f"{trainer}Config")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_inputs(args.out)
    for name in args.only:
        history = trl_history(CASES[name], steps=args.steps)
        record = {**dataclasses.asdict(CASES[name]), "history": history}
        (args.out / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        print(name, [round(entry["loss"], 4) for entry in history], flush=True)


if __name__ == "__main__":
    main()
