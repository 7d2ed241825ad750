"""Weights of reward models: where they are, what is in them, and whether they fit the network they are meant for.

A checkpoint is a safetensors file, a ``torch.save`` file, or a folder with one of them (shards with an index too).
Everything is read without running code: ``torch.load(weights_only=True)``, and a pickle that needs more is refused,
as are TorchScript archives. Every error is one line that names the file and the first offending weight.
Left out: rewards whose library loads its own folder (vision-language models). May import: types.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visfeedback.plugins import InputError, nearest
from visfeedback.types.files import file_sha256, small_files_id

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
STEMS = ("model", "open_clip_model", "open_clip_pytorch_model", "pytorch_model")
"""Names under which transformers and open_clip write a whole model, safetensors first."""
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a model folder holds besides weights: configuration and tokenizer."""
CONFIGS = ("config.json", "open_clip_config.json", "vision_config.json", "med_config.json", "tokenizer.json",
           "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt")  # fmt: skip
"""Files beside the weights that say what is computed with them."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve(
    path: str,
    hub: str,
    file: str,
    what: str,
    files: Sequence[str] = (*SMALL_FILES, "*.safetensors"),
    instead: str = "",
) -> Path:
    """What the user wrote after ``@``, or the default ``hub`` id -> a file or folder on this machine.

    Args:
        path: a local file (returned as it is), a local folder (its ``file``), or a hub id ``owner/name``; may be empty.
        hub: hub id that is used when ``path`` is empty; empty when there is none.
        file: name of the file that is wanted in a folder or repository; empty for the whole folder.
        what: the reward as it was asked for, for messages: ``pickscore``.
        files: which files of a repository are downloaded when the whole folder is wanted.
        instead: what to do where nothing can be downloaded, when it is not to give a path for ``what``.

    Raises InputError when there is no such file, and when it is not in the cache and cannot be downloaded.
    """
    local = Path(path).expanduser()
    if path and local.exists():
        if local.is_file() or not file:
            return local
        if (local / file).is_file():
            return local / file
        raise InputError(f"{what}: no {file} in {local}; write {_usage(what)} with the file or a folder that holds it")
    if path and (not HUB_ID.fullmatch(path) or path.endswith(SUFFIXES)):
        raise InputError(f"{what}: no file or folder {path}; write {_usage(what)} with a local path or a hub id")
    if not (path or hub):
        raise InputError(f"{what} needs weights; write {_usage(what)} with a local path or a hub id")
    return _download(path or hub, file, what, files, instead or f"write {_usage(what)} with a local copy")


def revision(path: Path) -> str:
    """The commit that a file or folder of the hub's cache belongs to.

    Of other places ``files-`` and 8 hex digits over configuration and tokenizer, which change scores as weights do and
    are not in a checkpoint's hash; empty where there are none.
    """
    found = re.search(r"/snapshots/([0-9a-f]{40})(?:/|$)", path.absolute().as_posix())
    if found is not None:
        return found[1]
    digest = small_files_id(path if path.is_dir() else path.parent, CONFIGS)
    return f"files-{digest}" if digest else ""


def read_state(path: Path, what: str, stems: Sequence[str] = STEMS) -> dict[str, Tensor]:
    """The weights in a file, or in a folder that transformers or open_clip wrote, on the CPU as they are stored.

    ``{"state_dict": ...}`` and ``{"model": ...}`` are unwrapped, and so is the ``module.`` of parallel training.
    Raises InputError for a file that is missing, damaged, needs code to be read, or holds NaN or infinite weights.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path, what, stems):
        part = _read_safetensors(file, what) if file.suffix == ".safetensors" else _read_torch(file, what)
        _check_finite(part, file, what)
        state |= part
    return state


def weight_files(path: Path, what: str, stems: Sequence[str] = STEMS) -> list[Path]:
    """The file itself, or the files that hold the weights of a folder: one, or the shards of an index.

    ``stems`` are the names to look for, without suffix; safetensors come before pickles whatever the stem.
    """
    if path.is_file():
        return [path]
    for name in (f"{stem}{suffix}" for suffix in (".safetensors", ".bin", ".pt") for stem in stems):
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json", what)
    raise InputError(f"{what}: no weights in {path}; expected {stems[0]}.safetensors, a .bin file, or shards of one")


def sha256(path: Path, what: str, stems: Sequence[str] = STEMS) -> str:
    """sha256 hex of a checkpoint: of its file, or of the digests of its shards in order."""
    return joint_sha256([file_sha256(file) for file in weight_files(path, what, stems)])


