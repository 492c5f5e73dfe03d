"""SmolLM2 as we load it, against transformers' Llama on the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import fetch
from jaxpref.policies import checkpoints, families, transformer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity extra not installed")
transformers = pytest.importorskip("transformers", reason="parity extra not installed")

TEXTS = (
    "The capital of France is Paris, and the capital of Germany is Berlin. Both were cities of the Holy "
    "Roman Empire at one time or another, though Paris was not.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n\n"
    "# Überprüfung: 数字 12345\n",
)


@pytest.fixture(scope="module")
def model():
    path = fetch.cached("smollm2-135m")
    if path is None:
        pytest.skip("the weights are not fetched: jaxpref fetch smollm2-135m")
    return checkpoints.load(path)


@pytest.fixture(scope="module")
def twin(model):
    """transformers' model with our weights copied in."""
    config = transformers.LlamaConfig(**families.config_json(model.config))
    with torch.device("meta"):
        twin = transformers.LlamaForCausalLM(config)
    twin = twin.to_empty(device="cpu").float()
    weights = {
        name: torch.from_numpy(np.array(array))
        for name, array in families.from_params(model.params, model.config)
    }
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    twin.tie_weights()
    twin.model.rotary_emb = type(twin.model.rotary_emb)(config=config)  # its buffers were on the meta device
    return twin.eval()


@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_transformers_on_real_text(model, twin, text):
    ids = model.tokenizer.encode(text)
    with torch.no_grad():
        expected = twin(torch.tensor([ids])).logits[0].numpy()
    ours = np.asarray(transformer.logits(model.params, jnp.array([ids]), config=model.config)[0])
    print(f"{len(ids)} tokens, largest difference {np.abs(ours - expected).max():.2e}")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
    assert (ours.argmax(-1) == expected.argmax(-1)).all()
