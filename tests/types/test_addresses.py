"""No password in what is shown."""

from __future__ import annotations

import pytest

from visfeedback.types.addresses import without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ada:secret@host/prefs", "postgresql://ada@host/prefs"),
        ("--store=postgresql+psycopg://a:s:e/c@h:5432/p --out x", "--store=postgresql+psycopg://a@h:5432/p --out x"),
        ("postgres://a:secret@h", "postgres://a@h"),
        ("postgresql://h/p?user=u&password=secret&sslmode=require", "postgresql://h/p?user=u&sslmode=require"),
        ("postgresql://h/p?password=secret", "postgresql://h/p"),
        ("postgresql://h:5432/p", "postgresql://h:5432/p"),
        ("sqlite:///prefs.db", "sqlite:///prefs.db"),
        ("a red circle: 3 of them @ noon", "a red circle: 3 of them @ noon"),
    ],
)  # fmt: skip
def test_passwords_go_and_everything_else_stays(text: str, shown: str) -> None:
    assert without_passwords(text) == shown == without_passwords(shown)
