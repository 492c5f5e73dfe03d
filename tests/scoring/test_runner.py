"""Scores of real-looking pairs under a tiny Llama, against slower and independent computations."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from jaxpref import results, sources
from jaxpref.data.files import PairsFileError
from jaxpref.policies import checkpoints, transformer
from jaxpref.policies.families import gpt2
from jaxpref.scoring import batches, forward, geometry, prepare, runner
from jaxpref.scoring.summary import METRICS

BOTH = ("chosen", "rejected")
TABLES = ("pairs.parquet", "tokens.parquet", "metrics.jsonl")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def run(config, **changes):
    return results.Run(runner.run(prepare.prepare(dataclasses.replace(config, **changes))))


def test_logps_are_those_of_unpadded_rows_token_by_token(scored):
    prepared, run = scored
    table, tokens = run.table(), run.table("tokens")
    for index in range(3):
        for response in BOTH:
            ids, start = prepared.pairs.row(index, response), int(prepared.pairs.starts[index])
            logits = transformer.logits(
                prepared.model.params, jnp.array(ids[None]), config=prepared.model.config
            )
            expected = log_softmax(np.asarray(logits[0], np.float64))[np.arange(len(ids) - 1), ids[1:]]
            expected = expected[start - 1 :]
            mine = (tokens["pair"] == index) & (tokens["response"] == response)
            np.testing.assert_allclose(tokens["logps"][mine], expected, rtol=1e-4)
            np.testing.assert_array_equal(tokens["position"][mine], np.arange(start, len(ids)))
            np.testing.assert_array_equal(tokens["token"][mine], ids[start:])
            texts = [prepared.model.tokenizer.token(int(token)) for token in ids[start:]]
            assert tokens["text"][mine].tolist() == texts
            np.testing.assert_allclose(table[f"logps/{response}"][index], expected.sum(), rtol=1e-5)
            assert table[f"tokens/{response}"][index] == len(expected)


def test_ches_is_its_definition_on_unpadded_rows(scored):
    prepared, run = scored
    for index in range(3):
        sums = []
        for response in BOTH:
            tokens = jnp.array(prepared.pairs.row(index, response))[None]
            hidden = transformer.hidden(prepared.model.params, tokens, config=prepared.model.config)
            start = int(prepared.pairs.starts[index])
            sums.append(np.asarray(hidden[0, start - 1 : -1], np.float64).sum(0))
        chosen, rejected = sums
        expected = chosen @ rejected - chosen @ chosen
        np.testing.assert_allclose(run.table()["ches"][index], expected, rtol=1e-3, atol=1e-3)


def both_gradients(prepared, index):
    """Of the log-probability of a pair's chosen and rejected response, float64 trees."""
    logps = lambda p, rows: transformer.row_token_logps(p, rows, config=prepared.model.config).sum()
    batch = jax.tree.map(jnp.asarray, prepared.pairs.batch([index], 32))
    both = [jax.grad(logps)(prepared.model.params, rows) for rows in (batch.chosen, batch.rejected)]
    return jax.tree.map(lambda x: np.asarray(x, np.float64), both)


def products(both, take):
    """Inner product and squared norms of a part of the two trees."""
    chosen, rejected = (np.concatenate([x.ravel() for x in jax.tree.leaves(take(tree))]) for tree in both)
    return np.array([chosen @ rejected, chosen @ chosen, rejected @ rejected])


def test_geometry_is_that_of_per_response_gradients(scored):
    prepared, run = scored
    table, layers = run.table(), run.table("layers")
    for index in range(3):
        both = both_gradients(prepared, index)
        whole = products(both, lambda tree: tree)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * whole.max())
        found = lambda group, index=index: [table[f"grads/{n}{group}"][index] for n in geometry.PRODUCTS]
        close(found(""), whole)
        close(found("/q"), products(both, lambda tree: tree["layers"]["attention"]["q"]))
        close(found("/embedding"), products(both, lambda tree: tree["embedding"]))
        for layer in range(prepared.model.config.layers):
            mine = (layers["pair"] == index) & (layers["layer"] == layer)
            take = lambda tree, layer=layer: jax.tree.map(lambda x: x[layer], tree["layers"])
            close([layers[name][mine].item() for name in geometry.PRODUCTS], products(both, take))
        inner, chosen, rejected = whole
        assert table["grads/chosen_falls"][index] == (inner > chosen)
        assert table["grads/rejected_rises"][index] == (inner > rejected)
        assert table["grads/entangled"][index] == (inner > min(chosen, rejected))


