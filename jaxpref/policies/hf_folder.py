"""Hugging Face folders: `config.json` and safetensors, in one file or in shards. Never pickle."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.flax

from jaxpref import cache
from jaxpref.policies import llama
from jaxpref.policies.llama import CheckpointError, Tensors, from_params
from jaxpref.policies.transformer import TransformerConfig

DTYPES = ("F32", "F16", "BF16")
# What must hold for `transformer` to be the model; a key that is absent has the first value.
REQUIRED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "rope_scaling": (None,),
}


def read_config(folder: Path) -> TransformerConfig:
    """The sizes that `config.json` gives, refused where they describe more than a plain Llama."""
    values = _json_object(folder / "config.json")
    if (kind := values.get("model_type")) != "llama":
        raise CheckpointError(f"model_type of {folder / 'config.json'} must be llama; got {kind!r}")
    for key, allowed in REQUIRED.items():
        if values.get(key, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{key} of {folder / 'config.json'} must be {allowed[0]}; got {values[key]!r}"
            )
    try:
        return config_of(values)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a Llama config: {error}") from error


def config_of(values: dict[str, Any]) -> TransformerConfig:
    """Sizes from the keys of `config.json`."""
    size = functools.partial(llama.size, values)
    heads, dim = size("num_attention_heads"), size("hidden_size")
    return TransformerConfig(
        vocab=size("vocab_size"),
        dim=dim,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", dim // heads),
        mlp_dim=size("intermediate_size"),
        rope_theta=_rope_theta(values),
        norm_eps=llama.positive(values, "rms_norm_eps", 1e-6),
        tied=_tied(values),
    )


def _tied(values: dict[str, Any]) -> bool:
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CheckpointError(f"tie_word_embeddings must be true or false; got {tied!r}")
    return tied


def _rope_theta(values: dict[str, Any]) -> float:
    """Older configs have `rope_theta`, those of transformers 5 a table `rope_parameters`."""
    table = values.get("rope_parameters") or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"rope_parameters must be a table; got {table!r}")
    if (kind := table.get("rope_type", "default")) != "default":
        raise CheckpointError(f"rope_type must be default; got {kind!r}")
    return llama.positive(values | table, "rope_theta", 10_000.0)


def tensors(folder: Path, config: TransformerConfig) -> Tensors:
    """Weights of all shards, read one at a time as float32."""
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, Path] = {}
    for path in shards(folder):
        with _open(path) as file:
            for name in file.keys():
                if name in where:
                    raise CheckpointError(f"{name} must be in one file; it is in {where[name].name} too")
                shapes[name], where[name] = _shape(file, name), path
    if config.tied:
        shapes.pop("lm_head.weight", None)  # some write the tied matrix twice

    def read(name: str) -> np.ndarray:
        with _open(where[name]) as file:
            return np.asarray(file.get_tensor(name), np.float32)

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


def config_json(c: TransformerConfig) -> dict[str, Any]:
    """The `config.json` with which transformers reads this model."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab,
        "hidden_size": c.dim, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "intermediate_size": c.mlp_dim,
        "rope_theta": c.rope_theta, "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def save(folder: Path, params: Any, config: TransformerConfig) -> None:
    """Writes `config.json` and `model.safetensors`, each whole or not at all."""
    from safetensors.numpy import save_file

    with cache.written_whole(folder / "model.safetensors") as aside:
        save_file(dict(from_params(params, config)), aside, metadata={"format": "pt"})
    with cache.written_whole(folder / "config.json") as aside:
        aside.write_text(json.dumps(config_json(config), indent=2) + "\n", encoding="utf-8")
