"""GGUF, llama.cpp's single-file format: metadata, quantized tensors, and the tokenizer among the metadata."""

import functools
import reprlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxpref.policies.families import CheckpointError, Tensors, keys
from jaxpref.policies.transformer import TransformerConfig

MOST_VALUES = 2**22  # of an array in the metadata; the largest vocabularies have a sixteenth of it
QUANTIZATIONS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class _Reader(gguf.GGUFReader):
    """The reader trusts the lengths that the file states: past the end it goes on reading nothing."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        values = super()._get(offset, dtype, count, override_order)
        if len(values) != int(count):
            raise ValueError(f"byte {offset} and what follows it are missing")
        return values

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        if raw_type == gguf.GGUFValueType.ARRAY:
            length = int(self._get(orig_offs + 4, np.uint64)[0])  # behind the type of its values
            if length > MOST_VALUES:
                raise ValueError(f"an array must have at most {MOST_VALUES} values; got {length}")
        return super()._get_field_parts(orig_offs, raw_type)


def open_file(path: Path) -> gguf.GGUFReader:
    """Header, metadata and tensor table; the tensors stay on disk. Raises `CheckpointError`."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file: it must begin with b'GGUF'; got {magic!r}")
    try:
        return _Reader(path)
    except Exception as error:  # the reader trusts the header; a damaged one fails wherever it fails
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Every key of the header with its value as Python data."""
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # as in `open_file`
        raise CheckpointError(f"the GGUF metadata is damaged: {error}") from error


def config_of(values: dict[str, Any], reader: gguf.GGUFReader) -> TransformerConfig:
    """Sizes from the `llama.*` keys; embeddings are tied where the file has no `output.weight`."""
    if (architecture := values.get("general.architecture")) != "llama":
        raise CheckpointError(f"general.architecture must be llama; got {architecture!r}")
    size, positive = functools.partial(keys.size, values), functools.partial(keys.positive, values)
    heads, dim = size("llama.attention.head_count"), size("llama.embedding_length")
    head_dim = size("llama.attention.key_length", dim // heads)
    _check_rope(values, head_dim)
    return TransformerConfig(
        vocab=_vocab(values),
        dim=dim,
        layers=size("llama.block_count"),
        heads=heads,
        kv_heads=size("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_dim=size("llama.feed_forward_length"),
        rope_theta=positive("llama.rope.freq_base", 10_000.0),
        norm_eps=positive("llama.attention.layer_norm_rms_epsilon"),
        tied=all(tensor.name != "output.weight" for tensor in reader.tensors),
    )


def _vocab(values: dict[str, Any]) -> int:
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise CheckpointError(f"tokenizer.ggml.tokens must be a list; got {reprlib.repr(tokens)}")
    return len(tokens)


def _check_rope(values: dict[str, Any], head_dim: int) -> None:
    scaling = values.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise CheckpointError(f"llama.rope.scaling.type must be none; got {scaling!r}")
    turned = values.get("llama.rope.dimension_count", head_dim)
    if turned != head_dim:
        raise CheckpointError(f"llama.rope.dimension_count must be the head's {head_dim}; got {turned}")


def extras(values: dict[str, Any]) -> dict[str, Any]:
    """What a Hugging Face config says beside the decoder, as `hf_folder.extras` has it."""
    architecture = values.get("general.architecture")
    keys = {
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "max_position_embeddings": f"{architecture}.context_length",
    }
    return {name: values[key] for name, key in keys.items() if type(values.get(key)) is int}


def tensors(reader: gguf.GGUFReader, config: TransformerConfig) -> Tensors:
    """Dequantized weights under their Hugging Face names, with q and k in half-split RoPE order."""
    found = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
    for tensor in found.values():
        if tensor.tensor_type.name not in QUANTIZATIONS:
            kinds = ", ".join(QUANTIZATIONS)
            raise CheckpointError(f"{tensor.name} must be stored as {kinds}; got {tensor.tensor_type.name}")
    shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in found.items()}
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}

    def read(name: str) -> np.ndarray:
        weight = _dequantize(found[name]).reshape(shapes[name])
        projection = name.split(".")[-2]
        return _half_split(weight, heads[projection]) if projection in heads else weight

    return Tensors(shapes, read)


def _dequantize(tensor: gguf.ReaderTensor) -> np.ndarray:
    try:
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{tensor.name} cannot be dequantized: {error}") from error


def _half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's interleaving of q and k rows, which its RoPE turns in neighboring pairs.

    Left out, the model still answers " Paris": only a comparison of logits shows it.
    """
    rows, dim = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, dim).swapaxes(1, 2).reshape(rows, dim)


def _hf_name(name: str) -> str:
    """An unknown name is returned as it is, for the shape check to refuse."""
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    kind, _, suffix = rest.partition(".")
    known = name.startswith("blk.") and block.isdecimal() and kind in LAYER_NAMES and suffix == "weight"
    return f"model.layers.{int(block)}.{LAYER_NAMES[kind]}.weight" if known else name
