"""A probed step: the same step as a plain one, and each pair's gradients as computed one by one."""

import functools
import json

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxpref.policies import lora, transformer
from jaxpref.probes import gradients, likelihood
from jaxpref.trainer.prepare import lora_config

# The second step's loss tells where the first one's update went, which its gradient's norm does not.
TWO_STEPS = ("--steps", 2, "--batch-size", 5, "--optimizer", "sgd", "--learning-rate", "0.1")
CASES = {
    "split": ("--micro-batch-size", 2),
    "adapters": ("--lora-rank", 2),
    "by token, in two passes": ("--loss", "dpo", "sft", "--micro-batch-size", 3),
    "whole rows": ("--loss", "trl:orpo"),
}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_a_probed_step_is_the_plain_step_and_tells_each_pairs_gradients(case, train, prepared, tmp_path):
    flags = (*CASES[case], *TWO_STEPS, "--no-export")
    assert train(tmp_path / "plain", *flags) == 0 == train(tmp_path / "probed", *flags, "--probe-every", 1)
    rows = [lines(tmp_path / name) for name in ("plain", "probed")]
    for plain, probed in zip(*rows, strict=True):
        assert "grads/inner" not in plain
        for name, value in plain.items():
            np.testing.assert_allclose(probed[name], value, rtol=5e-5, atol=5e-6, err_msg=name)
    table = pq.read_table(tmp_path / "probed" / "probes" / "step-00000000.parquet").to_pydict()
    expected = one_by_one(prepared(tmp_path / "other", *flags), table["id"])
    for name in ("inner", "chosen_sq_norm", "rejected_sq_norm"):
        scale = np.abs(getattr(expected, name)).max()
        np.testing.assert_allclose(
            table[f"grads/{name}"], getattr(expected, name), rtol=2e-5, atol=2e-5 * scale
        )
    np.testing.assert_allclose(
        rows[1][0]["grads/cos"],
        np.average(expected.cosine, weights=weights(table["id"])),
        rtol=2e-5,
        atol=1e-6,
    )


def named(ready, ids):
    """These pairs, each side's rows padded on the right."""
    every = {ready.train.ids[i]: i for i in range(len(ready.train))}
    return jax.tree.map(jax.numpy.asarray, ready.train.batch([every[name] for name in ids]))


def one_by_one(ready, ids):
    """Of the named pairs, from two gradients of the model's size a pair."""
    batch, config = named(ready, ids), ready.model.config
    if ready.adapters is None:
        pair_logps = functools.partial(transformer.pair_logps, config=config)
        return gradients.gradient_geometry(pair_logps, ready.model.params, batch)
    settings = lora_config(ready.config, ready.model.params)

    def pair_logps(adapters, batch):
        return transformer.pair_logps(
            lora.attach(ready.model.params, adapters, settings), batch, config=config
        )

    return gradients.gradient_geometry(pair_logps, ready.adapters, batch)


def weights(ids):
    return [2.5 if name == "heavy" else 1.0 for name in ids]


def test_every_nth_step_is_probed_groups_add_up_and_ches_is_that_of_the_states(train, prepared, tmp_path):
    flags = ("--steps", 2, "--batch-size", 5, "--no-export")
    assert train(tmp_path / "run", *flags, "--probe-every", 2) == 0
    assert ["grads/inner" in row for row in lines(tmp_path / "run") if "loss" in row] == [True, False]
    (path,) = (tmp_path / "run" / "probes").iterdir()
    table = pq.read_table(path).to_pydict()
    groups = [np.array(values) for name, values in table.items() if name.startswith("grads/inner/")]
    np.testing.assert_allclose(sum(groups), table["grads/inner"], rtol=1e-5)
    ready = prepared(tmp_path / "other", *flags)
    assert np.array(table["layers/inner"]).shape == (5, ready.model.config.layers)
    expected = similarity(ready, table["id"])
    np.testing.assert_allclose(table["ches"], expected.ches, rtol=1e-4)
    np.testing.assert_allclose(table["ln_ches"], expected.ln_ches, rtol=1e-4)


def similarity(ready, ids):
    """From separate rows, one forward pass for each side."""
    batch = named(ready, ids)
    sums = [
        likelihood.response_hidden_sums(
            transformer.hidden(ready.model.params, rows.tokens, config=ready.model.config), rows
        )
        for rows in (batch.chosen, batch.rejected)
    ]
    return likelihood.ches(*sums, batch.lengths)


@pytest.mark.parametrize("flags", [(), ("--lora-rank", 2, "--learning-rate", 3e-3)])
def test_how_an_update_moves_other_pairs_is_foretold(flags, train, pairs_file, tmp_path):
    """If it is small enough: to first order."""
    more = ("--steps", 1, "--learning-rate", 1e-4, "--optimizer", "sgd", *flags, "--no-export")
    assert train(tmp_path / "run", *more, "--probe-every", 1, "--probe-pairs", pairs_file) == 0
    (row,) = lines(tmp_path / "run")
    for side in ("chosen", "rejected"):
        foretold, actual = (row[f"influence/{side}_{name}"] for name in ("predicted", "actual"))
        assert foretold != 0 and abs(foretold - actual) < 0.05 * abs(foretold) + 5e-6