def joint_sha256(digests: Sequence[str]) -> str:
    """One sha256 for several files: the only digest itself, or the sha256 of all of them in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def fill(module: nn.Module, state: Mapping[str, Tensor], file: Path, what: str, ignore: Collection[str] = ()) -> None:
    """Load a state dict strictly into ``module``, in the module's own dtype.

    ``ignore`` are names or shell patterns (``blip.vision_proj.*``) of weights that may be missing or too many.
    Raises InputError that names the first weight that is missing, unknown or of another shape.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not _matches(name, ignore)]
    unknown = [name for name in state if name not in own and not _matches(name, ignore)]
    if missing:
        raise _misfit(file, what, f"it lacks {len(missing)} of {len(own)} weights, the first is {missing[0]}")
    if unknown:
        raise _misfit(file, what, f"it has {len(unknown)} weights that the model lacks, the first is {unknown[0]}")
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            raise _misfit(file, what, f"{name} is {_shape(state[name])}, expected {_shape(own[name])}")
    module.load_state_dict({name: state[name] for name in own.keys() & state.keys()}, strict=False)


def tower_hash(module: nn.Module, extra: str = "") -> str:
    """16 hex digits over names, types, shapes and bytes of all parameters and buffers, and over ``extra``.

    Equal for equal weights wherever they were read from; call it before the module is cast to another dtype.
    """
    digest = hashlib.sha256(extra.encode())
    for name, value in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class SkipInit(TorchFunctionMode):
    """Inside this block new modules get no random weights: several times faster, for modules that ``fill`` fills next.

    Their values are whatever was in memory, so nothing may be ignored as missing that the network needs.
    """

    FILLS = frozenset(
        f"{prefix}{kind}_" for prefix in ("", "trunc_", "kaiming_", "xavier_") for kind in ("normal", "uniform")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.FILLS:
            return args[0] if args else kwargs["tensor"]  # the functions of torch.nn.init pass it by name
        return func(*args, **kwargs)


def read_json(file: Path, what: str) -> dict[str, Any]:
    """A configuration file. Raises InputError when it is missing or holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {file} cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{what}: {file} holds no JSON object; expected a configuration")
    return content


def dtype_of(name: str) -> torch.dtype:
    """``fp32``, ``bf16`` or ``fp16``. Raises InputError for another name."""
    if name not in DTYPES:
        raise InputError(f"no dtype {name!r}{nearest(name, DTYPES)}")
    return DTYPES[name]


def first_line(error: BaseException) -> str:
    """What a library's error says, cut to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _download(hub: str, file: str, what: str, files: Sequence[str], instead: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        if file:
            return Path(hf_hub_download(hub, file))
        return Path(snapshot_download(hub, allow_patterns=list(files)))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        name = f"{file} of {hub}" if file else hub
        why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else f"it cannot be downloaded ({first_line(error)})"
        raise InputError(f"{what}: {name} is not on this machine and {why}; {instead}") from None


def _shards(index: Path, what: str) -> list[Path]:
    where = read_json(index, what).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{what}: {index} is no index of shards; expected a weight_map")
    names = sorted(set(where.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise InputError(f"{what}: no {name} in {index.parent}, though {index.name} names it")
    return [index.parent / name for name in names]


def _read_safetensors(file: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{what}: {file} is damaged or no safetensors file: {first_line(error)}") from None


def _read_torch(file: Path, what: str) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{what}: {file} is no file of plain weights (a damaged file, or a pickle that needs code to be read, "
            "which is refused); save its state dict as .safetensors"
        ) from None
    except (
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
        struct.error,
    ):  # what these say means nothing to anybody
        raise InputError(f"{what}: {file} is damaged or no checkpoint; fetch the file again") from None
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{what}: {file} is damaged or no checkpoint: {first_line(error)}") from None
    return _unwrap(content, file, what)


def _unwrap(content: Any, file: Path, what: str) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{what}: {file} holds no state dict; expected weights by name")
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise InputError(f"{what}: {file} holds no state dict: its entry {odd} is no tensor")
    if not all(isinstance(name, str) for name in content):
        raise InputError(f"{what}: {file} holds no state dict: its entries have no names")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def _check_finite(state: Mapping[str, Tensor], file: Path, what: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{what}: the weight {name} in {file} is NaN or infinite; fetch the file again")


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _misfit(file: Path, what: str, detail: str) -> InputError:
    return InputError(f"{what}: {file} is a checkpoint of another model: {detail}")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a single number"


def _usage(what: str) -> str:
    return f"--reward {what}@PATH"
