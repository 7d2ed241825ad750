"""The frame around every verb: help, exit codes, one-line errors, one JSON object."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import tyro
from pydantic import Field, create_model

from visfeedback import cli
from visfeedback.cli.console import WHOLE, Console, PartialFailure, parse
from visfeedback.plugins import InputError
from visfeedback.types.records import Frozen


class Method(Frozen):
    beta: float = Field(2000.0, gt=0)
    """how strong"""


class Settings(Frozen):
    config: tyro.conf.Positional[Path]
    """the preset"""
    out: str
    """where to"""
    method: Method = Method()
    sampler: Literal["ddim", "euler"] = "ddim"
    per_prompt: int = Field(1, ge=1)
    reward: tuple[str, ...] = ()


Run = Callable[[list[str], Console], dict[str, Any] | None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """``verb(run)`` makes ``visfeedback fake`` run that function."""
    monkeypatch.setattr(cli, "verbs", lambda: {"fake": "a verb for tests"})
    # `calm` is for whole processes; here it would change the filters of the test run.
    monkeypatch.setattr("visfeedback.cli.console.calm", lambda *_: None)

    def install(run: Run) -> None:
        module = ModuleType("visfeedback.cli.fake")
        module.run = run  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, "visfeedback.cli.fake", module)

    return install


def raiser(error: BaseException) -> Run:
    def run(args: list[str], console: Console) -> dict[str, Any] | None:
        raise error

    return run


def noted(error: Exception) -> Exception:
    error.add_note("step 2 is saved")
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no such\n  thing"), 2, "no such thing"),
        (KeyboardInterrupt(), 130, "interrupted, state saved"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/x"),
            2,
            "/full/x: No space left on device; free some space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/locked"), 2, "/locked: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/ro"), 2, "/ro: Read-only file system"),
        (
            FileExistsError(errno.EEXIST, "File exists", "/f"),
            2,
            "/f: File exists; name another place that you may write",
        ),
        (OSError(errno.EIO, "I/O error"), 1, "OSError"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops (not your fault"),
        (noted(ZeroDivisionError("oops")), 1, "ZeroDivisionError: oops; step 2 is saved (not your fault"),
        (PartialFailure("1 of 2 failed", {"done": 1}, ["b.png"]), 3, "1 of 2 failed"),
    ],
)
def test_exit_codes_and_json(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    """People get one line on standard error and no traceback; programs one object on standard output."""
    verb(raiser(error))
    assert cli.main(["fake"]) == code
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith(f"error: {line}")
    assert seen.err.count("\n") == 1

    assert cli.main(["fake", "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"].startswith(line)
    if code == 3:
        assert answer["done"] == 1
        assert answer["failed"] == ["b.png"]


def test_a_wrapped_full_disk_is_the_users(verb: Callable[[Run], None]) -> None:
    """Libraries raise their own error from the OSError."""
    wrapped = RuntimeError("could not write")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    verb(raiser(wrapped))
    assert cli.main(["fake"]) == 2


def test_debug_shows_the_traceback(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(raiser(InputError("wrong")))
    assert cli.main(["--debug", "fake"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_json_is_alone_on_stdout(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    """What a library prints goes to standard error; NaN, paths and tuples become strict JSON."""

    def run(args: list[str], console: Console) -> dict[str, Any]:
        sys.stdout.write("a library talks\n")
        assert args == ["--n", "3"]
        return {"path": Path("a/b"), "nan": float("nan"), "pair": (1, 2.5), "on": True}

    verb(run)
    assert cli.main(["fake", "--json", "--n", "3"]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out) == {"path": "a/b", "nan": None, "pair": [1, 2.5], "on": True}
    assert seen.out.count("\n") == 1
    assert "a library talks" in seen.err


def test_only_the_first_process_prints_json(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: list[str], console: Console) -> dict[str, Any]:
        console.info("hello")
        return {"x": 1}

    verb(run)
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["fake", "--json"]) == 0
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "")


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docter"]) == 2
    assert "error: no command 'docter'; did you mean 'doctor'?" in capsys.readouterr().err


def test_overview_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is the registry: each file with a `run` is a verb, and its first line says what it does."""
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert {"doctor", "presets"} <= set(cli.verbs())
    assert "console" not in cli.verbs()
    for verb_name, about in cli.verbs().items():
        assert about, f"cli/{verb_name}.py: its docstring should begin with one line about it"
        assert f"{verb_name} " in text
        assert about in text


