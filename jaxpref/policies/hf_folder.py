"""Hugging Face folders: `config.json` and safetensors, in one file or in shards. Never pickle."""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxpref.policies import families, safetensors_file
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import CheckpointError, Tensors
from jaxpref.policies.safetensors_file import Entry

INDEX = "model.safetensors.index.json"
NAMED = 3  # tensors or files that an error names; it counts the rest
EXTRAS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "initializer_range",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout",  # ours is none
)  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(folder: Path) -> TransformerConfig:
    """The decoder that `config.json` describes, refused where it is of a kind that we do not know."""
    path = folder / "config.json"
    values = _json_object(path)
    if (quantized := values.get("quantization_config")) is not None:
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise CheckpointError(f"{path}: quantization_config must be absent; got {reprlib.repr(kind)}")
    try:
        return families.config_of(values)
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error


def extras(folder: Path) -> dict[str, Any]:
    """What an export keeps of `config.json` beside the decoder: no key of it names code to run."""
    values = _json_object(folder / "config.json")
    return {key: values[key] for key in EXTRAS if values.get(key) is not None}


def tensors(folder: Path, config: TransformerConfig) -> Tensors:
    """Weights of all shards, read one at a time as float32."""
    entries = _entries(folder, families.weights_of(config).canonical)
    if config.tied:
        entries.pop(families.weights_of(config).head, None)  # some write the tied matrix twice
    shapes = {name: entry.shape for name, entry in entries.items()}
    return Tensors(shapes, lambda name: safetensors_file.read(entries[name]).astype(np.float32, copy=False))


def _entries(folder: Path, canonical: Callable[[str], str | None]) -> dict[str, Entry]:
    """Where every tensor lies, by the name that our tables have for it."""
    found: dict[str, Entry] = {}
    stored: dict[str, str] = {}
    for path in shards(folder):
        for name, entry in safetensors_file.entries(path).items():
            stored[name] = path.name
            if (known := canonical(name)) is None:
                continue
            if known in found:
                raise CheckpointError(f"{known} must be in one file; it is in {found[known].path.name} too")
            if entry.dtype not in safetensors_file.DTYPES:
                kinds = ", ".join(safetensors_file.DTYPES)
                raise CheckpointError(f"{known} must be stored as {kinds}; got {entry.dtype}")
            found[known] = entry
    _check_index(folder / INDEX, stored)
    return found


def _check_index(index: Path, stored: dict[str, str]) -> None:
    weight_map = _weight_map(index) if index.is_file() else {}
    wrong = [f"{name} in {file}" for name, file in weight_map.items() if stored.get(name) != file]
    if wrong:
        first = "; ".join(wrong[:NAMED])
        raise CheckpointError(f"{index} must name tensors of their files; got {first} ({len(wrong)} such)")


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that its index names, or the only one there is."""
    index = folder / INDEX
    names = sorted(set(_weight_map(index).values())) if index.is_file() else ["model.safetensors"]
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} must name safetensors files of its own folder; got {name!r}")
    if absent := [name for name in names if not (folder / name).is_file()]:
        first = ", ".join(absent[:NAMED])
        raise CheckpointError(f"{folder} must hold {first}{_instead(folder, len(absent))}")
    return [folder / name for name in names]


def _instead(folder: Path, absent: int) -> str:
    more = f" ({absent} files are absent)" if absent > NAMED else ""
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        return f"{more}; {pickles[0]} is pickle, which can run code, and is never loaded: convert it first"
    return f"{more}; weights in other formats are never loaded"


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} must hold a table weight_map; got {weight_map!r}")
    return {name: str(file) for name, file in weight_map.items()}


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} must hold {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value
