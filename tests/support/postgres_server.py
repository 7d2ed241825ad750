"""A PostgreSQL server of one's own for tests: from Debian's programs, in a folder, on a socket, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "no PostgreSQL server programs in /usr/lib/postgresql; on Debian: apt-get install postgresql"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl of the newest version; None when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def running() -> Iterator[str]:
    """The folder of the socket. PostgreSQL refuses to run as root, so root runs it as the user `postgres`."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if as_user:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    where = programs()
    assert where is not None, MISSING
    data = folder / "data"

    def call(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder)

    try:
        call(
            str(where / "initdb"),
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "tester",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale",
            "C",
        )
        options = f"-k {folder} -c listen_addresses= -c max_connections=60"
        call(str(where / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield str(folder)
        finally:
            call(str(where / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_database(socket: str, name: str) -> str:
    """A new database; returns its store URL."""
    import psycopg

    with psycopg.connect(host=socket, user="tester", dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql://tester@/{name}?host={socket}"
