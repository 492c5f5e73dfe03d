"""Greedy responses against transformers' `generate`, filters against its logits processors."""

import functools
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.policies import families, hf_folder, next_token, sampling
from jaxpref.policies.sampling import Sampling

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity extra not installed")
transformers = pytest.importorskip("transformers", reason="parity extra not installed")

GOLDEN = Path(__file__).parent / "golden" / "make_families.py"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN)
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)
PROMPTS = [[4, 5, 6, 7, 8], [9], [10, 11, 12]]
PAD = 0


@pytest.fixture(scope="module", params=["llama3", "gemma2", "gpt2"])
def pair(request, tmp_path_factory):
    theirs = make_families.model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config = hf_folder.read_config(folder)
    return theirs, config, families.to_params(hf_folder.tensors(folder, config), config)


def generated(model, stop_tokens):
    """Greedy continuations of a left-padded batch, each up to its first stop token."""
    width = max(map(len, PROMPTS))
    tokens = np.array([[PAD] * (width - len(p)) + p for p in PROMPTS])
    mask = np.array([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    with torch.no_grad():
        rows = model.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=10,
            eos_token_id=stop_tokens or None, pad_token_id=PAD,
        ).numpy()[:, width:]  # fmt: skip
    return [up_to_stop(row.tolist(), stop_tokens) for row in rows]


def up_to_stop(row, stop_tokens):
    ends = [i for i, token in enumerate(row) if token in stop_tokens]
    return row[: ends[0] + 1] if ends else row


def greedy(config, params, stop_tokens):
    how = Sampling(max_new_tokens=10, temperature=0.0, stop_tokens=tuple(stop_tokens))
    samples = sampling.sample(params, PROMPTS, config=config, sampling=how, seed=0)
    return [t[m].tolist() for t, m in zip(*map(np.asarray, samples.rows), strict=True)]


def test_greedy_responses_equal_generate(pair):
    theirs, config, params = pair
    theirs.generation_config.eos_token_id = None
    free = greedy(config, params, [])
    assert free == generated(theirs, []) and all(len(row) == 10 for row in free)
    stop = [free[0][4], free[1][2]]
    stopped = greedy(config, params, stop)
    assert stopped == generated(theirs, stop) and min(map(len, stopped)) < 10


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, None, 0.9), (1.5, 5, 1.0), (0.5, 12, 0.8), (2.0, 30, 0.3)]
)
def test_filters_are_those_of_transformers_in_its_order(temperature, top_k, top_p):
    scores = 2 * np.random.default_rng(0).standard_normal((40, 97)).astype(np.float32)
    chain = [transformers.TemperatureLogitsWarper(temperature)]
    chain += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    chain += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warped = functools.reduce(lambda x, step: step(None, x), chain, torch.tensor(scores))
    filters = next_token.Filters(temperature=temperature, top_k=top_k, top_p=top_p)
    ours = np.exp(next_token.filtered_logps(jnp.asarray(scores), filters))
    np.testing.assert_allclose(ours, torch.softmax(warped, -1).numpy(), atol=1e-6)
