"""jaxpref: why preference optimization does what it does, from exact toys to language models."""

__version__ = "0.1.0"
