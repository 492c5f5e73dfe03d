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


def text_row(tiny, prompt, response):
    """One row of a pair whose other response is like it."""
    (pair,), _ = encode(tiny, TextPair(prompt, response, response + " 4"))
    return pair.chosen


def test_text_row_is_prompt_then_response_then_end_token(tiny):
    row = text_row(tiny, "hello", " world")
    assert (list(row.tokens), row.start, row.merged) == (ids("hello", "Ġworld", "<|im_end|>"), 1, False)


def test_end_token_is_not_written_twice(tiny):
    row = text_row(tiny, "hello", " world<|im_end|>")
    assert list(row.tokens) == ids("hello", "Ġworld", "<|im_end|>")


def test_a_token_across_the_boundary_belongs_to_the_response(tiny):
    row = text_row(tiny, "42hel", "lo")  # alone "he l", together "hello"
    assert (list(row.tokens), row.start, row.merged) == (ids("4", "2", "hello", "<|im_end|>"), 2, True)


def test_both_responses_stand_behind_the_same_prompt_tokens_even_if_one_merged(tiny):
    (pair,), report = encode(tiny, TextPair("42hel", "lo", "p"))
    assert pair.chosen.start == pair.rejected.start == 2
    assert list(pair.rejected.tokens) == ids("4", "2", "he", "l", "p", "<|im_end|>")
    assert report.merged == 1


def test_empty_prompt_gets_one_start_token(tiny):
    row = text_row(tiny, "", "hello")
    assert (list(row.tokens), row.start) == (ids("<|im_start|>", "hello", "<|im_end|>"), 1)


def test_a_prompt_that_merged_with_one_response_leaves_both_behind_the_same_start_token(tiny):
    (pair,), _ = encode(tiny, TextPair("hel", "lo", "p"))
    assert list(pair.chosen.tokens) == ids("<|im_start|>", "hello", "<|im_end|>")
    assert list(pair.rejected.tokens) == ids("<|im_start|>", "he", "l", "p", "<|im_end|>")
    assert pair.chosen.start == pair.rejected.start == 1


def test_bos_is_written_at_most_once(tiny):
    adding = dataclasses.replace(tiny, add_bos=True)
    for prompt in ("hello", "<|im_start|>hello", ""):
        tokens = text_row(adding, prompt, " world").tokens
        assert tokens[0] == adding.bos and tokens.count(adding.bos) == 1


@pytest.mark.parametrize(
    ("after_end", "written"), [("keep", "world<|im_end|>\n"), ("cut", "world<|im_end|>")]
)
def test_chat_rows_are_what_the_template_writes_or_that_up_to_the_end_token(tiny, after_end, written):
    pair = ChatPair((USER,), ({"role": "assistant", "content": "world"},), (USER,))
    (row,), _ = tokenization.encode_pairs(
        records(pair), tiny, max_length=100, vocab=len(tiny_model.VOCAB), after_end=after_end
    )
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    start = row.chosen.start
    assert tiny.decode(list(row.chosen.tokens)) == text + written
    assert start == row.rejected.start and text.startswith(tiny.decode(list(row.chosen.tokens[:start])))


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
        TextPair("42", "hellohello 1", "hellohello 2"),  # the difference is cut off
        TextPair("4", "hello", "2"),
        TextPair("4", "hello", "2"),  # duplicate
        TextPair("4", "<|im_end|>", "2"),  # the end token alone
    ]
    lines = [
        PairRecord(line=i, id=str(i), pair=pair, columns={"chosen_score": 1.0, "rejected_score": 1.0})
        for i, pair in enumerate(pairs)
    ]
    kept, report = tokenization.encode_pairs(lines, tiny, max_length=5, vocab=len(tiny_model.VOCAB))
    assert [pair.record.line for pair in kept] == [0, 2, 3, 4, 5]
    assert report == tokenization.Report(
        pairs=5, truncated=2, dropped={"prompt_fills_max_length": 1}, merged=0, duplicates=1, tied=5,
        indistinct=1, empty=1,
    )  # fmt: skip


def test_a_template_that_drops_the_response_is_a_counted_drop(tiny):
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    deaf = dataclasses.replace(tiny, chat_template=template)
    pair = ChatPair((USER,), ({"role": "assistant", "content": "a"},), (USER, USER))
    kept, report = encode(deaf, pair)
    assert not kept and report.dropped == {"no_response_token": 1}


def test_plain_text_needs_an_end_token_and_says_so(tiny):
    endless = dataclasses.replace(tiny, eos=None)
    with pytest.raises(tokenization.TokenizationError, match="line 1: the tokenizer must have an end token"):
        encode(endless, TextPair("a", "b", "c"))
    assert encode(endless, IdPair((1,), (2,), (3,)))[1].pairs == 1


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
