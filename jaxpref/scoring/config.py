"""What `jaxpref score` can be told."""

import dataclasses
from pathlib import Path

from jaxpref.data import files
from jaxpref.data.tokenization import AfterEnd

EXAMPLE_PAIRS = Path(files.__file__).parent / "examples" / "politeness_pairs.jsonl"
LEAST_TOKENS = 64  # of a batch


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
    """Compute the gradient geometry; without it a pair takes a seventh of the time."""
    batch_tokens: int = 2048
    """Tokens computed at once, padding among them: memory and speed, no number but by rounding."""
    rank: str | None = None
    """Order the pairs by this column of pairs.parquet, best first, into ranked.parquet and ranked.jsonl."""
    keep: float | None = None
    """Share of the pairs, the first by rank, that keep_out is to have."""
    keep_out: Path | None = None
    """Pairs file to write: lines of the input, or rows of a Parquet file, as they stand."""

    def __post_init__(self):
        least = {"limit": 1, "max_length": 2, "batch_tokens": LEAST_TOKENS}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}; got {value}")
        if (self.keep is None) != (self.keep_out is None):
            raise ValueError(f"keep must be given with keep_out; got {self.keep} and {self.keep_out}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep must be a share of the pairs, in (0, 1]; got {self.keep:g}")
        if self.keep is not None and self.rank is None:
            raise ValueError("keep must be given with rank, the column that says which pairs are best")
