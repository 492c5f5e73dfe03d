"""What we export, transformers loads: to the same logits, with the same tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from jaxpref.policies import checkpoints, transformer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity extra not installed")
transformers = pytest.importorskip("transformers", reason="parity extra not installed")

UNTIED = dataclasses.replace(tiny_model.CONFIG, tied=False)
TEXT = "hello world 12<|im_end|>\nhello é"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))


def theirs(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def ours(model, ids):
    """In float64, as `theirs`: what differs is then the model, not the rounding."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.params)
        return np.asarray(transformer.logits(params, jnp.array([ids]), config=model.config)[0])


@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [tiny_model.CONFIG, UNTIED], ids=["tied", "untied"])
def test_transformers_has_our_logits(tmp_path, config, dtype, max_shard_size):
    weights = tiny_model.random_weights(config)
    model = checkpoints.load(tiny_model.write_folder(tmp_path / "in", weights, config))
    checkpoints.save(tmp_path / "out", model, dtype=dtype, max_shard_size=max_shard_size)
    ids = list(range(3, 60, 4))
    stored = checkpoints.load(tmp_path / "out")
    expected = theirs(tmp_path / "out", ids)
    difference = np.abs(ours(stored, ids) - expected).max()
    print(f"largest difference {difference:.1e}")
    assert difference <= 1e-5


def test_transformers_takes_the_dtype_that_was_asked_for(tmp_path):
    model = checkpoints.load(
        tiny_model.write_folder(tmp_path / "in", tiny_model.random_weights(UNTIED), UNTIED)
    )
    for dtype in ("float32", "bfloat16"):
        checkpoints.save(tmp_path / dtype, model, dtype=dtype)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / dtype)
        assert {str(x.dtype) for x in loaded.parameters()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_transformers_reads_our_tokenizer_as_we_do(tmp_path, source):
    if source == "gguf":
        path = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    else:
        path = tiny_model.write_folder(tmp_path / "in", tiny_model.random_weights(), tiny_model.CONFIG)
    model = checkpoints.load(path)
    checkpoints.save(tmp_path / "out", model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = model.tokenizer.encode(TEXT)
    assert tokenizer(TEXT)["input_ids"] == ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " world"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == model.tokenizer.render(messages, generation_prompt=True)
    np.testing.assert_allclose(ours(model, ids), theirs(tmp_path / "out", ids), rtol=0, atol=1e-5)


def test_a_folder_that_transformers_saved_in_shards_and_bfloat16_is_ours_to_the_bit(tmp_path):
    path = tiny_model.write_folder(tmp_path / "in", tiny_model.random_weights(UNTIED), UNTIED)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path).bfloat16()
    theirs.save_pretrained(path, max_shard_size="40KB")
    (path / "model.safetensors").unlink()
    model = checkpoints.load(path)
    checkpoints.save(tmp_path / "out", model, dtype="bfloat16")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[name], x) for name, x in theirs.state_dict().items())
