"""A Hugging Face folder that transformers loads, whole or not at all: config, weights, tokenizer."""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from jaxtyping import PyTree
from tokenizers import processors

from jaxpref import cache
from jaxpref.data.tokenizer import Tokenizer
from jaxpref.policies import families, safetensors_file
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.lora.adapters import dense_layers, get

STORED = {"float32": "F32", "bfloat16": "BF16"}
UNITS = {"": 1} | {f"{u}B": 1000**i for i, u in enumerate(("", "K", "M", "G", "T"))}
UNITS |= {f"{u}IB": 1024**i for i, u in enumerate(("K", "M", "G", "T"), 1)}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def save(
    folder: Path,
    params: PyTree,
    config: TransformerConfig,
    *,
    dtype: str = "float32",
    max_shard_size: str | int = "5GB",
    tokenizer: Path | Tokenizer | None = None,
    extras: Mapping[str, Any] = {},
) -> None:
    """Writes the folder, tensor by tensor.

    Args:
      folder: new or empty.
      params: the policy's parameters; adapters merged.
      config: of these parameters.
      dtype: `float32` or `bfloat16`, rounded to nearest.
      max_shard_size: bytes of the largest file, a number or a text as `2GB`.
      tokenizer: a folder whose tokenizer files are copied, or a tokenizer to write out.
      extras: keys of `config.json` that say nothing about the decoder, such as `eos_token_id`.

    Raises:
      ValueError: an argument is out of range, the folder holds something, or a tensor is not finite, named.
      OSError: the disk is full; says how much was needed. Nothing is left behind.
    """
    if dtype not in STORED:
        raise ValueError(f"dtype must be one of {', '.join(STORED)}; got {dtype!r}")
    if attached := [path for path in dense_layers(params) if "lora_a" in get(params, path)]:
        raise ValueError(f"params must have their adapters merged; {'/'.join(attached[0])} has one beside it")
    with cache.folder_written_whole(folder) as aside:
        _write_weights(aside, params, config, STORED[dtype], parse_size(max_shard_size))
        _write_tokenizer(aside, tokenizer)
        values = {**extras, **families.config_json(config), "torch_dtype": dtype}
        _write_json(aside / "config.json", values)


def parse_size(size: str | int) -> int:
    """Bytes, from a number of them or from a text as `2GB` (powers of 1000) or `2GiB` (of 1024)."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)", str(size).strip())
    unit = UNITS.get(match[2].upper()) if match else None
    count = int(float(match[1]) * unit) if match and unit else 0
    if count < 1:
        raise ValueError(f"max_shard_size must be a number of bytes above 0, as 500MB or 2GiB; got {size!r}")
    return count


def _write_weights(folder: Path, params: PyTree, config: TransformerConfig, dtype: str, most: int) -> None:
    shapes = families.expected_shapes(config)
    size = safetensors_file.DTYPES[dtype].itemsize
    shards = _shards(shapes, most // size)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = {"model.safetensors": shapes} if len(shards) == 1 else dict(zip(names, shards, strict=True))
    safetensors_file.write(folder, files, families.from_params(params, config), dtype)
    if len(shards) > 1:
        values = sum(map(math.prod, shapes.values()))
        weight_map = {name: file for file, shard in files.items() for name in shard}
        metadata = {"total_parameters": values, "total_size": values * size}
        _write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _shards(shapes: dict[str, tuple[int, ...]], most: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors in their order, a new file when the next one would make it larger than `most` values."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = most
    for name, shape in shapes.items():
        if shards[-1] and math.prod(shape) > room:
            shards.append({})
            room = most
        shards[-1][name] = shape
        room -= math.prod(shape)
    return shards


def _write_tokenizer(folder: Path, tokenizer: Path | Tokenizer | None) -> None:
    if isinstance(tokenizer, Tokenizer):
        _with_bos(tokenizer).save(str(folder / "tokenizer.json"))
        _write_json(folder / "tokenizer_config.json", _settings(tokenizer))
    elif tokenizer is not None:
        for file in filter(Path.is_file, (tokenizer / name for name in TOKENIZER_FILES)):
            shutil.copyfile(file, folder / file.name)


def _with_bos(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer for those who let it add special tokens; a GGUF file says so by a flag beside it."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    if tokenizer.add_bos and tokenizer.bos is not None and backend.encode("a").ids[:1] != [tokenizer.bos]:
        bos = tokenizer.token(tokenizer.bos)
        template = {"single": [bos, "$A"], "pair": [bos, "$A", bos, "$B"]}
        backend.post_processor = processors.TemplateProcessing(
            **template, special_tokens=[(bos, tokenizer.bos)]
        )
    return backend


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    special = {"bos_token": tokenizer.token(tokenizer.bos), "eos_token": tokenizer.token(tokenizer.eos)}
    optional = special | {"chat_template": tokenizer.chat_template}
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return fixed | {name: value for name, value in optional.items() if value}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
