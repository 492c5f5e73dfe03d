"""All input of a run, read and checked before anything is written."""

import dataclasses
from pathlib import Path

from jaxpref import cache, fetch, results, sources
from jaxpref.data import pair_set
from jaxpref.data.pair_set import PairSet
from jaxpref.policies import checkpoints
from jaxpref.policies.checkpoints import LanguageModel
from jaxpref.results import RunId
from jaxpref.scoring.config import EXAMPLE_PAIRS, Config

IDENTITY = ("limit", "max_length", "skip_bad", "allow_empty_prompt", "after_end", "gradients")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Input that was read and found good."""

    config: Config
    model: LanguageModel
    path: Path  # of the pairs file
    pairs: PairSet
    run: RunId


def prepare(config: Config) -> Prepared:
    """Raises ValueError, naming what is wrong with the input."""
    results.check_place(config.out)
    path = config.pairs or EXAMPLE_PAIRS
    model = checkpoints.load(fetch.resolve(config.model), name=Path(config.model).name, remat="full")
    pairs = _pairs(config, model, path)
    run = run_id(config, model, path)
    results.is_finished(config.out, run)  # raises where the folder holds another run
    return Prepared(config=config, model=model, path=path, pairs=pairs, run=run)


def _pairs(config: Config, model: LanguageModel, path: Path) -> PairSet:
    pairs = pair_set.prepare(
        path, model.tokenizer, max_length=config.max_length, vocab=model.config.vocab, limit=config.limit,
        skip_bad=config.skip_bad, allow_empty_prompt=config.allow_empty_prompt, after_end=config.after_end,
        cache=cache.cache_dir() / "tokens",
    )  # fmt: skip
    pair_set.check_reach(pairs, model.config.reach, path)
    return pairs


def run_id(config: Config, model: LanguageModel, path: Path) -> RunId:
    """Two runs are the same when weights, pairs and settings are, wherever the files lie."""
    values = {name: getattr(config, name) for name in IDENTITY}
    values |= {"model": model.name, "weights_sha256": model.weights_sha256}
    values |= {"pairs_sha256": results.file_sha256(path)}
    code = results.fingerprint(sources.behind(Path(__file__).with_name("runner.py")))
    return RunId(study="score", question=model.name, preset="", config=values, code=code)
