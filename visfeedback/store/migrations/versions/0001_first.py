"""The first schema: meta, prompts, images, samples and the append-only feedback."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "prompts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("negative", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("category", sa.String(64), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
    )
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("suffix", sa.String(8), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
    )
    create_samples()
    create_feedback()
    refuse_changes()


def create_samples() -> None:
    op.create_table(
        "samples",
        sa.Column("row", ROW_NUMBER, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("id", sa.String(64), nullable=False, index=True),
        sa.Column("prompt_id", sa.String(64), sa.ForeignKey("prompts.id"), nullable=False, index=True),
        sa.Column("image", sa.String(64), sa.ForeignKey("images.sha256"), nullable=False, index=True),
        sa.Column("record", sa.Text, nullable=False),
    )


def create_feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("row", ROW_NUMBER, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("judge", sa.String(256), nullable=False, index=True),
        sa.Column("criterion", sa.String(64), nullable=False),
        sa.Column("prompt_id", sa.String(64), nullable=False, index=True),
        sa.Column("choice", sa.String(16), nullable=True),
        sa.Column("gold", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Float, nullable=True),
        sa.Column("retracts", sa.String(64), nullable=True, index=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )


def refuse_changes() -> None:
    """Feedback is append-only, whoever writes. The last trigger stops INSERT OR REPLACE, which deletes silently."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION feedback_is_append_only() RETURNS trigger AS "
            "$$ BEGIN RAISE EXCEPTION 'feedback is append-only'; END $$ LANGUAGE plpgsql"
        )
        op.execute(
            "CREATE TRIGGER feedback_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON feedback "
            "EXECUTE FUNCTION feedback_is_append_only()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER feedback_no_{event.lower()} BEFORE {event} ON feedback "
            "BEGIN SELECT RAISE(ABORT, 'feedback is append-only'); END"
        )
    op.execute(
        "CREATE TRIGGER feedback_no_replace BEFORE INSERT ON feedback "
        "WHEN EXISTS (SELECT 1 FROM feedback WHERE id = NEW.id OR row = NEW.row) "
        "BEGIN SELECT RAISE(IGNORE); END"
    )
