"""A language model from disk: weights, sizes and tokenizer, from GGUF or a Hugging Face folder."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
from jaxtyping import PyTree
from safetensors.numpy import save_file

from jaxpref import cache, results
from jaxpref.data import tokenizer as tokenizers
from jaxpref.data.tokenizer import Tokenizer
from jaxpref.policies import families, gguf_file, hf_folder
from jaxpref.policies.architecture import TransformerConfig
from jaxpref.policies.families import CheckpointError, Tensors

__all__ = ["CheckpointError", "LanguageModel", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A transformer with all that is needed to read text with it."""

    name: str
    config: TransformerConfig
    params: PyTree  # float32
    tokenizer: Tokenizer
    weights_sha256: str  # of the GGUF file; of all files' hashes for a folder

    @property
    def chat_template(self) -> str | None:
        """Jinja source."""
        return self.tokenizer.chat_template


def load(
    path: str | Path, *, name: str | None = None, remat: str = "none", use_cache: bool = True
) -> LanguageModel:
    """The model in a GGUF file or in a Hugging Face folder, its weights as float32.

    Args:
      path: a `.gguf` file, or a folder with `config.json`, `*.safetensors` and `tokenizer.json`.
      name: what results call the model; the file's name if None.
      remat: what of each layer the backward pass computes again; gradients of long rows then fit in memory.
      use_cache: keep a GGUF file's dequantized weights in the user's cache, where they load in a second.

    Raises:
      CheckpointError: names what is damaged, missing, misshapen or of an unknown kind.
    """
    path = Path(path)
    if not (path.is_file() or path.is_dir()):
        raise CheckpointError(f"there is no file or folder {path}")
    try:
        model = _load_folder(path) if path.is_dir() else _load_gguf(path, use_cache=use_cache)
    except (ValueError, OSError) as error:  # damaged, a config out of range, no access
        reason = str(error)
        raise CheckpointError(reason if str(path) in reason else f"{path}: {reason}") from error
    config = dataclasses.replace(model.config, remat=remat)
    return dataclasses.replace(model, name=name or path.stem, config=config)


def _load_folder(folder: Path) -> LanguageModel:
    config = hf_folder.read_config(folder)
    weights = hf_folder.tensors(folder, config)
    return LanguageModel(
        name=folder.name,
        config=config,
        params=families.to_params(weights, config),
        tokenizer=tokenizers.from_folder(folder),
        weights_sha256=_folder_sha256(folder),
    )


def _folder_sha256(folder: Path) -> str:
    """One hash for all shards: of their hashes, in the order of their names."""
    hashes = "".join(results.file_sha256(path) for path in hf_folder.shards(folder))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _load_gguf(path: Path, *, use_cache: bool) -> LanguageModel:
    reader = gguf_file.open_file(path)
    values = gguf_file.metadata(reader)
    config = gguf_file.config_of(values, reader)
    weights, sha256 = gguf_file.tensors(reader, config), results.file_sha256(path)
    families.check_shapes(weights.shapes, config)
    if use_cache:
        weights = _cached(weights, cache.cache_dir() / "dequantized" / f"{sha256}.safetensors")
    return LanguageModel(
        name=path.stem,
        config=config,
        params=families.to_params(weights, config),
        tokenizer=tokenizers.from_gguf(values),
        weights_sha256=sha256,
    )


def _cached(weights: Tensors, path: Path) -> Tensors:
    """The same weights out of `path`, which is written first if it is missing or unreadable."""
    try:
        return _open_cached(weights, path)
    except (OSError, safetensors.SafetensorError):
        arrays = {name: np.ascontiguousarray(weights.read(name)) for name in weights.shapes}
        with contextlib.suppress(OSError), cache.written_whole(path) as aside:  # no room, no cache
            save_file(arrays, aside)
        return Tensors(weights.shapes, arrays.__getitem__)


def _open_cached(weights: Tensors, path: Path) -> Tensors:
    file = safetensors.safe_open(path, framework="numpy")
    read: Callable[[str], np.ndarray] = file.get_tensor
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    if shapes != dict(weights.shapes):
        raise OSError(f"{path} holds other tensors")
    return Tensors(shapes, read)
