"""Hugging Face folders: `config.json` and safetensors, in one file or in shards. Never pickle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.flax

from jaxpref import cache
from jaxpref.policies import families
from jaxpref.policies.families import CheckpointError, Tensors, from_params
from jaxpref.policies.transformer import TransformerConfig

DTYPES = ("F32", "F16", "BF16")


def read_config(folder: Path) -> TransformerConfig:
    """The decoder that `config.json` describes, refused where it is of a kind that we do not know."""
    path = folder / "config.json"
    try:
        return families.config_of(_json_object(path))
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from error


def tensors(folder: Path, config: TransformerConfig) -> Tensors:
    """Weights of all shards, read one at a time as float32."""
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, tuple[Path, str]] = {}
    canonical = families.weights_of(config).canonical
    for path in shards(folder):
        with _open(path) as file:
            for stored in file.keys():
                if (name := canonical(stored)) is None:
                    continue
                if name in where:
                    raise CheckpointError(f"{name} must be in one file; it is in {where[name][0].name} too")
                shapes[name], where[name] = _shape(file, stored), (path, stored)
    if config.tied:
        shapes.pop(families.weights_of(config).head, None)  # some write the tied matrix twice

    def read(name: str) -> np.ndarray:
        path, stored = where[name]
        with _open(path) as file:
            return np.asarray(file.get_tensor(stored), np.float32)

    return Tensors(shapes, read)


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that its index names, or the only one there is."""
    index = folder / "model.safetensors.index.json"
    names = _indexed(index) if index.is_file() else ["model.safetensors"]
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} must name safetensors files of its own folder; got {name!r}")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} must hold {name}; weights in other formats are never loaded")
    return [folder / name for name in names]


def _indexed(index: Path) -> list[str]:
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} must hold a table weight_map; got {weight_map!r}")
    return sorted({str(name) for name in weight_map.values()})


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="flax")  # NumPy alone has no bfloat16
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error


def _shape(file: Any, name: str) -> tuple[int, ...]:
    view = file.get_slice(name)
    if view.get_dtype() not in DTYPES:
        raise CheckpointError(f"{name} must be stored as {', '.join(DTYPES)}; got {view.get_dtype()}")
    return tuple(view.get_shape())


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


def save(folder: Path, params: Any, config: TransformerConfig) -> None:
    """Writes `config.json` and `model.safetensors`, each whole or not at all."""
    from safetensors.numpy import save_file

    with cache.written_whole(folder / "model.safetensors") as aside:
        save_file(dict(from_params(params, config)), aside, metadata={"format": "pt"})
    with cache.written_whole(folder / "config.json") as aside:
        aside.write_text(json.dumps(families.config_json(config), indent=2) + "\n", encoding="utf-8")
