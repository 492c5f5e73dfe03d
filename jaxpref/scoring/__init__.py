"""Real pairs under a real model: log-probabilities, ranking, CHES and the geometry of the gradients.

    jaxpref score --model smollm2-135m --pairs FILE --out DIR [--no-gradients] [--rank ches]

Batches of pairs, each stored when it is done, so that an interrupted run goes on where it was.
"""
