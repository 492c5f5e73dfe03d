"""The questions of the study of likelihood displacement."""
