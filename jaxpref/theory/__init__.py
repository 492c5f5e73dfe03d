"""Closed forms of what the probes of the same names measure. No randomness, no input or output."""
