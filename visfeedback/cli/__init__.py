"""The command line: one file per verb, found by its name.

To add one: ``visfeedback/cli/VERB.py`` with ``run(args: list[str], console: Console) -> dict | None``; the dict is what
``--json`` prints, the first line of the docstring is what ``visfeedback --help`` shows. ``VERB_ACTION.py`` is an action
of a verb, which hands its arguments on.
May import everything, but only inside the command, so that ``visfeedback --help`` is instant.

Exit codes: 0 done; 2 the user's input is wrong; 3 finished but some items failed; 1 our fault; 130 interrupted.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visfeedback.plugins import InputError, nearest
from visfeedback.types.addresses import without_passwords

if TYPE_CHECKING:
    from visfeedback.cli.console import Console

USERS_OS_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip
"""A full disk, a folder without write permission, a file where a folder belongs: the user can mend these."""
FULL = {errno.ENOSPC, errno.EDQUOT}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``visfeedback ARGV`` and return its exit code; nothing is raised."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = _take(args, "--json"), _take(args, "--debug")
    if not args or args[0] in {"-h", "--help", "help"}:
        sys.stdout.write(overview())
        return 0
    if args[0] in {"-V", "--version"}:
        sys.stdout.write(f"visfeedback {_version()}\n")
        return 0
    if {"-h", "--help"} & set(args):
        as_json = False  # help is text for people
    code, answer = _guarded(args[0], args[1:], as_json, debug)
    if as_json and _first_process():
        _print(to_json(answer))
    return code


def _print(line: str) -> None:
    """To standard output; where that knows no such letters (an old console, a pipe in Latin-1), as JSON's escapes."""
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _take(args: list[str], flag: str) -> bool:
    """Remove a global flag wherever it stands; say whether it was there."""
    present = flag in args
    args[:] = [a for a in args if a != flag]
    return present


def _guarded(verb: str, args: list[str], as_json: bool, debug: bool) -> tuple[int, Any]:
    """Run one verb; every exception becomes an exit code, one line for people and an answer for programs."""
    from visfeedback.cli.console import Console, calm

    console = Console(quiet=not _first_process())
    calm(console, debug)
    # Under --json standard output belongs to the one object: what libraries print there goes to standard error.
    redirect = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with redirect:
            return 0, _run(verb, args, console) or {}
    except SystemExit as error:  # tyro printed help
        return (error.code if isinstance(error.code, int) else 1), {}
    except BaseException as error:
        if debug:
            traceback.print_exc()
        code, line, answer = _explain(error)
        console.error(line)
        return code, answer


def _run(verb: str, args: list[str], console: Console) -> dict[str, Any] | None:
    if verb not in verbs():
        raise InputError(f"no command {verb!r}{nearest(verb, verbs())}")
    for arg in args:
        if not _is_text(arg):
            raise InputError(f"{arg!a} is not UTF-8; rename the file, or write the text as UTF-8")
    return importlib.import_module(f"{__name__}.{verb}").run(args, console)


def _is_text(arg: str) -> bool:
    """False for bytes that are no text: neither tables nor lists nor JSON can hold them."""
    try:
        arg.encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(error: BaseException) -> tuple[int, str, dict[str, Any]]:
    """Exit code, the line for people, the object for programs."""
    from visfeedback.cli.console import PartialFailure

    if isinstance(error, PartialFailure):
        line = one_line(str(error))
        return 3, line, {**error.result, "error": line, "failed": error.failed}
    code, line = _classify(error)
    line = one_line(line)
    return code, line, {"error": line}


def _classify(error: BaseException) -> tuple[int, str]:
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted, state saved"
    if (system := _users_os_error(error)) is not None:
        where = f"{system.filename}: " if system.filename else ""
        free = "free some space, or " if system.errno in FULL else ""
        return 2, f"{where}{system.strerror}; {free}name another place that you may write to{_notes(error)}"
    if type(error).__name__ == "ValidationError" and type(error).__module__.startswith("pydantic"):
        from visfeedback.config import explain

        return 2, explain(error)  # pyright: ignore[reportArgumentType]
    if type(error).__name__ == "OutOfMemoryError":
        return 1, f"the device is out of memory ({error}); try a smaller batch size{_notes(error)}"
    return 1, f"{type(error).__name__}: {error}{_notes(error)} (not your fault; add --debug for the traceback)"


def _notes(error: BaseException) -> str:
    """What was added to an error on its way, for example what is saved."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _users_os_error(error: BaseException | None) -> OSError | None:
    """The OSError that the user can mend, also when a library wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in USERS_OS_ERRORS:
            return error
        error = error.__cause__
    return None


def one_line(text: str) -> str:
    """All white space becomes single spaces."""
    return " ".join(text.split())


def to_json(value: Any) -> str:
    """Strict JSON on one line: NaN and infinities become null, paths and other objects their text; no passwords."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return without_passwords(value)
    if value is None or isinstance(value, int):
        return value
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # numpy and torch numbers and arrays
        return _plain(value.tolist())
    return without_passwords(str(value))


def _first_process() -> bool:
    """Of several processes under ``accelerate launch`` only the first one talks."""
    return os.environ.get("RANK", "0") == "0"


@cache
def verbs() -> dict[str, str]:
    """Verb -> one line about it, read from the source without importing anything."""
    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem == "console" or "_" in path.stem:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def overview() -> str:
    """The text of ``visfeedback --help``."""
    width = max(map(len, verbs()), default=0)
    lines = [f"  {verb:<{width}}  {about}" for verb, about in verbs().items()]
    return "\n".join([
        "usage: visfeedback COMMAND [flags]",
        "",
        "Any feedback on images becomes a better text-to-image model.",
        "",
        "commands:",
        *lines,
        "",
        "`visfeedback COMMAND --help` lists the flags of a command. Everywhere: --json prints one JSON object on",
        "standard output, --debug shows tracebacks; `visfeedback --version`.",
        "New here? `visfeedback quickstart` runs everything once on a small world that ships with the package.",
        "",
    ])  # fmt: skip


def _version() -> str:
    from visfeedback import __version__

    return __version__
