"""A pair's map under a tiny Llama: whole and block by block, against gradients of whole responses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from analysis import __main__ as analysis
from analysis import heatmap as figures
from jaxpref import cli, results
from jaxpref.heatmap import runner
from jaxpref.heatmap.config import Config
from jaxpref.heatmap.prepare import prepare
from jaxpref.pairs import TokenRows
from jaxpref.policies import transformer

LINES = [
    {"prompt": "hello", "chosen": " world 42", "rejected": " word", "id": "first"},
    {"prompt_ids": [9, 10, 11], "chosen_ids": [12, 13, 9, 2], "rejected_ids": [14, 13], "id": "$x"},
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heatmap")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPREF_CACHE", str(folder / "cache"))
        (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
        model = tiny_model.write_gguf(folder / "tiny.gguf")
        yield Config(
            out=folder / "run", model=str(model), pairs=folder / "pairs.jsonl", id="$x", tokens_at_once=2
        )


@pytest.fixture(scope="module")
def made(config):
    prepared = prepare(config)
    runner.run(prepared)
    return prepared, results.Run(config.out)


def test_the_blocks_make_the_products_of_explicit_gradients(made):
    prepared, run = made
    model, pair = prepared.model, runner.read(prepared)
    rows = TokenRows(jnp.asarray(pair.tokens), jnp.ones(pair.tokens.shape, bool))
    assert [len(chunk.places) for chunk in runner.chunks(pair, 2)] == [2, 2, 2]

    def logps(params):
        found = transformer.row_token_logps(params, rows, config=model.config)
        return jnp.concatenate([found[0, 3:7], found[1, 3:5]])

    jacobian = jax.jit(jax.jacrev(logps))(model.params)
    flat = np.concatenate([np.reshape(x, (6, -1)) for x in jax.tree.leaves(jacobian)], axis=1).astype(float)
    expected, inner = flat @ flat.T, run.table("products")["inner"].reshape(6, 6)
    np.testing.assert_allclose(inner, expected, rtol=0, atol=1e-5 * expected.max())
    (found,) = run.rows
    np.testing.assert_allclose(found["grads/inner"], expected[:4, 4:].sum(), rtol=1e-4)
    np.testing.assert_allclose(found["grads/rejected_sq_norm"], expected[4:, 4:].sum(), rtol=1e-5)
    assert (found["tokens/chosen"], found["tokens/rejected"]) == (4, 2)


def test_a_row_a_token_and_its_log_probability(made):
    _, run = made
    tokens = run.table("tokens")
    assert tokens["token"].tolist() == [12, 13, 9, 2, 14, 13]
    assert tokens["position"].tolist() == [3, 4, 5, 6, 3, 4]
    products = run.table("products")
    np.testing.assert_array_equal(
        products["inner"][products["first"] == products["second"]], tokens["sq_norm"]
    )
    assert (tokens["logps"] < 0).all() and tokens["response"].tolist() == ["chosen"] * 4 + ["rejected"] * 2


def test_an_interrupted_run_computes_no_block_again(config, monkeypatch):
    changed = dataclasses.replace(config, out=config.out.parent / "again")
    prepared, block, computed = prepare(changed), runner._block, []

    def failing(*args):
        if len(computed) == 2:
            raise OSError("no more")
        computed.append(1)
        return block(*args)

    monkeypatch.setattr(runner, "_block", failing)
    with pytest.raises(OSError, match="no more"):
        runner.run(prepared)
    monkeypatch.setattr(runner, "_block", lambda *args: computed.append(1) or block(*args))
    runner.run(prepared)
    assert len(computed) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "none"}, "id must be that of a pair in it; got 'none'"),
        ({"id": None, "index": 2}, "index must be below its 2 pairs; got 2"),
    ],
)
def test_a_pair_that_is_not_there_is_named(config, change, message):
    with pytest.raises(ValueError, match=message):
        prepare(dataclasses.replace(config, **change))


def test_id_and_index_exclude_each_other(config):
    with pytest.raises(ValueError, match="id and index must not both be given; got '\\$x' and 1"):
        dataclasses.replace(config, index=1)


def test_the_figures_hold_every_token(made, tmp_path):
    _, run = made
    data = figures.Map(run)
    assert data.cosines(True, False).shape == (4, 2) and np.abs(data.inner - data.inner.T).max() < 1e-3
    np.testing.assert_allclose(np.diagonal(data.cosines(False, False)), 1.0, rtol=1e-6)
    paths = figures.draw(run.folder, tmp_path)
    assert {path.name for path in paths} == {f"{n}.{e}" for n in figures.FIGURES for e in ("png", "pdf")}
    assert all(path.stat().st_size > 5_000 for path in paths)


def test_tokens_are_shown_without_what_a_font_cannot_draw():
    assert figures.shown(" a\n$b") == "␣a↵\\$b"
    assert len(figures.shown("x" * 99)) == figures.SHOWN


def test_the_command_prints_what_it_found(made, config, tmp_path, capsys):
    arguments = ["--model", config.model, "--pairs", str(config.pairs), "--out", str(config.out)]
    assert cli.main(["heatmap", *arguments, "--id", "$x"]) == 0  # at once, for it is finished
    assert "grads/inner" in capsys.readouterr().out
    assert cli.main(["heatmap", *arguments, "--id", "first"]) == 2
    assert "holds a run of another config" in capsys.readouterr().err
    assert analysis.main(["heatmap", "--results", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "must hold a finished `jaxpref heatmap`" in capsys.readouterr().err
