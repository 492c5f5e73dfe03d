"""Where the tokens of packed rows stand, and what each of them may look at."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Int


class Layout(NamedTuple):
    """Rows of groups: prompts, each followed by its responses, which do not see each other.

    A token sees the tokens of its own group that stand no later in the row and are of the prompt or of its
    own response.
    """

    positions: Int[Array, "rows length"]  # of a token behind its own prompt, from 0; -1 for padding
    groups: Int[Array, "rows length"]  # number of the group within its row; -1 for padding
    branches: Int[Array, "rows length"]  # 0 in a prompt, 1..k in the responses
