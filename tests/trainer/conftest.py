"""A model of a few thousand weights in a Hugging Face folder, a file of token pairs, a cache of its own."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_model

from jaxpref import cli
from jaxpref.trainer import command
from jaxpref.trainer.prepare import prepare

MODEL = dataclasses.replace(tiny_model.CONFIG, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_dim=24)
FLAGS = ["--steps", "4", "--batch-size", "3", "--learning-rate", "1e-2", "--max-length", "24"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return tiny_model.write_folder(
        tmp_path_factory.mktemp("model") / "tiny", tiny_model.random_weights(MODEL), MODEL
    )


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    draw = lambda low, high: rng.integers(3, len(tiny_model.VOCAB), size=rng.integers(low, high)).tolist()
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [
        {"prompt_ids": draw(2, 6), "chosen_ids": draw(2, 9), "rejected_ids": draw(2, 9)} for _ in range(8)
    ]
    lines[3] |= {"weight": 2.5, "id": "heavy"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def arguments(model_folder, pairs_file):
    """Flags of a run into a folder; later ones win."""

    def make(out, *more):
        return [
            "--model",
            str(model_folder),
            "--pairs",
            str(pairs_file),
            "--out",
            str(out),
            *FLAGS,
            *map(str, more),
        ]

    return make


@pytest.fixture
def train(arguments):
    """Runs `jaxpref train`; returns the exit code."""
    return lambda out, *more: cli.main(["train", *arguments(out, *more)])


@pytest.fixture
def prepared(arguments):
    return lambda out, *more: prepare(command.parse(arguments(out, *more)))
