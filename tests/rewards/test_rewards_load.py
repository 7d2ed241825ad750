"""What may stand after --reward: names, and what is none."""

from __future__ import annotations

import pytest

from visfeedback import rewards
from visfeedback.plugins import InputError


@pytest.mark.parametrize("reference", ["_clip_open", "_pixels", "os.path", "json.decoder", ".", "..", "", "@x", ":v1"])
def test_what_is_no_reward(reference: str) -> None:
    """Files with an underscore are ours, other people's modules need a function ``load``."""
    with pytest.raises(InputError) as error:
        rewards.load(reference)
    assert "\n" not in str(error.value)


def test_other_peoples_modules_are_rewards(tmp_path, monkeypatch) -> None:
    (tmp_path / "their").mkdir()
    (tmp_path / "their" / "reward.py").write_text("def load(**given): return given")
    monkeypatch.syspath_prepend(tmp_path)
    assert rewards.load("their.reward:v1@x.pt", dtype="bf16") == {
        "variant": "v1", "path": "x.pt", "device": "cpu", "dtype": "bf16",
    }  # fmt: skip
