"""Every quantization read from GGUF, against a scalar decoder written from llama.cpp's block layouts."""

import dataclasses
import struct

import gguf
import numpy as np
import pytest
import tiny_model

from jaxpref.policies import gguf_file

CONFIG = dataclasses.replace(tiny_model.CONFIG, dim=256, vocab=len(tiny_model.VOCAB))
EMBEDDING = "model.embed_tokens.weight"
HALF = lambda block, at: struct.unpack_from("<e", bytes(block), at)[0]
LOW, HIGH = lambda byte: int(byte) & 15, lambda byte: int(byte) >> 4


def nibbles(qs) -> list[int]:
    """Of 16 bytes: the low halves are values 0 to 15, the high halves 16 to 31."""
    return [LOW(q) for q in qs] + [HIGH(q) for q in qs]


def fifths(qh) -> list[int]:
    """The fifth bit of each of 32 values: one little-endian word."""
    word = int.from_bytes(bytes(qh), "little")
    return [word >> i & 1 for i in range(32)]


def q8_0(block):
    return [HALF(block, 0) * q for q in struct.unpack_from("<32b", bytes(block), 2)]


def q4_0(block):
    return [HALF(block, 0) * (q - 8) for q in nibbles(block[2:18])]


def q4_1(block):
    return [HALF(block, 0) * q + HALF(block, 2) for q in nibbles(block[4:20])]


def q5_0(block):
    return [HALF(block, 0) * (q + 16 * h - 16) for q, h in zip(nibbles(block[6:22]), fifths(block[2:6]))]


def q5_1(block):
    d, m = HALF(block, 0), HALF(block, 2)
    return [d * (q + 16 * h) + m for q, h in zip(nibbles(block[8:24]), fifths(block[4:8]))]


def scales_and_minima(packed) -> list[tuple[int, int]]:
    """Eight 6-bit scales and minima in 12 bytes: of 4 to 7 the upper two bits lie above 0 to 3."""
    low = [(packed[j] & 63, packed[j + 4] & 63) for j in range(4)]
    scale = lambda j: LOW(packed[j + 4]) | packed[j - 4] >> 6 << 4
    minimum = lambda j: HIGH(packed[j + 4]) | packed[j] >> 6 << 4
    return low + [(scale(j), minimum(j)) for j in range(4, 8)]


def k_blocks(block, qs, fifth):
    """Eight runs of 32; run 2i is the low halves of bytes 32i to 32i + 31, run 2i + 1 their high halves."""
    d, dmin, values = HALF(block, 0), HALF(block, 2), []
    for run, (scale, minimum) in enumerate(scales_and_minima([int(b) for b in block[4:16]])):
        half = HIGH if run % 2 else LOW
        for i, byte in enumerate(qs[32 * (run // 2) : 32 * (run // 2) + 32]):
            values.append(d * scale * (half(byte) + 16 * fifth(i, run)) - dmin * minimum)
    return values


def q4_k(block):
    return k_blocks(block, block[16:144], lambda i, run: 0)


def q5_k(block):
    return k_blocks(block, block[48:176], lambda i, run: int(block[16 + i]) >> run & 1)


def q6_k(block):
    """Two halves of 128; four runs of 32 in each share the 32 bytes of upper bits; a scale for each 16."""
    d, values = HALF(block, 208), []
    for n in range(2):
        ql, qh = block[64 * n : 64 * n + 64], block[128 + 32 * n : 160 + 32 * n]
        scales = struct.unpack_from("<8b", bytes(block), 192 + 8 * n)
        for run in range(4):
            half = HIGH if run >= 2 else LOW
            for i in range(32):
                q = half(ql[32 * (run % 2) + i]) | (int(qh[i]) >> 2 * run & 3) << 4
                values.append(d * scales[2 * run + i // 16] * (q - 32))
    return values


# Decoder, bytes of a block, where its half-precision constants lie (random bytes there may be infinite).
LAYOUTS = {
    "Q8_0": (q8_0, 34, (0,)),
    "Q4_0": (q4_0, 18, (0,)),
    "Q4_1": (q4_1, 20, (0, 2)),
    "Q5_0": (q5_0, 22, (0,)),
    "Q5_1": (q5_1, 24, (0, 2)),
    "Q4_K": (q4_k, 144, (0, 2)),
    "Q5_K": (q5_k, 176, (0, 2)),
    "Q6_K": (q6_k, 210, (208,)),
}


def random_blocks(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(len(kind) * 100 + count)
    _, size, halves = LAYOUTS[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = rng.normal(0, 0.01, count).astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks


def read_embedding(tmp_path, stored: np.ndarray, kind: str, monkeypatch) -> np.ndarray:
    """`stored` written as the embedding of a GGUF file, as our reader gives it back."""
    write = tiny_model._write_tensor

    def write_raw(writer, name, weight, quantized):
        if name == "token_embd.weight":
            writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            write(writer, name, weight, quantized)

    monkeypatch.setattr(tiny_model, "_write_tensor", write_raw)
    path = tiny_model.write_gguf(tmp_path / f"{kind}.gguf", config=CONFIG)
    return gguf_file.tensors(gguf_file.open_file(path), CONFIG).read(EMBEDDING)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_random_blocks_decode_as_the_layout_says(tmp_path, kind, monkeypatch):
    decode, size, _ = LAYOUTS[kind]
    values = 256 if kind.endswith("K") else 32
    blocks = random_blocks(kind, CONFIG.vocab * CONFIG.dim // values)
    stored = blocks.reshape(CONFIG.vocab, CONFIG.dim // values * size)
    read = read_embedding(tmp_path, stored, kind, monkeypatch)
    expected = np.array([decode(block) for block in blocks]).reshape(CONFIG.vocab, CONFIG.dim)
    np.testing.assert_allclose(read, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_floats_are_widened_exactly(tmp_path, kind, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((CONFIG.vocab, CONFIG.dim)).astype(np.float32)
    if kind == "BF16":
        words = (weight.view(np.uint32) >> 16).astype(np.uint16)
        stored, expected = words.view(np.uint8), (words.astype(np.uint32) << 16).view(np.float32)
    else:
        stored = weight.astype({"F32": "<f4", "F16": "<f2"}[kind])
        expected = stored.astype(np.float32)
    np.testing.assert_array_equal(read_embedding(tmp_path, stored, kind, monkeypatch), expected)


# Half a step of the quantization, relative to the largest weight of the 32: 2^bits - 1 steps over a range
# of at most twice that weight (Q4_1, Q5_1), or 2^(bits - 1) steps (the others; the far end loses a step).
ROUND_TRIP = {"Q8_0": 0.5 / 127, "Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q5_0": 1 / 16, "Q5_1": 1 / 31}


@pytest.mark.parametrize("kind", ROUND_TRIP)
def test_what_was_quantized_is_read_back_within_its_step(tmp_path, kind, monkeypatch):
    weight = np.random.default_rng(1).standard_normal((CONFIG.vocab, CONFIG.dim)).astype(np.float32)
    stored = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    error = np.abs(read_embedding(tmp_path, stored, kind, monkeypatch) - weight).reshape(-1, 32).max(-1)
    largest = np.abs(weight).reshape(-1, 32).max(-1)
    assert (error <= (ROUND_TRIP[kind] + 2**-9) * largest).all()  # the constants are half precision
    assert error.max() > ROUND_TRIP[kind] * largest.max() / 10  # it was quantized
