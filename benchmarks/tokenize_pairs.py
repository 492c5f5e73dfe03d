"""Pairs tokenized a CPU-second, from the file to arrays on disk: ours and TRL's, same file, same run.

    python benchmarks/tokenize_pairs.py DATA [--rounds 3] [--out benchmarks/tokenize_pairs.json]

DATA holds hh_helpful_base/train.jsonl and politeness_pairs/train.jsonl; the tokenizer is SmolLM2's
(`jaxpref fetch smollm2-135m`). CPU time of the process with its threads, median of the rounds; a minute.
TRL is measured where it is installed: its own preparation, over a `datasets.Dataset` without a cache.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxpref import fetch
from jaxpref.data import pair_set, tokenizer
from jaxpref.policies import gguf_file

FILES = ("hh_helpful_base/train.jsonl", "politeness_pairs/train.jsonl")
MAX_LENGTH, VOCAB = 1024, 49152
ROW = "| {by} | {pairs} | {pairs_per_cpu_s:.0f} | {cpu_s:.2f} | {wall_s:.2f} | {tokens:.0f} |"


def write_conversations(data: Path, path: Path, copies: int) -> int:
    """One file in TRL's conversational format, a number before each copy's prompts; returns its pairs."""
    lines = [json.loads(line) for name in FILES for line in (data / name).open(encoding="utf-8")]
    reply = lambda text: [{"role": "assistant", "content": text}]
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            for line in lines:
                ask = [{"role": "user", "content": f"{copy} {line['messages'][0]['content']}"}]
                pair = {"chosen": reply(line["chosen"]), "rejected": reply(line["rejected"])}
                file.write(json.dumps({"prompt": ask + line["messages"][1:]} | pair) + "\n")
    return copies * len(lines)


def smollm2() -> tokenizer.Tokenizer:
    """The tokenizer inside the GGUF file."""
    path = fetch.fetch("smollm2-135m")
    return tokenizer.from_gguf(gguf_file.metadata(gguf_file.open_file(path)))


def ours(path: Path, tokens: tokenizer.Tokenizer, cache: Path) -> int:
    """Tokens written."""
    made = pair_set.prepare(path, tokens, max_length=MAX_LENGTH, vocab=VOCAB, cache=cache)
    return int(made.lengths.sum())


def trls(path: Path, tokens: tokenizer.Tokenizer, cache: Path) -> int:
    """The same by TRL; its rows are cut later, in the collator."""
    import types

    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.dpo_trainer import DPOTrainer

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokens.backend, chat_template=tokens.chat_template,
        bos_token=tokens.token(tokens.bos), eos_token=tokens.token(tokens.eos),
    )  # fmt: skip
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    args = types.SimpleNamespace(dataset_num_proc=None, max_length=MAX_LENGTH, truncation_mode="keep_start")
    made = DPOTrainer._prepare_dataset(types.SimpleNamespace(_tokenizer=fast), rows, fast, args, "train")
    sizes = (len(row["prompt_ids"]) + len(row[n]) for row in made for n in ("chosen_ids", "rejected_ids"))
    return sum(min(size, MAX_LENGTH) for size in sizes)


def measure(function: Callable[[Path, Any, Path], int], path: Path, tokens: Any) -> dict[str, float]:
    """CPU and wall seconds of one run with an empty cache, and what it wrote."""
    with tempfile.TemporaryDirectory() as cache:
        cpu, wall = time.process_time(), time.perf_counter()
        written = function(path, tokens, Path(cache))
        return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "tokens": written}


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    sides: dict[str, Any] = {"jaxpref": ours}
    if importlib.util.find_spec("trl") is not None:
        sides["trl"] = trls
    tokens, rows = smollm2(), []
    for copies in given.copies:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.jsonl"
            pairs = write_conversations(given.data, path, copies)
            for name, function in sides.items():
                if name == "trl" and copies > 1:
                    continue  # does not depend on how many there are
                rounds = [measure(function, path, tokens) for _ in range(given.rounds)]
                rows.append(summary(name, pairs, rounds))
                print(ROW.format(**rows[-1]))
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    given.out.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def summary(name: str, pairs: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds."""
    middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    return {"by": name, "pairs": pairs, "pairs_per_cpu_s": pairs / middle["cpu_s"], **middle}


if __name__ == "__main__":
    main()
