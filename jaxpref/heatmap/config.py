"""What `jaxpref heatmap` can be told."""

import dataclasses
from pathlib import Path

from jaxpref.data.tokenization import AfterEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which pair to look at, under what, and where to."""

    out: Path
    """The run folder to write."""
    model: str = "smollm2-135m"
    """A name that `jaxpref fetch` knows, a GGUF file, or a Hugging Face folder."""
    pairs: Path | None = None
    """JSON lines or Parquet in a format of TRL; without it, 32 politeness pairs that come with jaxpref."""
    id: str | None = None
    """The pair's id in the file."""
    index: int | None = None
    """Instead of the id: the pair's number among those that were read, from 0; else the first."""
    max_length: int = 512
    """Longer rows lose the end of the response."""
    skip_bad: bool = False
    """Pass over malformed lines rather than stop at the first."""
    allow_empty_prompt: bool = False
    """Take an empty prompt as it is; the first token then stands behind the model's start token."""
    after_end: AfterEnd = "keep"
    """White space that a template writes after the last end token: TRL keeps it, a model never writes it."""
    tokens_at_once: int = 64
    """Of each response: memory and speed, no number but by rounding. More tokens come block by block."""

    def __post_init__(self):
        least = {"index": 0, "max_length": 2, "tokens_at_once": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}; got {value}")
        if self.id is not None and self.index is not None:
            raise ValueError(f"id and index must not both be given; got {self.id!r} and {self.index}")
