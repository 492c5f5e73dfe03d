"""`jaxpref train`: a language model, a file of pairs, any loss of the table.

config      the flags, which are also the fields of a file
optimizers  optax, with PyTorch's conventions where the papers had them
objective   a batch to losses and metrics        steps      losses to gradients, in pieces of any size
reference   log-probabilities of the reference, once for all runs
snapshots   what a killed run goes on from       sinks      where metrics go besides metrics.jsonl
run         the loop                             command    the command line
"""
