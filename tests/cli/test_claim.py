"""A result folder belongs to one set of settings."""

from __future__ import annotations

import pytest

from visfeedback.cli.claim import NAME, claim
from visfeedback.plugins import InputError

SETTINGS = {"seed": 3, "reward": ("a", "b"), "optim": {"lr": 0.1}}


def test_the_same_settings_go_on(tmp_path):
    """Tuples come back from JSON as lists, which is no difference."""
    claim(tmp_path / "new", SETTINGS)
    before = (tmp_path / "new" / NAME).read_bytes()
    claim(tmp_path / "new", SETTINGS)
    assert (tmp_path / "new" / NAME).read_bytes() == before


def test_other_settings_are_refused_by_name(tmp_path):
    claim(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"optim\.lr = 0\.1, now it is 0\.2"):
        claim(tmp_path, SETTINGS | {"optim": {"lr": 0.2}})


def test_a_key_that_went_away_is_a_difference(tmp_path):
    claim(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="seed = 3, now it is None"):
        claim(tmp_path, {key: value for key, value in SETTINGS.items() if key != "seed"})


def test_other_peoples_files_are_left_alone_and_leftovers_do_not_count(tmp_path):
    (tmp_path / ".settings.json.x1y2").write_text("half")
    claim(tmp_path, SETTINGS)
    (tmp_path / NAME).unlink()
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        claim(tmp_path, SETTINGS)


def test_a_damaged_note_is_one_line(tmp_path):
    (tmp_path / NAME).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        claim(tmp_path, SETTINGS)
