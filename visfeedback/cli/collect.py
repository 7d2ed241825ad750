"""Collect preferences: a web app in which people compare images, from a set or drawn live by a model."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from visfeedback.app.choosing import Asking
from visfeedback.app.passwords import Role
from visfeedback.app.settings import Collect
from visfeedback.cli.collect_live import Live
from visfeedback.cli.console import Console, parse
from visfeedback.plugins import InputError
from visfeedback.store.desk import Rules

if TYPE_CHECKING:
    from visfeedback.app.context import Context
    from visfeedback.app.people import People
    from visfeedback.store import Store
    from visfeedback.store.desk import Desk

LONGEST_TEXT = 100_000  # characters of a text for the page


class CollectFlags(Collect):
    """What is collected, where it goes, and who takes part."""

    store: str = ""
    """where answers go: sqlite:///prefs.db or a PostgreSQL URL; made when it is not there"""
    model: str = ""
    """draw live with this model: hub id, diffusers folder, .safetensors file, or shapes:sd"""
    adapter: tuple[str, ...] = ()
    """candidates beside the base model: LoRA folders or files; without any, two seeds of the model compete"""
    prompts: str = ""
    """what the model draws: a .txt or .jsonl file, or shapes:train; a world's model has its own"""
    images: str = ""
    """compare these: a folder, a samples.jsonl, a parquet file, or `store` for what the store holds"""
    pairs: Literal["random", "all", "active"] = "random"
    """which pairs of --images are asked: active are those that tell most, chosen anew as answers come in"""
    n: int | None = Field(default=None, ge=1)
    """at most so many questions about --images"""
    gold: Path | None = None
    """tests with a known answer, mixed in: a pairs file with prompt, image_a, image_b and label (a, b or tie)"""
    users: Path | None = None
    """file of names and hashed passwords; without it every browser is a judge of its own"""
    add_user: str = ""
    """add this name to --users, or give it a new password, and end"""
    role: Role = "annotator"
    """of --add-user: an operator also trains, exports and sees the numbers"""
    host: str = "127.0.0.1"
    """address to listen on; other machines reach 0.0.0.0, and should then have to log in (--users)"""
    port: int = Field(default=7860, ge=0, le=65535)
    """0 is any free one"""
    project: str = "default"
    """one store may hold several collections"""
    ask: Asking = Asking()
    """what is asked"""
    live: Live = Live()
    """how --model draws"""
    desk: Rules = Rules()
    """leases, tests and repeats"""


