"""Adapters against PEFT: the same logits from the same files, both ways, and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from jaxpref.policies import checkpoints, families, hf_folder, lora, transformer
from jaxpref.policies.lora import LoraConfig

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity extra not installed")
transformers = pytest.importorskip("transformers", reason="parity extra not installed")
peft = pytest.importorskip("peft", reason="parity extra not installed")

IDS = list(range(3, 60, 4))


@pytest.fixture
def base(tmp_path):
    """Our model, and the folder from which PEFT's base is loaded."""
    folder = tiny_model.write_folder(tmp_path / "base", tiny_model.random_weights(), tiny_model.CONFIG)
    return checkpoints.load(folder), folder


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trained(params, config, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape), jnp.float32)
    return jax.tree.map(draw, lora.init(jax.random.key(0), params, config))


def ours(params, config):
    """In float64, as `theirs`: what differs is then the model, not the rounding."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        return np.asarray(transformer.logits(wide, jnp.array([IDS]), config=config)[0])


def theirs(model):
    with torch.no_grad():
        return model.double().eval()(torch.tensor([IDS])).logits[0].numpy()


def assert_close(ours, theirs):
    print(f"largest difference {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


CONFIGS = {
    "all": LoraConfig(rank=3, alpha=5.0),
    "attention": LoraConfig(rank=4, alpha=8.0, targets=("q", "v")),
    "rslora": LoraConfig(rank=5, alpha=3.5, targets=("o", "up"), rslora=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_reads_our_adapters_to_our_logits(tmp_path, base, name):
    (model, folder), config = base, CONFIGS[name]
    adapters = trained(model.params, config)
    lora.save_peft(tmp_path / "adapter", adapters, config, model.config, str(folder))
    attached = ours(lora.attach(model.params, adapters, config), model.config)
    wrapped = peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "adapter")
    assert np.abs(attached - ours(model.params, model.config)).max() > 0.1  # the adapters do something
    assert_close(attached, theirs(wrapped))
    checkpoints.save(tmp_path / "merged", model, lora.merge(model.params, adapters, config))
    assert_close(theirs(loaded(tmp_path / "merged")), theirs(wrapped))


def peft_made(folder, out, **kwargs):
    """An adapter that PEFT made, both factors drawn, and its model."""
    model = peft.get_peft_model(loaded(folder), peft.LoraConfig(task_type="CAUSAL_LM", **kwargs))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.05)
    model.save_pretrained(out)
    return model


PEFT_CONFIGS = {
    "regular expression": dict(r=4, lora_alpha=8, target_modules=r".*\.(q_proj|down_proj)"),
    "all linear": dict(r=2, lora_alpha=2, target_modules="all-linear", use_rslora=True),
    "patterns": dict(
        r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern={"v_proj": 5},
        alpha_pattern={"mlp.up_proj": 1, "layers.1.self_attn.q_proj": 9},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_we_read_peft_adapters_to_peft_logits(tmp_path, base, name):
    model, folder = base
    wrapped = peft_made(folder, tmp_path / "adapter", **PEFT_CONFIGS[name])
    adapters, config = lora.load_peft(tmp_path / "adapter", model.config)
    assert_close(ours(lora.attach(model.params, adapters, config), model.config), theirs(wrapped))
    lora.save_peft(tmp_path / "again", adapters, config, model.config, str(folder))
    again = peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "again")
    assert_close(theirs(again), theirs(wrapped))


def test_gradients_of_adapters_are_those_of_torch(tmp_path, base):
    (model, folder), tokens = base, jnp.array([IDS])
    wrapped = peft_made(folder, tmp_path / "adapter", r=3, lora_alpha=7, target_modules="all-linear")
    adapters, config = lora.load_peft(tmp_path / "adapter", model.config)

    def loss(adapters):
        logits = transformer.logits(lora.attach(model.params, adapters, config), tokens, config=model.config)
        logps = jax.nn.log_softmax(logits[0, :-1])
        return -jnp.take_along_axis(logps, tokens[0, 1:, None], axis=-1).mean()

    grads = jax.jit(jax.grad(loss))(adapters)
    ids = torch.tensor([IDS])
    wrapped.train()(ids, labels=ids).loss.backward()
    found = {name: weight.grad.numpy() for name, weight in wrapped.named_parameters() if "lora_" in name}
    parts = {"self_attn": ("attention", "qkvo", "{}_proj"), "mlp": ("mlp", ("gate", "up", "down"), "{}_proj")}
    for module, (part, names, pattern) in parts.items():
        for name in names:
            for layer in range(model.config.layers):
                at = f"base_model.model.model.layers.{layer}.{module}.{pattern.format(name)}"
                one = grads["layers"][part][name]
                for side, ours in (("A", one["a"][layer].T), ("B", one["b"][layer].T)):
                    expected = found.pop(f"{at}.lora_{side}.default.weight")
                    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())
    assert not found


def test_fresh_adapters_have_the_distribution_of_peft(tmp_path, base):
    model, folder = base
    config = LoraConfig(rank=64, targets=("down",))
    wrapped = peft.get_peft_model(loaded(folder), peft.LoraConfig(r=64, target_modules=["down_proj"]))
    ours = np.sort(np.ravel(lora.init(jax.random.key(0), model.params, config)["layers"]["mlp"]["down"]["a"]))
    drawn = [x.detach().numpy().ravel() for name, x in wrapped.named_parameters() if "lora_A" in name]
    np.testing.assert_allclose(ours, np.sort(np.concatenate(drawn)), atol=0.01)  # quantile by quantile


def fused(family, folder):
    """A model that transformers made, with modules that fuse q, k and v."""
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=61, n_embd=24, n_head=3, n_layer=2, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = dict(vocab_size=61, hidden_size=24, num_attention_heads=3, num_hidden_layers=2)
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, intermediate_size=20))
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    config = hf_folder.read_config(folder)
    return families.to_params(hf_folder.tensors(folder, config), config), config


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_fused_modules_are_adapted_as_by_peft(tmp_path, family):
    params, config = fused(family, tmp_path / "base")
    settings = LoraConfig(rank=3, alpha=5.0, targets=("q", "v", "o", "up", "down"))
    adapters = trained(params, settings)
    lora.save_peft(tmp_path / "ours", adapters, settings, config, str(tmp_path / "base"))
    wrapped = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "ours")
    attached = ours(lora.attach(params, adapters, settings), config)
    assert np.abs(attached - ours(params, config)).max() > 0.01
    assert_close(attached, theirs(wrapped))
    made = peft_made(tmp_path / "base", tmp_path / "theirs", r=2, lora_alpha=3, target_modules="all-linear")
    again, read = lora.load_peft(tmp_path / "theirs", config)
    assert_close(ours(lora.attach(params, again, read), config), theirs(made))
