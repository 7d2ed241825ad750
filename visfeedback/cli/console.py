"""What a person sees: calm text and progress bars on standard error, and flags parsed into frozen models.

Standard output stays free for ``--json``. May import rich, tyro and pydantic; nothing heavy.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich import console as rich_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from visfeedback.cli import one_line
from visfeedback.plugins import InputError, nearest
from visfeedback.types.addresses import without_passwords

Model = TypeVar("Model", bound=BaseModel)

NOISY = ("accelerate", "alembic", "datasets", "diffusers", "httpx", "huggingface_hub", "matplotlib", "open_clip",
         "peft", "PIL", "root", "torch", "transformers", "xformers")  # fmt: skip
"""Libraries whose log lines below ERROR say nothing to our users."""

WHOLE = 40
"""Letters: first columns as narrow as that are not broken, since a name or path in pieces cannot be copied."""
MANY_FLAGS = 12
"""With more flags than this an error names the nearest one and points to --help instead of listing all."""


class PartialFailure(Exception):
    """The command finished, but some items failed (exit code 3).

    ``result`` is what ``--json`` prints besides ``error`` and ``failed``; ``failed`` names the items.
    """

    def __init__(self, message: str, result: Mapping[str, Any] | None = None, failed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.result = dict(result or {})
        self.failed = list(failed)


class Console:
    """Text, tables and progress bars on standard error; ``quiet`` leaves only errors."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Progress | None = None

    @property
    def rich(self) -> rich_console.Console:
        """Looked up anew, because standard error may be redirected between two calls."""
        return self._bars.console if self._bars is not None else rich_console.Console(stderr=True, highlight=False)

    def info(self, text: str) -> None:
        """A line as it is: no markup, no wrapping."""
        if not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        if not self.quiet:
            self._line(f"warning: {one_line(text)}", style="yellow")

    def error(self, text: str) -> None:
        """``error: ...`` on exactly one line, also from quiet processes."""
        self._line(f"error: {one_line(text)}", style="red")

    def _line(self, text: str, style: str | None = None) -> None:
        self.rich.print(without_passwords(text), style=style, markup=False, emoji=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table; cells are shown as their text, what stands first in its row unbroken where it is short enough."""
        if self.quiet:
            return
        heading = Text(without_passwords(title), style="table.title")  # in a str rich would read markup and emoji codes
        grid = Table(title=heading, title_justify="left", show_edge=False, pad_edge=False)
        cells = [[Text(without_passwords(str(cell))) for cell in row] for row in rows]
        for place, column in enumerate(columns):
            whole = place == 0 and max((row[0].cell_len for row in cells), default=0) <= WHOLE
            grid.add_column(column, overflow="fold", no_wrap=whole)
        for row in cells:
            grid.add_row(*row)
        self.rich.print(grid)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """``with console.progress("drawing", 64) as advance: advance(8)``. Bars inside bars vanish when done.

        Satisfies ``visfeedback.types.protocols.Progress``.
        """
        outermost = self._bars is None
        bars = self._bars if self._bars is not None else self._start()
        task = bars.add_task(description, total=total)
        try:
            yield lambda count=1: bars.advance(task, count)
        finally:
            if outermost:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A line that moves while something of unknown length goes on, and vanishes; none where no person looks."""
        terminal = self.rich
        if self.quiet or self._bars is not None or not terminal.is_terminal:
            yield
            return
        with terminal.status(Text(without_passwords(text))):
            yield

    def _start(self) -> Progress:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            PerSecond(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.rich, disable=self.quiet,
        )  # fmt: skip
        self._bars.start()
        return self._bars


class PerSecond(ProgressColumn):
    """How many items a second, over the last half minute; empty until that is known."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g}/s" if speed else "")


def calm(console: Console, debug: bool) -> None:
    """Keep other people's warnings, log lines and bars off the screen; ours become one line each.

    Environment variables of the user win. ``debug`` leaves everything as it is.
    """
    if debug:
        return
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    # Hides the bars of diffusers and transformers; huggingface_hub's download bars decide for themselves and stay.
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in NOISY:
        logging.getLogger(None if name == "root" else name).setLevel(logging.ERROR)
    if sys.warnoptions:
        return
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"visfeedback(\.|$)")
    warnings.showwarning = lambda message, *_rest, **_more: console.warn(str(message))


def parse(
    model: type[Model], args: Sequence[str], prog: str, description: str = "", default: Model | None = None
) -> Model:
    """Flags -> a frozen model, by tyro; the docstring under each field is its help.

    ``default`` gives the values of flags that are absent (a preset). ``--help`` prints and raises SystemExit(0).
    Raises InputError, one line, for anything that does not fit, naming the nearest flag.
    """
    import tyro

    more: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            values, unknown = tyro.cli(
                model,
                args=list(args),
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.PositionalMetavarFromFieldName,),
                **more,
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise InputError(_complaint(error, complaint.getvalue(), model, prog)) from error
    except ValidationError as error:
        raise InputError(_invalid(error, "")) from error
    if unknown:
        raise InputError(_unknown(unknown[0], model, default, prog))
    return values


def _unknown(argument: str, model: type[BaseModel], default: BaseModel | None, prog: str) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected {name!r}; `{prog} --help` lists what {prog} takes"
    known = flags(model, default)
    hint = nearest(name.replace("_", "-"), known)
    if len(known) > MANY_FLAGS:
        hint = hint.partition(" known: ")[0] + f" `{prog} --help` lists all"
    return f"unknown flag {name}{hint}"


def flags(model: type[BaseModel], default: BaseModel | None = None, prefix: str = "") -> list[str]:
    """``--method.beta``, ... as tyro names them, sections flattened."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        section = getattr(default, name, None)
        inner = type(section) if isinstance(section, BaseModel) else field.annotation
        dotted = prefix + name.replace("_", "-")
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += flags(inner, section, f"{dotted}.")
        else:
            found.append(f"--{dotted}")
    return found


def _complaint(error: SystemExit, text: str, model: type[BaseModel], prog: str) -> str:
    """One line out of the box that tyro draws, or out of the pydantic error behind it."""
    paragraph = _first_paragraph(text)
    words = one_line(" ".join(paragraph))
    section = re.match(r"Error parsing ([\w.\-]+):", words)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValidationError):
            return _invalid(cause, section[1] if section and section[1] != model.__name__ else "")
        cause = cause.__context__
    if words.startswith("Missing from"):
        shallow = [line.strip() for line in paragraph[1:] if len(line) - len(line.lstrip()) <= 5]
        words = f"missing {', '.join(shallow)}"
    words = _plain_number(words.removeprefix("Error parsing "))
    return f"{words[:1].lower()}{words[1:].rstrip(' .')}; see `{prog} --help`"


def _plain_number(words: str) -> str:
    """Python's own words for a text that is no number -> what was expected."""
    found = re.match(r"([^:]+): (invalid literal for int\(\)|could not convert string to float)[^']*('.*')", words)
    if found is None:
        return words
    kind = "a whole number, for example 8" if found[2].startswith("invalid") else "a number, for example 0.5 or 1e-4"
    return f"{found[1]} = {found[3]}; expected {kind}"


def _first_paragraph(text: str) -> list[str]:
    """The lines of the first paragraph inside a box of line-drawing characters, indentation kept.

    On a terminal without them the box is a title, a rule of dashes, the paragraphs between rules.
    """
    lines: list[str] = []
    boxed = text.lstrip().startswith(("╭", "+"))
    titled = boxed
    for line in text.splitlines():
        if line.startswith(("╭", "╰", "+")):
            continue
        inside = line.strip().strip("│|").rstrip() if boxed else line[1:].rstrip()
        if lines and set(inside.strip()) <= set("─-"):
            if titled:
                break
            titled, lines = True, []
            continue
        lines.append(inside)
    return lines


def _invalid(error: ValidationError, section: str) -> str:
    from visfeedback.config import explain

    return explain(error, prefix=f"--{section}." if section else "--", dashes=True)
