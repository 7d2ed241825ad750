"""Which schema a database has, and bringing it to ours: migrations are numbered files, the number is the version."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from visfeedback.plugins import InputError

MIGRATIONS = Path(__file__).parent / "migrations"
_alembic_is_global = threading.Lock()  # alembic keeps the running environment in a module


@cache
def known() -> tuple[str, ...]:
    """The versions this program can read, oldest first, from the file names: ("0001", ...)."""
    return tuple(sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")))


def version(connection: Connection) -> str | None:
    """The schema number of a database; None when it is empty. InputError when it is some other program's."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables and (not tables - {"alembic_version"} or {"feedback", "meta"} <= tables):
        return connection.scalar(text("SELECT version_num FROM alembic_version"))
    if tables:
        some = ", ".join(sorted(tables)[:3])
        raise InputError(f"this database belongs to another program (tables {some}); name a new file for the store")
    return None


def bring_up_to_date(engine: Engine, writer: Engine, name: str) -> None:
    """Create or migrate; another process may be doing the same, so look again once the write lock is ours."""
    with engine.begin() as connection:
        if _check(version(connection), name) == known()[-1]:
            return
    with _alembic_is_global, writer.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7154321)"))
        if _check(version(connection), name) != known()[-1]:
            upgrade(connection)


def _check(found: str | None, name: str) -> str | None:
    if found is not None and found not in known():
        raise InputError(
            f"{name} was written by a newer visfeedback (schema {found}, this program knows {known()[-1]}); "
            "type: python -m pip install --upgrade visfeedback"
        )
    return found


def upgrade(connection: Connection, to: str = "head") -> None:
    """Run the missing migrations inside the caller's transaction."""
    from alembic import command  # a quarter of a second, needed only here
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
