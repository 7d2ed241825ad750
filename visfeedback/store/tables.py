"""The tables as this version of the program knows them.

`samples.record` and `feedback.record` hold the whole record as JSON and are the truth; the other columns of these two
tables are an index into it, so a record can gain fields without a migration.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)
# SQLite counts rows by itself only in a column whose type is exactly INTEGER
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("text", Text, nullable=False),
    Column("negative", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("category", String(64), nullable=False),
    Column("split", String(16), nullable=False),
)

images = Table(
    "images",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the bytes of the file, which names the file
    Column("suffix", String(8), nullable=False),  # ".png"
    Column("size_bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),  # pixels
    Column("height", Integer, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    Column("row", RowNumber, primary_key=True),  # in the order of arrival
    Column("digest", String(64), nullable=False, unique=True),  # of the record without its path
    Column("id", String(64), nullable=False, index=True),  # Sample.id: the same pixels may have been made twice
    Column("prompt_id", ForeignKey("prompts.id"), nullable=False, index=True),
    Column("image", ForeignKey("images.sha256"), nullable=True, index=True),  # NULL: judged elsewhere, never seen here
    Column("record", Text, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("row", RowNumber, primary_key=True),  # in the order of arrival
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("judge", String(256), nullable=False, index=True),
    Column("criterion", String(64), nullable=False),
    Column("prompt_id", String(64), nullable=False, index=True),
    Column("choice", String(16), nullable=True),
    Column("gold", Boolean, nullable=False),
    Column("seconds", Float, nullable=True),
    Column("retracts", String(64), nullable=True, index=True),
    Column("created_at", DateTime(timezone=True), nullable=False),  # UTC
    Column("record", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("row", RowNumber, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("project", String(64), nullable=False, index=True),  # tasks of one collection
    Column("kind", String(16), nullable=False),  # a kind of `service.Task`
    Column("prompt_id", String(64), nullable=False),
    Column("overlap", Integer, nullable=False),  # how many judges are wanted
    Column("priority", Float, nullable=False),  # higher is asked first
    Column("gold", Boolean, nullable=False),
    Column("taken", Integer, nullable=False),  # first presentations that are answered or leased: never above overlap
    Column("record", Text, nullable=False),  # the whole `service.Task` as JSON
    Index("ix_tasks_queue", "project", "priority", "row"),
)

presentations = Table(
    "presentations",
    metadata,
    Column("row", RowNumber, primary_key=True),
    Column("token", String(64), nullable=False, unique=True),  # unguessable; an answer names it
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("judge", String(256), nullable=False),
    Column("turn", Integer, nullable=False),  # 0 = first time this judge sees the task, 1 = the repeat
    Column("number", Integer, nullable=False),  # which of the judge's presentations it is, 0 = first
    Column("revision", Integer, nullable=False),  # how often the answer was taken back
    Column("sides", String(64), nullable=False),  # "1,0": position of each image of the task
    Column("state", String(16), nullable=False),  # leased, answered, expired
    Column("assigned_at", Float, nullable=False),  # seconds since 1970, UTC, like the other times here
    Column("expires_at", Float, nullable=False),
    Column("shown_at", Float, nullable=True),
    Column("answered_at", Float, nullable=True),
    Column("feedback_id", String(64), nullable=True),
    UniqueConstraint("task_id", "judge", "turn", name="uq_presentations_once"),
    Index("ix_presentations_judge", "judge", "state"),
    Index("ix_presentations_lease", "state", "expires_at"),
)
