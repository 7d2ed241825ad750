"""Reading, decoding and preprocessing in threads, a bounded number of images ahead of the networks.

Pillow and most of torchvision release the GIL, so threads suffice. Order is kept: batches are the same whichever
thread was faster. Memory: ``ahead`` images, each once per distinct preprocessing. May import: types.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import TypeVar

from PIL.Image import Image
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.scoring.decode import BadImage, checked, decode
from visfeedback.scoring.work import Shard, Task

In = TypeVar("In")
Out = TypeVar("Out")
PREPROCESS_ERRORS = (
    InputError,
    ValueError,
    OSError,
    ArithmeticError,
    RuntimeError,
    TypeError,
    LookupError,
    MemoryError,
)
"""What a published preprocessing raises for an image of an odd mode or shape."""


def in_order(pool: Executor, function: Callable[[In], Out], tasks: Iterable[In], ahead: int) -> Generator[Out]:
    """Results in the order of ``tasks``, which is drawn from only ``ahead`` items in advance."""
    waiting: deque[Future[Out]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@dataclass(frozen=True)
class Request:
    """One image on its way: which preprocessings it needs and which features are kept from before."""

    shard: Shard
    task: Task
    read: Callable[[], object]
    pixels: Mapping[str, Callable[[Image], Tensor]]
    """preprocessing -> its function"""
    features: Mapping[int, Callable[[], Tensor | None]]
    """group of rewards -> how to load what was kept"""
    spare: Mapping[int, tuple[str, Callable[[Image], Tensor]]]
    """group -> the preprocessing to fall back on when what was kept is gone"""
    max_megapixels: float


@dataclass(frozen=True)
class Ready:
    """The same image, ready for the networks."""

    shard: Shard
    task: Task
    pixels: dict[str, Tensor] = field(default_factory=dict)
    features: dict[int, Tensor] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """preprocessing -> why there are no pixels"""
    note: str = ""


def prepare(request: Request) -> Ready:
    """Runs in a worker thread: the image is read and decoded once at most."""
    loaded = {group: load() for group, load in request.features.items()}
    features = {group: feature for group, feature in loaded.items() if feature is not None}
    functions = {**request.pixels, **dict(request.spare[group] for group in loaded if group not in features)}
    if not functions:
        return Ready(request.shard, request.task, features=features)
    try:
        image, note = _open(request)
    except (BadImage, OSError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Ready(request.shard, request.task, {}, features, dict.fromkeys(functions, " ".join(said.split())))
    pixels: dict[str, Tensor] = {}
    errors: dict[str, str] = {}
    for name, function in functions.items():
        try:
            pixels[name] = function(image)
        except PREPROCESS_ERRORS as error:
            errors[name] = f"it cannot be preprocessed: {' '.join(str(error).split()) or type(error).__name__}"
    return Ready(request.shard, request.task, pixels, features, errors, note)


def _open(request: Request) -> tuple[Image, str]:
    """The decoded image and a note. Raises BadImage, also when the bytes are not those that were listed."""
    data = request.read()
    if isinstance(data, Image):
        return checked(data, request.max_megapixels)
    assert isinstance(data, bytes), "sources give bytes or images"
    if hashlib.sha256(data).hexdigest() != request.task.unit.sha256:
        raise BadImage("the file changed while the run was going on; run again")
    return decode(data, request.max_megapixels)
