"""TOML presets and typed overrides -> frozen models that the caller hands in, with errors that teach.

An unknown key is an error that names the nearest key of that very section. Never imports torch.
May import: plugins, pydantic, tomli_w.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from visfeedback.plugins import InputError, nearest

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises InputError for a missing, unreadable or malformed file, with the line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no file {path}{_neighbour(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a .toml file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; expected a .toml file") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from None


def _neighbour(path: Path) -> str:
    known = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, known, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else "; `visfeedback presets` lists the ones that exist"


def build(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """Check ``data`` against ``model``. Raises InputError: one line with ``source``, the dotted key, what came and
    what was expected."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise InputError(f"{source}: {explain(error, model=model)}") from None


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``overrides`` over ``base``, table by table; neither is changed."""
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def to_toml(model: BaseModel) -> str:
    """The model as TOML; ``None`` is left out, as TOML has no such value.

    Law: ``build(type(m), tomllib.loads(to_toml(m)), "") == m`` whenever fields that may be None have None as default.
    """
    return tomli_w.dumps(_without_none(model.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value


def explain(
    error: ValidationError, prefix: str = "", model: type[BaseModel] | None = None, dashes: bool = False
) -> str:
    """One line about the first thing that is wrong, and how many more there are.

    ``prefix`` stands before the dotted key and ``dashes`` replace underscores (``--`` and True for flags); with
    ``model`` an unknown key names the nearest one.
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    dotted = ".".join(str(part) for part in first["loc"])
    key = prefix + (dotted.replace("_", "-") if dashes else dotted)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return _sentence(key.rstrip("."), first, model) + more


def _sentence(key: str, first: Any, model: type[BaseModel] | None) -> str:
    """``key: what came, what was expected``."""
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    match first["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            section = _section(model, first["loc"][:-1])
            hint = nearest(str(first["loc"][-1]), section.model_fields) if section is not None else ""
            return f"unknown key {key}{hint}"
        case "value_error" | "assertion_error":
            return f"{key}: {expected}" if key.strip("-") else expected
        case _:
            return f"{key} = {_short(first['input'])}; expected {expected[:1].lower()}{expected[1:]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _section(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model whose keys stand at ``location``; None when a union or a container hides it."""
    for part in location:
        field = model.model_fields.get(str(part)) if model is not None else None
        model = _model_in(field.annotation) if field is not None else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """``Section`` or ``Section | None`` -> Section."""
    choices = [annotation, *get_args(annotation)]
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
