"""Run by test_backward.py in a process with six devices: pairs over three of them, parameters over two."""

import re
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_backward import SLOPES, TIED, flat, params, probed, rows, twice

mesh = jax.make_mesh((3, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def spread(x):
    """Over `fsdp` by the last axis that is even."""
    even = [axis for axis, size in enumerate(x.shape) if size % 2 == 0]
    return jax.device_put(
        x, NamedSharding(mesh, P(*(("fsdp" if i == even[-1] else None) for i in range(x.ndim))))
    )


def gathered(program: str) -> list[int]:
    """Elements of the arrays that are gathered."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program)
    return [int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes]


slopes_of = lambda statistics: (twice(SLOPES), None)
with jax.enable_x64(True):
    doubled = jax.tree.map(lambda x: jax.device_put(twice(x), NamedSharding(mesh, P("data"))), rows())
    arguments, settings = (jax.tree.map(spread, params(TIED)), doubled), dict(slopes_of=slopes_of, lanes=3)
    compiled = probed.lower(*arguments, config=TIED, **settings).compile()
    found, _ = compiled(*arguments)
np.savez(
    sys.argv[1],
    gathered=gathered(compiled.as_text()),
    **{f"grads:{path}": x for path, x in flat(found.grads).items()},
    **{f"geometry:{path}": np.stack(x) for path, x in found.geometry.items()},
)
