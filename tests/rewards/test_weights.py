"""Reading checkpoints: formats, hashes, and one line for everything that can be wrong with a file."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights
from visfeedback.types.files import file_sha256


def _network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in _network().state_dict().items()}


class _Runs:
    """A pickle that runs code when it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def _refusal(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_torch_files_are_unwrapped(state, tmp_path, wrap):
    torch.save(wrap(state), tmp_path / "w.pt")
    read = _weights.read_state(tmp_path / "w.pt", "thing")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_the_prefix_of_parallel_training_is_removed(state, tmp_path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth")
    assert _weights.read_state(tmp_path / "w.pth", "thing").keys() == state.keys()


def test_shards_of_a_folder_are_one_state(state, tmp_path):
    """Half the names in each file; the hash is over both digests, so that either file changes it."""
    names = sorted(state)
    where = {name: f"model-{1 + (i >= 4)}.safetensors" for i, name in enumerate(names)}
    for shard in sorted(set(where.values())):
        save_file({name: state[name] for name in names if where[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert _weights.read_state(tmp_path, "thing").keys() == state.keys()
    whole = _weights.sha256(tmp_path, "thing")
    assert whole not in [file_sha256(tmp_path / shard) for shard in where.values()]
    (tmp_path / "model-2.safetensors").unlink()
    assert "no model-2.safetensors" in _refusal(_weights.read_state, tmp_path, "thing")


def test_hash_of_one_file_is_its_sha256(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    assert _weights.sha256(tmp_path, "thing") == file_sha256(tmp_path / "model.safetensors")


def test_safetensors_comes_before_a_pickle_in_a_folder(state, tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    save_file(state, tmp_path / "model.safetensors")
    assert _weights.weight_files(tmp_path, "thing") == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_truncated_and_empty_files(state, tmp_path, suffix, keep):
    file = tmp_path / f"w{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    assert str(file) in _refusal(_weights.read_state, file, "thing")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + bytes(64), b"version https://git-lfs"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_something_else(tmp_path, content, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert f"w{suffix}" in _refusal(_weights.read_state, tmp_path / f"w{suffix}", "thing")


def test_a_pickle_with_code_is_refused_and_never_run(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**state, "extra": _Runs()}, tmp_path / "w.pt")
    assert "needs code" in _refusal(_weights.read_state, tmp_path / "w.pt", "thing")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(_Runs()))
    _refusal(_weights.read_state, tmp_path / "old.pt", "thing")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(_network(), tmp_path / "w.pt")
    assert "needs code" in _refusal(_weights.read_state, tmp_path / "w.pt", "thing")


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    _refusal(_weights.read_state, tmp_path / "w.pt", "thing")


@pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(3), {"weight": torch.zeros(2), "lr": 0.1},
                                     {0: torch.zeros(2)}])  # fmt: skip
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    assert "no state dict" in _refusal(_weights.read_state, tmp_path / "w.pt", "thing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite(state, tmp_path, value, dtype):
    state["2.weight"] = state["2.weight"].to(dtype)
    state["2.weight"][0, 1] = value
    save_file(state, tmp_path / "w.safetensors")
    assert "2.weight" in _refusal(_weights.read_state, tmp_path / "w.safetensors", "thing")


def test_fill_loads_in_the_networks_own_dtype(state, tmp_path):
    network = _network(1)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    _weights.fill(network, half, tmp_path / "w.pt", "thing")
    assert network[0].weight.dtype is torch.float32
    assert torch.equal(network[0].weight, half["0.weight"].float())


def test_fill_names_the_first_weight_that_does_not_fit(state, tmp_path):
    network, file = _network(1), tmp_path / "w.pt"
    before = _weights.tower_hash(network)
    lacking = {name: value for name, value in state.items() if not name.startswith("2.")}
    assert "lacks 2 of 9 weights, the first is 2.weight" in _refusal(_weights.fill, network, lacking, file, "thing")
    extra = state | {"3.weight": torch.zeros(1)}
    assert "the first is 3.weight" in _refusal(_weights.fill, network, extra, file, "thing")
    other = state | {"0.weight": torch.zeros(4, 5)}
    assert "0.weight is 4x5, expected 4x3" in _refusal(_weights.fill, network, other, file, "thing")
    assert _weights.tower_hash(network) == before  # nothing was half loaded


def test_fill_ignores_by_name_and_by_pattern(state, tmp_path):
    extra = state | {"proj.weight": torch.zeros(1), "proj.bias": torch.zeros(1), "ids": torch.zeros(1)}
    _weights.fill(_network(1), extra, tmp_path / "w.pt", "thing", ignore=("proj.*", "ids"))
    del state["1.num_batches_tracked"]
    _weights.fill(_network(1), state, tmp_path / "w.pt", "thing", ignore=("*.num_batches_tracked",))


def test_tower_hash_sees_parameters_buffers_dtype_and_extra():
    """Equal networks, equal hash; one bit of a parameter or buffer, another dtype or use, another hash."""
    assert _weights.tower_hash(_network(0)) == _weights.tower_hash(_network(0))
    changed, counted = _network(0), _network(0)
    with torch.no_grad():
        changed[2].bias += 1e-6
        counted[1].num_batches_tracked += 1
    hashes = [
        _weights.tower_hash(network, extra)
        for network, extra in [
            (_network(0), ""), (_network(0), "unit"), (changed, ""), (counted, ""), (_network(0).bfloat16(), ""),
        ]
    ]  # fmt: skip
    assert len(set(hashes)) == 5
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in hashes)


def test_resolve_finds_local_files_and_folders(tmp_path):
    file = tmp_path / "w.pt"
    file.touch()
    assert _weights.resolve(str(file), "", "other.pt", "thing") == file
    assert _weights.resolve(str(tmp_path), "", "w.pt", "thing") == file
    assert _weights.resolve(str(tmp_path), "", "", "thing") == tmp_path


def test_resolve_says_what_to_type(tmp_path):
    assert "no w.pt in" in _refusal(_weights.resolve, str(tmp_path), "", "w.pt", "thing")
    for missing in (str(tmp_path / "none.pt"), "weights/none.safetensors", "none"):
        assert "--reward thing@PATH" in _refusal(_weights.resolve, missing, "some/hub", "", "thing")
    assert "needs weights" in _refusal(_weights.resolve, "", "", "", "thing")


@pytest.mark.parametrize("file", ["", "w.pt"])
def test_resolve_offline_names_what_is_missing(tmp_path, monkeypatch, file):
    """The constant is read when huggingface_hub is imported, so it is set here, as the variable would."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = _refusal(_weights.resolve, "nobody/nothing", "", file, "thing")
    assert "nobody/nothing is not on this machine and HF_HUB_OFFLINE is set" in text


def test_resolve_finds_a_repository_in_the_cache(tmp_path, monkeypatch):
    """The cache keeps `models--OWNER--NAME/snapshots/COMMIT` and the commit under `refs/main`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, repository = "0123456789" * 4, tmp_path / "models--some--one"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "w.pt").write_bytes(b"1")
    file = _weights.resolve("some/one", "", "w.pt", "thing")
    assert file.read_bytes() == b"1"
    assert _weights.revision(file) == commit
    assert _weights.revision(Path("/data/snapshots/w.pt")) == ""


def test_configuration_and_tokenizer_are_part_of_the_revision(tmp_path):
    """Of a folder that is not the hub's: another activation, or other words, make other scores of the same weights."""
    seen = []
    for name, text in (("w.pt", "1"), ("config.json", "gelu"), ("config.json", "quick_gelu"), ("vocab.txt", "a")):
        (tmp_path / name).write_text(text)
        seen.append(_weights.revision(tmp_path / "w.pt"))
    assert seen[0] == ""
    assert len(set(seen)) == 4
    assert _weights.revision(tmp_path) == seen[-1]
    (tmp_path / "notes.md").write_text("of no account")
    assert _weights.revision(tmp_path) == seen[-1]


def test_skip_init_leaves_the_random_generator_alone():
    """No weight is drawn, by a module's own reset or by the functions of torch.nn.init; all else works as ever."""
    before = torch.get_rng_state()
    with _weights.SkipInit():
        module = nn.Linear(3, 4)
        nn.init.trunc_normal_(module.weight)
        nn.init.xavier_uniform_(tensor=module.weight)
        module.weight.data.normal_()
        nn.init.ones_(module.bias)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.bias.tolist() == [1] * 4


def test_dtypes():
    assert _weights.dtype_of("bf16") is torch.bfloat16
    assert "did you mean 'fp16'" in _refusal(_weights.dtype_of, "f16")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:18], lambda data: data[:152], lambda data: data[:-90] + b"??" + data[-88:]],
    ids=["struct.error", "UnpicklingError", "AssertionError"],
)
def test_a_damaged_file_of_the_old_format_is_one_line(tmp_path, damage):
    """Before torch 1.6 files were no archives; its reader has other errors for each place."""
    torch.save({"a": torch.ones(3, 4), "b": torch.zeros(5)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "w.pt").write_bytes(damage((tmp_path / "w.pt").read_bytes()))
    assert "w.pt" in _refusal(_weights.read_state, tmp_path / "w.pt", "thing")