def test_summary_is_the_weighted_mean_of_the_pairs(scored):
    _, run = scored
    table, (means,) = run.table(), run.rows
    margin = table["logps/chosen"] - table["logps/rejected"]
    np.testing.assert_allclose(means["logps/margin"], (margin * [1, 3, 1]).sum() / 5, rtol=1e-5)
    np.testing.assert_allclose(means["ranking/accuracy"], ((margin >= 0) * [1, 3, 1]).sum() / 5)
    assert set(METRICS) | {"pairs"} == set(means)


def test_run_folder_names_weights_data_and_settings(scored):
    prepared, run = scored
    assert run.config["weights_sha256"] == prepared.model.weights_sha256
    assert run.config["pairs_sha256"] == results.file_sha256(prepared.path)
    notes, table = run.stored["notes"], run.table()
    assert notes["tokenization"]["pairs"] == 3
    assert list(table["id"]) == ["first", "2", "3"] and list(table["line"]) == [1, 2, 3]
    assert table["chosen_score"].tolist() == [None, None, 2.5] and "votes_chosen" not in table
    rows = sum(len(prepared.pairs.row(i, response)) for i in range(3) for response in BOTH)
    prompts = int(prepared.pairs.starts.sum())
    assert notes["packing"]["tokens"] == rows - prompts and notes["packing"]["shared"] == prompts
    assert notes["throughput"]["pairs_per_second"] > 0


def test_batches_and_windows_change_no_score(scored, config, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 5)
    config.pairs.write_text(config.pairs.read_text() * 3)
    _, whole = scored
    again = run(config, gradients=False, batch_tokens=64)
    for name, apart in (("pairs", {"id", "line"}), ("tokens", {"pair"})):
        found, expected = again.table(name), whole.table(name)
        for column in found.keys() - apart:
            if expected[column].dtype.kind == "f":
                scale, thrice = np.abs(expected[column]).max(), np.tile(expected[column], 3)
                np.testing.assert_allclose(found[column], thrice, rtol=1e-5, atol=1e-5 * scale)
            else:
                np.testing.assert_array_equal(found[column], np.tile(expected[column], 3))
    assert again.table()["line"].tolist() == list(range(1, 10))
    assert set(METRICS) - again.rows[0].keys() == {of for of, x in METRICS.items() if x.startswith("grads/")}
    for name in METRICS.keys() & again.rows[0].keys():
        np.testing.assert_allclose(again.rows[0][name], whole.rows[0][name], rtol=1e-5)


def test_pairs_computed_beside_a_pair_do_not_change_its_geometry(scored):
    prepared, run = scored
    batch = batches.SeparateBatch(32, 4, np.array([1]))  # the others are the first again
    found = geometry.compute(prepared.model.params, prepared.pairs, batch, prepared.model.config)
    expected = [run.table()[f"grads/{name}"][1] for name in geometry.PRODUCTS]
    np.testing.assert_allclose(found["total"], [expected], rtol=1e-5, atol=1e-5 * max(expected))


@pytest.fixture
def computed(monkeypatch):
    """Which pairs were computed; `computed.most` batches, then a key is pressed."""
    original = forward.compute

    class Computed(list):
        most = 99

    found = Computed()

    def compute(params, pairs, batch, config):
        if len(found) == found.most:
            raise KeyboardInterrupt
        found.append(batch.pairs.tolist())
        return original(params, pairs, batch, config)

    monkeypatch.setattr(forward, "compute", compute)
    return found


def test_interrupted_run_goes_on_with_what_is_missing_and_ends_the_same(config, computed):
    config = dataclasses.replace(config, gradients=False, batch_tokens=64)
    config.pairs.write_text(config.pairs.read_text() * 3)  # more than one batch
    run(config, out=config.out.with_name("whole"))
    batches_of_all = list(computed)
    computed.clear()
    computed.most = 1
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not config.out.exists()
    computed.most = 99
    run(config)
    assert computed == batches_of_all and len(computed) > 1
    run(config)  # finished: nothing to do
    assert computed == batches_of_all
    for name in TABLES:
        assert (config.out / name).read_bytes() == (config.out.with_name("whole") / name).read_bytes()


