"""The questions of the study of mode seeking."""
