"""Adapters: a start that changes nothing, a product that is merged, gradients for them alone."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.policies import families, lora, transformer
from jaxpref.policies.families import CheckpointError
from jaxpref.policies.lora import LoraConfig

CONFIG = transformer.TransformerConfig(
    vocab=53, dim=24, layers=3, heads=4, kv_heads=2, head_dim=6, mlp_dim=20, tied=False
)
LORA = LoraConfig(rank=3, alpha=7.0, targets=("q", "v", "o", "down"))
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


@functools.cache
def params():
    return transformer.init(jax.random.key(0), CONFIG)


@functools.cache
def trained():
    """Adapters as training leaves them: no factor is zero."""
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
    return jax.tree.map(draw, lora.init(jax.random.key(1), params(), LORA))


@jax.jit
def logits(params):
    return transformer.logits(params, TOKENS, config=CONFIG)


def test_fresh_adapters_leave_the_policy_bit_for_bit_as_it_was():
    adapters = lora.init(jax.random.key(1), params(), LORA)
    np.testing.assert_array_equal(logits(lora.attach(params(), adapters, LORA)), logits(params()))


def test_first_factor_is_uniform_within_peft_bound_and_second_is_zero():
    adapters = lora.init(jax.random.key(1), params(), dataclasses.replace(LORA, rank=200))["layers"]
    assert set(adapters["attention"]) == {"q", "v", "o"} and set(adapters["mlp"]) == {"down"}
    for one in (*adapters["attention"].values(), *adapters["mlp"].values()):
        layers, inputs, rank = one["a"].shape
        assert (layers, rank) == (3, 200) and not one["b"].any()
        bound = np.sqrt(6 / ((1 + 5) * inputs))  # kaiming_uniform_(a=sqrt(5))
        assert 0.97 * bound < np.abs(one["a"]).max() <= bound
        np.testing.assert_allclose(np.std(one["a"]), bound / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapted_layers_are_kernels_plus_the_scaled_product(rslora):
    config = dataclasses.replace(LORA, rslora=rslora)
    adapters, scale = trained(), 7 / np.sqrt(3) if rslora else 7 / 3
    merged = lora.merge(params(), adapters, config)
    expected = jax.tree.map(np.asarray, params())
    for part, name in [("attention", "q"), ("attention", "v"), ("attention", "o"), ("mlp", "down")]:
        one = jax.tree.map(lambda x: np.asarray(x, np.float64), adapters["layers"][part][name])
        kernel = np.asarray(params()["layers"][part][name]["kernel"], np.float64)
        product = np.stack([kernel[i] + scale * one["a"][i] @ one["b"][i] for i in range(3)])
        expected["layers"][part][name]["kernel"] = product
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged, expected)


def test_merged_and_attached_policies_agree():
    attached, merged = (f(params(), trained(), LORA) for f in (lora.attach, lora.merge))
    assert np.abs(logits(merged) - logits(params())).max() > 0.1
    np.testing.assert_allclose(logits(attached), logits(merged), rtol=0, atol=2e-5)


def test_attaching_copies_no_kernel():
    base = params()
    attached = lora.attach(base, trained(), LORA)
    assert attached["layers"]["attention"]["q"]["kernel"] is base["layers"]["attention"]["q"]["kernel"]
    assert "lora_a" not in base["layers"]["attention"]["q"]


def test_gradient_of_the_second_factor_is_that_of_the_kernel_behind_the_first():
    loss = lambda params: (logits(params) ** 2).mean()
    fresh = lora.init(jax.random.key(1), params(), LORA)  # b is zero: the kernel's gradient is the base's
    grads = jax.jit(jax.grad(lambda adapters: loss(lora.attach(params(), adapters, LORA))))(fresh)
    kernel = jax.jit(jax.grad(loss))(params())["layers"]["mlp"]["down"]["kernel"]
    first = fresh["layers"]["mlp"]["down"]["a"]
    expected = LORA.scale * np.einsum("lir,lio->lro", first, kernel)
    np.testing.assert_allclose(grads["layers"]["mlp"]["down"]["b"], expected, rtol=1e-4, atol=1e-7)


def test_unknown_targets_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"targets must be of .*q.*down.*; got query"):
        lora.init(jax.random.key(0), params(), LoraConfig(targets=("q", "query")))


@pytest.mark.parametrize("field", [{"rank": 0}, {"alpha": 0.0}, {"alpha": float("inf")}, {"targets": ()}])
def test_configs_out_of_range_are_refused_by_field(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        LoraConfig(**field)


def saved(folder, config=LORA):
    lora.save_peft(folder, trained(), config, CONFIG, "org/base")
    return folder


def test_saved_adapters_are_read_back_bit_for_bit(tmp_path):
    adapters, config = lora.load_peft(saved(tmp_path / "a"), CONFIG)
    assert config == LORA
    jax.tree.map(np.testing.assert_array_equal, adapters, trained())


def test_saved_adapters_have_the_names_and_the_orientation_of_peft(tmp_path):
    tensors = load_file(saved(tmp_path / "a") / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 * 4
    name = "base_model.model.model.layers.2.mlp.down_proj"
    one = trained()["layers"]["mlp"]["down"]
    np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], one["a"][2].T)
    np.testing.assert_array_equal(tensors[f"{name}.lora_B.weight"], one["b"][2].T)
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert set(values["target_modules"]) == {"q_proj", "v_proj", "o_proj", "down_proj"}
    assert (values["r"], values["lora_alpha"], values["base_model_name_or_path"]) == (3, 7, "org/base")


def test_ranks_and_alphas_of_single_modules_keep_their_function(tmp_path):
    folder = saved(tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if "down_proj" in name]:  # a rank of three
        tensors[name] = tensors[name][:1] if "lora_A" in name else tensors[name][:, :1].copy()
    save_file(tensors, folder / "adapter_model.safetensors")
    change(folder, rank_pattern={"down_proj": 1}, alpha_pattern={"mlp.down_proj": 14})
    adapters, config = lora.load_peft(folder, CONFIG)
    ours, of_file = adapters["layers"]["mlp"]["down"], trained()["layers"]["mlp"]["down"]
    expected = 14 * np.einsum("lir,lro->lio", of_file["a"][:, :, :1], of_file["b"][:, :1])
    np.testing.assert_allclose(config.scale * ours["a"] @ ours["b"], expected, rtol=1e-5, atol=1e-6)


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


REFUSED = {
    "peft_type": "LOHA", "use_dora": True, "bias": "all", "modules_to_save": ["lm_head"], "r": 0,
    "lora_alpha": "much", "init_lora_weights": "pissa", "rank_pattern": {"(a+)+$": 2}, "lora_bias": True,
    "target_parameters": ["x"], "use_rslora": "yes",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_adapters_that_are_more_than_lora_are_refused_by_key(tmp_path, key):
    folder = saved(tmp_path / "a")
    change(folder, **{key: REFUSED[key]})
    with pytest.raises(CheckpointError, match=key) as error:
        lora.load_peft(folder, CONFIG)
    assert str(folder) in str(error.value)


def test_adapters_of_another_policy_are_refused_by_tensor(tmp_path):
    other = dataclasses.replace(CONFIG, layers=4, mlp_dim=21)
    with pytest.raises(CheckpointError, match=r"0\.mlp\.down_proj\.lora_A\.weight.*\(3, 21\)") as error:
        lora.load_peft(saved(tmp_path / "a"), other)
    assert "layers.3" in str(error.value)


def test_nan_in_an_adapter_is_refused_by_tensor(tmp_path):
    folder = saved(tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors[name][0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"1\.self_attn\.q_proj\.lora_B\.weight must be finite"):
        lora.load_peft(folder, CONFIG)


def test_pickled_adapters_are_never_loaded(tmp_path):
    folder = saved(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"must hold adapter_model\.safetensors"):
        lora.load_peft(folder, CONFIG)


def test_adapters_that_are_not_finite_are_not_saved(tmp_path):
    adapters = jax.tree.map(lambda x: x.at[0].set(jnp.nan), trained())
    with pytest.raises(ValueError, match="must be finite"):
        lora.save_peft(tmp_path / "a", adapters, LORA, CONFIG, "base")
    assert not list(tmp_path.iterdir())


FUSED = {
    "gpt2": {"vocab_size": 41, "n_embd": 12, "n_head": 3, "n_layer": 2, "n_positions": 16},
    "gpt_neox": {
        "vocab_size": 41, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2,
        "intermediate_size": 20, "tie_word_embeddings": False, "rotary_pct": 0.25, "hidden_act": "gelu",
        "rope_theta": 1e4,
    },
}  # fmt: skip


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o", "up"), ("k", "down")])
@pytest.mark.parametrize("family", FUSED)
def test_adapters_of_fused_modules_keep_their_function(tmp_path, family, targets):
    config = families.config_of(FUSED[family] | {"model_type": family})
    base = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config))
    settings, rng = LoraConfig(rank=2, alpha=3.0, targets=targets, rslora=True), np.random.default_rng(0)
    adapters = lora.init(jax.random.key(0), base, settings)
    adapters = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), adapters)
    lora.save_peft(tmp_path / "a", adapters, settings, config, "base")
    again, read = lora.load_peft(tmp_path / "a", config)
    for path in lora.dense_layers(base):
        product = lambda tree, scale: scale * np.asarray(tree["a"]) @ np.asarray(tree["b"])
        name, found = path[-1], again["layers"].get(path[1], {}).get(path[2])
        if name in targets:
            expected = product(adapters["layers"][path[1]][name], settings.scale)
            np.testing.assert_allclose(product(found, read.scale), expected, rtol=1e-5, atol=1e-5)
        elif found is not None:  # fused with one that is adapted
            assert not found["b"].any()
