"""Writes smollm2_ids.json: token ids of multilingual text by transformers' own GGUF tokenizer.

    python tests/policies/golden/make_smollm2_ids.py      (needs the extra `parity` and the fetched weights)

Made with transformers 5.23.0.
"""

import json
from pathlib import Path

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Prices rose 3.14% in 2024, i.e. 1234567890 units; don't panic, we'll see!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "El veloz murciélago hindú comía feliz cardillo y kiwi.",
    "天地玄黃,宇宙洪荒。いろはにほへと 한국어 문장입니다.",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "नमस्ते दुनिया। สวัสดีชาวโลก",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and combining é ñ",
    "def f(x):\n\treturn {'a': x**2}   # trailing   \n\n\n",
    "  leading,\u00a0no-break,\u3000ideographic \r\n spaces\t\t",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|> inside <|im_end|>text",
]


def main() -> None:
    from transformers import AutoTokenizer

    from jaxpref import fetch

    path = fetch.fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in TEXTS]
    lines = ",\n".join(json.dumps(row) for row in ids)
    Path(__file__).with_name("smollm2_ids.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
