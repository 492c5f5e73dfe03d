"""A tiny Llama and three pairs of every format, scored once for all who look at them."""

import json

import pytest
import tiny_model

from jaxpref import results
from jaxpref.scoring import prepare, runner
from jaxpref.scoring.config import Config

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


def settings(folder):
    """Of a run of those pairs under that model, all in one folder."""
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    model = tiny_model.write_gguf(folder / "tiny.gguf")
    return Config(out=folder / "run", model=str(model), pairs=folder / "pairs.jsonl")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    return settings(tmp_path)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """One run that several tests look at."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPREF_CACHE", str(folder / "cache"))
        prepared = prepare.prepare(settings(folder))
        runner.run(prepared)
    return prepared, results.Run(prepared.config.out)
