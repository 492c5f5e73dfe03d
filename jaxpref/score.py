"""Real pairs under a real model: log-probabilities, ranking, CHES and the geometry of the gradients.

    jaxpref score --model smollm2-135m --pairs FILE --out DIR

A pair at a time, each stored when it is done, so that an interrupted run goes on where it was. On two
cores SmolLM2 takes 3 to 6 CPU-seconds for a pair of 100 tokens, nearly all of it for the gradients.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from jaxpref import fetch, logps, results
from jaxpref.data import files, tokenization
from jaxpref.data.tokenization import AfterEnd, EncodedPair
from jaxpref.losses.quantities import mean_logps
from jaxpref.losses.weights import GradientWeights
from jaxpref.pairs import TokenPairs
from jaxpref.policies import checkpoints, transformer
from jaxpref.policies.checkpoints import LanguageModel
from jaxpref.policies.transformer import TransformerConfig
from jaxpref.probes import gradients, likelihood, ranking
from jaxpref.provenance import provenance
from jaxpref.results import Arrays, RunId, RunWriter
from jaxpref.theory import gradients as conditions

EXAMPLE_PAIRS = Path(__file__).parent / "data" / "examples" / "politeness_pairs.jsonl"
SOURCES = (  # what the numbers depend on; a change anywhere else leaves finished runs finished
    "score.py", "logps.py", "pairs.py", "losses/quantities.py", "data/files.py", "data/tokenization.py",
    "data/tokenizer.py", "data/encoder.py", "policies/checkpoints.py", "policies/gguf_file.py",
    "policies/hf_folder.py", "policies/safetensors_file.py",
    "policies/transformer.py", "policies/architecture.py", "policies/attention.py", "policies/layers.py",
    "policies/rope.py", *(
        f"policies/families/{name}.py" for name in (
            "common", "conversion", "gemma", "gpt2", "gpt_neox", "keys", "llama", "olmo", "qwen", "registry",
            "slots",
        )
    ),
    "probes/gradients.py", "probes/likelihood.py", "probes/ranking.py", "theory/gradients.py",
)  # fmt: skip
# Weighted means over pairs that a run records: the metric, and the column of pairs.parquet it is made of.
METRICS = {
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
    "logps/margin": "logps/margin",
    "ranking/accuracy": "ranking/correct",
    "ranking/accuracy_normalized": "ranking/correct_normalized",
    "ches/mean": "ches",
    "ches/ln_mean": "ln_ches",
    "last_hidden_inner": "last_hidden_inner",
    "edit_distance": "edit_distance",
    "length_difference": "length_difference",
    "grads/inner": "grads/inner",
    "grads/chosen_sq_norm": "grads/chosen_sq_norm",
    "grads/rejected_sq_norm": "grads/rejected_sq_norm",
    "grads/cos": "grads/cos",
    "grads/chosen_falls": "grads/chosen_falls",
    "grads/rejected_rises": "grads/rejected_rises",
    "entanglement/frac": "grads/entangled",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to score, with what, and where to."""

    out: Path
    """The run folder to write."""
    model: str = "smollm2-135m"
    """A name that `jaxpref fetch` knows, a GGUF file, or a Hugging Face folder."""
    pairs: Path | None = None
    """JSON lines or Parquet in a format of TRL; without it, 32 politeness pairs that come with jaxpref."""
    limit: int | None = None
    """Score only the first so many pairs."""
    max_length: int = 512
    """Longer rows lose the end of the response; counted as truncated."""
    skip_bad: bool = False
    """Count and list malformed lines rather than stop at the first."""
    allow_empty_prompt: bool = False
    """Take an empty prompt as it is; the first token then stands behind the model's start token."""
    after_end: AfterEnd = "keep"
    """White space that a template writes after the last end token: TRL keeps it, a model never writes it."""
    gradients: bool = True
    """Compute the gradient geometry; without it a pair takes a tenth of the time."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1; got {self.limit}")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2; got {self.max_length}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Input that was read and found good, before anything is written."""

    config: Config
    model: LanguageModel
    file: files.PairsFile
    encoded: Sequence[EncodedPair]
    report: tokenization.Report
    run: RunId


