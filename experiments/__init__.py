"""One file a question: `experiments/<study>/<question>.py` with Config, PRESETS, SECONDS, CLAIMS, run."""
