"""A file of users with hashed passwords: one a line, ``ada:annotator:scrypt$16384$8$5$SALT$HASH``.

Hashing is scrypt (RFC 7914) from the standard library with the parameters in the line, so that old lines keep working
when new ones get stronger. The file is read again when it changes: people are added and removed while the server runs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import unicodedata
from base64 import b64decode, b64encode
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from visfeedback.plugins import InputError
from visfeedback.types.files import write_atomic

Role = Literal["annotator", "operator"]
N, R, P = 2**14, 8, 5  # 16 MiB and about 0.2 s each; one of the settings that OWASP's cheat sheet calls equivalent
MEMORY = 2**26  # bytes that a line of the file may ask for; a longer one is damaged
SHORTEST = 8  # characters of a password
NAME = re.compile(r"[\w.-]{1,64}")
BUSY = threading.Semaphore(2)  # a storm of log-ins shall not take every core from people who vote


class User(NamedTuple):
    name: str
    role: Role
    hash: str

    @property
    def fingerprint(self) -> str:
        """Changes with the password and the role, and tells nothing about either."""
        return hashlib.sha256(f"{self.role}:{self.hash}".encode()).hexdigest()[:16]


def hashed(password: str) -> str:
    salt = secrets.token_bytes(16)
    return "$".join(
        ["scrypt", *map(str, (N, R, P)), b64encode(salt).decode(), b64encode(_scrypt(password, salt)).decode()]
    )


def matches(password: str, stored: str) -> bool:
    """Takes as long for a wrong password as for the right one."""
    _, n, r, p, salt, wanted = stored.split("$")
    with BUSY:
        found = _scrypt(password, b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, b64decode(wanted))


@cache
def _nobody() -> str:
    """What the password of an unknown name is compared with, so that names cannot be told by the time it takes."""
    return hashed(secrets.token_hex(16))


def _scrypt(password: str, salt: bytes, n: int = N, r: int = R, p: int = P) -> bytes:
    text = unicodedata.normalize("NFKC", password).encode()
    return hashlib.scrypt(text, salt=salt, n=n, r=r, p=p, maxmem=2 * MEMORY, dklen=32)


class Users:
    """The people in a file; always what the file says now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()
        self.all()

    def all(self) -> dict[str, User]:
        """Name -> user. Raises InputError for a missing or damaged file, naming the line."""
        with self._lock:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._users, self._stamp = read(self.path), stamp
            return self._users

    def check(self, name: str, password: str) -> User | None:
        """The user when name and password fit together."""
        user = self.all().get(normal(name))
        good = matches(password, user.hash if user else _nobody())
        return user if good else None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        raise InputError(
            f"no users file {path}; visfeedback collect --add-user NAME --users {path} makes one"
        ) from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read(path: Path) -> dict[str, User]:
    """Raises InputError naming the first line that is no user."""
    users: dict[str, User] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            user = _parse(line.strip(), f"{path}, line {number}")
            users[user.name] = user
    return users


def _parse(line: str, where: str) -> User:
    parts = line.split(":")
    if len(parts) != 3 or not NAME.fullmatch(parts[0]) or parts[1] not in get_args(Role) or not _is_hash(parts[2]):
        raise InputError(f"{where}: expected name:role:scrypt$..., as visfeedback collect --add-user writes it")
    return User(normal(parts[0]), parts[1], parts[2])  # type: ignore[arg-type]


def _is_hash(text: str) -> bool:
    found = re.fullmatch(
        r"scrypt\$(\d{1,7})\$(\d{1,2})\$(\d{1,2})\$[\w+/]{16,}={0,2}\$[\w+/]{40,}={0,2}", text, re.ASCII
    )
    if found is None:
        return False
    n, r, p = map(int, found.groups())
    return n > 1 and n & (n - 1) == 0 and r > 0 and p > 0 and 128 * n * r <= MEMORY


def normal(name: str) -> str:
    """One spelling of a name, however it was typed."""
    return unicodedata.normalize("NFKC", name).strip()


def add(path: Path, name: str, password: str, role: Role = "annotator") -> User:
    """Add a user, or give one a new password and role. The file is readable by its owner alone."""
    name = normal(name)
    if not NAME.fullmatch(name) or name.startswith("guest-"):
        raise InputError(f"user name {name!r}: expected up to 64 letters, digits, dots and dashes, not guest-...")
    if len(password) < SHORTEST:
        raise InputError(f"the password has {len(password)} characters; give {SHORTEST} or more")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} for the users file; type: mkdir -p {path.parent}")
    users = read(path) if path.exists() else {}
    users[name] = User(name, role, hashed(password))
    write_atomic(path, "".join(f"{user.name}:{user.role}:{user.hash}\n" for user in users.values()))
    path.chmod(0o600)
    return users[name]
