"""Samples without an image file, and what an app shows to whom: tasks, leases on them, and presentations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("samples") as samples:
        samples.alter_column("image", existing_type=sa.String(64), nullable=True)
    create_tasks()
    create_presentations()


def create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("row", ROW_NUMBER, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("project", sa.String(64), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("prompt_id", sa.String(64), nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("gold", sa.Boolean, nullable=False),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("ix_tasks_queue", "tasks", ["project", "priority", "row"])


def create_presentations() -> None:
    op.create_table(
        "presentations",
        sa.Column("row", ROW_NUMBER, primary_key=True),
        sa.Column("token", sa.String(64), nullable=False, unique=True),
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.id"), nullable=False, index=True),
        sa.Column("judge", sa.String(256), nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("sides", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("assigned_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("shown_at", sa.Float, nullable=True),
        sa.Column("answered_at", sa.Float, nullable=True),
        sa.Column("feedback_id", sa.String(64), nullable=True),
        sa.UniqueConstraint("task_id", "judge", "turn", name="uq_presentations_once"),
    )
    op.create_index("ix_presentations_judge", "presentations", ["judge", "state"])
    op.create_index("ix_presentations_lease", "presentations", ["state", "expires_at"])
