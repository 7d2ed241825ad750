"""Names become modules, and wrong names teach the right one."""

from __future__ import annotations

import pytest

from visfeedback import plugins
from visfeedback.plugins import InputError


def test_the_file_name_is_the_name() -> None:
    assert "records" in plugins.names("types")
    assert plugins.load("types", "records").__name__ == "visfeedback.types.records"


def test_a_dotted_name_is_other_peoples_module() -> None:
    assert plugins.load("types", "json.decoder").__name__ == "json.decoder"


@pytest.mark.parametrize("name", ["recrods", "no.such.module", "recrods.x"])
def test_an_unknown_name_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"no '{name}' in types.*known: .*batches, files, .*protocols, records"):
        plugins.load("types", name)


def test_the_nearest_name_is_suggested() -> None:
    assert plugins.nearest("dop", ["dpo", "kto"]) == "; did you mean 'dpo'? known: dpo, kto"
    assert plugins.nearest("zzz", ["dpo", "kto"]) == "; known: dpo, kto"
    assert plugins.nearest("zzz", []) == ""


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("shapes:sd", ("shapes", "sd")),
        ("shapes:heldout:64", ("shapes", "heldout:64")),
        ("shapes", None),
        ("kitchen:sd", None),
        ("C:\\models", None),
        ("a red square: big", None),
        ("store:x", None),  # a room, no world
        ("prompts:x", None),
        ("__main__:x", None),
    ],
)
def test_references_to_worlds(reference: str, expected: tuple[str, str] | None) -> None:
    assert plugins.split_reference(reference) == expected
