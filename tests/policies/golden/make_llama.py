"""Writes llama.npz: logits of transformers' Llama in float64 on weights drawn with NumPy.

    python tests/policies/golden/make_llama.py        (needs the extra `parity`)

The weights are not stored: `weights` below draws them again, tensor after tensor in the order of their
names. Made with transformers 5.23.0 and torch 2.13.0.
"""

from pathlib import Path

import numpy as np

TOKENS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]]
# Odd and prime sizes where transformers allows them: no two axes can be mistaken for each other.
CASES = {
    "tied_grouped": dict(
        vocab_size=101, hidden_size=33, intermediate_size=47, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=10, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
    ),
    "untied_grouped": dict(
        vocab_size=97, hidden_size=30, intermediate_size=31, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=14, rope_theta=500.0, rms_norm_eps=1e-2, tie_word_embeddings=False,
    ),
    "untied_full": dict(
        vocab_size=53, hidden_size=24, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, head_dim=6, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=False,
    ),
}  # fmt: skip


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Float64 weights of these shapes: matrices of scale 0.3, norms around 1."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: 0.3 * rng.standard_normal(shape) + (len(shape) == 1)
    return {name: draw(shapes[name]) for name in sorted(shapes)}


def main() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    logits = {}
    for name, case in CASES.items():
        model = LlamaForCausalLM(LlamaConfig(**case, attn_implementation="eager")).double().eval()
        tied = case["tie_word_embeddings"]
        shapes = {
            key: tuple(x.shape) for key, x in model.state_dict().items() if not (tied and "lm_head" in key)
        }
        state = {key: torch.from_numpy(x) for key, x in weights(shapes).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unexpected
        with torch.no_grad():
            logits[name] = model(torch.tensor(TOKENS)).logits.numpy()
    np.savez_compressed(Path(__file__).with_name("llama.npz"), **logits)


if __name__ == "__main__":
    main()
