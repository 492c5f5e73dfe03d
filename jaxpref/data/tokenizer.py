"""A tokenizer with its special tokens and its chat template, wherever it was stored."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import reprlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

Message = dict[str, Any]  # {"role": "user", "content": "..."}, and what else a template reads
RENDER_SECONDS = 10.0  # a template needs a millisecond; one that loops for ever is a damaged or a hostile one
LARGEST_FACTOR = 10_000  # in a template's products
TODAY = datetime.date(2024, 7, 26)  # for templates that write the date: Llama 3's own default, on every day
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field; templates read the first two
RESERVED = frozenset({"messages", "add_generation_prompt"})  # no keyword for a template from data
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
    special: tuple[
        tuple[str, str], ...
    ] = ()  # further special tokens that a template may name: unk_token, ...

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens spelled out in `text` are recognized, none is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def token(self, index: int | None) -> str:
        """The spelling of a special token; empty for None."""
        return "" if index is None else self.backend.id_to_token(index) or ""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as `encode` gives them."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @functools.cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a plain text: often `bos` and nothing."""
        bare, whole = (self.backend.encode("a", add_special_tokens=added).ids for added in (False, True))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        before, after = whole[:start], whole[start + len(bare) :]
        lacks = self.add_bos and self.bos is not None and self.bos not in before
        return ([self.bos, *before] if lacks and self.bos is not None else before), after

    @functools.cached_property
    def sha256(self) -> str:
        """Of all that token ids depend on."""
        parts = (self.backend.to_str(), self.bos, self.eos, self.add_bos, self.chat_template, self.special)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The messages as one text, as the model's chat template writes them.

        Args:
          messages: each with a role; a template may read more fields.
          generation_prompt: end with the header of the answer that is to come.
          tools: JSON schemas of functions, or None.
          variables: what else the template is to see (a row's `chat_template_kwargs`).

        Raises:
          TemplateError: there is no template, or it fails, or it takes too long.
        """
        if self.chat_template is None:
            raise TemplateError("this model has no chat template, so it cannot read conversations")
        given = {"tools": None if tools is None else list(tools), "documents": None, **(variables or {})}
        try:
            with _time_limit(RENDER_SECONDS):
                text = _compiled(self.chat_template).render(
                    **(self._special_tokens | given), messages=[_with_reasoning(m) for m in messages],
                    add_generation_prompt=generation_prompt,
                )  # fmt: skip
            text.encode("utf-8")  # a template can spell half a character
            return text
        except Exception as error:  # a template is somebody else's program: it may fail in any way
            reason = str(error) or type(error).__name__
            raise TemplateError(f"the chat template refused the messages: {reason}") from error

    @functools.cached_property
    def _special_tokens(self) -> dict[str, str]:
        named = {"bos_token": self.token(self.bos), "eos_token": self.token(self.eos)}
        return dict(self.special) | {name: token for name, token in named.items() if token}


def _with_reasoning(message: Message) -> Message:
    """The field under the names that templates read, as transformers does; never the caller's own dict."""
    thought = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return (
        dict(message) if thought is None else {"thinking": thought, **message, "reasoning_content": thought}
    )


def _time_limit(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Stops the Python code inside when its time is up."""
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    return _alarm(seconds) if main else _trace(seconds)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """By a signal: costs next to nothing, but only the main thread may. A caller's own alarm goes on."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it must end within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer[0]:
            signal.setitimer(signal.ITIMER_REAL, *outer)


@contextlib.contextmanager
def _trace(seconds: float) -> Iterator[None]:
    """By a look at the clock before every line: in any thread, at several times the price."""
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


class _Generation(jinja2.ext.Extension):
    """Hugging Face's {% generation %}, which marks what the assistant writes: here its body, and no more."""

    tags = {"generation"}  # noqa: RUF012  (the base class has a set)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.cache
def _compiled(source: str) -> jinja2.Template:
    """A template that can read its arguments and nothing else, with the functions Hugging Face adds."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": TODAY.strftime}
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: not escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


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
    backend.no_padding()  # a file may keep that of its training
    backend.no_truncation()
    settings = _settings(folder)
    bos, eos = (_special_id(backend, settings.get(f"{name}_token")) for name in ("bos", "eos"))
    return Tokenizer(
        backend=backend,
        bos=bos,
        eos=eos,
        add_bos=_adds_bos(backend, bos),
        chat_template=_template(folder, settings),
        special=tuple(
            (name, text)
            for name in ("unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
            if (text := _token_text(settings.get(name)))
        ),
    )


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; where it is silent on `bos` or `eos`, what older folders say beside it."""
    ids = _json_object(folder / "config.json")
    backend_names = {f"{name}_token": ids.get(f"{name}_token_id") for name in ("bos", "eos")}
    beside = _json_object(folder / "special_tokens_map.json")
    return backend_names | beside | _json_object(folder / "tokenizer_config.json")


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
    if type(token) is int:  # an id of config.json
        return token if 0 <= token < backend.get_vocab_size() else None
    text = _token_text(token)
    return None if text is None else backend.token_to_id(text)


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


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
