"""The desk at which judges are handed tasks and give answers: several people, tabs and processes at once.

- A presentation has a token that nobody can guess; an answer names it. The id of the feedback is made from the token,
  so an answer that is sent five times is in the store once.
- A lease holds a place among the judges that a task wants; when it runs out the place is free again. Places that are
  leased or answered never exceed `overlap`: they are counted in the row of the task, by one conditional UPDATE.
- Reload, or a second tab: the same presentations come again. Undo is a tombstone, and the pair comes back under a new
  token.
All of it is in one transaction each. SQLite's writers queue up (BEGIN IMMEDIATE); on PostgreSQL judges lock themselves.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, exists, func, select, text, update

from visfeedback.plugins import InputError
from visfeedback.store import rows
from visfeedback.store.core import CHUNK, Store
from visfeedback.store.tables import feedback, presentations, tasks
from visfeedback.store.tasks import Answer, Presentation, Task
from visfeedback.types.records import Feedback, Frozen, text_id

Clock = Callable[[], float]


class Refused(InputError):
    """An answer or undo that does not count: a token that is forged, foreign, or used up."""


class Rules(Frozen):
    lease_seconds: float = 600.0
    """how long a task waits for the judge who has it"""
    gold_every: int = 15
    """about every so many presentations of a judge is a gold task, while there are new ones; 0 for none"""
    repeat_every: int = 20
    """about every so many is a repeat of one's own, while there are any; 0 for none"""
    repeat_gap: int = 10
    """a repeat comes after at least so many others"""


class Receipt(Frozen):
    """What became of an answer."""

    feedback_ids: tuple[str, ...]
    again: bool
    """the same answer had arrived before; nothing was added"""


