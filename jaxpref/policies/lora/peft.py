"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, for every family.

PEFT adapts the modules that a file has, of which some fuse several of our layers (GPT-2's `c_attn`). Our
adapters of those are written as one of their summed rank whose second factor is block diagonal; one that is
read gives each of our layers the whole first factor and its part of the second. Both keep the function.
"""

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxpref import cache
from jaxpref.policies import families, safetensors_file
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import CheckpointError, Slot
from jaxpref.policies.families.keys import flag, positive, size, table
from jaxpref.policies.lora.adapters import LoraConfig, get, put
from jaxpref.policies.safetensors_file import Entry

WEIGHTS, CONFIG, ROOT = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
# What an adapter must not be more than; a key that is absent, null, false or empty has the first value.
PLAIN = {
    "bias": "none", "use_dora": False, "use_qalora": False, "lora_bias": False, "modules_to_save": None,
    "layer_replication": None, "trainable_token_indices": None, "target_parameters": None, "use_bdlora": None,
    "arrow_config": None, "kasa_config": None, "alora_invocation_tokens": None, "velora_config": None,
    "monteclora_config": None, "layers_to_transform": None,
}  # fmt: skip
STARTS = (True, False, "gaussian", "eva", "orthogonal", "lora_ga")  # others change the base weights as well


def modules(config: TransformerConfig) -> dict[str, Slot]:
    """The slots of the modules that can be adapted, by their names within a layer."""
    slots = families.weights_of(config).layer
    return {
        name.removesuffix(".weight"): slot for name, slot in slots.items() if slot.paths[0][-1] == "kernel"
    }


def save(folder: Path, adapters: PyTree, lora: LoraConfig, config: TransformerConfig, base_name: str) -> None:
    """Writes a folder, new or empty, that `peft.PeftModel.from_pretrained` reads, whole or not at all.

    Args:
      folder: new or empty.
      adapters: as `lora.init` makes them.
      lora: of these adapters.
      config: of the policy that they adapt.
      base_name: where others find the base: a repository's name or a folder.
    """
    found = {module: slot for module, slot in modules(config).items() if _adapted(adapters, slot)}
    tensors = dict(_tensors(adapters, config, found))
    values = _config_json(adapters, lora, config, found) | {"base_model_name_or_path": base_name}
    with cache.folder_written_whole(folder) as aside:
        shapes = {name: array.shape for name, array in tensors.items()}
        safetensors_file.write(aside, {WEIGHTS: shapes}, tensors.items(), "F32")
        (aside / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapted(adapters: PyTree, slot: Slot) -> list[int]:
    """Which of the layers that a slot fuses have an adapter."""
    return [i for i, path in enumerate(slot.paths) if _adapter(adapters, path) is not None]


def _adapter(adapters: PyTree, path: tuple[str, ...]) -> Any:
    try:
        return get(adapters["layers"], path[:-1])
    except KeyError:
        return None


def _tensors(
    adapters: PyTree, config: TransformerConfig, found: dict[str, Slot]
) -> Iterator[tuple[str, Any]]:
    weights = families.weights_of(config)
    for module, slot in found.items():
        kernels = [_adapter(adapters, path) for path in slot.paths]
        for layer in range(config.layers):
            name = ROOT + weights.layer_name(layer, module)
            ones = [one and {side: np.asarray(one[side][layer]) for side in "ab"} for one in kernels]
            first, second = _fused(slot, ones)
            yield f"{name}.lora_A.weight", np.ascontiguousarray(first.T)
            yield f"{name}.lora_B.weight", np.ascontiguousarray(second)


def _fused(slot: Slot, ones: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """First factor [inputs, rank] and second [outputs, rank] of the module that fuses these layers."""
    present = [one for one in ones if one]
    first = np.concatenate([one["a"] for one in present], axis=1)
    rank, start, blocks = first.shape[1], 0, []
    for one, outputs in zip(ones, _outputs(slot), strict=True):
        block = np.zeros((rank, outputs), np.float32)
        if one:
            block[start : start + len(one["b"])] = one["b"]
            start += len(one["b"])
        blocks.append(block)
    return first, _stored(slot, blocks)


def _stored(slot: Slot, leaves: list[np.ndarray]) -> np.ndarray:
    """Kernels [rank, outputs] as the file has them, but always [outputs, rank] as `lora_B` is."""
    joined = slot.layout.join(leaves)
    return joined.T if _inputs_first(slot) else joined


def _inputs_first(slot: Slot) -> bool:
    """Whether the module is a Conv1D, which stores [inputs, outputs]."""
    return not _probe(slot)[0][0, 1]


def _outputs(slot: Slot) -> list[int]:
    return [leaf.shape[1] for leaf in _probe(slot)]


def _probe(slot: Slot) -> Sequence[np.ndarray]:
    """The kernels of a stored tensor that is False in its first row alone."""
    return slot.layout.split(np.broadcast_to(np.arange(slot.shape[0])[:, None] > 0, slot.shape))


def _config_json(
    adapters: PyTree, lora: LoraConfig, config: TransformerConfig, found: dict[str, Slot]
) -> dict[str, Any]:
    """As PEFT writes it; fused modules have a rank of their own, and the alpha that keeps the scale."""
    ranks = {module: lora.rank * len(_adapted(adapters, slot)) for module, slot in found.items()}
    other = {module: rank for module, rank in ranks.items() if rank != lora.rank}
    alpha = {
        module: lora.scale * (math.sqrt(rank) if lora.rslora else rank) for module, rank in other.items()
    }
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": lora.rank, "lora_alpha": _whole(lora.alpha),
        "target_modules": [_short(module, config) for module in found], "use_rslora": lora.rslora,
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "init_lora_weights": True,
        "fan_in_fan_out": all(_inputs_first(slot) for slot in found.values()), "modules_to_save": None,
        "rank_pattern": other, "alpha_pattern": alpha,
    }  # fmt: skip


def _whole(alpha: float) -> int | float:
    return int(alpha) if alpha.is_integer() else alpha


def _short(module: str, config: TransformerConfig) -> str:
    """The last part of a module's name where no other module of the layer ends so."""
    ends = Counter(name.rsplit(".", 1)[-1] for name in modules(config))
    return end if ends[end := module.rsplit(".", 1)[-1]] == 1 else module


def load(folder: Path, config: TransformerConfig) -> tuple[PyTree, LoraConfig]:
    """The adapters, float32, of a policy of this config, and what they are.

    Ranks that differ are filled up with zeros to the largest; alphas that differ go into `b`.

    Raises:
      CheckpointError: names the key or the tensors that are not those of a plain LoRA of this policy.
    """
    try:
        values = _read_config(folder)
        tensors = safetensors_file.entries(_existing(folder / WEIGHTS))
        sites = _sites(tensors, values, config)
        lora = _lora_config(values, sites)
        return _adapters(tensors, sites, lora, config), lora
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error


class Site(NamedTuple):
    """One adapted module of one layer."""

    name: str  # of its tensors, up to `lora_A`
    layer: int
    slot: Slot
    rank: int
    scale: float


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"an adapter's folder must hold {path.name}; other formats are never loaded")
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads(_existing(folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG} is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else values
        raise CheckpointError(f"peft_type of {CONFIG} must be LORA; got {reprlib.repr(kind)}")
    for key, plain in PLAIN.items():
        if (value := values.get(key) or plain) != plain:
            raise CheckpointError(f"{key} of {CONFIG} must be {plain}; got {reprlib.repr(value)}")
    if (start := values.get("init_lora_weights", True)) not in STARTS:
        raise CheckpointError(f"init_lora_weights must leave the base as it is; got {reprlib.repr(start)}")
    return values


def _sites(tensors: Mapping[str, Entry], values: dict[str, Any], config: TransformerConfig) -> list[Site]:
    """Every adapted module of every layer; their tensors are all there, and have the shapes they must."""
    sites, weights = [], families.weights_of(config)
    for module, slot in modules(config).items():
        names = [ROOT + weights.layer_name(layer, module) for layer in range(config.layers)]
        if any(f"{name}.lora_{side}.weight" in tensors for name in names for side in "AB"):
            sites += [_site(name, layer, slot, values) for layer, name in enumerate(names)]
    expected = {name: shape for site in sites for name, shape in _shapes(site).items()}
    families.compare_shapes({name: entry.shape for name, entry in tensors.items()}, expected, "adapter")
    if not sites:
        raise CheckpointError(f"{WEIGHTS} must adapt at least one of {', '.join(modules(config))}")
    return sites


def _site(name: str, layer: int, slot: Slot, values: dict[str, Any]) -> Site:
    rank = size(*_entry(values, "r", "rank_pattern", name))
    alpha = positive(*_entry(values, "lora_alpha", "alpha_pattern", name))
    return Site(name, layer, slot, rank, alpha / (math.sqrt(rank) if _rslora(values) else rank))


def _rslora(values: dict[str, Any]) -> bool:
    return flag(values, "use_rslora", False)


def _entry(values: dict[str, Any], key: str, patterns: str, name: str) -> tuple[dict[str, Any], str]:
    """Table and key of a module's value: the first pattern that ends its name, else the value for all."""
    for pattern in table(values, patterns):
        if not re.fullmatch(r"[\w.]+", pattern):  # PEFT takes expressions; a file from outside brings none
            raise CheckpointError(f"{patterns} must have plain names of modules; got {reprlib.repr(pattern)}")
        if f".{name}".endswith(f".{pattern}"):
            return table(values, patterns), pattern
    return values, key


def _shapes(site: Site) -> dict[str, tuple[int, ...]]:
    inputs, outputs = site.slot.shape if _inputs_first(site.slot) else site.slot.shape[::-1]
    first, second = (f"{site.name}.lora_{side}.weight" for side in "AB")
    return {first: (site.rank, inputs), second: (outputs, site.rank)}


def _lora_config(values: dict[str, Any], sites: list[Site]) -> LoraConfig:
    """The largest rank, with the alpha that gives the file's scale."""
    rslora, rank = _rslora(values), max(site.rank for site in sites)
    alpha, given = positive(values, "lora_alpha"), size(values, "r")
    alpha *= 1 if rank == given else math.sqrt(rank / given) if rslora else rank / given
    targets = dict.fromkeys(path[-2] for site in sites for path in site.slot.paths)
    return LoraConfig(rank=rank, alpha=alpha, targets=tuple(targets), rslora=rslora)


def _adapters(
    tensors: Mapping[str, Entry], sites: list[Site], lora: LoraConfig, config: TransformerConfig
) -> PyTree:
    adapters: dict[str, Any] = {"layers": {}}
    for site in sites:
        first, second = (_finite(tensors, f"{site.name}.lora_{side}.weight") for side in "AB")
        stored = second.T if _inputs_first(site.slot) else second
        for path, block in zip(site.slot.paths, site.slot.layout.split(stored), strict=True):
            one = _stacked(adapters["layers"], path[:-1], (config.layers, len(first.T), block.shape[1]), lora)
            one["a"][site.layer, :, : site.rank] = first.T
            one["b"][site.layer, : site.rank] = block * np.float32(site.scale / lora.scale)
    return jax.tree.map(jnp.asarray, adapters)


def _stacked(tree: dict[str, Any], path: tuple[str, ...], sizes: tuple[int, ...], lora: LoraConfig):
    """The arrays of one of our layers, zero until filled."""
    try:
        return get(tree, path)
    except KeyError:
        layers, inputs, outputs = sizes
        shapes = {"a": (layers, inputs, lora.rank), "b": (layers, lora.rank, outputs)}
        put(tree, path, {side: np.zeros(shape, np.float32) for side, shape in shapes.items()})
        return get(tree, path)


def _finite(tensors: Mapping[str, Entry], name: str) -> np.ndarray:
    array = safetensors_file.read(tensors[name]).astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"tensor {name} must be finite; it holds nan or infinity")
    return array
