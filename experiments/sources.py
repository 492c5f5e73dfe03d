"""Which source files a question's numbers depend on."""

from pathlib import Path

from jaxpref import sources

ROOT = sources.ROOT


def behind(question: Path) -> list[Path]:
    """The question's file and all of `jaxpref` and of its study that it imports, directly or not.

    A change elsewhere cannot change its numbers, so a long run that was interrupted can be taken up again.
    """
    folder = question.resolve().parent
    return sources.behind(
        question, lambda path: path.is_relative_to(sources.PACKAGE) or path.parent == folder
    )
