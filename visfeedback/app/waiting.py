"""Why there is no question for somebody: the model is drawing, others have the last ones, or all is answered.

May import: store, the app's neighbours.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, func, select

from visfeedback.app.context import Context
from visfeedback.store.tables import presentations, tasks


def reason(context: Context, judge: str) -> dict[str, Any]:
    """What the screen needs to say it in words; wakes whoever draws."""
    generator = context.generator
    if generator is None:
        return {"drawing": False, "others": held_by_others(context, judge)}
    generator.wake()
    drawing = generator.status()
    others = 0 if drawing.running else held_by_others(context, judge)
    return {"drawing": drawing.running, "problem": "drawing has stopped" if drawing.problem else "", "others": others}


def held_by_others(context: Context, judge: str) -> int:
    """Questions that other judges have now and that may still come to this one: by a skip, or when a lease runs out."""
    mine = presentations.alias("mine")
    had = exists().where(
        mine.c.task_id == tasks.c.id, mine.c.judge == judge, mine.c.turn == 0, mine.c.state != "expired"
    )
    held = (presentations.c.state == "leased") & (presentations.c.turn == 0) & (presentations.c.judge != judge)
    open_here = (tasks.c.project == context.desk.project) & tasks.c.gold.is_(False)
    query = select(func.count(tasks.c.id.distinct())).select_from(
        presentations.join(tasks, presentations.c.task_id == tasks.c.id)
    )
    with context.store.reading() as connection:
        return connection.scalar(query.where(held, open_here, ~had)) or 0
