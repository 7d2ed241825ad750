"""Runs the numbered migrations on the connection that `schema.upgrade` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from visfeedback.store.tables import metadata


def migrate() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        transactional_ddl=True,  # true of SQLite too: we begin transactions ourselves
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


migrate()
