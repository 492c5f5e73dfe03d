"""Which source files a question's numbers depend on, read from its import statements."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def behind(question: Path) -> list[Path]:
    """The question's file and all of `jaxpref` and of its study that it imports, directly or not.

    A change elsewhere cannot change its numbers, so a long run that was interrupted can be taken up again.
    """
    found: set[Path] = set()
    waiting = [question.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [p for p in _imported(path) if _counts(p, question)]
    return sorted(found)


def _counts(path: Path, question: Path) -> bool:
    return path.is_relative_to(ROOT / "jaxpref") or path.parent == question.resolve().parent


def _imported(path: Path) -> list[Path]:
    """Files of the modules named in the import statements of `path`, wherever they stand in it."""
    return [file for name in _module_names(path) for file in _files(name)]


def _module_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(module: str) -> Iterator[Path]:
    """The module's file and its packages' `__init__`; nothing for what is not ours, or no module."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:end])
        yield from (path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file())
