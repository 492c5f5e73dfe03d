"""A bf16 DPO step of a Llama of 1.1 billion parameters on one GPU: ours, and PyTorch with transformers.

    python benchmarks/gpu_step.py --out benchmarks/gpu_step.json       (ten minutes on one H100 or H200)
    python benchmarks/gpu_step.py --tiny                               (a minute on any CPU: does it run?)

TinyLlama's shape with random weights, rows of 1,024 and 2,048 tokens, half of each the prompt; float32 master
weights and AdamW, products in bf16, the reference's log-probabilities stored. `separate`: a row a response;
`shared`: both responses behind one prompt. The peer is LlamaForCausalLM under autocast with SDPA and fused
AdamW, logits of the response alone; it is left out by name where torch or CUDA is missing. All start from the
same weights and must find the same loss. Each case has a process of its own. Needs jax[cuda12], torch with
CUDA and transformers in one environment.

Tokens a second count both rows of each pair, prompts twice, for all. Utilisation is the arithmetic that the
case's own rows ask for (6 a parameter and token, attention as far as it is seen, the head on responses alone)
over the time and the card's nominal bf16 rate; a large product measured in the same process stands beside it.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

from jaxpref.policies.architecture import TransformerConfig

BETA, RATE = 0.1, 1e-6
LLAMA = TransformerConfig(
    vocab=32000, dim=2048, layers=22, heads=32, kv_heads=4, head_dim=64, mlp_dim=5632, tied=False,
    max_length=2048, dtype="bfloat16",
)  # fmt: skip
TINY = dataclasses.replace(
    LLAMA, vocab=101, dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_dim=96, dtype="float32"
)
NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}  # dense bf16, FLOP/s
CASES = ("ours, shared", "ours, separate", "peer")
ALIKE = 2e-2  # of the losses, in bf16


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the work: `pairs` of rows of `length` tokens, of which the first `prompt` are common."""

    length: int
    pairs: int
    tiny: bool
    remat: str

    @property
    def prompt(self) -> int:
        return self.length // 2

    @property
    def config(self) -> TransformerConfig:
        return dataclasses.replace(TINY if self.tiny else LLAMA, remat=self.remat)

    def flop(self, shared: bool) -> float:
        """Of one step: forward, and twice that backward."""
        prompt, response = self.prompt, self.length - self.prompt
        tokens = prompt * (1 if shared else 2) + 2 * response
        seen = (1 if shared else 2) * prompt * (prompt + 1) / 2
        seen += 2 * (response * prompt + response * (response + 1) / 2)
        c = self.config
        layer = c.dim * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.dim * c.mlp_dim
        of_pair = c.layers * (6 * layer * tokens + 12 * c.heads * c.head_dim * seen)
        return self.pairs * (of_pair + 6 * c.vocab * c.dim * 2 * response)


def draw(size: Size) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Weights under their Hugging Face names, and token ids [2, pairs, length]."""
    from jaxpref.policies import families

    rng = np.random.default_rng(0)
    one = lambda shape: (
        rng.standard_normal(shape, np.float32) * 0.02 if len(shape) > 1 else np.ones(shape, "f4")
    )
    weights = {name: one(shape) for name, shape in families.expected_shapes(size.config).items()}
    tokens = rng.integers(0, size.config.vocab, (2, size.pairs, size.length)).astype(np.int32)
    tokens[1, :, : size.prompt] = tokens[0, :, : size.prompt]
    return weights, tokens


def ours(size: Size, shared: bool, steps: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from jaxpref.losses import pairwise
    from jaxpref.policies import families

    weights, tokens = draw(size)
    shapes = {name: array.shape for name, array in weights.items()}
    params = families.to_params(families.Tensors(shapes, weights.__getitem__), size.config)
    rows = _rows(tokens, size.prompt, shared)
    optimizer = optax.adamw(RATE)
    logps = _shared_logps if shared else _separate_logps

    def loss_fn(params, rows, reference):
        policy = logps(params, rows, size.config)
        return pairwise.dpo_loss(policy, reference, beta=BETA).mean()

    def step(params, opt_state, rows, reference):
        loss, grads = jax.value_and_grad(loss_fn)(params, rows, reference)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    zeros = jnp.zeros(size.pairs)
    state = [jax.tree.map(jnp.asarray, params), None]
    state[1] = jax.jit(optimizer.init)(state[0])
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state, rows, _pair(zeros)).compile()

    def one_step() -> float:
        *state[:], loss = compiled(*state, rows, _pair(zeros))
        return float(loss)

    found = timed(one_step, steps)
    memory = jax.devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use", 0) / harness.MEGABYTE or harness.peak_memory_mb()
    return found | {
        "peak_mb": peak,
        "device": jax.devices()[0].device_kind,
        "product_flop_s": _product_rate(size),
    }


def _pair(values):
    from jaxpref.pairs import PairLogps

    return PairLogps(values, values)


def _rows(tokens: np.ndarray, prompt: int, shared: bool) -> Any:
    import jax
    import jax.numpy as jnp

    from jaxpref.data import packing
    from jaxpref.pairs import TokenRows

    if not shared:
        flat = tokens.reshape(-1, tokens.shape[-1])
        return TokenRows(jnp.asarray(flat), jnp.asarray(np.arange(flat.shape[1]) >= prompt) & (flat >= 0))
    responses = [list(tokens[:, i, prompt:]) for i in range(tokens.shape[1])]
    return jax.tree.map(jnp.asarray, packing.shared(list(tokens[0, :, :prompt]), responses))


def _shared_logps(params, rows, config):
    import jax.numpy as jnp

    from jaxpref.pairs import PairLogps
    from jaxpref.policies import transformer

    flat, slots = transformer.statistics(params, rows, config=config).logps.reshape(-1), rows.slots[:, 1:]
    return PairLogps(*jnp.where(slots >= 0, flat[slots], 0).sum(-1).T)


def _separate_logps(params, rows, config):
    import jax.numpy as jnp

    from jaxpref.pairs import PairLogps
    from jaxpref.policies import head, transformer
    from jaxpref.policies.layers import computing

    states = computing(transformer.hidden(params, rows.tokens, config=config), config)
    asked = jnp.pad(rows.response_mask[:, 1:], ((0, 0), (0, 1)))
    matrix = transformer.unembedding(params, config=config)
    found = head.token_statistics(states, matrix, jnp.roll(rows.tokens, -1, 1), asked)
    return PairLogps(*jnp.split(found.logps.sum(1), 2))


def _product_rate(size: Size) -> float:
    """Floating-point operations a second of one large matrix product, in the dtype of the model's."""
    import jax
    import jax.numpy as jnp

    n = 512 if size.tiny else 8192
    x = jnp.ones((n, n), size.config.dtype)
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: (y @ x) / n, x))
    jax.block_until_ready(many(x))
    start = time.perf_counter()
    jax.block_until_ready(many(x))
    return 20 * 2 * n**3 / (time.perf_counter() - start)


