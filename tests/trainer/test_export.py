"""The tuned model in the run folder, whatever a killed run had left there."""

import pytest

from jaxpref import results


class Killed(BaseException):
    """Nothing that the program could catch."""


@pytest.mark.parametrize("flags, name", [((), "model"), (("--lora-rank", 2), "adapter")])
def test_a_run_that_was_killed_behind_its_export_is_finished_by_the_next_call(
    tmp_path, train, monkeypatch, flags, name
):
    out = tmp_path / "run"

    def killed(self, claims=()):
        (results.partial_folder(out) / f".{name}.0123abcd").mkdir()  # and one that was killed within it
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(results.RunWriter, "finish", killed)
        train(out, "--loss", "simpo", *flags)
    assert (results.partial_folder(out) / name).is_dir()
    assert train(out, "--loss", "simpo", *flags) == 0
    assert (out / name).is_dir() and not list(out.glob(".*"))