@pytest.mark.parametrize("name", sorted(cli.verbs()))
def test_every_verb_has_help_and_refuses_unknown_flags(name: str) -> None:
    """In processes of their own, since verbs import heavy rooms and `calm` changes warnings."""
    nested = {"store": ["stats"]}.get(name, [])
    run = [sys.executable, "-m", "visfeedback", name, *nested]
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "usage" in shown.stdout.lower()
    refused = subprocess.run([*run, "--no-such-flag", "--json"], capture_output=True, text=True)
    assert refused.returncode == 2, refused.stderr
    assert list(json.loads(refused.stdout)) == ["error"]
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1, refused.stderr


def test_help_is_instant() -> None:
    """Below 0.3 s of the processor, the best of five: tests run on machines that are busy with other things."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "visfeedback", "--help"], check=True, capture_output=True)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    assert min(seconds() for _ in range(5)) < 0.3


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("visfeedback ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("p --out x --method.bta 3", "unknown flag --method.bta; did you mean '--method.beta'?"),
        ("p --out x --per_promt=3", "unknown flag --per_promt; did you mean '--per-prompt'?"),
        ("p --out x --per-prompt many", "--per-prompt = 'many'; expected a whole number, for example 8"),
        ("p --out x --method.beta 1,5", "--method.beta = '1,5'; expected a number, for example 0.5 or 1e-4"),
        ("p --out x --method.beta -3", "--method.beta = -3.0; expected greater than 0"),
        ("p --out x --per-prompt 0", "--per-prompt = 0; expected greater than or equal to 1"),
        ("p --out x --sampler dim", "invalid choice 'dim' for argument '--sampler'. Expected one of ('ddim', 'euler')"),
        ("p", "missing --out STR; see `visfeedback x --help`"),
        ("--out x", "missing CONFIG; see `visfeedback x --help`"),
        ("p --out x stray", "unexpected 'stray'"),
        ("p --out x --per-prompt", "missing value for argument '--per-prompt'"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_flags_that_do_not_fit(args: str, line: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line whatever the width of the terminal, naming the nearest flag."""
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(InputError) as error:
        parse(Settings, args.split(), "visfeedback x")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_flags_that_fit() -> None:
    """Dashes and underscores, lists after one flag, sections with dots, and a preset underneath."""
    args = ["p", "--out", "x", "--method.beta", "5", "--per_prompt", "3", "--reward", "a", "b:v@file.pt"]
    expected = Settings(config=Path("p"), out="x", method=Method(beta=5), per_prompt=3, reward=("a", "b:v@file.pt"))
    assert parse(Settings, args, "visfeedback x") == expected
    assert parse(Settings, ["q", "--method.beta", "6"], "visfeedback x", default=expected) == expected.model_copy(
        update={"config": Path("q"), "method": Method(beta=6)}
    )


def test_help_shows_the_docstring_of_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse(Settings, ["--help"], "visfeedback x", "what x does")
    assert done.value.code == 0
    text = capsys.readouterr().out
    for phrase in ("how strong", "where to", "the preset", "what x does"):
        assert phrase in text