def prepare(config: Config) -> Prepared:
    """Reads and checks all input. Raises ValueError, naming what is wrong with it."""
    file = files.read_pairs(
        config.pairs or EXAMPLE_PAIRS, skip_bad=config.skip_bad, allow_empty_prompt=config.allow_empty_prompt
    )
    model = checkpoints.load(fetch.resolve(config.model), name=Path(config.model).name, remat="full")
    encoded, report = _encode(file, model, config)
    run = run_id(config, model, file)
    results.is_finished(config.out, run)  # raises where the folder holds another run
    results.check_place(config.out)
    return Prepared(config=config, model=model, file=file, encoded=encoded, report=report, run=run)


def _encode(file: files.PairsFile, model: LanguageModel, config: Config):
    try:
        encoded, report = tokenization.encode_pairs(
            file.records[: config.limit],
            model.tokenizer,
            max_length=config.max_length,
            vocab=model.config.vocab,
            after_end=config.after_end,
        )
    except tokenization.TokenizationError as error:
        raise files.PairsFileError(file.path, error.line, error.reason) from error
    if not encoded:
        raise files.PairsFileError(
            file.path, None, f"no pair fits into max_length={config.max_length} tokens"
        )
    if not any(pair.record.columns.get("weight", 1.0) for pair in encoded):
        raise files.PairsFileError(file.path, None, "the weights must not all be 0")
    return encoded, report


def run_id(config: Config, model: LanguageModel, file: files.PairsFile) -> RunId:
    """Two runs are the same when weights, pairs and settings are, wherever the files lie."""
    settings = {"limit", "max_length", "skip_bad", "allow_empty_prompt", "after_end", "gradients"}
    values = {name: value for name, value in dataclasses.asdict(config).items() if name in settings}
    values |= {"model": model.name, "weights_sha256": model.weights_sha256, "pairs_sha256": file.sha256}
    code = results.fingerprint(Path(__file__).parent / name for name in SOURCES)
    return RunId(study="score", question=model.name, preset="", config=values, code=code)


def run(prepared: Prepared, progress: Callable[[float, str], None] | None = None) -> Path:
    """Scores every pair into the run folder; at once if the folder holds this run already."""
    out = prepared.config.out
    if results.is_finished(out, prepared.run):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = RunWriter(out, prepared.run, provenance(), progress)
    scores = _score_all(prepared, writer)
    columns = pair_columns(prepared.encoded, scores)
    writer.table(columns)
    writer.table(token_columns(prepared, scores), name="tokens")
    writer.write(summary(columns), pairs=len(scores))
    writer.note(**_notes(prepared))
    writer.finish()
    return out


def _score_all(prepared: Prepared, writer: RunWriter) -> list[Arrays]:
    compiled = jax.jit(functools.partial(score_pair, config=prepared.model.config))
    scores = []
    for index, pair in enumerate(prepared.encoded):
        writer.progress(index / len(prepared.encoded), pair.record.id)
        compute = functools.partial(_checked, compiled, prepared, pair)
        scores.append(writer.part(f"pair-{index:06d}", compute))
    writer.progress(1.0, "")
    return scores


def _checked(compiled: Callable[..., Mapping[str, Array]], prepared: Prepared, pair: EncodedPair) -> Arrays:
    """One pair's numbers; stops where one is not finite, for a mean would hide it."""
    batch = tokenization.to_batch([pair], length=tokenization.bucket_length(pair.length))
    measured = dict(compiled(prepared.model.params, batch))
    if prepared.config.gradients:
        measured |= _geometry(prepared.model.config)(prepared.model.params, batch)
    arrays = {name: np.asarray(value[0]) for name, value in measured.items()}
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise FloatingPointError(f"line {pair.record.line}, id {pair.record.id}: {name} is not finite")
    return arrays


def score_pair(params: PyTree, batch: TokenPairs, *, config: TransformerConfig) -> dict[str, Array]:
    """What one forward pass tells about each pair: [pairs], and [pairs, tokens] for `token_logps/*`.

    Log-probabilities are in nats; `token_logps` are 0 outside the response.
    """
    rows, lengths = logps.stack_rows(batch), batch.lengths
    hidden = transformer.hidden(params, rows.tokens, config=config)
    scores = transformer.head(params, hidden, config=config)
    tokens = logps.split_pairs(logps.next_token_logps(scores, rows), rows)
    responses = tokens.sum()
    means = mean_logps(responses, lengths)
    return {
        "token_logps/chosen": tokens.chosen, "token_logps/rejected": tokens.rejected,
        "tokens/chosen": lengths.chosen, "tokens/rejected": lengths.rejected,
        "logps/chosen": responses.chosen, "logps/rejected": responses.rejected,
        "logps/margin": responses.margin,
        "mean_logps/chosen": means.chosen, "mean_logps/rejected": means.rejected,
        "ranking/correct": ranking.ranked_right(responses.margin),
        "ranking/correct_normalized": ranking.ranked_right(means.margin),
        "edit_distance": likelihood.edit_distance(batch.chosen, batch.rejected),
        "length_difference": likelihood.length_difference(lengths),
        **_similarities(hidden, rows, batch),
    }  # fmt: skip