def test_a_folder_of_another_config_is_refused(config):
    config = dataclasses.replace(config, gradients=False)
    run(config)
    with pytest.raises(results.RunMismatch, match="limit: None -> 1"):
        prepare.prepare(dataclasses.replace(config, limit=1))
    run(config, batch_tokens=64)  # the same run: at once


def test_scores_that_are_not_finite_stop_the_run_at_the_pair(config, tmp_path):
    weights = tiny_model.random_weights()
    weights["model.norm.weight"][:] = 3e38  # finite, and yet too large for a product
    broken = tiny_model.write_gguf(tmp_path / "large.gguf", weights)
    with pytest.raises(FloatingPointError, match=r"line 1, id first: .* is not finite"):
        run(config, model=str(broken), gradients=False)
    assert not config.out.exists()


def test_the_first_token_that_is_not_finite_names_its_pair(scored):
    prepared, _ = scored
    batch = batches.packed(prepared.pairs, range(3), 2048)[0]
    counts = (prepared.pairs.lengths - prepared.pairs.starts[:, None]).sum(1)
    logps = np.zeros(counts.sum())
    logps[counts[0] :] = np.nan
    with pytest.raises(FloatingPointError, match="line 2, id 2: token_logps is not finite"):
        runner.check_finite(prepared, batch, {"token_logps": logps})


BAD = {
    "unknown model": (dict(model="gpt-5"), "model must be smollm2-135m, hf:ORG/NAME"),
    "no such pairs": (dict(pairs="nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(config, tmp_path, name):
    fields, message = BAD[name]
    if "pairs" in fields:
        fields = {"pairs": tmp_path / fields["pairs"]}
    with pytest.raises(ValueError, match=message):
        prepare.prepare(dataclasses.replace(config, **fields))
    assert not list(tmp_path.glob("run*"))


def test_pairs_that_are_all_too_long_are_refused(config):
    line = {"prompt": "hello hello", "chosen": " world", "rejected": " word"}
    config.pairs.write_text(json.dumps(line) + "\n")
    with pytest.raises(PairsFileError, match="no pair fits into max_length=2"):
        prepare.prepare(dataclasses.replace(config, max_length=2))


def test_rows_longer_than_learned_positions_are_refused(config, tmp_path):
    values = {"n_head": 2, "n_embd": 4, "vocab_size": len(tiny_model.VOCAB), "n_layer": 1, "n_positions": 8}
    small = gpt2.config_of(values)
    folder = tiny_model.write_folder(tmp_path / "gpt2", tiny_model.random_weights(small), small)
    with pytest.raises(PairsFileError, match="at most the model's 8 positions; got"):
        prepare.prepare(dataclasses.replace(config, model=str(folder)))


@pytest.mark.parametrize(("weight", "message"), [(0, "weights must not all be 0"), (1e308, "finite float32")])
def test_weights_of_pairs_must_not_all_be_zero_nor_too_large(config, weight, message):
    line = {"prompt": "hello", "chosen": " world", "rejected": " word", "weight": weight}
    config.pairs.write_text(json.dumps(line) + "\n")
    with pytest.raises(PairsFileError, match=message):
        prepare.prepare(config)


def test_a_place_where_no_run_can_be_written_is_refused_and_left_as_it_is(config, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in ("file/run", "run", "link"):
        with pytest.raises(ValueError, match="out must"):
            prepare.prepare(dataclasses.replace(config, out=tmp_path / out))
    assert (tmp_path / "run.partial" / "thesis").read_text() == "precious"


@pytest.mark.parametrize("field", ["limit", "max_length", "batch_tokens"])
def test_fields_out_of_range_are_named(config, field):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        dataclasses.replace(config, **{field: 0})


def test_checkpoint_keeps_its_name_in_results(config):
    assert checkpoints.load(config.model).name == "tiny"


def test_the_code_of_a_run_is_all_that_makes_its_numbers():
    found = {
        path.relative_to(sources.PACKAGE).as_posix()
        for path in sources.behind(sources.PACKAGE / "scoring" / "runner.py")
    }
    assert {
        "scoring/forward.py", "scoring/geometry.py", "scoring/tables.py", "policies/transformer.py",
        "policies/head.py", "policies/families/gemma.py", "probes/backward.py", "probes/packed.py",
        "theory/gradients.py", "data/tokenizer.py", "data/pair_set.py",
    } <= found  # fmt: skip
    assert not {"scoring/ranking.py", "scoring/command.py", "losses/clipped.py", "trainer/run.py"} & found