def run(args: list[str], console: Console) -> dict[str, Any]:
    flags = parse(CollectFlags, args, prog="visfeedback collect", description=__doc__ or "")
    if flags.add_user:
        return _add_user(flags, console)
    if not flags.store:
        raise InputError("where shall answers go? type --store sqlite:///prefs.db")
    for package in ("gradio", "fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise InputError(f"the app needs {package}; type: pip install 'visfeedback[app]'")
    return serve(flags, console)


def serve(flags: CollectFlags, console: Console) -> dict[str, Any]:
    """Runs until Ctrl-C."""
    from visfeedback.app import server

    with ExitStack() as stack:
        bound = stack.enter_context(server.listen(flags.host, flags.port))
        context = stack.enter_context(opened(flags, console))
        app = server.application(context, flags.host)
        server.serve(app, bound, context, lambda: _announce(flags, bound.getsockname()[1], console))
    return {"command": "collect", "store": flags.store, "project": flags.project}


@contextmanager
def opened(flags: CollectFlags, console: Console) -> Iterator[Context]:
    """The collection that the flags describe, its background threads running."""
    from visfeedback import store
    from visfeedback.app.context import Context
    from visfeedback.cli._rounds import rounds
    from visfeedback.store.desk import Desk

    with ExitStack() as stack:
        where = stack.enter_context(store.open(flags.store))
        desk = Desk(where, flags.project, flags.desk)
        _questions(flags, where, desk, console, stack)
        prompts, painter = _painter(flags, where, desk, stack)
        yield Context(
            store=where, url=flags.store, project=flags.project, desk=desk, settings=_settings(flags),
            folder=where.image_folder.root.with_suffix(".collect"), people=_people(flags, where, console),
            model=flags.model, adapters=flags.adapter, prompts=prompts, generator=painter,
            rounds=rounds(painter) if painter else None,
        )  # fmt: skip


def _questions(flags: CollectFlags, where: Store, desk: Desk, console: Console, stack: ExitStack) -> None:
    from visfeedback.app import choosing
    from visfeedback.cli.collect_images import gather, known_answers

    if flags.gold is not None:
        desk.add(choosing.gold(known_answers(where, flags.gold), flags.ask))
    if not flags.images:
        return
    samples, failed = gather(where, flags.images, console)
    for line in failed:
        console.warn(line)
    if flags.pairs == "active" and flags.ask.kind == "pair":
        chooser = choosing.Active(where, desk, samples, flags.ask, flags.n, flags.live.ahead)
        chooser.start()
        stack.callback(chooser.stop)
    else:
        desk.add(choosing.questions(samples, flags.ask, flags.pairs, flags.n))


def _painter(flags: CollectFlags, where: Store, desk: Desk, stack: ExitStack) -> tuple[str, Any]:
    from visfeedback import prompts
    from visfeedback.cli.collect_live import Painter, prompts_for

    if not flags.model:
        if flags.adapter:
            raise InputError("--adapter needs the --model that it belongs to")
        return "", None
    source = prompts_for(flags.model, flags.prompts)
    painter = Painter(flags.model, flags.adapter, prompts.load(source), flags.live, flags.ask, where, desk)
    if not flags.images:
        painter.start()
        stack.callback(painter.stop)
    return source, painter


def _people(flags: CollectFlags, where: Store, console: Console) -> People:
    from visfeedback.app import server
    from visfeedback.app.passwords import Users
    from visfeedback.app.people import People

    users = Users(flags.users) if flags.users else None
    local = server.is_local(flags.host, flags.public_hosts)
    if users is None and not local:
        console.warn("anybody who reaches this address may vote, and nobody may train or export; give --users FILE")
    return People(where.secret(), users, local, flags.session_days, flags.project)


def _settings(flags: CollectFlags) -> Collect:
    """The page's own, with texts read from the files that were named."""
    own = flags.model_dump(include=set(Collect.model_fields))
    for name in ("instructions", "invitation", "consent"):
        own[name] = _text(own[name], name)
    return Collect(**own)


def _text(value: str, name: str) -> str:
    if not value.endswith((".txt", ".md")) or "\n" in value:
        return value
    try:
        text = Path(value).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--{name}: no file {value} with UTF-8 text") from None
    if len(text) > LONGEST_TEXT:
        raise InputError(f"--{name}: {value} has {len(text)} characters; at most {LONGEST_TEXT}")
    return text


def _announce(flags: CollectFlags, port: int, console: Console) -> None:
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(flags.host, flags.host)
    shown = f"[{host}]" if ":" in host else host
    console.info(f"collecting into {flags.store}: http://{shown}:{port} (Ctrl-C ends; every answer is saved at once)")


def _add_user(flags: CollectFlags, console: Console) -> dict[str, Any]:
    from visfeedback.app.passwords import add

    if flags.users is None:
        raise InputError(f"in which file? type --users FILE --add-user {flags.add_user}")
    user = add(flags.users, flags.add_user, _password(flags.add_user), flags.role)
    console.info(f"{user.role} {user.name} is in {flags.users}")
    return {"command": "collect", "users": str(flags.users), "name": user.name, "role": user.role}


def _password(name: str) -> str:
    """Asked twice at a terminal; else the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass(f"password of {name}: ")
    if first != getpass.getpass("again: "):
        raise InputError("the two passwords differ; nothing was changed")
    return first
