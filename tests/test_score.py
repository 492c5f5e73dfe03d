"""Scores of real-looking pairs under a tiny Llama, against slower and independent computations."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from jaxpref import results, score
from jaxpref.data import tokenization
from jaxpref.data.files import PairsFileError
from jaxpref.policies import checkpoints, transformer

LINES = [
    {"prompt": "hello", "chosen": " world 42", "rejected": " word", "id": "first"},
    {
        "messages": [{"role": "user", "content": "hello"}],
        "chosen": "world",
        "rejected": "hello hello",
        "weight": 3,
    },
    {"prompt_ids": [10, 11], "chosen_ids": [12, 13], "rejected_ids": [14], "chosen_score": 2.5},
]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    model = tiny_model.write_gguf(tmp_path / "tiny.gguf")
    return score.Config(out=tmp_path / "run", model=str(model), pairs=tmp_path / "pairs.jsonl")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """One run that several tests look at."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPREF_CACHE", str(folder / "cache"))
        (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
        model = tiny_model.write_gguf(folder / "tiny.gguf")
        prepared = score.prepare(
            score.Config(out=folder / "run", model=str(model), pairs=folder / "pairs.jsonl")
        )
        score.run(prepared)
    return prepared, results.Run(folder / "run")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_logps_are_those_of_unpadded_rows_token_by_token(scored):
    prepared, run = scored
    table, tokens = run.table(), run.table("tokens")
    for index, pair in enumerate(prepared.encoded):
        for response, row in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            ids = np.array(row.tokens)
            logits = transformer.logits(
                prepared.model.params, jnp.array(ids[None]), config=prepared.model.config
            )
            expected = log_softmax(np.asarray(logits[0], np.float64))[np.arange(len(ids) - 1), ids[1:]]
            expected = expected[row.start - 1 :]
            stored = tokens["logps"][(tokens["pair"] == index) & (tokens["response"] == response)]
            np.testing.assert_allclose(stored, expected, rtol=1e-4)
            np.testing.assert_allclose(table[f"logps/{response}"][index], expected.sum(), rtol=1e-5)
            assert table[f"tokens/{response}"][index] == len(expected)


def test_ches_is_its_definition_on_unpadded_rows(scored):
    prepared, run = scored
    for index, pair in enumerate(prepared.encoded):
        sums = []
        for row in (pair.chosen, pair.rejected):
            tokens = jnp.array(row.tokens)[None]
            hidden = transformer.hidden(prepared.model.params, tokens, config=prepared.model.config)
            sums.append(np.asarray(hidden[0, row.start - 1 : -1], np.float64).sum(0))
        chosen, rejected = sums
        expected = chosen @ rejected - chosen @ chosen
        np.testing.assert_allclose(run.table()["ches"][index], expected, rtol=1e-3, atol=1e-3)


def test_geometry_is_that_of_per_response_gradients(scored):
    prepared, run = scored
    config, table = prepared.model.config, run.table()
    gradient = jax.grad(lambda p, rows: transformer.row_token_logps(p, rows, config=config).sum())
    for index, pair in enumerate(prepared.encoded):
        batch = tokenization.to_batch([pair], length=32)
        chosen, rejected = (
            np.concatenate(
                [
                    np.asarray(x, np.float64).ravel()
                    for x in jax.tree.leaves(gradient(prepared.model.params, r))
                ]
            )
            for r in (batch.chosen, batch.rejected)
        )
        np.testing.assert_allclose(table["grads/inner"][index], chosen @ rejected, rtol=1e-3)
        np.testing.assert_allclose(table["grads/chosen_sq_norm"][index], chosen @ chosen, rtol=1e-3)
        assert table["grads/chosen_falls"][index] == (chosen @ rejected > chosen @ chosen)
        assert table["grads/rejected_rises"][index] == (chosen @ rejected > rejected @ rejected)


def test_summary_is_the_weighted_mean_of_the_pairs(scored):
    _, run = scored
    table, (means,) = run.table(), run.rows
    margin = table["logps/chosen"] - table["logps/rejected"]
    np.testing.assert_allclose(means["logps/margin"], (margin * [1, 3, 1]).sum() / 5, rtol=1e-5)
    np.testing.assert_allclose(means["ranking/accuracy"], ((margin >= 0) * [1, 3, 1]).sum() / 5)
    assert set(score.METRICS) | {"pairs"} == set(means)


def test_run_folder_names_weights_data_and_settings(scored):
    prepared, run = scored
    assert run.config["weights_sha256"] == prepared.model.weights_sha256
    assert run.config["pairs_sha256"] == results.file_sha256(prepared.file.path)
    assert run.stored["notes"]["tokenization"]["pairs"] == 3
    assert list(run.table()["id"]) == ["first", "2", "3"]


def test_padding_changes_no_score(scored):
    prepared, _ = scored
    compiled = jax.jit(functools.partial(score.score_pair, config=prepared.model.config))
    batches = (tokenization.to_batch(prepared.encoded[:1], length=length) for length in (32, 64))
    short, long = (compiled(prepared.model.params, batch) for batch in batches)
    for name in short:
        if not name.startswith("token_logps/"):
            np.testing.assert_allclose(short[name], long[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_interrupted_run_goes_on_with_the_pairs_that_are_missing(config, monkeypatch):
    config = dataclasses.replace(config, gradients=False)
    computed: list[str] = []
    original = score._checked

    def counting(compiled, prepared, pair):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(pair.record.id)
        return original(compiled, prepared, pair)

    monkeypatch.setattr(score, "_checked", counting)
    with pytest.raises(KeyboardInterrupt):
        score.run(score.prepare(config))
    assert not config.out.exists()
    computed.clear()
    score.run(score.prepare(config))
    assert computed == ["3"]
    computed.clear()
    score.run(score.prepare(config))  # finished: nothing to do
    assert computed == []


def test_a_folder_of_another_config_is_refused(config):
    config = dataclasses.replace(config, gradients=False)
    score.run(score.prepare(config))
    with pytest.raises(results.RunMismatch, match="limit: None -> 1"):
        score.prepare(dataclasses.replace(config, limit=1))


def test_scores_that_are_not_finite_stop_the_run_at_the_pair(config, tmp_path):
    weights = tiny_model.random_weights()
    weights["model.norm.weight"][:] = 3e38  # finite, and yet too large for a product
    broken = tiny_model.write_gguf(tmp_path / "large.gguf", weights)
    prepared = score.prepare(dataclasses.replace(config, model=str(broken), gradients=False))
    with pytest.raises(FloatingPointError, match=r"line 1, id first: .* is not finite"):
        score.run(prepared)
    assert not config.out.exists()


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
        score.prepare(dataclasses.replace(config, **fields))
    assert not list(tmp_path.glob("run*"))


def test_pairs_that_are_all_too_long_are_refused(config):
    config.pairs.write_text(json.dumps(LINES[0] | {"prompt": "hello hello"}) + "\n")
    with pytest.raises(PairsFileError, match="no pair fits into max_length=2"):
        score.prepare(dataclasses.replace(config, max_length=2))


def test_weights_of_pairs_must_not_all_be_zero(config):
    config.pairs.write_text(json.dumps(LINES[0] | {"weight": 0}) + "\n")
    with pytest.raises(PairsFileError, match="weights must not all be 0"):
        score.prepare(config)


def test_weights_of_pairs_may_be_as_large_as_float64_has_them(config):
    lines = [LINES[0], LINES[0] | {"prompt": "word"}]
    weighted = [json.dumps(line | {"weight": 1e308}) + "\n" for line in lines]  # the sum overflows
    config.pairs.write_text("".join(weighted))
    score.run(score.prepare(dataclasses.replace(config, gradients=False)))
    run = results.Run(config.out)
    np.testing.assert_allclose(run.values("logps/margin"), run.table()["logps/margin"].mean())


def test_a_place_where_no_run_can_be_written_is_refused_and_left_as_it_is(config, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in ("file/run", "run", "link"):
        with pytest.raises(ValueError, match="out must"):
            score.prepare(dataclasses.replace(config, out=tmp_path / out))
    assert (tmp_path / "run.partial" / "thesis").read_text() == "precious"


@pytest.mark.parametrize("field", ["limit", "max_length"])
def test_fields_out_of_range_are_named(config, field):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        dataclasses.replace(config, **{field: 0})


def test_checkpoint_keeps_its_name_in_results(config):
    assert checkpoints.load(config.model).name == "tiny"
