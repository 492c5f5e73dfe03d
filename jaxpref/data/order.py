"""Which pairs a step sees: a function of (seed, step) alone, so that a run goes on from any step.

A permutation an epoch from a counter-based generator is all that it takes; the loader `grain` would bring
worker processes and a state to be stored, for pairs that are tokenized once and memory-mapped ever after.
"""

import functools

import numpy as np


def steps_per_epoch(num_pairs: int, batch_size: int) -> int:
    """Steps that see every pair once; the last batch of an epoch may be smaller, none is dropped."""
    for name, value in (("num_pairs", num_pairs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    return -(-num_pairs // batch_size)


def batch_indices(
    num_pairs: int, batch_size: int, *, seed: int, step: int, shuffle: bool = True
) -> np.ndarray:
    """Indices of a step's pairs, [pairs] int64: a slice of the epoch's own permutation.

    Args:
      num_pairs: pairs of the whole set, >= 1.
      batch_size: pairs of a step, >= 1; an epoch's last step takes what is left.
      seed: any integer; another seed is another order in every epoch.
      step: counted from 0 through all epochs.
      shuffle: False keeps the file's order in every epoch.
    """
    if step < 0:
        raise ValueError(f"step must be at least 0; got {step}")
    epoch, place = divmod(step, steps_per_epoch(num_pairs, batch_size))
    part = slice(place * batch_size, min((place + 1) * batch_size, num_pairs))
    return _permutation(num_pairs, seed, epoch)[part].copy() if shuffle else np.arange(part.start, part.stop)


@functools.lru_cache(maxsize=2)  # training's and a second set's
def _permutation(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    """Philox's raw output, sorted: NumPy may change what `Generator.permutation` draws, this it may not."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(num_pairs), kind="stable")
