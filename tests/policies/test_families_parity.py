"""Every family against transformers: folders in and out, padding, windows, gradients."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpref.policies import families, hf_folder, transformer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity extra not installed")
transformers = pytest.importorskip("transformers", reason="parity extra not installed")

GOLDEN = Path(__file__).parent / "golden" / "make_families.py"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN)
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)
TOKENS = np.array(make_families.TOKENS)


@pytest.fixture(scope="module", params=make_families.CASES)
def pair(request, tmp_path_factory):
    """transformers' model, and ours from the folder that `save_pretrained` wrote."""
    theirs = make_families.model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    config = hf_folder.read_config(folder)
    return theirs, config, families.to_params(hf_folder.tensors(folder, config), config)


def their_logits(model, tokens, mask=None):
    mask = np.ones_like(tokens) if mask is None else mask.astype(int)
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    with torch.no_grad():
        arguments = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions)}
        return model(torch.tensor(tokens), **arguments).logits.float().numpy()


def assert_close(ours, theirs, atol, what):
    print(f"{what}: largest difference {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def our_logits(params, config, tokens, mask=None):
    compute = jax.jit(functools.partial(transformer.logits, config=config))
    return np.asarray(compute(params, jnp.asarray(tokens), mask=None if mask is None else jnp.asarray(mask)))


def test_logits_equal_transformers(pair):
    theirs, config, params = pair
    assert_close(our_logits(params, config, TOKENS), their_logits(theirs, TOKENS), 1e-4, config.family)


def log_softmax(x):
    return np.asarray(jax.nn.log_softmax(x))


@pytest.mark.parametrize("side", ["left", "right"])
def test_log_probabilities_of_padded_batches_equal_transformers(pair, side):
    theirs, config, params = pair
    column, lengths = np.arange(13), np.array([[13], [6]])
    mask = column >= 13 - lengths if side == "left" else column < lengths
    tokens = np.where(mask, TOKENS, 0)
    ours, expected = our_logits(params, config, tokens, mask), their_logits(theirs, tokens, mask)
    assert_close(log_softmax(ours)[mask], log_softmax(expected)[mask], 1e-4, f"{config.family} {side}")


def test_what_we_export_transformers_reads(pair, tmp_path):
    theirs, config, params = pair
    weights = dict(families.from_params(params, config))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(families.config_json(config)))
    assert hf_folder.read_config(tmp_path) == config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(again) is type(theirs)
    assert_close(their_logits(again, TOKENS), their_logits(theirs, TOKENS), 1e-5, config.family)


def test_gradients_equal_torch(pair):
    theirs, config, params = pair
    weighed = np.random.default_rng(3).normal(size=(2, 13, config.vocab)).astype(np.float32)
    theirs.zero_grad()
    logps = torch.log_softmax(theirs(torch.tensor(TOKENS)).logits.float(), -1)
    (logps * torch.tensor(weighed)).sum().backward()
    tokens = jnp.array(TOKENS)
    loss = lambda p: (jax.nn.log_softmax(transformer.logits(p, tokens, config=config)) * weighed).sum()
    ours = dict(families.from_params(jax.jit(jax.grad(loss))(params), config))
    named = {"lm_head.weight": families.weights_of(config).head}
    expected = {named.get(name, name): p.grad.numpy() for name, p in theirs.named_parameters()}
    assert set(ours) == set(expected)
    for name in ours:
        np.testing.assert_allclose(
            ours[name], expected[name], rtol=0, atol=1e-4 * np.abs(expected[name]).max()
        )
