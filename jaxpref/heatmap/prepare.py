"""All input of a heat map, read and checked before anything is written."""

import dataclasses
from pathlib import Path

from jaxpref import cache, fetch, results, sources
from jaxpref.data import pair_set
from jaxpref.data.files import PairsFileError
from jaxpref.data.pair_set import PairSet
from jaxpref.heatmap.config import Config
from jaxpref.policies import checkpoints
from jaxpref.policies.checkpoints import LanguageModel
from jaxpref.results import RunId
from jaxpref.scoring.config import EXAMPLE_PAIRS

IDENTITY = ("max_length", "skip_bad", "allow_empty_prompt", "after_end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Input that was read and found good."""

    config: Config
    model: LanguageModel
    pairs: PairSet
    pair: int  # the one that is looked at
    run: RunId


def prepare(config: Config) -> Prepared:
    """Raises ValueError, naming what is wrong with the input."""
    results.check_place(config.out)
    path = config.pairs or EXAMPLE_PAIRS
    model = checkpoints.load(fetch.resolve(config.model), name=Path(config.model).name)
    pairs = pair_set.prepare(
        path, model.tokenizer, max_length=config.max_length, vocab=model.config.vocab,
        skip_bad=config.skip_bad, allow_empty_prompt=config.allow_empty_prompt, after_end=config.after_end,
        cache=cache.cache_dir() / "tokens",
    )  # fmt: skip
    pair = _find(config, pairs, path)
    _check_positions(model, pairs, pair, path)
    run = _run_id(config, model, path, pairs.ids[pair])
    results.is_finished(config.out, run)  # raises where the folder holds another run
    return Prepared(config=config, model=model, pairs=pairs, pair=pair, run=run)


def _find(config: Config, pairs: PairSet, path: Path) -> int:
    if config.id is None:
        index = config.index or 0
        if index >= len(pairs):
            raise PairsFileError(path, None, f"index must be below its {len(pairs)} pairs; got {index}")
        return index
    found = next((i for i, name in enumerate(pairs.ids) if name == config.id), None)
    if found is None:
        raise PairsFileError(path, None, f"id must be that of a pair in it; got {config.id!r}")
    return found


def _check_positions(model: LanguageModel, pairs: PairSet, pair: int, path: Path) -> None:
    longest, most = int(pairs.lengths[pair].max()), model.config.max_length
    if model.config.positions == "learned" and longest > most:
        reason = f"rows must have at most the model's {most} positions; got {longest}"
        raise PairsFileError(path, None, f"{reason} (--max-length cuts responses)")


def _run_id(config: Config, model: LanguageModel, path: Path, pair: str) -> RunId:
    values = {name: getattr(config, name) for name in IDENTITY}
    values |= {"model": model.name, "weights_sha256": model.weights_sha256}
    values |= {"pairs_sha256": results.file_sha256(path), "pair": pair}
    code = results.fingerprint(sources.behind(Path(__file__).with_name("runner.py")))
    return RunId(study="heatmap", question=model.name, preset="", config=values, code=code)
