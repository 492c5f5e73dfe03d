"""Token ids against TRL itself: its own preparation and collator over generated pairs."""

import dataclasses
import json

import numpy as np
import pytest
import trl_pairs

from jaxpref.data import files, pair_set, tokenization, tokenizer

pytest.importorskip("trl")
pytestmark = pytest.mark.parity
LARGE = 10_000


@pytest.fixture(scope="module", params=trl_pairs.TOKENIZERS)
def both(request, tmp_path_factory):
    """One tokenizer, read by us and by transformers."""
    from transformers import AutoTokenizer

    folder = trl_pairs.make(tmp_path_factory.mktemp("tokenizer"), request.param)
    return tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


def lines(tmp_path, count, seed=0):
    """Generated pairs that are well formed to us, as a file, and as TRL takes them."""
    rng = np.random.default_rng(seed)
    drawn = [trl_pairs.random_line(rng) for _ in range(count)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in drawn), encoding="utf-8")
    read = files.read_pairs(path, skip_bad=True, allow_empty_prompt=True)
    assert len(read.records) > 0.9 * count
    kept = [(record, drawn[record.line - 1]) for record in read.records]
    return path, [(record, line) for record, line in kept if not trl_pairs.trl_takes_all_for_the_prompt(line)]


def found(pair):
    assert pair.chosen.start == pair.rejected.start
    return {
        "start": pair.chosen.start,
        "chosen": list(pair.chosen.tokens),
        "rejected": list(pair.rejected.tokens),
    }


def test_rows_are_trls_over_generated_pairs(tmp_path, both):
    ours, theirs = both
    _, pairs = lines(tmp_path, 400)
    encode = tokenization.PairEncoder(ours, max_length=LARGE, vocab=LARGE)
    compared = 0
    for (_, line), outcome in zip(pairs, encode([record for record, _ in pairs]), strict=True):
        expected = trl_pairs.by_trl(theirs, line, LARGE)
        if outcome == "no_response_token":
            assert min(len(expected["chosen"]), len(expected["rejected"])) == expected["start"]
            continue
        assert not isinstance(outcome, str | tokenization.TokenizationError), (outcome, line)
        expected = trl_pairs.with_documented_differences(expected, line, ours)
        assert found(outcome) == expected, line
        compared += 1
    assert compared > 350


def test_truncation_and_drops_are_trls_at_every_length(tmp_path, both):
    ours, theirs = both
    _, pairs = lines(tmp_path, 40, seed=1)
    for max_length in range(2, 40):
        encode = tokenization.PairEncoder(ours, max_length=max_length, vocab=LARGE)
        for (_, line), outcome in zip(pairs, encode([record for record, _ in pairs]), strict=True):
            whole = trl_pairs.by_trl(theirs, line, LARGE)
            plain = trl_pairs.with_documented_differences(whole, line, ours)
            if plain != whole or outcome == "no_response_token":
                continue  # a row that is a token longer or shorter than TRL's is cut elsewhere
            expected = trl_pairs.by_trl(theirs, line, max_length)
            got = None if outcome == "prompt_fills_max_length" else found(outcome)
            assert got == expected, (max_length, line)


def test_ids_do_not_depend_on_whether_texts_are_encoded_in_pieces(tmp_path, both):
    ours, _ = both
    _, pairs = lines(tmp_path, 300, seed=2)
    encoder = tokenization.Encoder(ours)
    texts = [" ".join(json.dumps(line, ensure_ascii=False).split("\\n")) for _, line in pairs]
    assert encoder.encode(texts) == [ours.encode(text) for text in texts]


def test_prepared_pairs_on_disk_are_the_same(tmp_path, both):
    ours, theirs = both
    path, pairs = lines(tmp_path, 60, seed=3)
    made = pair_set.prepare(
        path,
        ours,
        max_length=30,
        vocab=LARGE,
        skip_bad=True,
        allow_empty_prompt=True,
        cache=tmp_path / "cache",
    )
    rows = {name: i for i, name in enumerate(made.ids)}
    for record, line in pairs:
        expected = trl_pairs.by_trl(theirs, line, LARGE)
        expected = trl_pairs.with_documented_differences(expected, line, ours)
        if record.id in rows:
            index = rows[record.id]
            assert made.starts[index] == expected["start"]
            assert made.row(index, "chosen").tolist() == expected["chosen"][:30]
            assert made.row(index, "rejected").tolist() == expected["rejected"][:30]


def test_gguf_style_bos_is_a_post_processors(tmp_path, both):
    """`add_bos` without a post-processor, as a GGUF file has it, writes the same rows."""
    ours, _ = both
    if ours.around != ([ours.bos], []):
        pytest.skip("this tokenizer writes no bos, or more than one token")
    bare = tokenizer.tokenizers.Tokenizer.from_str(ours.backend.to_str())
    bare.post_processor = tokenizer.tokenizers.processors.ByteLevel()
    other = dataclasses.replace(ours, backend=bare, add_bos=True)
    _, pairs = lines(tmp_path, 50, seed=4)
    rows = [
        tokenization.PairEncoder(one, max_length=LARGE, vocab=LARGE)([record for record, _ in pairs])
        for one in (ours, other)
    ]
    assert rows[0] == rows[1]