def test_progress_nests_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Inner bars vanish; the outer one stays with its final count, also where no terminal is."""
    console = Console()
    with console.progress("outer", 2) as outer:
        for _ in range(2):
            with console.progress("inner", 3) as inner:
                inner(3)
            outer(1)
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "outer" in seen.err
    assert "2/2" in seen.err
    assert "inner" not in seen.err


def test_lines_are_neither_wrapped_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'pip install -e ".[app]" in /a:heart:b ' + "x" * 300
    Console().info(text)
    assert capsys.readouterr().err == text + "\n"


ADDRESS = "postgresql+psycopg://ada:s3cret@host/prefs"


def test_no_password_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Store addresses are in lines, tables and answers; who looks over a shoulder or reads a log shall not get in."""
    console = Console()
    console.info(f"the store is {ADDRESS}")
    console.table(ADDRESS, ["store"], [[ADDRESS]])
    console.error(ADDRESS)
    shown = capsys.readouterr().err + cli.to_json({"store": ADDRESS, "deep": [Path("x"), {"url": ADDRESS}]})
    assert "s3cret" not in shown
    assert shown.count("ada@host/prefs") == 6


def test_a_table_shows_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """And its title, as they are: no markup, no emoji codes."""
    Console().table("of [x]:key:", ("name", "n"), [("a[b]", 1), ("c:cat:", 2.5)])
    seen = capsys.readouterr().err
    assert all(word in seen for word in ("name", "a[b]", "2.5", "c:cat:", "of [x]:key:"))


def test_names_are_whole_in_a_narrow_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in two pieces cannot be copied; only one that would take the whole window is broken."""
    monkeypatch.setenv("COLUMNS", "60")
    path, words = "configs/loops/fabric_rewards_shapes.toml", "what it does " * 20
    assert len(path) == WHOLE
    Console().table("presets", ("preset", "about"), [(path, words)])
    assert path in capsys.readouterr().err
    Console().table("presets", ("preset", "about"), [(path + "x" * 40, words)])
    assert path + "x" * 40 not in capsys.readouterr().err


def test_the_nearest_of_many_flags_and_where_the_others_are() -> None:
    many = create_model("Many", __base__=Settings, **{f"knob_{n}": (int, n) for n in range(12)})  # type: ignore[call-overload]
    for flag, said in (
        ("--sampel", "unknown flag --sampel; did you mean '--sampler'? `fake --help` lists all"),
        ("--zzzzzz", "unknown flag --zzzzzz; `fake --help` lists all"),
    ):
        with pytest.raises(InputError) as error:
            parse(many, ["p", "--out", "x", flag, "3"], "fake")
        assert str(error.value) == said


def test_a_person_sees_that_something_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal alone: in a log, or before an error, it would be a line too many."""
    for terminal, quiet, seen in (("1", False, True), ("1", True, False), ("0", False, False)):
        monkeypatch.setenv("TTY_COMPATIBLE", terminal)
        with Console(quiet).waiting("loading 30 GB"):
            pass
        assert ("loading 30 GB" in capsys.readouterr().err) is seen


def test_our_warnings_are_one_line_and_others_silent() -> None:
    code = (
        "import warnings; from visfeedback.cli.console import Console, calm; calm(Console(), False);"
        "warnings.warn_explicit('ours', UserWarning, 'f', 1, module='visfeedback.store');"
        "warnings.warn_explicit('theirs', UserWarning, 'f', 1, module='diffusers.utils')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: ours\n"


def test_arguments_that_are_no_text_are_refused(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte of Latin-1 on the command line: no table, list or JSON line could hold it."""
    verb(lambda args, console: pytest.fail("ran"))
    assert cli.main(["fake", "caf\udce9", "--json"]) == 2
    seen = capsys.readouterr()
    assert seen.err == "error: 'caf\\udce9' is not UTF-8; rename the file, or write the text as UTF-8\n"
    assert json.loads(seen.out)["error"] in seen.err


def test_json_where_the_output_has_no_such_letters(
    verb: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a pipe in ASCII the same object goes in escapes."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    verb(lambda args, console: {"prompt": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"})
    assert cli.main(["fake", "--json"]) == 0
    assert json.loads(written.getvalue()) == {"prompt": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_missing_flag_is_named_on_every_terminal(encoding: str) -> None:
    """Without line-drawing characters tyro titles its box with a line of dashes; the message is the same."""
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "visfeedback", "store", "stats"]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: missing --store STR; see `visfeedback store stats --help`\n")
