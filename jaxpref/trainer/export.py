"""The tuned model as others read it: a Hugging Face folder, or adapters in PEFT's format."""

from pathlib import Path

from jaxtyping import PyTree

from jaxpref.policies import checkpoints, lora
from jaxpref.trainer.prepare import Prepared, lora_config


def write(prepared: Prepared, trained: PyTree, folder: Path) -> None:
    """`model/`, or `adapter/` where adapters were trained; `jaxpref export --adapter` merges them."""
    if not prepared.config.export:
        return
    if prepared.adapters is None:
        checkpoints.save(folder / "model", prepared.model, trained)
    else:
        settings, base = lora_config(prepared.config, prepared.model.params), prepared.config.model
        lora.save_peft(folder / "adapter", trained, settings, prepared.model.config, base)
