"""Freezes what TRL's DPO trainer makes of pairs: run where trl is installed, from the repository's root.

PYTHONPATH=tests/helpers python tests/data/golden/make_trl_pairs.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import trl_pairs
from transformers import AutoTokenizer

CASES, SHORT = 40, 12  # of each tokenizer; every pair whole, and cut to so many tokens


def freeze(name: str, folder: Path) -> dict:
    """A tokenizer's files, generated lines, and TRL's rows of them."""
    trl_pairs.make(folder, name)
    tokenizer, rng = AutoTokenizer.from_pretrained(folder), np.random.default_rng(5)
    lines = [trl_pairs.random_line(rng) for _ in range(CASES)]
    good = [line for line in lines if not trl_pairs.trl_takes_all_for_the_prompt(line)]
    rows = [
        {"line": line} | {str(n): trl_pairs.by_trl(tokenizer, line, n) for n in (SHORT, 10_000)}
        for line in good
    ]
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}
    return {"files": files, "rows": rows}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        frozen = {name: freeze(name, Path(folder) / name.replace(" ", "_")) for name in trl_pairs.TOKENIZERS}
    place = Path(__file__).with_name("trl_pairs.json")
    place.write_text(json.dumps(frozen, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")
