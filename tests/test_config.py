"""TOML presets become models; what does not fit becomes one line that teaches."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator

from visfeedback.config import build, merge, read_toml, to_toml
from visfeedback.plugins import InputError
from visfeedback.types.records import Frozen


class Optim(Frozen):
    lr: float = Field(1e-4, gt=0)
    steps: int = 100


class Lora(Frozen):
    rank: int = 8


class Preset(Frozen):
    name: str
    optim: Optim = Optim()
    lora: Lora | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    rewards: tuple[str, ...] = ()
    folder: Path | None = None

    @model_validator(mode="after")
    def _named(self) -> Preset:
        if self.name == "bad":
            raise ValueError("the name 'bad' is taken")
        return self


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"name": "x", "optim": {"lrr": 1}}, "p.toml: unknown key optim.lrr; did you mean 'lr'? known: lr, steps"),
        ({"name": "x", "lora": {"rnk": 1}}, "p.toml: unknown key lora.rnk; did you mean 'rank'? known: rank"),
        ({}, "p.toml: name is missing"),
        ({"name": "x", "optim": {"lr": -1}}, "p.toml: optim.lr = -1; expected greater than 0"),
        ({"name": "x", "optim": {"steps": "ten"}}, "p.toml: optim.steps = 'ten'; expected a valid integer"),
        ({"name": "x", "dtype": "fp8"}, "p.toml: dtype = 'fp8'; expected 'fp32' or 'bf16'"),
        ({"name": "bad"}, "p.toml: the name 'bad' is taken"),
        ({"name": 3, "dtype": "fp8"}, "p.toml: name = 3; expected a valid string (and 1 more)"),
    ],
)
def test_build_errors_are_one_line(data: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as error:
        build(Preset, data, "p.toml")
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_an_unknown_table_names_the_tables() -> None:
    with pytest.raises(InputError, match="unknown key optimm; did you mean 'optim'"):
        build(Preset, {"name": "x", "optimm": {}}, "p.toml")


@pytest.mark.parametrize(
    "preset",
    [
        Preset(name="plain"),
        Preset(name='quote " and \\', optim=Optim(lr=3e-5, steps=7), lora=Lora(rank=2), rewards=("a", "b")),
        Preset(name="paths", folder=Path("a/b")),
    ],
)
def test_toml_round_trip(preset: Preset) -> None:
    """Law: reading what was written gives the same model; None is simply left out."""
    text = to_toml(preset)
    assert build(Preset, tomllib.loads(text), "round trip") == preset
    assert "None" not in text


def test_merge_goes_into_tables_and_changes_neither() -> None:
    base = {"optim": {"lr": 1, "steps": 2}, "name": "x"}
    over = {"optim": {"lr": 3}, "dtype": "bf16"}
    assert merge(base, over) == {"optim": {"lr": 3, "steps": 2}, "name": "x", "dtype": "bf16"}
    assert base == {"optim": {"lr": 1, "steps": 2}, "name": "x"}
    assert over == {"optim": {"lr": 3}, "dtype": "bf16"}


def test_read_toml(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text('[method]\nname = "dpo"\n')
    assert read_toml(tmp_path / "good.toml") == {"method": {"name": "dpo"}}


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("broken.toml", b'a = 1\nb = "open\n', "broken.toml is not TOML: .*line 2"),
        ("latin.toml", b"a = '\xe9'\n", "latin.toml is not UTF-8"),
        ("shaeps_sd.toml", None, r"no file .*shaeps_sd.toml; did you mean .*shapes_sd.toml\?"),
        ("elsewhere/x.toml", None, "no file .*x.toml; `visfeedback presets`"),
        (".", None, "is a folder"),
    ],
)
def test_read_toml_errors(tmp_path: Path, name: str, content: bytes | None, line: str) -> None:
    (tmp_path / "shapes_sd.toml").write_text("")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        read_toml(tmp_path / name)
