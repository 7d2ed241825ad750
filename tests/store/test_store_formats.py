"""Formats: write -> read is the identity on what a format can carry; wrong lines are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from visfeedback import plugins, store
from visfeedback.plugins import InputError
from visfeedback.store.formats import jsonl, pairs
from visfeedback.types.records import Feedback, Prompt, Sample

HEADER = '{"visfeedback": 1}\n'


def content(opened: store.Store) -> tuple[list[Prompt], list[Sample], list[Feedback]]:
    samples = [sample.model_copy(update={"path": ""}) for sample in opened.samples()]
    return list(opened.prompts()), samples, list(opened.feedback(include_retracted=True))


def test_formats_are_found_by_name() -> None:
    assert {"jsonl", "pairs"} <= set(plugins.names("store.formats"))
    assert plugins.load("store.formats", "jsonl") is jsonl
    for name in plugins.names("store.formats"):
        assert {"read", "write"} <= set(dir(plugins.load("store.formats", name)))


def test_jsonl_is_lossless(filled: store.Store, tmp_path: Path) -> None:
    """Prompts, samples, feedback and tombstones, in order, and every image bit for bit; also from a moved folder."""
    filled.add_prompts([Prompt.of("alone, with a \u2028 and \U0001f436", split="heldout", source="here")])
    filled.retract("vote-1", judge="human:ada")
    out = tmp_path / "out"
    counts = jsonl.write(filled, out / "all.jsonl")
    assert counts == {"prompt": 3, "sample": 4, "feedback": 3, "dropped": {}}
    moved = out.rename(tmp_path / "moved")
    with store.open(f"sqlite:///{tmp_path}/copy.db") as copy:
        assert jsonl.read(moved / "all.jsonl", copy) == {"prompt": 3, "sample": 4, "feedback": 3}
        assert content(copy) == content(filled)
        for sample in filled.samples():
            assert copy.image_bytes(sample.id) == filled.image_bytes(sample.id)
        jsonl.read(moved / "all.jsonl", copy)
        assert content(copy) == content(filled), "reading again adds nothing"
        jsonl.write(copy, tmp_path / "again" / "all.jsonl")
    assert (tmp_path / "again" / "all.jsonl").read_bytes() == (moved / "all.jsonl").read_bytes()


def test_export_that_fails_leaves_no_file(filled: store.Store, tmp_path: Path) -> None:
    Path(next(filled.samples()).path).unlink()
    with pytest.raises(InputError, match="no image"):
        jsonl.write(filled, tmp_path / "all.jsonl")
    assert not list(tmp_path.glob("*all.jsonl*"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "does not begin with"),
        ('{"prompt": "x"}\n', "does not begin with"),
        ('{"visfeedback": 99}\n', "has layout 99"),
        (HEADER + "nonsense\n", "line 2: expected one record"),
        (HEADER + '\n{"promt": {}}\n', "line 3: no record 'promt'; did you mean 'prompt'"),
        (HEADER + '{"prompt": {"id": "x"}}\n', "line 2: text: Field required"),
        (HEADER + '{"feedback": {"judge": "j", "colour": 1}}\n', "line 2"),
    ],
)
def test_wrong_jsonl_names_the_line(opened: store.Store, tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InputError) as caught:
        jsonl.read(tmp_path / "x.jsonl", opened)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_carry_labels_and_say_what_they_drop(
    filled: store.Store, make_samples: Callable[..., list[Sample]], vote: Callable[..., Feedback], tmp_path: Path
) -> None:
    """Beside two votes for a: tie, both bad, P(a) = .7, skip, a ranking, a pair of unknown images."""
    a, b = make_samples(prompts=1, each=2)
    filled.add_feedback([
        vote(a, b, "t", choice="tie", values=(0.5, 0.5)),
        vote(a, b, "bad", choice="both_bad", values=(0.5, 0.5)),
        vote(a, b, "p", values=(0.7, 0.3)),
        vote(a, b, "s", choice="skip", values=()),
        vote(a, b, "r", kind="ranking", choice=None, values=(0, 1)),
        vote(a, b, "u", sample_ids=("x", "y")),
    ])  # fmt: skip
    path = tmp_path / "out" / "pairs.jsonl"
    assert pairs.write(filled, path) == {"pairs": 5, "dropped": {"missing sample": 1, "ranking": 1, "skip": 1}}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["label"] for line in lines] == ["a", "a", "tie", "tie", 0.7]
    assert (path.parent / lines[0]["image_a"]).read_bytes() == filled.image_bytes(a.id)


def test_pairs_round_trip(filled: store.Store, tmp_path: Path) -> None:
    """What the layout carries comes back: prompt, both images, label, judge, criterion. Reading twice adds nothing."""
    path = tmp_path / "pairs.jsonl"
    pairs.write(filled, path)
    with store.open(f"sqlite:///{tmp_path}/copy.db") as copy:
        assert pairs.read(path, copy) == {"sample": 4, "feedback": 2}
        assert pairs.read(path, copy) == {"sample": 0, "feedback": 0}
        carried = ("judge", "criterion", "prompt_id", "sample_ids", "values", "choice")
        old, new = ([[getattr(r, name) for name in carried] for r in s.feedback()] for s in (filled, copy))
        assert old == new
        pairs.write(copy, tmp_path / "again" / "pairs.jsonl")
    again = (tmp_path / "again" / "pairs.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in again] == ["a", "a"]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("[]", "line 1: expected a JSON object"),
        ('{"prompt": "x", "image_a": "1.png", "label": "a"}', "line 1: no 'image_b'"),
        ('{"prompt": "", "image_a": "1.png", "image_b": "2.png", "label": "a"}', "prompt must be a text"),
        ('{"prompt": "x", "image_a": "nowhere.png", "image_b": "2.png", "label": "a"}', "no image"),
    ],
)
def test_wrong_pairs_name_the_line(opened: store.Store, tmp_path: Path, row: str, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(row + "\n")
    with pytest.raises(InputError) as caught:
        pairs.read(tmp_path / "x.jsonl", opened)
    assert line in str(caught.value)


@pytest.mark.parametrize("label", ["c", 1.5, -0.1, True, None, float("nan")])
def test_wrong_labels_are_refused(
    opened: store.Store, make_samples: Callable[..., list[Sample]], tmp_path: Path, label: object
) -> None:
    make_samples(prompts=1, each=2)
    row = {"prompt": "x", "image_a": "images/0-0.png", "image_b": "images/0-1.png", "label": label}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="expected a, b, tie or P"):
        pairs.read(tmp_path / "x.jsonl", opened)
