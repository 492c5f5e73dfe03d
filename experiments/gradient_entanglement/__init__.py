"""The questions of the study of gradient entanglement."""
