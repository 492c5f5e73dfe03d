"""A language model of random weights that reads bytes: every code path of a real one, in milliseconds."""

from collections.abc import Sequence

import tokenizers
from jax import Array
from tokenizers import decoders, models, pre_tokenizers

from jaxpref.data.tokenizer import Tokenizer
from jaxpref.policies import transformer
from jaxpref.policies.checkpoints import LanguageModel

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def byte_tokenizer(words: Sequence[str] = ()) -> Tokenizer:
    """A token for each byte, and one for each of `words`, which only a lookup finds: there are no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(word for word in dict.fromkeys(words) if word not in alphabet)]
    backend = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend=backend, chat_template=TEMPLATE)


def random_model(key: Array, words: Sequence[str] = ()) -> LanguageModel:
    """A one-layer transformer behind `byte_tokenizer(words)`."""
    tokenizer = byte_tokenizer(words)
    config = transformer.tiny(tokenizer.backend.get_vocab_size(), dim=32, layers=1)
    return LanguageModel(
        name="random",
        config=config,
        params=transformer.init(key, config),
        tokenizer=tokenizer,
        weights_sha256="",
    )
