"""From files of preference pairs to the token rows that a language model reads."""
