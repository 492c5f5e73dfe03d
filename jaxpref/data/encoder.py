"""Token ids of many texts: each distinct piece between spaces is tokenized once.

Tokenizers cut a text into words before they merge, and most never let a word run from a character that is
no space into a space. A text may then be cut there beforehand, and its pieces be looked up: the ids are the
same, and cost a fifth. Where a tokenizer is not known to be of that kind, whole texts are encoded.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, normalizers

from jaxpref.data.tokenizer import Tokenizer

# Up to the next space behind a character that is none; Python's white space includes every regex engine's.
PIECE = re.compile(r" *[^ ]+(?:(?<=\s) +[^ ]*)*| +")
MOST_PIECES = 200_000  # kept, about 30 MB
LONGEST_PIECE = 64  # characters of a kept piece; longer ones hardly come again
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3, QWEN2 = CONTRACTIONS + r"|\p{N}{1,3}" + REST, CONTRACTIONS + r"|\p{N}" + REST
PROBES = (
    "a b  c",
    "it's 12  \n x. y\t z ",
    " \n\n  a'll\u00a0 b!\r\n \r\nc é \u3000 d",
    "x <|im_end|> y\n <s> z",
)


class Encoder:
    """Encodes batches of texts as `Tokenizer.encode` would encode each, special tokens in them recognized."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._special = special_tokens(tokenizer)
        self.in_pieces = cuts_before_spaces(tokenizer) and self._agrees()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without what a post-processor would add."""
        if not self.in_pieces:
            return self._tokenizer.encode_batch(texts)
        pieces = [self._pieces(text) for text in texts]
        long = self._learn(dict.fromkeys(itertools.chain.from_iterable(pieces)))
        ids = self._known.__getitem__
        encoded = [list(itertools.chain.from_iterable(map(ids, parts))) for parts in pieces]
        for piece in long if len(self._known) <= MOST_PIECES else list(self._known):
            del self._known[piece]
        return encoded

    def encode_groups(self, groups: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Ids of the texts of each group, as `encode` gives them; what they begin with is encoded once."""
        cuts = [_shared_cut(group) if self.in_pieces and group else 0 for group in groups]
        parts = [
            part
            for group, cut in zip(groups, cuts, strict=True)
            for part in (group[0][:cut] if group else "", *(text[cut:] for text in group))
        ]
        ids = iter(self.encode(parts))
        return [_prepend(next(ids), [next(ids) for _ in group]) for group in groups]

    def _pieces(self, text: str) -> list[str]:
        """The text in pieces, cut at special tokens and before spaces."""
        if self._special is None:
            return PIECE.findall(text)
        parts = self._special.split(text)  # text and special token in turn
        found = PIECE.findall(parts[0])
        for i in range(1, len(parts), 2):
            found.append(parts[i])
            found += PIECE.findall(parts[i + 1])
        return found

    def _learn(self, pieces: Iterable[str]) -> list[str]:
        """Makes all pieces known; returns the new ones that are too long to be kept."""
        known = self._known
        new = [piece for piece in pieces if piece not in known]
        known.update(zip(new, self._tokenizer.encode_batch(new), strict=True))
        return [piece for piece in new if len(piece) > LONGEST_PIECE]

    def _agrees(self) -> bool:
        """The proof is in `cuts_before_spaces`; a tokenizer that escapes it is caught here."""
        self.in_pieces = True
        return self.encode(PROBES) == self._tokenizer.encode_batch(PROBES)


def _prepend(first: list[int], others: list[list[int]]) -> list[list[int]]:
    return [first + other for other in others]


def _shared_cut(group: Sequence[str]) -> int:
    """Where the last space behind a character that is none stands, in what all texts begin with; else 0."""
    first = group[0]
    shared = len(first)
    while not all(text.startswith(first[:shared]) for text in group):
        shared //= 2  # rare: a template that writes the prompt differently before an answer
    cut = first.rfind(" ", 0, shared)
    while cut > 0 and first[cut - 1].isspace():
        cut = first.rfind(" ", 0, cut)
    return max(cut, 0)


def special_tokens(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """The tokens at which a text is cut before anything else; the longest where several begin."""
    added = tokenizer.backend.get_added_tokens_decoder().values()
    texts = sorted((token.content for token in added if not token.normalized), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None


def cuts_before_spaces(tokenizer: Tokenizer) -> bool:
    """Whether no token, whatever stands around it, spans a character that is no space and a space after it.

    Also required: what stands before such a cut has no say in how the text after it is tokenized, nor the
    reverse. True of the regular expressions above, which never look behind, and ahead in runs of white space
    alone; of NFC, which composes no space with what is before it; not of added tokens that swallow spaces.
    """
    backend = tokenizer.backend
    steps = _steps(backend.pre_tokenizer)
    return (
        any(_makes_words(step) for step in steps)
        and all(_is_local(step) for step in steps)
        and (backend.normalizer is None or isinstance(backend.normalizer, normalizers.NFC))
        and not getattr(backend.model, "dropout", None)
        and not any(_takes_spaces(token) for token in backend.get_added_tokens_decoder().values())
    )


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """The pre-tokenizer's parts, as `tokenizer.json` describes them."""
    if pre_tokenizer is None:
        return []
    described = json.loads(pre_tokenizer.__getstate__())
    return described["pretokenizers"] if described["type"] == "Sequence" else [described]


def _makes_words(step: dict[str, Any]) -> bool:
    return bool(step["type"] == "Split" or (step["type"] == "ByteLevel" and step.get("use_regex", True)))


def _is_local(step: dict[str, Any]) -> bool:
    if step["type"] == "Split":
        pattern = step["pattern"].get("Regex")
        return step["behavior"] == "Isolated" and not step["invert"] and pattern in (GPT2, LLAMA3, QWEN2)
    return step["type"] == "Digits" or (step["type"] == "ByteLevel" and not step["add_prefix_space"])


def _takes_spaces(token: AddedToken) -> bool:
    return bool(token.lstrip or token.rstrip or token.single_word or re.search(r"\S ", token.content))
