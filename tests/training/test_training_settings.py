"""What presets may say, and what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from visfeedback import config, plugins
from visfeedback.plugins import InputError
from visfeedback.training.settings import settings_for


def test_the_method_section_has_the_methods_own_knobs():
    kind = settings_for("dpo")
    built = kind.model_validate({"method": {"name": "dpo", "beta": 7}})
    assert built.method.model_dump() == {"name": "dpo", "beta": 7.0, "variant": "sigmoid", "positive": 0.0}
    assert config.build(kind, __import__("tomllib").loads(config.to_toml(built)), "") == built


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'dpo'"):
        settings_for("dp0")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"method": {"name": "dpo", "betta": 1}}, r"unknown key method\.betta; did you mean 'beta'"),
        ({"optim": {"learning_rate": 1}}, r"unknown key optim\.learning_rate"),
        ({"optim": {"steps": 0}}, r"optim\.steps = 0; expected greater than or equal to 1"),
        ({"engine": {"cache": {"moment": True}}}, r"unknown key engine\.cache\.moment; did you mean 'moments'"),
        ({"data": {"holdout": 1.0}}, r"data\.holdout = 1\.0"),
        ({"model": {"dtype": "fp64"}}, r"model\.dtype = 'fp64'"),
        ({"optim": {"betas": (0.9, 1.0)}}, r"optim\.betas: expected two numbers from 0 to below 1"),
        ({"optim": {"betas": (-0.1, 0.9)}}, r"optim\.betas: expected"),
        ({"optim": {"betas": (0.9, float("nan"))}}, r"optim\.betas: expected"),
        ({"engine": {"seed": 2**64}}, r"engine\.seed = 18446744073709551616; expected less than"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(table, words):
    with pytest.raises(InputError, match=words) as caught:
        config.build(settings_for("dpo"), table, "preset.toml")
    assert "\n" not in str(caught.value)


def test_every_knob_says_what_it_is():
    def check(model):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                check(inner)
            else:
                assert field.description, f"{model.__name__}.{name}"

    check(settings_for("dpo"))


def test_presets_are_valid():
    """Every preset under configs/dpo builds, names its source in the first line, and has a method that exists."""
    folder = Path(__file__).parents[2] / "configs/dpo"
    presets = sorted(folder.glob("*.toml"))
    assert {path.stem for path in presets} >= {"sd15", "shapes_sd", "shapes_sd_quick"}
    for path in presets:
        table = config.read_toml(path)
        config.build(settings_for(table["method"]["name"]), table, str(path))
        assert path.read_text().startswith("# ")
    assert "dpo" in plugins.names("methods")


@pytest.mark.parametrize("times", [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_times_are_a_part_of_the_schedule(times):
    with pytest.raises(ValidationError, match="0 <= low < high <= 1"):
        settings_for("dpo").model_validate({"data": {"times": times}})
