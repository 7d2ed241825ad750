"""Engines: from a URL to connections that are safe for many writers, and database errors as one clear line.

SQLite runs in WAL mode with synchronous=FULL: an acknowledged write survives kill -9 and power loss, and readers never
wait. Writers begin with BEGIN IMMEDIATE, so that two of them queue up instead of failing half way.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from visfeedback.plugins import InputError

BUSY_SECONDS = 30  # how long a writer waits for the others
EXPECTED = "expected sqlite:///prefs.db or postgresql://user@host/name"

CAUSES = {
    "file is not a database": "is not a SQLite database; name another file",
    "malformed": "is damaged; type: visfeedback store verify --store URL, or go back to a copy",
    "readonly": "cannot be written: no write permission for the file or its folder",
    "unable to open": "cannot be opened: no permission for the file or its folder",
    "locked": f"is locked by another program for more than {BUSY_SECONDS} s; close it and try again",
    "disk is full": "cannot grow: the disk is full; free some space and repeat the command",
    "append-only": "keeps feedback append-only; take a record back with a tombstone: store.retract(id)",
    "FATAL:  database": "names a database that the server does not have; type: createdb NAME",
    "connection failed": "does not answer; is the PostgreSQL server running?",
}


def parse(url: str) -> URL:
    """A checked URL; a bare path and a wrong scheme get a line that says what to type."""
    if "://" not in url:
        raise InputError(f"{url!r} is not a store URL; type {url_of(Path(url or 'prefs.db'))}")
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(f"{url!r} is not a store URL; {EXPECTED}") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return _sqlite(parsed, url)
    if kind in ("postgresql", "postgres"):
        return _postgres(parsed)
    raise InputError(f"stores are SQLite or PostgreSQL, not {kind!r}; {EXPECTED}")


def url_of(path: Path) -> str:
    """The store URL of a SQLite file: ``prefs.db`` -> ``sqlite:///prefs.db``."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def _sqlite(parsed: URL, url: str) -> URL:
    if parsed.host:
        raise InputError(f"{url!r} needs a third slash; type {url_of(Path(parsed.host, parsed.database or ''))}")
    if not parsed.database or parsed.database == ":memory:":
        raise InputError(f"{url!r} names no file, and a store in memory keeps nothing; type sqlite:///prefs.db")
    path = Path(parsed.database)
    if path.is_dir():
        raise InputError(f"{path} is a folder; type {url_of(path / 'prefs.db')}")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} for the store; type: mkdir -p {path.parent}")
    return parsed.set(drivername="sqlite")


def _postgres(parsed: URL) -> URL:
    if find_spec("psycopg") is None:
        raise InputError('PostgreSQL needs the extra "postgres"; type: python -m pip install "visfeedback[postgres]"')
    if not parsed.database:
        raise InputError(f"the URL names no database; {EXPECTED}")
    return parsed.set(drivername="postgresql+psycopg")


def engines(url: URL) -> tuple[Engine, Engine]:
    """(for reading, for writing); they share one pool of connections."""
    engine = create_engine(url)
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine, engine.execution_options(write=True)
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    return snapshot, engine


def _prepare(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver shall not begin transactions behind our back
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _switch_to_wal(cursor)
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Two processes creating one file: the switch fails at once with "locked" instead of waiting, so wait here."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """What goes wrong outside our program becomes one line; what is our fault stays as it is."""
    try:
        yield
    except NoSuchModuleError as error:
        raise InputError(f"{name}: {error}; {EXPECTED}") from None
    except DBAPIError as error:
        for sign, cause in CAUSES.items():
            if sign in str(error.orig):
                raise InputError(f"{name} {cause}") from error
        raise
