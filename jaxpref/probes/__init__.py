"""Probes: pure measurements of a policy from outside, a module a theme; `theory` predicts what they find.

`gradients` how the gradients of two responses lie; `likelihood` how log-probabilities moved and who gained;
`ranking` whether the chosen response is the likelier one; `divergence` how far two distributions are apart.
"""
