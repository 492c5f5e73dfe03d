"""Checkpoints of a Llama of a few thousand weights, written the way other programs write them."""

import json
from pathlib import Path

import gguf
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from jaxpref.policies import families
from jaxpref.policies.transformer import TransformerConfig

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
CONFIG = TransformerConfig(
    vocab=len(VOCAB),
    dim=96,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=16,
    mlp_dim=64,
    tied=True,
    rope_theta=1e4,
    norm_eps=2**-17,
)  # rows of 32 and its multiples, so that Q8_0 can hold them; GGUF keeps float32 constants


def random_weights(config: TransformerConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """By Hugging Face name, float32."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: (0.2 * rng.standard_normal(shape) + (len(shape) == 1)).astype(np.float32)
    return {name: draw(shape) for name, shape in families.expected_shapes(config).items()}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: row i of a head's halves next to each other."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def write_gguf(
    path: Path,
    weights: dict[str, np.ndarray] | None = None,
    config: TransformerConfig = CONFIG,
    *,
    quantized: bool = False,
    architecture: str = "llama",
    **metadata: str,
) -> Path:
    """A GGUF file as llama.cpp's converter writes it; matrices in Q8_0 if `quantized`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    _write_tokenizer(writer, metadata)
    for name, weight in (random_weights(config) if weights is None else weights).items():
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        _write_tensor(writer, gguf_name(name), interleave(weight, heads) if heads else weight, quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: gguf.GGUFWriter, metadata: dict[str, str]) -> None:
    writer.add_tokenizer_model(metadata.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(metadata.get("pre", "smollm"))
    writer.add_token_list(VOCAB)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCAB) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(metadata.get("template", TEMPLATE))


def _write_tensor(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, quantized: bool) -> None:
    if quantized and weight.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weight)


def write_folder(
    folder: Path, weights: dict[str, np.ndarray], config: TransformerConfig, *, shards: int = 1
) -> Path:
    """A Hugging Face folder, its weights dealt out to `shards` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(families.config_json(config)), encoding="utf-8")
    backend = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(VOCAB)}, [tuple(m.split(" ")) for m in MERGES])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    files = {
        name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(weights)
    }
    for file in set(files.values()):
        save_file({name: array for name, array in weights.items() if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    return folder
