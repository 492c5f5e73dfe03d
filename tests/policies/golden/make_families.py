"""Writes families.npz: logits of transformers' models in float64 on weights drawn with NumPy.

    python tests/policies/golden/make_families.py        (needs the extra `parity`)

The weights are not stored: `weights` draws them again, tensor after tensor in the order of their names.
Made with transformers 5.23.0 and torch 2.13.0.
"""

from pathlib import Path

import numpy as np

TOKENS = np.random.default_rng(7).integers(0, 29, (2, 13)).tolist()  # longer than every window below
SHAPE = dict(
    vocab_size=31, hidden_size=33, intermediate_size=29, num_hidden_layers=3, num_attention_heads=3,
    num_key_value_heads=1, head_dim=10, max_position_embeddings=64, tie_word_embeddings=False,
    bos_token_id=1, eos_token_id=2, pad_token_id=None,
)  # fmt: skip
NO_HEAD_DIM = {key: value for key, value in SHAPE.items() if key != "head_dim"} | {"hidden_size": 42}
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
GEMMA = SHAPE | dict(query_pre_attn_scalar=7, sliding_window=5, tie_word_embeddings=True)
GEMMA3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
}
NEOX = dict(
    vocab_size=31, hidden_size=42, intermediate_size=29, num_hidden_layers=3, num_attention_heads=3,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.3},
)  # fmt: skip
GPT2 = dict(
    vocab_size=31, n_embd=33, n_layer=3, n_head=3, n_inner=29, n_positions=17, bos_token_id=1, eos_token_id=2
)  # fmt: skip
# By name: the class of transformers without its ending, and its config. Odd sizes where it allows them.
CASES = {
    "llama3": ("Llama", SHAPE | dict(rope_parameters=LLAMA3)),
    "llama_linear_biases": (
        "Llama",
        SHAPE
        | dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=100.0))
        | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    ),
    "mistral": ("Mistral", SHAPE | dict(sliding_window=5)),
    "qwen2": ("Qwen2", NO_HEAD_DIM | dict(tie_word_embeddings=True)),
    "qwen2_window": (
        "Qwen2", NO_HEAD_DIM | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", SHAPE),
    "gemma": ("Gemma", SHAPE | dict(tie_word_embeddings=True)),
    "gemma2": ("Gemma2", GEMMA | dict(attn_logit_softcapping=5.0, final_logit_softcapping=3.0)),
    "gemma3": ("Gemma3", GEMMA | dict(sliding_window_pattern=2, rope_parameters=GEMMA3_ROPES)),
    "pythia": ("GPTNeoX", NEOX),
    "gpt_neox_serial": ("GPTNeoX", NEOX | dict(use_parallel_residual=False, tie_word_embeddings=True)),
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": ("GPT2", GPT2 | dict(tie_word_embeddings=False)),
    "olmo": ("Olmo", NO_HEAD_DIM | dict(clip_qkv=1.5)),
    "olmo2": ("Olmo2", NO_HEAD_DIM),
}  # fmt: skip


def weights(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float64 weights of these shapes: matrices of scale 0.3, vectors around 1, or 0 where a norm adds 1."""
    rng = np.random.default_rng(0)
    center = 0.0 if name.startswith("gemma") else 1.0
    draw = lambda shape: 0.3 * rng.standard_normal(shape) + center * (len(shape) == 1)
    return {tensor: draw(shapes[tensor]) for tensor in sorted(shapes)}


def model(name: str):
    """transformers' model of a case, float32, with the weights of `weights`."""
    import torch
    import transformers

    kind, case = CASES[name]
    text = {"Gemma3": "Gemma3Text"}.get(kind, kind)
    config = getattr(transformers, f"{text}Config")(**case, attn_implementation="eager")
    head = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    made = getattr(transformers, head)(config).eval()
    stored = {stored_name(name, key): x for key, x in made.named_parameters()}  # each tied one once
    drawn = weights(name, {key: tuple(x.shape) for key, x in stored.items()})
    with torch.no_grad():
        for key, parameter in stored.items():
            parameter.copy_(torch.from_numpy(drawn[key]))
    return made


def stored_name(name: str, key: str) -> str:
    """The name in the file: in memory transformers 5 calls every head alike."""
    return key.replace("lm_head", "embed_out") if CASES[name][0] == "GPTNeoX" else key


def main() -> None:
    import torch

    logits = {}
    for name in CASES:
        with torch.no_grad():
            logits[name] = model(name).double()(torch.tensor(TOKENS)).logits.numpy().astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("families.npz"), **logits)


if __name__ == "__main__":
    main()
