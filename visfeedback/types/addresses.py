"""Texts that are shown or published go without the passwords in their database addresses. Standard library only."""

from __future__ import annotations

import re

IN_ADDRESS = re.compile(r"(\b[a-zA-Z][\w+.-]*sql[\w+.-]*://[^:@/\s]*|\bpostgres://[^:@/\s]*):[^@\s]*@")
"""user and password before the host: what stays is the first group and the @"""
AS_OPTION = re.compile(r"([?&])(?:ssl)?password=[^&\s]*&?")


def without_passwords(text: str) -> str:
    """``postgresql://ada:secret@host/prefs`` -> ``postgresql://ada@host/prefs``, anywhere in a text.

    What is left is an address that still works where the password comes from PGPASSWORD or ~/.pgpass. Done twice it
    changes nothing more.
    """
    return AS_OPTION.sub(_rest, IN_ADDRESS.sub(r"\1@", text))


def _rest(found: re.Match[str]) -> str:
    """The mark before an option stays when another option follows."""
    return found[1] if found[0].endswith("&") else ""
