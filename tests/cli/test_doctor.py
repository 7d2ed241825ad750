"""`doctor` and `presets` tell the truth about this machine, and say so when something is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from visfeedback.cli import doctor, presets
from visfeedback.cli.console import Console, PartialFailure
from visfeedback.plugins import InputError


def test_examine_names_versions_devices_and_extras() -> None:
    report = doctor.examine()
    json.dumps(report)  # plain values only
    assert report["attention"]["sdpa"] == "works"
    assert report["devices"]["torch_threads"] >= 1
    assert report["disk_free_gib"] > 0
    for name, extra in report["extras"].items():
        assert extra["install"] == f'python -m pip install -e ".[{name}]"'
        assert extra["installed"] is (extra["missing"] == [])


def test_a_missing_and_an_old_package_are_problems() -> None:
    needs = [Requirement("no-such-package>=1"), Requirement("numpy<1"), Requirement("numpy")]
    missing, old = doctor._package_problems(needs)
    assert missing["what"].startswith("no-such-package is not installed, needed >=1")
    assert old["what"].startswith("numpy ")
    assert "constraints.txt" in old["fix"]


def test_torch_and_torchvision_of_two_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_declared", lambda name: ["torch==0.1.0", "numpy"])
    (problem,) = doctor._pair_problems()
    assert "belongs to torch==0.1.0" in problem["what"]


def test_damaged_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn file and a pointer of Git LFS each get their own words."""
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setattr("visfeedback.shapes.model_folder", lambda part: tmp_path)
    state = doctor._model("sd")
    assert not state["ok"]
    assert "torn.safetensors" in state["why"]
    assert "git lfs pull" in state["why"]


def test_something_broken_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_pair_problems", lambda: [{"what": "a bad pair", "fix": "pip"}])
    with pytest.raises(PartialFailure) as failure:
        doctor.run([], Console())
    assert "a bad pair" in failure.value.failed
    assert failure.value.result["problems"]
    assert "a bad pair" in capsys.readouterr().err


def test_presets_lists_what_a_preset_trains(tmp_path: Path) -> None:
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / "sd.toml").write_text('# A small one.\n[model]\nid = "no/such-model"\n[method]\nname = "dpo"\n')
    answer = presets.run(["--folder", str(tmp_path)], Console(quiet=True))
    assert answer["presets"] == [
        {
            "preset": str(tmp_path / "dpo" / "sd.toml"),
            "method": "dpo",
            "model": "no/such-model",
            "needs": "a download (huggingface.co)",
            "about": "A small one.",
        }
    ]


def test_memory_grows_with_the_weights(tmp_path: Path) -> None:
    """1 GiB for the program plus 4 times 0.5 GiB of weights (a sparse file) = 3 GiB."""
    with (tmp_path / "unet.safetensors").open("wb") as file:
        file.truncate(2**29)
    assert presets.needs(str(tmp_path)) == "about 3.0 GiB of memory"


def test_presets_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        presets.run(["--folder", str(tmp_path / "none")], Console(quiet=True))
