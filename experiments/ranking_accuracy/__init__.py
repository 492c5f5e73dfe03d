"""The questions of the study of ranking accuracy."""
