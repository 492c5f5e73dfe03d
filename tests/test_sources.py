"""What a module's numbers depend on is what it imports, and what that imports."""

from jaxpref import sources


def names(module: str) -> set[str]:
    return {path.relative_to(sources.PACKAGE).as_posix() for path in sources.behind(sources.PACKAGE / module)}


def test_imports_of_imports_count():
    assert {
        "policies/checkpoints.py",
        "policies/families/gemma.py",
        "policies/rope.py",
        "results.py",
    } <= names("policies/checkpoints.py")


def test_a_package_counts_only_where_something_is_taken_from_it():
    found = names("probes/gradients.py")
    assert "losses/weights.py" in found
    assert not {"losses/__init__.py", "losses/clipped.py"} & found
    assert {"losses/__init__.py", "losses/clipped.py"} <= names("compare/prepare.py")
