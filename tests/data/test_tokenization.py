"""Rows are prompt, response, padding; the split is made on the joint tokenization."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref import fetch
from jaxpref.data import tokenization, tokenizer
from jaxpref.data.files import ChatPair, IdPair, PairRecord, TextPair
from jaxpref.policies import gguf_file

GOLDEN_IDS = Path(__file__).parent.parent / "policies" / "golden" / "smollm2_ids.json"
USER = {"role": "user", "content": "hello"}
EOS = tiny_model.VOCAB.index("<|im_end|>")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tiny_model.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    return tokenizer.from_gguf(gguf_file.metadata(gguf_file.open_file(path)))


def ids(*tokens: str) -> list[int]:
    return [tiny_model.VOCAB.index(token) for token in tokens]


def records(*pairs) -> list[PairRecord]:
    return [PairRecord(line=i, id=str(i), pair=pair, columns={}) for i, pair in enumerate(pairs, 1)]


def encode(tiny, *pairs, max_length=100):
    return tokenization.encode_pairs(
        records(*pairs), tiny, max_length=max_length, vocab=len(tiny_model.VOCAB)
    )


def test_merges_and_single_digits_are_applied_by_hand(tiny):
    assert tiny.encode("hello world") == ids("hello", "Ġworld")
    assert tiny.encode("hellohello 42") == ids("hello", "hello", "Ġ", "4", "2")
    assert tiny.encode("12") == ids("1", "2")  # digits stay single although a merge for these two exists
    assert tiny.encode("<|im_end|>hel") == ids("<|im_end|>", "he", "l")


@settings(max_examples=100)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_tokenizer_round_trip_is_exact(tiny, text):
    assert tiny.decode(tiny.encode(text)) == text


@pytest.mark.parametrize("row", json.loads(GOLDEN_IDS.read_text()), ids=lambda row: repr(row["text"])[:20])
def test_smollm2_ids_of_multilingual_text_are_transformers_ids(row):
    path = fetch.cached("smollm2-135m")
    if path is None:
        pytest.skip("the weights are not fetched: jaxpref fetch smollm2-135m")
    smollm2 = _smollm2(path)
    assert smollm2.encode(row["text"]) == row["ids"]
    assert smollm2.decode(row["ids"]) == row["text"]


_loaded: dict[Path, tokenizer.Tokenizer] = {}


def _smollm2(path: Path) -> tokenizer.Tokenizer:
    if path not in _loaded:
        _loaded[path] = tokenizer.from_gguf(gguf_file.metadata(gguf_file.open_file(path)))
    return _loaded[path]


def test_text_row_is_prompt_then_response_then_end_token(tiny):
    row = tokenization.encode_text("hello", " world", tiny)
    assert (list(row.tokens), row.start, row.merged) == (ids("hello", "Ġworld", "<|im_end|>"), 1, False)


def test_end_token_is_not_written_twice(tiny):
    row = tokenization.encode_text("hello", " world<|im_end|>", tiny)
    assert list(row.tokens) == ids("hello", "Ġworld", "<|im_end|>")


def test_a_token_across_the_boundary_belongs_to_the_response(tiny):
    row = tokenization.encode_text("42hel", "lo", tiny)  # alone "he l", together "hello"
    assert (list(row.tokens), row.start, row.merged) == (ids("4", "2", "hello", "<|im_end|>"), 2, True)


def test_both_responses_stand_behind_the_same_prompt_tokens_even_if_one_merged(tiny):
    (pair,), report = encode(tiny, TextPair("42hel", "lo", "p"))
    assert pair.chosen.start == pair.rejected.start == 2
    assert list(pair.rejected.tokens) == ids("4", "2", "he", "l", "p", "<|im_end|>")
    assert report.merged == 1


def test_empty_prompt_gets_one_start_token(tiny):
    row = tokenization.encode_text("", "hello", tiny)
    assert (list(row.tokens), row.start) == (ids("<|im_start|>", "hello", "<|im_end|>"), 1)


def test_bos_is_written_at_most_once(tiny):
    adding = dataclasses.replace(tiny, add_bos=True)
    for prompt in ("hello", "<|im_start|>hello", ""):
        tokens = tokenization.encode_text(prompt, " world", adding).tokens
        assert tokens[0] == adding.bos and tokens.count(adding.bos) == 1


def test_chat_rows_are_what_the_template_writes_up_to_the_end_token(tiny):
    row = tokenization.encode_chat([USER], [{"role": "assistant", "content": "world"}], tiny)
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tiny.decode(list(row.tokens[: row.start])) == text
    assert tiny.decode(list(row.tokens[row.start :])) == "world<|im_end|>"  # the template's newline is cut


def test_end_token_stays_in_the_mask_though_padding_has_its_id(tiny):
    pairs, _ = encode(tiny, TextPair("hello", " world", " 42"))
    batch = tokenization.to_batch(pairs, length=8)
    padded = batch.chosen.tokens.at[:, 3:].set(EOS)
    assert batch.chosen.response_mask[0].tolist() == [False, True, True] + [False] * 5
    assert padded[0, 2] == batch.chosen.tokens[0, 2] == EOS
    assert batch.lengths.rejected.tolist() == [4]


def test_rows_are_padded_to_one_length_on_the_right(tiny):
    pairs, _ = encode(tiny, TextPair("hello", " world", " 42"), TextPair("4", "2", "hello 42"))
    batch = tokenization.to_batch(pairs)
    assert batch.chosen.tokens.shape == batch.rejected.tokens.shape == (2, 6)
    for pair, tokens, mask in zip(pairs, batch.chosen.tokens, batch.chosen.response_mask, strict=True):
        kept = len(pair.chosen.tokens)
        assert tuple(tokens[:kept].tolist()) == pair.chosen.tokens
        assert np.flatnonzero(mask).tolist() == list(range(pair.chosen.start, kept))


def test_ids_are_taken_as_they_are(tiny):
    (pair,), _ = encode(tiny, IdPair((5, 6), (7,), (8, 9)))
    assert (pair.chosen.tokens, pair.chosen.start) == ((5, 6, 7), 2)


def test_ids_outside_the_vocabulary_are_refused_by_line(tiny):
    with pytest.raises(tokenization.TokenizationError, match="line 2: token ids must be below"):
        encode(tiny, IdPair((5,), (7,), (8,)), IdPair((5,), (7,), (10_000,)))


def test_truncated_dropped_duplicate_and_tied_pairs_are_counted(tiny):
    pairs = [
        TextPair("42", "hello 42424242", "hello"),  # truncated
        TextPair("4242424242", "hello", "world"),  # no room for a response: dropped
        TextPair("42", "hellohello 1", "hellohello 2"),  # the difference is cut off: dropped
        TextPair("4", "hello", "2"),
        TextPair("4", "hello", "2"),  # duplicate
    ]
    lines = [
        PairRecord(line=i, id=str(i), pair=pair, columns={"chosen_score": 1.0, "rejected_score": 1.0})
        for i, pair in enumerate(pairs)
    ]
    kept, report = tokenization.encode_pairs(lines, tiny, max_length=5, vocab=len(tiny_model.VOCAB))
    assert [pair.record.line for pair in kept] == [0, 3, 4]
    assert report == tokenization.Report(pairs=3, truncated=1, dropped=2, merged=0, duplicates=1, tied=3)


@pytest.mark.parametrize("length", [1, 32, 33, 100, 129, 1000, 5000])
def test_buckets_hold_the_row_and_are_half_full(length):
    size = tokenization.bucket_length(length)
    assert length <= size and size % 32 == 0 and (size == 32 or length > size / 2)


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "mutation": "{{ messages.append(1) }}",
    "refusal": "{{ raise_exception('roles must alternate') }}",
    "syntax": "{% for %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_templates_cannot_reach_out_of_the_sandbox(tiny, name):
    hostile = dataclasses.replace(tiny, chat_template=HOSTILE[name])
    with pytest.raises(tokenizer.TemplateError):
        hostile.render([USER], generation_prompt=True)


def test_template_that_rewrites_its_prompt_is_refused_by_line(tiny):
    counting = dataclasses.replace(
        tiny, chat_template="{{ messages|length }}{% for m in messages %}x{% endfor %}"
    )
    pair = ChatPair(
        (USER,), ({"role": "assistant", "content": "a"},), ({"role": "assistant", "content": "b"},)
    )
    with pytest.raises(tokenization.TokenizationError, match="line 1: the chat template must write"):
        encode(counting, pair)


BOTTOMLESS = {
    "loops in loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "end within",
    ),
    "macro of macros": (
        "{% macro m(n) %}{{ m(n-1) + m(n-1) if n else '' }}{% endmacro %}{{ m(60) }}",
        "end within",
    ),
    "endless range": ("{% for i in range(10000000000) %}{% endfor %}", "Range too big"),
    "tower of powers": ("{{ 10**(10**10) }}", "must not use"),
    "text without end": ("{{ 'a' * 10000000000 }}", "factors must be text, or numbers up to"),
    "itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "half a character": ("{{ '\\ud83d' }}", "surrogates not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOTTOMLESS)
def test_templates_that_fail_or_never_end_are_refused_by_line(tiny, monkeypatch, name):
    monkeypatch.setattr(tokenizer, "RENDER_SECONDS", 0.2)
    template, reason = BOTTOMLESS[name]
    hostile = dataclasses.replace(tiny, chat_template=template)
    pair = ChatPair(
        (USER,), ({"role": "assistant", "content": "a"},), ({"role": "assistant", "content": "b"},)
    )
    with pytest.raises(tokenization.TokenizationError, match=f"line 1: the chat template refused.*{reason}"):
        encode(hostile, pair)


def test_ids_outside_the_vocabulary_are_refused_even_where_the_row_is_cut(tiny):
    with pytest.raises(tokenization.TokenizationError, match="below the vocabulary's 270; got 99999"):
        encode(tiny, IdPair((1,), (2, 2, 99999), (3, 4, 5)), max_length=3)
