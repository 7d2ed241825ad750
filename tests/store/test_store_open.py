"""Opening: what a URL may be, what can be wrong with a file, and databases of other ages."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from visfeedback import store
from visfeedback.plugins import InputError
from visfeedback.store import schema
from visfeedback.store.tables import metadata
from visfeedback.types.records import Feedback


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("prefs.db", "type sqlite:///prefs.db"),
        ("/data/prefs.db", "type sqlite:////data/prefs.db"),
        ("", "type sqlite:///prefs.db"),
        ("sqlite://prefs.db", "third slash; type sqlite:///prefs.db"),
        ("sqlite:///", "in memory keeps nothing"),
        ("sqlite:///:memory:", "in memory keeps nothing"),
        ("mysql://host/name", "SQLite or PostgreSQL, not 'mysql'"),
        ("sqlite:////no/such/folder/prefs.db", "mkdir -p /no/such/folder"),
        ("://", "not a store URL"),
    ],
)
def test_wrong_urls_teach(url: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        store.open(url)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_url_of_a_path_with_odd_characters(tmp_path: Path) -> None:
    """`url_of` and `open` agree, also where a URL would read `?` or `%` as something else."""
    path = tmp_path / "a b?c%20d.db"
    with store.open(store.url_of(path)):
        assert path.is_file()


def test_postgres_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visfeedback.store.database.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "visfeedback\[postgres\]"'):
        store.open("postgresql://user@host/name")


def test_a_folder_and_a_file_that_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        store.open(f"sqlite:///{tmp_path}")
    (tmp_path / "notes.txt").write_text("hello\n" * 1000)
    with pytest.raises(InputError, match="is not a SQLite database"):
        store.open(f"sqlite:///{tmp_path}/notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "hello\n" * 1000


def test_reading_needs_a_store_that_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store at"):
        store.open(f"sqlite:///{tmp_path}/typo.db", create=False)
    assert not (tmp_path / "typo.db").exists()


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mail.db")) as raw:
        raw.execute("CREATE TABLE letters (text)")
    with pytest.raises(InputError, match="another program"):
        store.open(f"sqlite:///{tmp_path}/mail.db")
    with closing(sqlite3.connect(tmp_path / "mail.db")) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("letters",)]


def test_a_newer_database_is_refused_in_one_line(url: str, tmp_path: Path) -> None:
    store.open(url).close()
    with closing(sqlite3.connect(tmp_path / "prefs.db")) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    with pytest.raises(InputError) as caught:
        store.open(url)
    for words in ("newer visfeedback", "schema 9999", f"knows {schema.known()[-1]}", "pip install --upgrade"):
        assert words in str(caught.value)


@contextmanager
def next_migration(folder: Path, body: str) -> Iterator[None]:
    """Inside the block this program knows one more migration, 9000, which does ``body``."""
    with pytest.MonkeyPatch.context() as patch:
        last = schema.known()[-1]
        shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / "9000_next.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision = '9000'\ndown_revision = {last!r}\ndef upgrade():\n    {body}\n"
        )
        patch.setattr(schema, "MIGRATIONS", folder)
        schema.known.cache_clear()
        try:
            yield
        finally:
            schema.known.cache_clear()


def test_an_older_database_is_migrated_on_open(url: str, tmp_path: Path) -> None:
    """A program that knows one more migration runs it on opening the file; the votes are still there."""
    vote = Feedback(id="kept", judge="j", sample_ids=("x", "y"), choice="a")
    with store.open(url) as old:
        old.add_feedback([vote])
    with next_migration(tmp_path / "m", "op.add_column('meta', sa.Column('later', sa.Text))"), store.open(url) as new:
        assert list(new.feedback()) == [vote]
    with closing(sqlite3.connect(tmp_path / "prefs.db")) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("9000",)]
        assert "later" in {row[1] for row in raw.execute("PRAGMA table_info(meta)")}


def test_a_migration_that_fails_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    """Schema changes are one transaction: a crash in the middle is as if it had never begun."""
    with next_migration(tmp_path / "m", "raise RuntimeError('power cut')"), pytest.raises(RuntimeError):
        store.open(url)
    with closing(sqlite3.connect(tmp_path / "prefs.db")) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    store.open(url).close()


def test_migrations_make_exactly_the_tables_of_the_models(opened: store.Store) -> None:
    """Alembic finds no difference between an upgraded database and `tables.py`."""
    with opened.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrations_are_numbered_in_one_line() -> None:
    """0001, 0002, ... with no gap: the number of the file is its revision and follows its predecessor."""
    from alembic.script import ScriptDirectory

    revisions = [r.revision for r in ScriptDirectory(str(schema.MIGRATIONS)).walk_revisions()]
    assert tuple(reversed(revisions)) == schema.known()
    assert schema.known() == tuple(f"{i:04d}" for i in range(1, len(revisions) + 1))


def test_sqlite_is_set_up_for_votes_that_last(opened: store.Store) -> None:
    """journal WAL, synchronous 2 = FULL, 30 s patience, foreign keys on."""
    with opened.reading() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        ]
    assert found == ["wal", 2, 30000, 1]


def test_no_write_permission_is_one_line() -> None:
    """Root may write anywhere, so there the store is opened as user 65534, in a folder that is open for looking."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        try:
            if os.getuid() == 0:
                os.seteuid(65534)
            with pytest.raises(InputError, match="no permission for the file or its folder"):
                store.open(f"sqlite:///{name}/prefs.db")
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            Path(name).chmod(0o755)


def test_importing_the_store_is_light() -> None:
    """No torch, no alembic, no PIL: a command that only parses its flags should not pay for them."""
    code = "import sys, visfeedback.store; print({*sys.modules} & {'torch', 'alembic', 'PIL', 'gradio'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