def peer(size: Size, steps: int) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from jaxpref.policies import families

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights, tokens = draw(size)
    config = LlamaConfig(**families.config_json(size.config) | {"attn_implementation": "sdpa"})
    with device:
        model = LlamaForCausalLM(config).float()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    model.config.use_cache = False
    if size.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=device.type == "cuda")
    ids = torch.from_numpy(tokens.reshape(-1, size.length).astype(np.int64)).to(device)

    def one_step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=size.config.dtype == "bfloat16"):
            logits = model(input_ids=ids, logits_to_keep=size.length - size.prompt + 1).logits
        logps = _torch_logps(logits[:, :-1], ids[:, size.prompt :])
        chosen, rejected = logps.chunk(2)
        loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    found = timed(one_step, steps)
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / harness.MEGABYTE if cuda else harness.peak_memory_mb()
    return found | {"peak_mb": peak, "device": torch.cuda.get_device_name() if cuda else "cpu"}


def _torch_logps(logits, ids):
    """Sums over the response; a row at a time, as TRL does, so that float32 copies stay small."""
    import torch

    rows = [
        torch.nn.functional.log_softmax(row.float(), -1).gather(-1, of[:, None]).sum()
        for row, of in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows)


def timed(one_step: Callable[[], float], steps: int) -> dict[str, Any]:
    """The median step after two that are not counted; each ends when its loss is here."""
    losses, seconds = [one_step(), one_step()], []
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(one_step())
        seconds.append(time.perf_counter() - start)
    return {"step_s": statistics.median(seconds), "loss": losses[0]}


def missing(case: str, tiny: bool) -> str | None:
    """Why a case cannot run here."""
    if case != "peer":
        return None
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    import torch

    return None if tiny or torch.cuda.is_available() else "torch finds no CUDA"


def in_child(case: str, size: Size, steps: int) -> dict[str, Any]:
    """One case in a process of its own, alone on the card."""
    given = json.dumps([case, dataclasses.asdict(size), steps])
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    command = [sys.executable, __file__, "--child", given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:  # out of memory, say: the other cases go on
        return {"skipped": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def child(case: str, size: Size, steps: int) -> dict[str, Any]:
    if case == "peer":
        return peer(size, steps)
    return ours(size, case == "ours, shared", steps)


def row(case: str, size: Size, steps: int) -> dict[str, Any]:
    """Of the table; a case that cannot run says why."""
    start = {"case": case, "length": size.length, "pairs": size.pairs, "remat": size.remat}
    if reason := missing(case, size.tiny):
        return start | {"skipped": reason}
    found = in_child(case, size, steps)
    if "skipped" in found:
        return start | found
    rate = size.flop(case == "ours, shared") / found["step_s"]
    nominal = next((value for name, value in NOMINAL.items() if name in found["device"]), None)
    return start | found | {
        "tokens_per_s": 2 * size.pairs * size.length / found["step_s"],
        "pairs_per_s": size.pairs / found["step_s"],
        "tflop_s": rate / 1e12,
        "utilisation": rate / nominal if nominal else "unknown card",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a toy's size, in float32")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        case, size, steps = json.loads(given.child)
        print(json.dumps(child(case, Size(**size), steps)))
        return 0
    lengths = given.lengths or ([32, 64] if given.tiny else [1024, 2048])
    sizes = [Size(length, given.pairs, given.tiny, given.remat) for length in lengths]
    rows = [row(case, size, given.steps) for size in sizes for case in CASES]
    harness.write(given.out, rows, {"steps": given.steps, "beta": BETA, "nominal_flop_s": NOMINAL})
    return 0 if alike(rows) else 1


def alike(rows: list[dict[str, Any]]) -> bool:
    """Whether the cases of each length found the same first loss; says so where they did not."""
    good = True
    for length in {row["length"] for row in rows}:
        losses = {row["case"]: row["loss"] for row in rows if row["length"] == length and "loss" in row}
        if losses and max(losses.values()) - min(losses.values()) > ALIKE * max(1, *losses.values()):
            print(f"the losses of rows of {length} tokens differ: {losses}")
            good = False
    return good


if __name__ == "__main__":
    sys.exit(main())
