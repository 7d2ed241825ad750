"""Sessions in rounds, as the store has them: begun, marked, gone on with, read again.

Nothing is remembered here but which session is being drawn. May import: store, config, types.records, its neighbours.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from visfeedback import config
from visfeedback.app.rounds import CRITERION, Ask, Engine, Past, Round, Rounds, Session, Wish
from visfeedback.plugins import InputError
from visfeedback.store import Store
from visfeedback.store.tables import feedback
from visfeedback.types.records import Feedback, Prompt, Sample, text_id

MOST_ROUNDS = 200
_marking = threading.Lock()


class Sessions:
    """Sessions of a store, with the engines that draw for them."""

    def __init__(self, store: Store, rounds: Rounds) -> None:
        self.store, self.engines = store, rounds.engines
        self._drawing: dict[str, threading.Lock] = {}

    # doing

    def start(self, judge: str, wish: Wish, said: Callable[[str], None] = lambda text: None) -> Session:
        """A new session with its first round."""
        self._engine(wish)
        prompt = Prompt.of(wish.prompt, wish.negative, source="rounds")
        self.store.add_prompts([prompt])
        session = Session(uuid.uuid4().hex, judge, wish, prompt)
        self._draw(session, -1, said)
        return self.find(judge, session.id)

    def next(self, judge: str, session_id: str, after: int, said: Callable[[str], None] = lambda text: None) -> Session:
        """The round that follows ``after``, along what was liked on the way there. Marks made meanwhile count."""
        session = self.find(judge, session_id)
        session.at(after)
        if len(session.rounds) >= MOST_ROUNDS:
            raise InputError(f"this session has {MOST_ROUNDS} rounds; start another one")
        self._draw(session, after, said)
        return self.find(judge, session_id)

    def mark(self, judge: str, session_id: str, number: int, place: int, mark: int) -> Session:
        """Like (1), dislike (-1) or neither (0); saying the same twice changes nothing."""
        if mark not in (-1, 0, 1):
            raise InputError(f"mark {mark!r:.20}; expected 1, 0 or -1")
        with _marking:
            session = self.find(judge, session_id)
            found = session.at(number)
            if not 0 <= place < len(found.sample_ids):
                raise InputError(f"no image {place + 1} in this round; it has {len(found.sample_ids)}")
            if found.marks[place] != mark:
                self._say(session, number, found.sample_ids[place], mark)
        return self.find(judge, session_id)

    # reading

    def find(self, judge: str, session_id: str) -> Session:
        """InputError when this judge has no such session."""
        records = list(self._records(judge, session_id))
        drawn = sorted((r for r in records if r.criterion == CRITERION), key=lambda r: r.extra["round"])
        if not drawn:
            raise InputError("no such session of yours; start a new one")
        marks = {(r.extra["round"], r.sample_ids[0]): int(r.values[0]) for r in records if r.kind == "like"}
        wish = Wish.model_validate(drawn[0].extra["wish"])
        rounds = [
            Round(r.extra["round"], r.extra["after"], r.sample_ids,
                  tuple(marks.get((r.extra["round"], name), 0) for name in r.sample_ids))
            for r in drawn
        ]  # fmt: skip
        return Session(session_id, judge, wish, Prompt.of(wish.prompt, wish.negative, source="rounds"), rounds)

    def all(self, judge: str, most: int = 50) -> list[tuple[str, str]]:
        """(id, words) of this judge's sessions, the newest first."""
        query = select(feedback.c.record).where(feedback.c.judge == judge, feedback.c.criterion == CRITERION)
        found: dict[str, tuple[str, int, str]] = {}
        with self.store.reading() as connection:
            for text in connection.scalars(query.order_by(feedback.c.row)):
                record = json.loads(text)
                name, extra = record["extra"]["session"], record["extra"]
                began, count = (found[name][2], found[name][1] + 1) if name in found else (record["created_at"][:16], 1)
                found[name] = (extra["wish"]["prompt"], count, began)
        words = {
            name: f"{prompt[:60]} · {count} round{'s' * (count > 1)} · {began.replace('T', ' ')}"
            for name, (prompt, count, began) in found.items()
        }
        return list(words.items())[::-1][:most]

    def samples(self, session: Session, number: int) -> list[Sample]:
        """The images of a round, in their order. InputError when one is gone."""
        wanted = session.at(number).sample_ids
        found = self.store.samples_of(wanted)
        samples = [found.get((session.prompt.id, name)) for name in wanted]
        if not all(sample and sample.path for sample in samples):
            raise InputError("an image of this round is no longer in the store; visfeedback store verify says why")
        return [sample for sample in samples if sample]

    # inside

    def _engine(self, wish: Wish) -> Engine:
        if wish.engine not in self.engines:
            raise InputError(f"nobody draws {wish.engine!r:.40} here; expected {', '.join(self.engines)}")
        return self.engines[wish.engine]

    def _draw(self, session: Session, after: int, said: Callable[[str], None]) -> None:
        """One round of a session at a time: two tabs shall not draw the same one."""
        with self._drawing.setdefault(session.id, threading.Lock()):
            if after >= 0:
                session = self.find(session.judge, session.id)
            number = len(session.rounds)
            past = tuple(Past(tuple(self.samples(session, r.number)), r.marks, r.number) for r in session.way(after))
            ask = Ask(session.wish, session.prompt, session.id, number, past)
            samples = self._engine(session.wish).draw(ask, said)
            self._keep(session, number, after, samples)

    def _keep(self, session: Session, number: int, after: int, samples: Sequence[Sample]) -> None:
        about = {"session": session.id, "round": number, "after": after, "wish": session.wish.model_dump(mode="json")}
        record = Feedback(
            id=text_id(CRITERION, session.id, str(number)), kind="text", criterion=CRITERION, judge=session.judge,
            prompt_id=session.prompt.id, sample_ids=tuple(dict.fromkeys(sample.id for sample in samples)),
            note=f"round {number + 1} of a session was drawn", extra=about,
        )  # fmt: skip
        self.store.add_feedback([record])

    def _say(self, session: Session, number: int, sample_id: str, mark: int) -> None:
        """A tombstone for what stood there, a new record for what stands now."""
        for record in self._records(session.judge, session.id):
            if record.kind == "like" and (record.extra["round"], record.sample_ids[0]) == (number, sample_id):
                self.store.retract(record.id, session.judge, note="changed in a session")
        if mark:
            self.store.add_feedback([Feedback(
                kind="like", judge=session.judge, prompt_id=session.prompt.id, sample_ids=(sample_id,),
                values=(float(mark),), extra={"session": session.id, "round": number},
            )])  # fmt: skip

    def _records(self, judge: str, session_id: str) -> Iterator[Feedback]:
        """Standing records of a session."""
        if not (session_id.isalnum() and len(session_id) == 32):
            return
        gone = select(feedback.c.retracts).where(feedback.c.kind == "tombstone", feedback.c.judge == judge)
        query = select(feedback.c.record).where(
            feedback.c.judge == judge, feedback.c.kind.in_(("like", "text")), feedback.c.id.not_in(gone),
            feedback.c.record.contains(f'"session":"{session_id}"'),
        )  # fmt: skip
        with self.store.reading() as connection:
            for record in connection.scalars(query.order_by(feedback.c.row)).all():
                yield Feedback.model_validate_json(record)


def wish(values: Mapping[str, Any]) -> Wish:
    """Checked values of the page. InputError in one line."""
    return config.build(Wish, values, "session")