def _similarities(hidden: Array, rows, batch: TokenPairs) -> dict[str, Array]:
    chosen, rejected = jnp.split(likelihood.response_hidden_sums(hidden, rows), 2)
    similarity = likelihood.ches(chosen, rejected, batch.lengths)
    last = jnp.split(likelihood.last_hidden(hidden, rows), 2)
    return {
        "ches": similarity.ches,
        "ln_ches": similarity.ln_ches,
        "last_hidden_inner": likelihood.last_hidden_inner(*last),
    }


@functools.cache
def _geometry(config: TransformerConfig) -> Callable[[PyTree, TokenPairs], dict[str, Array]]:
    pair_logps = functools.partial(transformer.pair_logps, config=config)
    return jax.jit(
        lambda params, batch: geometry_columns(gradients.gradient_geometry(pair_logps, params, batch))
    )


def geometry_columns(geometry: gradients.GradientGeometry) -> dict[str, Array]:
    """The geometry and what it foretells of a small step of a loss that weighs both responses alike (DPO)."""
    alike = GradientWeights(jnp.ones_like(geometry.inner), jnp.ones_like(geometry.inner))
    return {
        "grads/inner": geometry.inner,
        "grads/chosen_sq_norm": geometry.chosen_sq_norm,
        "grads/rejected_sq_norm": geometry.rejected_sq_norm,
        "grads/cos": geometry.cosine,
        "grads/chosen_falls": conditions.chosen_falls(geometry, alike),
        "grads/rejected_rises": conditions.rejected_rises(geometry, alike),
        "grads/entangled": geometry.entangled,
    }


def pair_columns(encoded: Sequence[EncodedPair], scores: Sequence[Arrays]) -> dict[str, list[Any]]:
    """Columns of `pairs.parquet`: a row a pair, in the order of the file."""
    columns: dict[str, list[Any]] = {
        "id": [pair.record.id for pair in encoded],
        "line": [pair.record.line for pair in encoded],
        "merged": [pair.chosen.merged or pair.rejected.merged for pair in encoded],
        "truncated": [pair.chosen.truncated or pair.rejected.truncated for pair in encoded],
        "weight": [pair.record.columns.get("weight", 1.0) for pair in encoded],
    }
    for name in (*files.SCORES, *files.COUNTS):
        if any(name in pair.record.columns for pair in encoded):
            columns[name] = [pair.record.columns.get(name, np.nan) for pair in encoded]
    scalars = [name for name in scores[0] if not name.startswith("token_logps/")]
    return columns | {name: [score[name].item() for score in scores] for name in scalars}


def token_columns(prepared: Prepared, scores: Sequence[Arrays]) -> dict[str, list[Any]]:
    """Columns of `tokens.parquet`: a row a response token."""
    names = ("pair", "response", "position", "token", "text", "logps")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for index, (pair, score) in enumerate(zip(prepared.encoded, scores, strict=True)):
        for response, row in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            for position in range(row.start, len(row.tokens)):
                token = row.tokens[position]
                logp = float(score[f"token_logps/{response}"][position])
                line = (index, response, position, token, prepared.model.tokenizer.token(token), logp)
                for name, value in zip(names, line, strict=True):
                    columns[name].append(value)
    return columns


def summary(columns: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Means over pairs, weighted by the file's `weight`."""
    weight = np.asarray(columns["weight"], float)
    weight = weight / weight.max()  # or the sum of large ones overflows
    return {
        metric: float(np.average(np.asarray(columns[column], float), weights=weight))
        for metric, column in METRICS.items()
        if column in columns
    }


def _notes(prepared: Prepared) -> dict[str, Any]:
    return {
        "pairs_file": prepared.file.path.name,
        "tokenization": dataclasses.asdict(prepared.report),
        "bad_lines": [dataclasses.asdict(bad) for bad in prepared.file.bad],
        "model": dataclasses.asdict(prepared.model.config),
    }
