"""verify finds what is wrong, and says nothing when all is well."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from visfeedback import store
from visfeedback.types.records import Feedback


def test_a_whole_store_has_no_problems(filled: store.Store) -> None:
    filled.retract("vote-0", judge="human:ada")
    assert filled.verify() == []


def test_missing_and_changed_images_are_named(filled: store.Store) -> None:
    gone, changed, *_ = (Path(sample.path) for sample in filled.samples())
    gone.unlink()
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    assert sorted(filled.verify()) == sorted(
        [f"image {gone} is missing", f"image {changed} has changed: its bytes no longer match its name"]
    )


def test_feedback_about_nothing_is_named(filled: store.Store) -> None:
    filled.add_feedback([
        Feedback(id="lost", judge="j", sample_ids=("x", "y"), choice="a"),
        Feedback(id="undo", judge="j", kind="tombstone", retracts="nothing"),
    ])  # fmt: skip
    assert filled.verify() == [
        "feedback lost refers to sample x, which is not in the store",
        "feedback undo takes back nothing, which is not in the store",
    ]


def test_rows_that_refer_to_nothing_are_named(filled: store.Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "prefs.db")) as raw:  # foreign keys are off by default here
        raw.execute("DELETE FROM prompts")
        raw.commit()
    assert all("refers to nothing in prompts" in problem for problem in filled.verify())
    assert len(filled.verify()) == 4
