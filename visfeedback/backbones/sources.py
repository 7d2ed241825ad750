"""Where a model or an adapter is on this machine, and a fingerprint that says which one it is.

A reference is a world's model (``shapes:sd``), a folder, a file or a hub id; a hub id is downloaded when the hub can
be reached and read from the cache otherwise (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from visfeedback import plugins
from visfeedback.plugins import InputError

CHECKPOINTS = (".safetensors", ".ckpt")
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIG_FILES = ("*.json", "*.txt", "**/*.json", "**/*.txt", "**/*.model")
WHOLE_BYTES = 64 << 20  # files up to here are hashed whole, larger ones by samples
SAMPLES, SAMPLE_BYTES = 64, 64 << 10


def find_model(model: str) -> Path:
    """The diffusers folder or single-file checkpoint that ``model`` means. Raises InputError when there is none."""
    reference = plugins.split_reference(model)
    if reference is not None:
        world, part = reference
        return _folder(Path(plugins.world(world).model_folder(part)), model)
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path, model)
    if path.is_file():
        return _checkpoint(path)
    if not HUB_ID.fullmatch(model):
        raise InputError(
            f"model {model!r} is neither a folder nor a file nor a hub id; give a diffusers folder, a .safetensors or "
            ".ckpt file, an id like stable-diffusion-v1-5/stable-diffusion-v1-5, or shapes:sd"
        )
    return _hub_pipeline(model)


def find_adapter(adapter: str) -> Path:
    """The weights file of a LoRA: a file, a folder that holds one, or a hub id. Raises InputError if there is none."""
    path = Path(adapter).expanduser()
    if not path.exists() and HUB_ID.fullmatch(adapter):
        path = _hub_snapshot(adapter, "adapter", ("*.safetensors",))
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"adapter {adapter!r}: no such file or folder; expected RUN/adapter of `visfeedback train`")
    files = sorted(path.glob("*.safetensors"))
    usual = [file for file in files if file.name == ADAPTER_FILE]
    if len(usual or files) != 1:
        raise InputError(f"adapter {adapter!r}: expected one {ADAPTER_FILE} in the folder, found {len(files)} files")
    return (usual or files)[0]


def hub_config(repository: str, checkpoint: Path) -> Path:
    """The configuration files of a hub model, for a single-file checkpoint that has none. Raises InputError."""
    try:
        return _hub_snapshot(repository, "model", CONFIG_FILES)
    except InputError:
        raise InputError(
            f"{checkpoint} needs the configuration of {repository}, which is not in the hub cache; put a diffusers "
            f"folder's json files into {checkpoint.with_suffix('')} or run: hf download {repository} --include "
            "'*.json' '*.txt'"
        ) from None


def model_revision(path: Path) -> str:
    """The commit of a hub snapshot, else 12 hex digits of the content of weights and configuration."""
    if path.parent.name == "snapshots":
        return path.name
    if path.is_file():
        return fingerprint([path])
    parts = [file for file in path.rglob("*") if file.is_file() and file.parent != path]
    return fingerprint([path / "model_index.json", *parts], root=path)


def fingerprint(files: Iterable[Path], root: Path | None = None) -> str:
    """12 hex digits over names (below ``root``), sizes and contents; of files over 64 MiB 64 samples are read."""
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(root).as_posix() if root else ""
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        _hash_content(file, digest)
    return digest.hexdigest()[:12]


def _hash_content(file: Path, digest: hashlib._Hash) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            digest.update(stream.read())
            return
        for k in range(SAMPLES):
            stream.seek(k * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))


def _folder(path: Path, model: str) -> Path:
    if not (path / "model_index.json").is_file():
        raise InputError(f"model {model!r}: no model_index.json in {path}; expected a folder of `save_pretrained`")
    return path


def _checkpoint(path: Path) -> Path:
    if path.suffix not in CHECKPOINTS:
        raise InputError(f"model file {path}: expected one of {', '.join(CHECKPOINTS)}")
    return path


def _hub_pipeline(model: str) -> Path:
    """The snapshot folder of a diffusers pipeline; diffusers itself chooses which of the files are needed."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(model))
    except (OSError, ValueError):
        raise InputError(_not_found("model", model)) from None


def _hub_snapshot(repository: str, what: str, patterns: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (OSError, ValueError):
        raise InputError(_not_found(what, repository)) from None


def _not_found(what: str, repository: str) -> str:
    return (
        f"{what} {repository!r} is neither a folder nor a file nor in the hub cache; check the name, or with a network "
        f"and without HF_HUB_OFFLINE run: hf download {repository}"
    )
