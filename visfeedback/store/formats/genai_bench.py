"""GenAI-Bench (prompt, left_model, left_image, right_model, right_image, vote_type) and GenAI-Arena / LMArena votes.

vote_type: leftvote, rightvote, tievote, bothbad_vote. Arena rows: model_a, model_b, winner (model_a, model_b, tie,
both_bad or "tie (bothbad)"), judge, tstamp; the arena's raw log: {tstamp, type, models, states, ip}. An address (ip)
is never kept. Rows without a prompt are about their question's number. Written: the layout of GenAI-Bench.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import Store
from visfeedback.store.formats import _cells, _items, _said
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import image_cell, judged, maker
from visfeedback.store.formats._parquet import image_type, rows_to, with_features
from visfeedback.store.formats._people import People, of_store
from visfeedback.store.formats._rows import Row, rows
from visfeedback.types.records import Choice

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "tie", "both_bad"),
    feedback=("kind", "choice", "sample_ids", *_said.FIELDS), sample=("prompt", "model"), unknown=True,
    datasets="parquet",
)  # fmt: skip
VOTES: dict[str, Choice] = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbad_vote": "both_bad"}
WINNERS: dict[str, Choice] = {
    "model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "both_bad", "both_bad": "both_bad",
    "bothbad": "both_bad",
}  # fmt: skip
THEIRS = ("prompt", "left_model", "left_image", "right_model", "right_image", "vote_type")
ARENA = ("model_a", "model_b", "winner", "question_id", "tstamp", "type", "models", "states", "ip", "anony")


def read(path: Path, store: Store) -> dict[str, Any]:
    """Dropped: log lines that are no votes, damaged images."""
    return _items.add(store, rows(path), _item)


def _item(row: Row) -> _items.Item:
    if "vote_type" in row.values:
        names, images = [row.values.get(f"{side}_model") for side in ("left", "right")], True
        choice = _vote(row, "vote_type", VOTES)
    elif "winner" in row.values:
        names, images = [row.values.get(name) for name in ("model_a", "model_b")], False
        choice = _vote(row, "winner", WINNERS)
    elif "type" in row.values:
        if row.values["type"] not in VOTES:
            raise _items.Dropped("not a vote")
        names, images, choice = list(row.values.get("models") or []), False, VOTES[row.values["type"]]
    else:
        raise InputError(f"{row.where}: expected vote_type, winner, or type with models")
    if len(names) != 2 or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{row.where}: expected the names of two models, not {names!r:.60}")
    prompt = _prompt(row)
    a, b = (
        _cells.drawn(
            row.values.get(f"{side}_image") if images else None, f"{side}:{name}", prompt, row,
            model=name, negative=_said.negative(row),
        )
        for side, name in zip(("left", "right"), names, strict=True)
    )  # fmt: skip
    told = _said.heard(_unnamed(row), _judge(row), _cells.extra(row, (*THEIRS, *ARENA, *_said.COLUMNS)))
    if "feedback_id" not in row.values:
        told.setdefault("sides", (0, 1))
    if (at := _cells.moment(row.values.get("tstamp"))) is not None:
        told.setdefault("created_at", at)
    return _items.Item((a, b), (_items.pair(row, a, b, choice, **told),))


def _vote(row: Row, column: str, known: dict[str, Choice]) -> Choice:
    value = row.values[column]
    if value not in known:
        raise InputError(f"{row.where}: {column} {value!r:.40}; expected {', '.join(known)}")
    return known[value]


def _prompt(row: Row) -> str:
    if isinstance(row.values.get("prompt"), str) and row.values["prompt"].strip():
        return row.values["prompt"]
    for state in row.values.get("states") or []:
        if isinstance(state, dict) and isinstance(state.get("prompt"), str) and state["prompt"]:
            return state["prompt"]
    return f"question {row.values.get('question_id') or row.number}"


def _unnamed(row: Row) -> Row:
    """Without the arena's own name of the judge, which may be an address."""
    ours = "feedback_id" in row.values
    return row if ours else row._replace(values={k: v for k, v in row.values.items() if k != "judge"})


def _judge(row: Row) -> str:
    """Arena rows may name the judge by address: only a hash of it is kept."""
    who = row.values.get("judge") or row.values.get("ip")
    if not who:
        return "import:genai_bench"
    return f"human:arena-{hashlib.sha256(str(who).encode()).hexdigest()[:12]}"


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """Parquet with the images inside; `a` is on the left."""
    import pyarrow as pa

    people = people or of_store(store)
    dropped, written = Counter[str](), 0
    columns = [(name, image_type() if name.endswith("image") else pa.string()) for name in THEIRS]
    votes = {choice: vote for vote, choice in VOTES.items()}
    with rows_to(path, with_features(pa.schema(columns + _said.arrow_fields()))) as put:
        for record, (a, b) in judged(store, CARRIES, dropped):
            row = {
                "prompt": a.prompt, "left_model": maker(a), "left_image": image_cell(a),
                "right_model": maker(b), "right_image": image_cell(b), "vote_type": votes[record.choice or "tie"],
            }  # fmt: skip
            put(row | _said.said(record, people, a))
            written += 1
    return {"pairs": written, "dropped": dict(sorted(dropped.items()))}
