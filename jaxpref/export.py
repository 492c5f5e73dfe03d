"""The command that writes a model, merged with an adapter if one is named, as a Hugging Face folder.

    jaxpref export --model smollm2-135m --out DIR [--dtype bfloat16] [--max-shard-size 2GB] [--adapter DIR]

A GGUF file becomes a folder in the same way, its tokenizer rebuilt from the metadata.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxpref import fetch
from jaxpref.policies import checkpoints, hf_writer, lora


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Write a model, an adapter merged into it if one is named, as a Hugging Face folder."""

    model: str = "smollm2-135m"
    """A name that `jaxpref fetch` knows, a GGUF file, or a Hugging Face folder."""
    out: Path
    """The folder to write; must be new or empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the weights are stored."""
    max_shard_size: str = "5GB"
    """Largest file, as 2GB or 500MiB; a tensor that is larger has a file of its own."""
    adapter: Path | None = None
    """A LoRA adapter's folder in PEFT's format."""


def run(config: Config) -> Path:
    """Loads the model, merges the adapter, writes the folder and returns it.

    Raises:
      ValueError: the model, the adapter or the folder is not what it must be, named.
      OSError: the disk is full.
    """
    most = hf_writer.parse_size(config.max_shard_size)  # before the work begins
    model = checkpoints.load(fetch.resolve(config.model))
    params = model.params
    if config.adapter is not None:
        params = lora.merge(params, *lora.load_peft(config.adapter, model.config))
    checkpoints.save(config.out, model, params, dtype=config.dtype, max_shard_size=most)
    return config.out
