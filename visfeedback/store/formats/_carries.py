"""What a format says about itself, so that one test can check all of them."""

from __future__ import annotations

from visfeedback.types.records import Frozen


class Carries(Frozen):
    """What comes back when a store is written and the file is read into an empty store."""

    kinds: tuple[str, ...]
    """kinds of feedback; others are dropped and counted"""
    choices: tuple[str, ...] = ()
    """answers to a pair; others are dropped and counted"""
    feedback: tuple[str, ...] = ()
    """fields of `Feedback` that come back equal, in the same order of records"""
    sample: tuple[str, ...] = ()
    """fields of `Sample` that come back equal"""
    one_image: bool = False
    """only feedback on a single image"""
    images: bool = True
    """image files come back bit for bit"""
    unknown: bool = False
    """columns that the format does not know are kept, in `Feedback.extra`"""
    datasets: str = ""
    """builder with which `datasets.load_dataset` reads what is written: parquet, json, csv, imagefolder"""
