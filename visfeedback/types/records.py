"""The records that stages pass to each other on disk: prompts, samples, feedback, preferences.

Only the standard library and pydantic: the store and the app read these without loading torch.
Timestamps are UTC. Scores: higher is better, in the native units of whoever gave them.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Choice = Literal["a", "b", "tie", "both_bad", "skip", "flag"]
"""What a judge of a pair may answer, in the order of ``Feedback.sample_ids`` (not of the screen).
``tie`` is "both good or equal"; ``skip`` and ``flag`` carry no preference."""


class Frozen(BaseModel):
    """Base of records and knobs: immutable, unknown keys are errors, the string under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def text_id(*parts: str) -> str:
    """16 hex digits that name a text (sha256 of the parts, joined by NUL)."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def now() -> datetime:
    """The current time, UTC."""
    return datetime.now(UTC)


class Prompt(Frozen):
    """A text to draw. ``Prompt.of(text)`` fills in the id."""

    id: str
    """`text_id(text, negative)`"""
    text: str = Field(min_length=1)
    negative: str = ""
    source: str = ""
    """file or world it came from"""
    category: str = ""
    """`counting`, `colors`, ...; empty when unknown"""
    split: Literal["", "train", "heldout"] = ""

    @classmethod
    def of(cls, text: str, negative: str = "", **more: Any) -> Prompt:
        return cls(id=text_id(text, negative), text=text, negative=negative, **more)


class Sample(Frozen):
    """An image that was made, with all it takes to make it again."""

    id: str
    """sha256 hex of width, height and RGB pixels (`image_id`): the same picture has the same id in any file format"""
    prompt_id: str
    prompt: str
    negative: str = ""
    category: str = ""
    path: str
    """relative to the folder of `samples.jsonl`, or absolute"""
    width: int
    height: int
    model: str = ""
    revision: str = ""
    adapter: str = ""
    """path or hub id of the LoRA; empty for none"""
    seed: int | None = None
    """`torch.Generator("cpu").manual_seed(seed)` is the only noise source"""
    steps: int | None = None
    guidance: float | None = None
    sampler: str = ""
    """scheduler class name, e.g. `DDIMScheduler`"""
    call: dict[str, Any] = Field(default_factory=dict)
    """other arguments of the pipeline call"""


def image_id(width: int, height: int, rgb: bytes) -> str:
    """sha256 of the size and the RGB pixels; ``rgb`` is ``image.convert("RGB").tobytes()``."""
    return hashlib.sha256(f"{width}x{height}:".encode() + rgb).hexdigest()


class Region(Frozen):
    """A marked place in an image: a box whose numbers are shares of the image's width and height, from the top left."""

    x: float = Field(ge=0, le=1)
    """left edge"""
    y: float = Field(ge=0, le=1)
    """top edge"""
    width: float = Field(default=0.0, ge=0, le=1)
    """0 is a point"""
    height: float = Field(default=0.0, ge=0, le=1)
    label: str = ""
    """`artifact`, `misaligned`, ... what is wrong or right there"""


class Feedback(Frozen):
    """What one judge said once. Append-only, the only truth; undo is a new record with ``retracts`` set.

    ``values[i]`` belongs to ``sample_ids[i]``: preference shares that add up to 1 for a pair (`tie` = .5, .5;
    empty for skip and flag), ranks (0 = best), ratings, or 1 / -1 for like / dislike; for `best` 1 for the chosen image
    and 0 for the others. `region`, `words` and `text` (which is in ``note``) say something without a value.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    kind: Literal["pair", "ranking", "best", "rating", "like", "region", "words", "text", "tombstone"] = "pair"
    judge: str
    """`human:NAME`, `vlm:MODEL`, `reward:NAME`, `verifier:WORLD`, `simulated:WORLD`"""
    criterion: str = "overall"
    prompt_id: str = ""
    sample_ids: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    choice: Choice | None = None
    sides: tuple[int, ...] = ()
    """`sides[i]` is the position at which `sample_ids[i]` was shown, 0 = left"""
    seconds: float | None = None
    note: str = ""
    regions: tuple[Region, ...] = ()
    """marked places of `sample_ids[0]`"""
    words: tuple[int, ...] = ()
    """numbers of the prompt's words (split at white space, 0 = first) that the image does not show"""
    shown_at: datetime | None = None
    """when the images appeared; `created_at` is when the answer came"""
    order: int | None = None
    """which of the judge's presentations it was, 0 = first"""
    extra: dict[str, Any] = Field(default_factory=dict)
    """columns of an imported file that have no place of their own; JSON values"""
    gold: bool = False
    retracts: str | None = None
    """id of the feedback that this tombstone takes back"""
    created_at: datetime = Field(default_factory=now)

    @model_validator(mode="after")
    def _consistent(self) -> Feedback:
        if self.kind == "tombstone":
            if not self.retracts:
                raise ValueError("a tombstone needs `retracts`, the id of the feedback it takes back")
            return self
        if self.kind == "pair" and (len(self.sample_ids) != 2 or self.choice is None):
            raise ValueError("a pair needs two sample_ids and a choice")
        if self.values and len(self.values) != len(self.sample_ids):
            raise ValueError("values and sample_ids must have the same length")
        if self.sides and len(self.sides) != len(self.sample_ids):
            raise ValueError("sides and sample_ids must have the same length")
        return self


PAIR_VALUES: dict[str, tuple[float, ...]] = {
    "a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5), "both_bad": (0.5, 0.5), "skip": (), "flag": (),
}  # fmt: skip


class Preference(Frozen):
    """Derived from feedback, reproducible and disposable: ``winner`` is better with ``probability``."""

    winner: str
    """sample id"""
    loser: str
    prompt_id: str
    probability: float = Field(default=1.0, ge=0.5, le=1.0)
    weight: float = Field(default=1.0, ge=0.0)
    criterion: str = "overall"
    feedback_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A program's reading of one image against one prompt; it stays in memory."""

    right: bool  # everything the prompt asks for holds
    score: float  # soft, in [0, 1]
    aspects: dict[str, bool]


class Origin(Frozen):
    """Where a reward's numbers come from: what a score must carry so that it can be made again."""

    model: str
    """hub id, folder or file; `program` when there are no weights"""
    revision: str = ""
    """hub commit, `files-` and a digest of a local folder's configuration and tokenizer, or the version of the package
    that computes it"""
    checkpoint_sha256: str = ""
    """of the file(s) the weights were read from; empty for programs and endpoints"""
    dtype: Literal["fp32", "bf16", "fp16", ""] = "fp32"
    """what the network computes in; empty where nothing is computed here (an endpoint)"""


class About(Frozen):
    """A reward's entry in the catalogue (`visfeedback rewards list`)."""

    measures: str
    """half a sentence"""
    typical: str = ""
    """values that are seen in practice"""
    accuracy: dict[str, float] = Field(default_factory=dict)
    """benchmark -> published pairwise accuracy in percent"""
    accuracy_source: str = ""
    """where these percentages are from"""
    licence: str = ""
    """of the weights and, where it differs, of the code"""
    megabytes: float | None = None
    """size of the weights in fp32; None when there are none"""
    paper: str = ""
    hub: str = ""
    """hub id that is loaded when no path is given"""
    extra: str = ""
    """extra of this package that it needs: `ocr` for `pip install visfeedback[ocr]`"""
    variants: tuple[str, ...] = ()
    """what may stand after the colon; the first is the default"""
