"""Every family's gradient geometry against PyTorch's autograd on transformers' models."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.pairs import TokenRows
from jaxpref.policies import families, hf_folder
from jaxpref.probes import backward

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity extra not installed")
pytest.importorskip("transformers", reason="parity extra not installed")

GOLDEN = Path(__file__).parent.parent / "policies" / "golden" / "make_families.py"
spec = importlib.util.spec_from_file_location("make_families", GOLDEN)
make_families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_families)

LENGTH, PROMPT, ENDS = (
    9,
    4,
    np.array([9, 7, 8, 9]),
)  # chosen of both pairs, then rejected; windows are shorter
TOKENS = np.random.default_rng(5).integers(0, 29, (4, LENGTH))
TOKENS[2:, :PROMPT] = TOKENS[:2, :PROMPT]
MASK = (np.arange(LENGTH) >= PROMPT) & (np.arange(LENGTH) < ENDS[:, None])
SLOPES = np.array([1.0, -0.5, 0.0, 2.0])


def their_gradients(model, config):
    """Of each row's log-probability in float64, as our parameters lie; [rows, ...] each."""
    rows = []
    for tokens, mask in zip(TOKENS, MASK):
        model.zero_grad()
        logps = torch.log_softmax(model(torch.tensor(tokens[None])).logits[0, :-1], -1)
        own = logps[torch.arange(LENGTH - 1), torch.tensor(tokens[1:])]
        own[torch.tensor(mask[1:])].sum().backward()
        rows.append(flat(as_params(dict(model.named_parameters()), config)))
    return {path: np.stack([row[path] for row in rows]) for path in rows[0]}


def as_params(parameters, config):
    head = {"lm_head.weight": families.weights_of(config).head}
    grads = {head.get(name, name): parameter.grad.numpy() for name, parameter in parameters.items()}
    shapes = {name: grad.shape for name, grad in grads.items()}
    return families.to_params(families.Tensors(shapes, grads.__getitem__), config)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): np.asarray(x, np.float64) for path, x in leaves}


def assert_close(ours, theirs, scale, what):
    difference = np.abs(ours - theirs)  # transformers has norms and angles in float32 whatever the model
    assert np.all(difference <= 1e-5 * scale), f"{what}: {difference.max():.1e} of {np.max(scale):.1e}"


@pytest.mark.parametrize("name", make_families.CASES)
def test_geometry_and_gradient_equal_autograd(name, tmp_path):
    theirs = make_families.model(name)
    theirs.save_pretrained(tmp_path)
    config = hf_folder.read_config(tmp_path)
    params = families.to_params(hf_folder.tensors(tmp_path, config), config)
    expected = their_gradients(theirs.double(), config)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        slopes_of = lambda statistics: (jnp.asarray(SLOPES), None)
        step = functools.partial(backward.probed_gradients, slopes_of=slopes_of, config=config)
        found, _ = jax.jit(step)(wide, TokenRows(jnp.asarray(TOKENS), jnp.asarray(MASK)))
    largest = max(np.abs(x).max() for x in expected.values())  # GPT-2's key biases have none but rounding
    grads = flat(found.grads)
    assert set(found.geometry) == set(expected) == set(grads)
    for path, rows in expected.items():
        assert_close(grads[path], np.einsum("r...,r->...", rows, SLOPES), largest, path)
        axes = [2, rows.shape[1], -1] if path.startswith("layers/") else [2, -1]
        chosen, rejected = (side.reshape(axes) for side in np.split(rows, 2))
        products = [(chosen * rejected).sum(-1).T, (chosen**2).sum(-1).T, (rejected**2).sum(-1).T]
        scale = np.max(products[1:]) + 1e-6 * largest**2
        for ours, product in zip(found.geometry[path], products):
            assert_close(np.asarray(ours), product, scale, path)
