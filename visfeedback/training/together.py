"""What several processes do alike: where one fails, all do, so that none waits for one that has stopped.

May import: plugins, and accelerate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from visfeedback.plugins import InputError

Gather = Callable[[list[Any]], list[Any]]
"""a list of every process -> one list, in the order of processes"""
Result = TypeVar("Result")


def gather_over(accelerator: Accelerator) -> Gather:
    if accelerator.num_processes == 1:
        return lambda value: value
    return lambda value: list(gather_object(value))


def agreed(work: Callable[[], Result], gather: Gather, alone: bool = False) -> Result:
    """What ``work`` returns, once it is done in every process.

    Raises the first process's InputError in all of them; each may then do what all must do together, as saving is.
    Any other failure becomes one, for the others would wait for ever; ``alone``, in a single process, it stays itself.
    """
    done: list[Result] = []
    error: InputError | None = None
    try:
        done.append(work())
    except InputError as caught:
        error = caught
    except Exception as caught:
        if alone:
            raise
        error = InputError(f"{type(caught).__name__} in one of the processes: {' '.join(str(caught).split())}")
    for failed in gather([error]):
        if failed is not None:
            raise failed
    return done[0]
