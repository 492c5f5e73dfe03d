"""Checkpoints: which are kept, what comes back, and what is never read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpref import train
from jaxpref.trainer.snapshots import SnapshotError, Snapshots

OPTIMIZER = optax.adam(0.1)


def state_after(step):
    params = {"kernel": jnp.full((2, 3), float(step)) + jnp.pi}
    state = train.init_state(params, OPTIMIZER)
    return state._replace(step=jnp.asarray(step, jnp.int32))


def abstract():
    return jax.eval_shape(lambda: state_after(0))


@pytest.fixture
def saved(tmp_path):
    with_best = Snapshots(tmp_path / "checkpoints", keep_last=2, keep_best=True)
    yield with_best
    with_best.close()


def steps_of(saved):
    return sorted(int(path.name) for path in saved.folder.iterdir() if path.name.isdecimal())


def test_the_last_and_the_best_are_kept(saved):
    for step, loss in [(1, 0.5), (2, 0.2), (3, 0.4), (4, 0.3), (5, None)]:
        saved.save(state_after(step), {"num_tokens": step}, loss)
    saved.wait()
    assert steps_of(saved) == [2, 4, 5] and saved.latest == 5


def test_the_newest_comes_back_bit_for_bit_with_its_notes(saved):
    for step in (3, 7):
        saved.save(state_after(step), {"num_tokens": 10 * step, "reference_key": {"train": "a"}})
    saved.wait()
    state, notes = saved.restore(abstract())
    jax.tree.map(np.testing.assert_array_equal, state, state_after(7))
    assert notes == {"num_tokens": 70, "reference_key": {"train": "a"}}


def test_a_half_written_checkpoint_is_not_there(saved, tmp_path):
    saved.save(state_after(1), {})
    saved.wait()
    (saved.folder / "2.orbax-checkpoint-tmp-123").mkdir()  # as a killed process leaves it
    saved.close()
    assert Snapshots(tmp_path / "checkpoints", keep_last=2, keep_best=False).latest == 1


def test_a_checkpoint_of_another_model_is_refused(saved):
    saved.save(state_after(1), {})
    saved.wait()
    other = abstract()
    other.params["kernel"] = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    with pytest.raises(SnapshotError, match="damaged or of another model"):
        saved.restore(other)


def test_a_damaged_checkpoint_is_an_error_that_names_it(saved):
    saved.save(state_after(1), {})
    saved.wait()
    for path in (saved.folder / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SnapshotError, match="checkpoints/1"):
        saved.restore(abstract())


def test_the_same_step_is_written_once(saved):
    saved.save(state_after(1), {"num_tokens": 1})
    saved.wait()
    saved.save(state_after(1), {"num_tokens": 2})
    saved.wait()
    assert saved.restore(abstract())[1] == {"num_tokens": 1}
