"""Packed and batched scores are those that each pair had by itself, one after another.

`golden/scores.npz` was made by the pair-at-a-time path that this one replaced, of commit c277712: rows of
their own, whole logits, per-example gradients; float32 on a CPU.
"""

from pathlib import Path

import numpy as np
import pytest
import tiny_model

from jaxpref import results
from jaxpref.policies.families import gpt2
from jaxpref.scoring import prepare, runner
from jaxpref.scoring.config import Config

PAIRS = 8  # of the example; stored are 12
GPT2 = gpt2.config_of(
    {"n_head": 2, "n_embd": 24, "vocab_size": len(tiny_model.VOCAB), "n_layer": 2, "n_positions": 512}
)


def model(name: str, folder: Path) -> Path:
    if name == "llama":
        return tiny_model.write_gguf(folder / "tiny.gguf")
    return tiny_model.write_folder(folder / "gpt2", tiny_model.random_weights(GPT2), GPT2)


def scale_of(name: str, golden: dict[str, np.ndarray]) -> float:
    """Of what a column is the difference of, where it is one."""
    of = {"ln_ches": "last_hidden_inner", "logps/margin": "logps/chosen"}.get(name, name)
    return float(np.abs(golden[of]).max())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_those_of_a_pair_at_a_time(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    stored = np.load(Path(__file__).parent / "golden" / "scores.npz")
    golden = {key.removeprefix(f"{name}/"): stored[key][:PAIRS] for key in stored if key.startswith(name)}
    tokens = sum(golden["tokens/chosen"] + golden["tokens/rejected"])
    golden["token_logps"] = stored[f"{name}/token_logps"][:tokens]
    gradients = name == "llama"  # of every family: tests/probes/test_backward.py
    config = Config(
        out=tmp_path / "run", model=str(model(name, tmp_path)), limit=PAIRS, batch_tokens=8192,
        gradients=gradients,
    )  # fmt: skip
    run = results.Run(runner.run(prepare.prepare(config)))
    found = run.table() | {"token_logps": run.table("tokens")["logps"]}
    for key, expected in golden.items():
        if key.startswith("grads/") and not gradients:
            continue
        if expected.dtype.kind == "f":
            atol = 1e-5 * scale_of(key, golden)
            np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=atol, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], expected, err_msg=key)
