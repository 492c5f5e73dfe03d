"""A run's code is what its question imports."""

from experiments import registry, sources
from jaxpref import results

ROOT = sources.ROOT
QUESTION = ROOT / "experiments" / "likelihood_displacement" / "single_example.py"


def names() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in sources.behind(QUESTION)}


def test_what_is_imported_by_what_is_imported_counts():
    assert {
        "experiments/likelihood_displacement/single_example.py", "jaxpref/losses/pairwise.py",
        "jaxpref/policies/transformer.py", "jaxpref/data/tokenizer.py",
    } <= names()  # fmt: skip


def test_what_no_import_reaches_does_not_count():
    assert not {name for name in names() if "mode_seeking" in name or "theorems" in name}
    assert "jaxpref/policies/categorical.py" not in names()
    assert "experiments/runner.py" not in names()  # it decides when to run, not what comes out


def test_every_question_counts_itself():
    for question in registry.questions():
        assert question.source.resolve() in sources.behind(question.source)


def test_words_about_the_code_do_not_make_it_another_code(tmp_path):
    source = tmp_path / "a.py"
    prints = []
    for text in ('"""One."""\nx = 1  # one\n', '"""Two."""\nx = 1\n', '"""Two."""\nx = 2\n'):
        source.write_text(text)
        prints.append(results.fingerprint([source]))
    assert prints[0] == prints[1] != prints[2]
