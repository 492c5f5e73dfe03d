"""How long real pairs are: token counts of prompts and responses, which the other benchmarks read.

    python benchmarks/lengths.py DATA [--out benchmarks]

DATA holds the folders named below; the tokenizer and its template are SmolLM2's (`jaxpref fetch
smollm2-135m`), rows are cut to 1,024 tokens, the end token counts as the response's. A few seconds. Numbers
alone are kept, no text.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxpref import fetch
from jaxpref.data import pair_set, tokenizer
from jaxpref.policies import gguf_file

MAX_LENGTH, VOCAB = 1024, 49152
HH = "Anthropic HH-RLHF, helpful-base (Bai et al. 2022, arXiv:2204.05862)"
SETS = {
    "hh": ("hh_helpful_base/train.jsonl", HH, "MIT"),
    "politeness": ("politeness_pairs/train.jsonl", "rasbt/LLMs-from-scratch, chapter 7", "Apache-2.0"),
    "gsm8k": ("gsm8k_solution_pairs/pairs.jsonl", "openai/grade-school-math, model solutions", "MIT"),
}


def counted(path: Path, tokens: tokenizer.Tokenizer) -> dict[str, list[int]]:
    """Tokens of each pair's prompt and two responses."""
    made = pair_set.prepare(path, tokens, max_length=MAX_LENGTH, vocab=VOCAB, cache=None)
    chosen, rejected = (made.lengths - made.starts[:, None]).T.tolist()
    return {"prompt": made.starts.tolist(), "chosen": chosen, "rejected": rejected}


def main() -> None:
    """Writes `NAME_lengths.json` for every set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    tokens = tokenizer.from_gguf(gguf_file.metadata(gguf_file.open_file(fetch.fetch("smollm2-135m"))))
    for name, (file, source, licence) in SETS.items():
        note = (
            f"tokens under SmolLM2's template, rows of at most {MAX_LENGTH}; the end token is the response's"
        )
        values: dict[str, Any] = {"source": source, "licence": licence, "note": note}
        values |= counted(given.data / file, tokens)
        (given.out / f"{name}_lengths.json").write_text(json.dumps(values) + "\n", encoding="utf-8")
        print(name, len(values["prompt"]), "pairs")


if __name__ == "__main__":
    main()
