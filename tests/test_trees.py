import jax.numpy as jnp
import numpy as np

from jaxpref import trees
from jaxpref.pairs import PairLogps


def test_a_tree_comes_back_from_its_arrays():
    tree = {"a": PairLogps(jnp.arange(3.0), jnp.ones(3)), "b": [jnp.zeros(2), jnp.full(2, 7)]}
    arrays = {name: np.asarray(leaf) for name, leaf in trees.to_arrays(tree).items()}
    assert len(arrays) == 4
    again = trees.from_arrays(arrays, tree)
    np.testing.assert_array_equal(again["a"].chosen, tree["a"].chosen)
    np.testing.assert_array_equal(again["b"][1], tree["b"][1])
