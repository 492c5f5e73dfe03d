"""Tokenizers of many kinds, pairs that are hard on them, and what TRL's DPO trainer makes of a pair.

TRL, transformers and datasets are imported where they are used: the frozen expectations need none of them.
"""

import json
import types
from pathlib import Path

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
CORPUS = [
    "hello world, hello you",
    "it's 12 o'clock; they'll say hello",
    "hel lo wor ld",
    "aa  bb\n\ncc",
    "if\n  he\n  said \n \n",
    "naïve café",
] * 3
CHATML = (
    "{% if tools %}<|start|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if thinking %}<think>{% endif %}{% endif %}"
)
PLAIN = (  # as Llama 2's: no special token but those at the ends, white space cut, an empty system dropped
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% elif m.role == 'system' and not m.content %}"
    "{% else %}[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bos_first(tokenizer, after=""):
    tokens = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<s> $A{after}", special_tokens=tokens)


def _trainer(**settings):
    return trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False, **settings)


def _byte_level(pre_tokenizer=None, normalizer=None, added=SPECIAL):
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, _trainer(vocab_size=320, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(added)
    return tokenizer


def _llama3():
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    steps = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer = _byte_level(steps)
    _bos_first(tokenizer)
    return tokenizer


def _sentencepiece():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.train_from_iterator(CORPUS, _trainer(vocab_size=120))
    _bos_first(tokenizer)
    return tokenizer


def _both_ends():
    tokenizer = _byte_level(normalizer=normalizers.NFC())
    _bos_first(tokenizer, " </s>")
    return tokenizer


def _greedy_spaces():
    """Added tokens that swallow the spaces beside them, and runs of spaces as tokens."""
    loose = [
        AddedToken("<|start|>", lstrip=True, special=True),
        AddedToken("<|end|>", rstrip=True, special=True),
    ]
    tokenizer = _byte_level(added=[*SPECIAL[:3], *loose])
    tokenizer.add_tokens([AddedToken("  ", normalized=True), AddedToken("    ", normalized=True)])
    return tokenizer


def _space_runs():
    tokenizer = _byte_level(normalizer=normalizers.NFC())  # as Pythia's
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (2, 3, 5)])
    return tokenizer


TOKENIZERS = {  # how it is made, its template, whether padding is the end token
    "gpt2": (_byte_level, CHATML, True),
    "llama3": (_llama3, CHATML, False),
    "sentencepiece": (_sentencepiece, PLAIN, True),
    "both ends": (_both_ends, CHATML, False),
    "greedy spaces": (_greedy_spaces, CHATML, True),
    "space runs": (_space_runs, PLAIN, False),
}
PIECES = [
    "hello", " hello", "hel", "lo", "lo world", " wor", "ld", " ", "  ", "   ", "\n", "\n\n", " \n ",
    "12", "345", " 6", ",", "...", " ;", "é", "e\u0301", "\u0301", "日本", "🙂", "\u00a0", "\u3000", "\u200d",
    "naïve", "\t", "'s", "'ll",
    "<s>", "</s>", "<|start|>", "<|end|>", "[INST]", "<think>", "A", "a", " a", "{", "}", '"',
]  # fmt: skip


def make(folder: Path, name: str) -> Path:
    """The tokenizer as a Hugging Face folder, written by transformers."""
    from transformers import PreTrainedTokenizerFast

    build, template, pad_is_eos = TOKENIZERS[name]
    made = PreTrainedTokenizerFast(
        tokenizer_object=build(), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>" if pad_is_eos else "<unk>", chat_template=template,
    )  # fmt: skip
    made.save_pretrained(folder)
    return folder


def _text(rng: np.random.Generator, least: int, most: int) -> str:
    return "".join(rng.choice(PIECES, rng.integers(least, most + 1)))


def _message(rng, role, least=1):
    return {"role": role, "content": _text(rng, least, 5)}


def _turns(rng):
    """A conversation that waits for an answer; a user always says something."""
    system = [{"role": "system", "content": _text(rng, 0, 2)}] if rng.random() < 0.4 else []
    user = lambda: {"role": "user", "content": "x" + _text(rng, 0, 4)}
    before = [user(), _message(rng, "assistant")] if rng.random() < 0.3 else []
    return [*system, *before, user()]


def random_line(rng: np.random.Generator) -> dict:
    """A pair in one of TRL's formats."""
    kind = rng.choice(["standard", "implicit", "chat", "implicit chat"])
    chosen, rejected = _text(rng, 1, 6), _text(rng, 1, 6)
    if kind == "standard":
        return {"prompt": _text(rng, 0, 6), "chosen": chosen, "rejected": rejected}
    if kind == "implicit":
        shared = _text(rng, 0, 6)
        return {"chosen": shared + chosen, "rejected": shared + rejected}
    turns, answers = _turns(rng), [[_message(rng, "assistant")] for _ in range(2)]
    also = {"tools": json.dumps([{"name": "f"}])} if rng.random() < 0.2 else {}
    also |= {"chat_template_kwargs": {"thinking": bool(rng.integers(2))}} if rng.random() < 0.3 else {}
    if kind == "chat":
        return {"prompt": turns, "chosen": answers[0], "rejected": answers[1]} | also
    return {"chosen": turns + answers[0], "rejected": turns + answers[1]} | also


class _Rows(list):
    """As much of a data set as the preparation uses."""

    def map(self, function, fn_kwargs=None):
        return _Rows({**row, **function(dict(row), **(fn_kwargs or {}))} for row in self)

    def filter(self, function):
        return _Rows(row for row in self if function(row))


def by_trl(hf_tokenizer, line: dict, max_length: int) -> dict | None:
    """Length of the prompt and both truncated rows, by TRL's preparation and collator; None if dropped."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    settings = types.SimpleNamespace(
        dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start"
    )
    trainer = types.SimpleNamespace(_tokenizer=hf_tokenizer)
    rows = DPOTrainer._prepare_dataset(trainer, _Rows([line]), hf_tokenizer, settings, "train")
    if not rows:
        return None
    batch = DataCollatorForPreference(pad_token_id=0, max_length=max_length)(list(rows))
    found = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    starts = {len(ids) - int(mask.sum()) for ids, mask in zip(found, batch["completion_mask"])}
    (start,) = starts
    return {"start": start, "chosen": found[0], "rejected": found[1]}


def with_documented_differences(trl: dict, line: dict, tokenizer) -> dict:
    """What we make of it: a `bos` that the tokenizer adds stands once, and a token before the response."""
    rows, start, bos = [list(trl["chosen"]), list(trl["rejected"])], trl["start"], tokenizer.bos
    added = isinstance(line["chosen"], str) and tokenizer.around[0] == [bos]
    if added and all(row[:2] == [bos, bos] for row in rows):
        rows, start = [row[1:] for row in rows], max(start - 1, 1)
    elif start == 0 and all(row[:1] == [bos] for row in rows):
        start = 1
    elif start == 0:
        rows, start = [[bos, *row] for row in rows], 1
    return {"start": start, "chosen": rows[0], "rejected": rows[1]}


def trl_takes_all_for_the_prompt(line: dict) -> bool:
    """The slip of `extract_prompt` that we do not follow, see `files._implicit`."""
    chosen, rejected = line["chosen"], line["rejected"]
    text = "prompt" not in line and isinstance(chosen, str)
    return text and chosen[0] != rejected[0] and chosen.endswith(" ")
