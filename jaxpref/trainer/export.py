"""The tuned model as others read it: a Hugging Face folder, or adapters in PEFT's format."""

import shutil
from pathlib import Path

from jaxtyping import PyTree

from jaxpref.policies import checkpoints, lora
from jaxpref.trainer.prepare import Prepared, lora_config


def write(prepared: Prepared, trained: PyTree, folder: Path) -> None:
    """`model/`, or `adapter/` where adapters were trained; `jaxpref export --adapter` merges them."""
    if not prepared.config.export:
        return
    if prepared.adapters is None:
        checkpoints.save(_cleared(folder / "model"), prepared.model, trained)
    else:
        settings, base = lora_config(prepared.config, prepared.model.params), prepared.config.model
        lora.save_peft(_cleared(folder / "adapter"), trained, settings, prepared.model.config, base)


def _cleared(folder: Path) -> Path:
    """Without what a run left that was killed while it exported, or between that and its end."""
    for left in (folder, *folder.parent.glob(f".{folder.name}.*")):
        shutil.rmtree(left, ignore_errors=True)
    return folder
