"""GGUF, llama.cpp's single-file format: metadata, quantized tensors, and the tokenizer among the metadata."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxpref.policies.llama import CheckpointError, Tensors, layer_name
from jaxpref.policies.transformer import TransformerConfig

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


def open_file(path: Path) -> gguf.GGUFReader:
    """Header, metadata and tensor table; the tensors stay on disk. Raises `CheckpointError`."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file: it must begin with b'GGUF'; got {magic!r}")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader trusts the header; a damaged one fails wherever it fails
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Every key of the header with its value as Python data."""
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the GGUF metadata is damaged: {error}") from error


def config_of(values: dict[str, Any], reader: gguf.GGUFReader) -> TransformerConfig:
    """Sizes from the `llama.*` keys; embeddings are tied where the file has no `output.weight`."""
    if (architecture := values.get("general.architecture")) != "llama":
        raise CheckpointError(f"general.architecture must be llama; got {architecture!r}")
    try:
        return _config(values, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    except KeyError as error:
        raise CheckpointError(f"the GGUF metadata has no {error.args[0]}") from error


def _config(values: dict[str, Any], *, tied: bool) -> TransformerConfig:
    heads, dim = values["llama.attention.head_count"], values["llama.embedding_length"]
    head_dim = values.get("llama.attention.key_length", dim // max(heads, 1))
    _check_rope(values, head_dim)
    return TransformerConfig(
        vocab=len(values["tokenizer.ggml.tokens"]),
        dim=dim,
        layers=values["llama.block_count"],
        heads=heads,
        kv_heads=values.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_dim=values["llama.feed_forward_length"],
        rope_theta=values.get("llama.rope.freq_base", 10_000.0),
        norm_eps=values["llama.attention.layer_norm_rms_epsilon"],
        tied=tied,
    )


def _check_rope(values: dict[str, Any], head_dim: int) -> None:
    scaling = values.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise CheckpointError(f"llama.rope.scaling.type must be none; got {scaling!r}")
    turned = values.get("llama.rope.dimension_count", head_dim)
    if turned != head_dim:
        raise CheckpointError(f"llama.rope.dimension_count must be the head's {head_dim}; got {turned}")


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
    return layer_name(int(block), f"{LAYER_NAMES[kind]}.weight") if known else name
