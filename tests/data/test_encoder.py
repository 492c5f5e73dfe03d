"""Texts encoded in pieces have the ids of texts encoded whole, or are encoded whole."""

import itertools

import numpy as np
import pytest
import trl_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpref.data import encoder
from jaxpref.data.tokenizer import Tokenizer

BACKENDS = {name: made() for name, (made, _, _) in trl_pairs.TOKENIZERS.items()}
IN_PIECES = {"gpt2", "llama3", "both ends", "space runs"}


@pytest.mark.parametrize("name", BACKENDS)
def test_texts_are_cut_only_for_tokenizers_that_let_no_token_run_into_a_space(name):
    assert encoder.Encoder(Tokenizer(backend=BACKENDS[name])).in_pieces == (name in IN_PIECES)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_three_pieces_of_text_have_the_ids_of_the_whole(name):
    tokenizer = Tokenizer(backend=BACKENDS[name])
    pieces = [p for p in trl_pairs.PIECES if p not in ("A", "345", "{", "}", "ld", "lo world", "<think>")]
    texts = ["".join(three) for three in itertools.product(pieces, repeat=3)][:: 1 if name == "gpt2" else 7]
    assert encoder.Encoder(tokenizer).encode(texts) == tokenizer.encode_batch(texts)


@settings(max_examples=300)
@given(st.lists(st.text(st.sampled_from(" \n\t\r\u00a0\u3000\x1c\x85a'sé\u03011.,<|end>日🙂")), max_size=4))
def test_text_of_any_kind_has_the_ids_of_the_whole(texts):
    for name in IN_PIECES:
        tokenizer = Tokenizer(backend=BACKENDS[name])
        assert encoder.Encoder(tokenizer).encode(texts) == tokenizer.encode_batch(texts)


@settings(max_examples=200)
@given(st.lists(st.text(st.sampled_from(" \n\u00a0a's\u03011<|end>日")), min_size=3, max_size=3))
def test_what_texts_begin_with_is_encoded_once_and_their_ids_are_those_of_the_whole(parts):
    prompt, chosen, rejected = parts
    groups = [(prompt, prompt + chosen, prompt + rejected), (chosen, prompt, rejected), ()]
    for name in ("gpt2", "space runs", "sentencepiece"):
        tokenizer = Tokenizer(backend=BACKENDS[name])
        expected = [tokenizer.encode_batch(group) for group in groups]
        assert encoder.Encoder(tokenizer).encode_groups(groups) == expected


@given(st.text())
def test_pieces_are_the_text(text):
    assert "".join(encoder.PIECE.findall(text)) == text


def test_what_is_remembered_changes_nothing_and_is_bounded(monkeypatch):
    monkeypatch.setattr(encoder, "MOST_PIECES", 20)
    tokenizer = Tokenizer(backend=BACKENDS["gpt2"])
    remembering, rng = encoder.Encoder(tokenizer), np.random.default_rng(0)
    for _ in range(30):
        texts = [trl_pairs._text(rng, 0, 9) + " " + "x" * 100 for _ in range(4)]
        assert remembering.encode(texts) == tokenizer.encode_batch(texts)
        assert len(remembering._known) <= 20 and not any(len(piece) > 64 for piece in remembering._known)