class Desk:
    """Hands out the tasks of one project. May be shared by threads, and opened by several processes on one store."""

    def __init__(self, store: Store, project: str = "default", rules: Rules | None = None, clock: Clock = time.time):
        self.store = store
        self.project = project
        self.rules = rules or Rules()
        self.clock = clock

    # tasks

    def add(self, wanted: Iterable[Task]) -> int:
        """Add tasks; returns how many were new. Their project becomes the desk's."""
        added = 0
        for part in rows.chunks((task.model_copy(update={"project": self.project}).named() for task in wanted), CHUNK):
            with self.store.writing() as connection:
                ids = {task.id for task in part}
                known = set(connection.scalars(select(tasks.c.id).where(tasks.c.id.in_(ids))))
                new = {task.id: task for task in part if task.id not in known}
                rows.insert_new(connection, tasks, [_task_row(task) for task in new.values()])
                added += len(new)
        return added

    def prioritise(self, priorities: Mapping[str, float]) -> None:
        """Task id -> priority: what active choice says is worth most is asked first."""
        with self.store.writing() as connection:
            for name, priority in sorted(priorities.items()):
                connection.execute(update(tasks).where(tasks.c.id == name).values(priority=priority))

    # for a judge

    def next(self, judge: str, besides: Collection[str] = ()) -> Presentation | None:
        """What this judge shall answer next; None when there is nothing left for them.

        ``besides``: tokens that the caller has already, so that pairs can be fetched ahead. Leases that were handed out
        before and are not among them come first: that is how a reload and a second tab go on where one was.
        """
        with self.store.writing() as connection:
            now = self.clock()
            self._lock(connection, judge)
            self._free_expired(connection, now)
            held = self._held(connection, judge, besides)
            return held or self._assign(connection, judge, now)

    def find(self, token: str, judge: str) -> Presentation:
        """The presentation behind a token of this judge. Refused when there is none."""
        with self.store.reading() as connection:
            return _presentation(self._row(connection, token, judge))

    def shown(self, token: str, judge: str) -> None:
        """The images are on the screen now; the first time counts."""
        with self.store.writing() as connection:
            self._row(connection, token, judge)
            mine = (presentations.c.token == token) & presentations.c.shown_at.is_(None)
            connection.execute(update(presentations).where(mine).values(shown_at=self.clock()))

    def answer(self, token: str, judge: str, answer: Answer) -> Receipt:
        """Keep the answer; on return it survives kill -9. The same answer again changes nothing.

        Refused: the token is nobody's or another judge's; another answer is in already; the lease ran out and the task
        has enough judges. InputError: the answer does not fit the task.
        """
        with self.store.writing() as connection:
            now = self.clock()
            self._lock(connection, judge)
            row = self._row(connection, token, judge, lock=True)
            records = self._records(_presentation(row), row, answer, now)
            ids = tuple(record.id for record in records)
            if row.state == "answered":
                if not self._same(connection, records):
                    raise Refused("this question has another answer already; undo it first")
                return Receipt(feedback_ids=ids, again=True)
            if row.state == "expired" and not self._take(connection, row.task_id, row.turn):
                raise Refused("the time for this question ran out and others have answered it; take the next")
            self.store.append(connection, records)
            self._close(connection, row, answer, ids[0], now)
            return Receipt(feedback_ids=ids, again=False)

    def undo(self, judge: str, token: str | None = None) -> Presentation | None:
        """Take back an answer of this judge, by default the last, and show the question again under a new token.

        None when there is nothing to take back.
        """
        with self.store.writing() as connection:
            now = self.clock()
            self._lock(connection, judge)
            row = self._row(connection, token, judge) if token is not None else self._last(connection, judge)
            if row is None or row.state != "answered":
                return None
            if _gave_place_back(connection, row) and not self._take(connection, row.task_id, row.turn):
                raise Refused("others have answered this question meanwhile; it cannot be opened again")
            self._bury(connection, row, judge)
            fresh = {"token": secrets.token_urlsafe(24), "state": "leased", "revision": row.revision + 1}
            fresh |= {"expires_at": now + self.rules.lease_seconds, "shown_at": None, "answered_at": None}
            mine = presentations.c.row == row.row
            connection.execute(update(presentations).where(mine).values(feedback_id=None, **fresh))
            return _presentation(self._row(connection, fresh["token"], judge))

    def progress(self, judge: str | None = None) -> dict[str, int]:
        """Tasks, wanted and answered judgements (gold tasks aside) and open leases; ``mine``: answers of ``judge``."""
        mine = (tasks.c.project == self.project) & tasks.c.gold.is_(False)
        at_desk = presentations.join(tasks, presentations.c.task_id == tasks.c.id)
        with self.store.reading() as connection:
            count, wanted = connection.execute(select(func.count(), func.sum(tasks.c.overlap)).where(mine)).one()
            states = select(presentations.c.state, func.count()).select_from(at_desk).where(mine)
            by_state = {row[0]: row[1] for row in connection.execute(states.group_by(presentations.c.state))}
            own = select(func.count()).where(presentations.c.judge == judge, presentations.c.state == "answered")
            found = {"tasks": count, "wanted": int(wanted or 0), "answered": by_state.get("answered", 0)}
            found["leased"] = by_state.get("leased", 0)
            return found | ({"mine": connection.scalar(own) or 0} if judge is not None else {})

    # inside the transaction

    def _lock(self, connection: Connection, judge: str) -> None:
        """One request of a judge at a time, so that two tabs cannot get or answer different things at once."""
        if connection.dialect.name == "postgresql":
            key = int.from_bytes(hashlib.sha256(f"{self.project}\0{judge}".encode()).digest()[:8], "big", signed=True)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})

    def _row(self, connection: Connection, token: str, judge: str, lock: bool = False) -> Any:
        query = select(presentations, tasks.c.record).join(tasks, presentations.c.task_id == tasks.c.id)
        query = query.where(presentations.c.token == token)
        row = connection.execute(query.with_for_update(of=presentations) if lock else query).first()
        if row is None or row.judge != judge:  # whether it exists is not told to others
            raise Refused("no such question for you; reload the page")
        return row

    def _free_expired(self, connection: Connection, now: float) -> None:
        """Places of leases that ran out; rows somebody else is working on are left for the next time."""
        late = (presentations.c.state == "leased") & (presentations.c.expires_at < now)
        query = select(presentations.c.row, presentations.c.task_id, presentations.c.turn).where(late)
        found = connection.execute(query.order_by(presentations.c.task_id).with_for_update(skip_locked=True)).all()
        for row in found:
            connection.execute(update(presentations).where(presentations.c.row == row.row).values(state="expired"))
            _give_back(connection, row.task_id, row.turn)

    def _held(self, connection: Connection, judge: str, besides: Collection[str]) -> Presentation | None:
        query = select(presentations, tasks.c.record).join(tasks, presentations.c.task_id == tasks.c.id)
        query = query.where(
            presentations.c.judge == judge, presentations.c.state == "leased", tasks.c.project == self.project
        )
        for row in connection.execute(query.order_by(presentations.c.number)):
            if row.token not in besides:
                return _presentation(row)
        return None

    def _assign(self, connection: Connection, judge: str, now: float) -> Presentation | None:
        number = connection.scalar(select(func.count()).where(presentations.c.judge == judge)) or 0
        order: list[tuple[bool, int]] = []
        if self.rules.repeat_every and number % self.rules.repeat_every == self.rules.repeat_every - 1:
            order.append((False, 1))
        if self.rules.gold_every and number % self.rules.gold_every == self.rules.gold_every // 2:
            order.append((True, 0))
        for gold, turn in [*order, (False, 0)]:
            while (task_id := self._candidate(connection, judge, gold, turn, number)) is not None:
                if self._take(connection, task_id, turn):
                    return self._lease(connection, task_id, judge, turn, number, now)
        return None

    def _candidate(self, connection: Connection, judge: str, gold: bool, turn: int, number: int) -> str | None:
        here = presentations.c.task_id == tasks.c.id
        mine = here & (presentations.c.judge == judge)
        query = select(tasks.c.id).where(tasks.c.project == self.project, tasks.c.gold.is_(gold))
        if turn:
            settled = mine & (presentations.c.turn == 0) & (presentations.c.state == "answered")
            settled = settled & (presentations.c.number <= number - self.rules.repeat_gap)
            again = mine & (presentations.c.turn == 1)
            query = query.where(
                exists().where(settled), ~exists().where(again), tasks.c.record.contains('"repeat":true')
            )
        else:
            busy = mine & (presentations.c.turn == 0) & (presentations.c.state != "expired")
            query = query.where(tasks.c.taken < tasks.c.overlap, ~exists().where(busy))
        return connection.scalar(query.order_by(tasks.c.priority.desc(), tasks.c.row).limit(1))

    def _take(self, connection: Connection, task_id: str, turn: int) -> bool:
        """A place at the task; False when all are taken. Repeats are beside the overlap."""
        if turn:
            return True
        free = (tasks.c.id == task_id) & (tasks.c.taken < tasks.c.overlap)
        return connection.execute(update(tasks).where(free).values(taken=tasks.c.taken + 1)).rowcount == 1

    def _lease(
        self, connection: Connection, task_id: str, judge: str, turn: int, number: int, now: float
    ) -> Presentation:
        """A new presentation, or the judge's own one that had run out."""
        record = connection.scalar(select(tasks.c.record).where(tasks.c.id == task_id)) or ""
        until = now + self.rules.lease_seconds
        mine = (presentations.c.task_id == task_id) & (presentations.c.judge == judge) & (presentations.c.turn == turn)
        old = connection.scalar(select(presentations.c.token).where(mine))
        if old is not None:
            connection.execute(
                update(presentations).where(mine).values(state="leased", expires_at=until, shown_at=None)
            )
            return _presentation(self._row(connection, old, judge))
        sides = list(range(len(Task.model_validate_json(record).sample_ids)))
        random.SystemRandom().shuffle(sides)
        row = {
            "token": secrets.token_urlsafe(24), "task_id": task_id, "judge": judge, "turn": turn, "number": number,
            "revision": 0, "sides": ",".join(map(str, sides)), "state": "leased", "assigned_at": now,
            "expires_at": until, "shown_at": None, "answered_at": None, "feedback_id": None,
        }  # fmt: skip
        connection.execute(presentations.insert(), row)
        return _presentation(self._row(connection, row["token"], judge))

    def _records(self, shown: Presentation, row: Any, answer: Answer, now: float) -> list[Feedback]:
        """The feedback that this answer is; the same answer always makes the same, but for the time."""
        task = shown.task
        began = row.shown_at
        answered = row.answered_at or now
        known = {"expected": task.expected} if task.gold else {}
        about = {"project": task.project, "task": task.id} | known | ({"repeat": True} if row.turn else {})
        return [
            Feedback(
                id=text_id("answer", shown.token, fields["criterion"]), judge=shown.judge, prompt_id=task.prompt_id,
                sample_ids=task.sample_ids, sides=shown.sides, gold=task.gold, order=shown.number, extra=about,
                shown_at=_moment(began) if began else None, created_at=_moment(answered),
                seconds=max(0.0, round(answered - began, 3)) if began else None, **fields,
            )
            for fields in answer.fields(task, shown.sides)
        ]  # fmt: skip

    def _same(self, connection: Connection, records: list[Feedback]) -> bool:
        query = select(feedback.c.id, feedback.c.record).where(feedback.c.id.in_([record.id for record in records]))
        kept = {row.id: Feedback.model_validate_json(row.record) for row in connection.execute(query)}
        return all(record.id in kept and rows.same(kept[record.id], record) for record in records)

    def _close(self, connection: Connection, row: Any, answer: Answer, feedback_id: str, now: float) -> None:
        mine = presentations.c.row == row.row
        values = {"state": "answered", "answered_at": now, "feedback_id": feedback_id}
        connection.execute(update(presentations).where(mine).values(**values))
        if answer.choice == "skip":
            _give_back(connection, row.task_id, row.turn)  # somebody else may know

    def _last(self, connection: Connection, judge: str) -> Any:
        query = select(presentations, tasks.c.record).join(tasks, presentations.c.task_id == tasks.c.id)
        query = query.where(
            presentations.c.judge == judge, presentations.c.state == "answered", tasks.c.project == self.project
        )
        return connection.execute(
            query.order_by(presentations.c.answered_at.desc(), presentations.c.row.desc())
        ).first()

    def _bury(self, connection: Connection, row: Any, judge: str) -> None:
        """Tombstones for all records of an answer."""
        task = Task.model_validate_json(row.record)
        ids = [text_id("answer", row.token, criterion) for criterion in task.criteria]
        there = set(connection.scalars(select(feedback.c.id).where(feedback.c.id.in_(ids))))
        graves = [
            Feedback(id=text_id("tombstone", name), kind="tombstone", judge=judge, retracts=name, note="undo")
            for name in ids
            if name in there
        ]
        rows.insert_new(connection, feedback, [rows.feedback_row(grave) for grave in graves])


def _task_row(task: Task) -> dict[str, Any]:
    return {
        "id": task.id, "project": task.project, "kind": task.kind, "prompt_id": task.prompt_id,
        "overlap": task.overlap, "priority": task.priority, "gold": task.gold, "taken": 0,
        "record": task.model_dump_json(),
    }  # fmt: skip


def _presentation(row: Any) -> Presentation:
    return Presentation(
        token=row.token, task=Task.model_validate_json(row.record), judge=row.judge, number=row.number, turn=row.turn,
        sides=tuple(int(side) for side in row.sides.split(",")), expires_at=row.expires_at,
    )  # fmt: skip


def _give_back(connection: Connection, task_id: str, turn: int) -> None:
    if not turn:
        connection.execute(update(tasks).where(tasks.c.id == task_id).values(taken=tasks.c.taken - 1))


def _gave_place_back(connection: Connection, row: Any) -> bool:
    """Whether the answer was a skip."""
    return connection.scalar(select(feedback.c.choice).where(feedback.c.id == row.feedback_id)) == "skip"


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
