"""What processes agree on: the first one's error is everybody's."""

from __future__ import annotations

import pytest

from visfeedback.plugins import InputError
from visfeedback.training.together import agreed


def fails():
    raise RuntimeError("out of\nmemory")


def test_an_error_of_any_kind_is_told_to_the_others():
    """Of two processes the other one is well: what is gathered has one error, an InputError of one line for both."""
    told = []

    def gather(rows):
        told.extend(rows)
        return [None, *rows]

    with pytest.raises(InputError, match=r"^RuntimeError in one of the processes: out of memory$"):
        agreed(fails, gather)
    assert len(told) == 1 and isinstance(told[0], InputError)
    with pytest.raises(InputError, match="the other one's"):
        agreed(lambda: 3, lambda rows: [*rows, InputError("the other one's")])
    assert agreed(lambda: 3, lambda rows: [*rows, None]) == 3


def test_alone_an_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="out of"):
        agreed(fails, lambda rows: rows, alone=True)
