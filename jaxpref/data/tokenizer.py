"""A tokenizer with its special tokens and its chat template, wherever it was stored."""

import contextlib
import dataclasses
import functools
import json
import reprlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

Message = dict[str, str]  # {"role": "user", "content": "..."}
RENDER_SECONDS = 10.0  # a template needs a millisecond; one that loops for ever is a damaged or a hostile one
LARGEST_FACTOR = 10_000  # in a template's products
GGUF_CONTROL, GGUF_USER_DEFINED = 3, 4  # llama.cpp's token types that are matched before the merges


class TemplateError(ValueError):
    """A chat template that cannot be read, or that refused the messages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Text to ids and back; `chat_template` is Jinja source, run in a sandbox."""

    backend: tokenizers.Tokenizer
    bos: int | None = None
    eos: int | None = None
    add_bos: bool = False  # the model was trained with `bos` in front of every text
    chat_template: str | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens spelled out in `text` are recognized, none is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def token(self, index: int | None) -> str:
        """The spelling of a special token; empty for None."""
        return "" if index is None else self.backend.id_to_token(index) or ""

    def render(self, messages: list[Message], *, generation_prompt: bool) -> str:
        """The messages as one text, as the model's chat template writes them."""
        if self.chat_template is None:
            raise TemplateError("this model has no chat template, so it cannot read conversations")
        try:
            with _time_limit(RENDER_SECONDS):
                text = _compiled(self.chat_template).render(
                    messages=messages, add_generation_prompt=generation_prompt,
                    bos_token=self.token(self.bos), eos_token=self.token(self.eos),
                )  # fmt: skip
            text.encode("utf-8")  # a template can spell half a character
            return text
        except Exception as error:  # a template is somebody else's program: it may fail in any way
            reason = str(error) or type(error).__name__
            raise TemplateError(f"the chat template refused the messages: {reason}") from error


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stops the Python code inside when its time is up; in any thread, unlike a signal."""
    end, outer = time.monotonic() + seconds, sys.gettrace()

    def watch(*_: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"it must end within {seconds:g} s")
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(outer)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, and no product that fills the memory or takes for ever where no clock is read."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        number = lambda x: isinstance(x, int | float) and abs(x) <= LARGEST_FACTOR
        small = all(number(x) or isinstance(x, str) for x in (left, right))
        if operator == "**":
            raise jinja2.sandbox.SecurityError("it must not use **")
        if not small:
            raise jinja2.sandbox.SecurityError(f"factors must be text, or numbers up to {LARGEST_FACTOR}")
        return super().call_binop(context, operator, left, right)


@functools.cache
def _compiled(source: str) -> jinja2.Template:
    """A template that can read its arguments and nothing else, with the functions Hugging Face adds."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as Hugging Face's templates expect it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`, `*.jinja`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} must hold tokenizer.json; tokenizers in other formats are not read")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    settings = _json_object(folder / "tokenizer_config.json")
    bos, eos = (_special_id(backend, settings.get(f"{name}_token")) for name in ("bos", "eos"))
    return Tokenizer(
        backend=backend,
        bos=bos,
        eos=eos,
        add_bos=_adds_bos(backend, bos),
        chat_template=_template(folder, settings),
    )


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(value).__name__}")
    return value


def _special_id(backend: tokenizers.Tokenizer, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(text) if isinstance(text, str) else None


def _adds_bos(backend: tokenizers.Tokenizer, bos: int | None) -> bool:
    return bos is not None and backend.encode("a").ids[:1] == [bos]


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        tables = [t for t in template if isinstance(t, dict)]
        template = next((t.get("template") for t in tables if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's `tokenizer.*` metadata describes: byte-level BPE."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(f"tokenizer.ggml.model must be gpt2 (byte-level BPE); got {kind!r}")
    tokens = _list_of(str, metadata, "tokenizer.ggml.tokens")
    backend = tokenizers.Tokenizer(_byte_pairs(tokens, _list_of(str, metadata, "tokenizer.ggml.merges")))
    backend.pre_tokenizer = _pre_tokenizer(_optional(str, metadata, "tokenizer.ggml.pre"))
    backend.decoder = decoders.ByteLevel()
    if "tokenizer.ggml.token_type" in metadata:
        _add_special(backend, tokens, _list_of(int, metadata, "tokenizer.ggml.token_type"))
    return Tokenizer(
        backend=backend,
        bos=_token_id(metadata, "tokenizer.ggml.bos_token_id", len(tokens)),
        eos=_token_id(metadata, "tokenizer.ggml.eos_token_id", len(tokens)),
        add_bos=bool(_optional(bool, metadata, "tokenizer.ggml.add_bos_token")),
        chat_template=_optional(str, metadata, "tokenizer.chat_template"),
    )


def _optional(of: type, metadata: dict[str, Any], key: str) -> Any:
    value = metadata.get(key)
    if value is not None and type(value) is not of:
        raise ValueError(f"{key} must be of type {of.__name__}; got {reprlib.repr(value)}")
    return value


def _list_of(of: type, metadata: dict[str, Any], key: str) -> list[Any]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(type(item) is of for item in value):
        raise ValueError(f"{key} must be a list of type {of.__name__}; got {reprlib.repr(value)}")
    return value


def _token_id(metadata: dict[str, Any], key: str, vocab: int) -> int | None:
    value = _optional(int, metadata, key)
    if value is not None and not 0 <= value < vocab:
        raise ValueError(f"{key} must be a token of the vocabulary's {vocab}; got {value}")
    return value


def _byte_pairs(tokens: list[str], merges: list[str]) -> models.BPE:
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        return models.BPE({token: i for i, token in enumerate(tokens)}, pairs)
    except Exception as error:  # the Rust library raises bare Exception
        raise ValueError(f"tokenizer.ggml.merges do not fit the tokens: {error}") from error


def _pre_tokenizer(name: str | None) -> pre_tokenizers.PreTokenizer:
    """How the text is cut before merging; a wrong cut would be a silent bug, so unknown names are refused."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    known: dict[str | None, list[Any]] = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
    }
    if name not in known:
        raise ValueError(f"tokenizer.ggml.pre must be one of {', '.join(map(str, known))}; got {name!r}")
    return pre_tokenizers.Sequence(known[name])


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    named = lambda kind: [token for token, of in zip(tokens, types, strict=False) if of == kind]
    backend.add_special_tokens(named(GGUF_CONTROL))
    backend.add_tokens(named(GGUF_USER_DEFINED))
