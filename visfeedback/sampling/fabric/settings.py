"""The knobs of FABRIC, with the defaults of the paper's experiments where it has one (window and dislike_scale).

May import: types.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from visfeedback.plugins import InputError, nearest
from visfeedback.types.records import Frozen


class FabricSettings(Frozen):
    """How strongly references act, when, where, and how their keys and values are kept."""

    strength: float = Field(default=0.5, ge=0, le=1)
    """weight of a liked image's tokens beside the drawn image's own, which count 1; 0 = no effect at all"""
    dislike_scale: float = Field(default=0.5, ge=0, le=2)
    """a disliked image's weight is this times strength"""
    window: tuple[float, float] = (0.0, 0.8)
    """part of the denoising steps in which references act, 0 = the first step (pure noise), 1 = the last; an img2img
    call that starts late starts late in this window, too"""
    floor: float = Field(default=0.0, ge=0, le=1)
    """strength outside the window, at most `strength`"""
    schedule: Literal["box", "fade", "bump"] = "box"
    """strength inside the window: constant, a cosine from strength down to floor, or up and down again"""
    cap: float | None = Field(default=1.0, gt=0)
    """most that all liked (or all disliked) images may weigh together; beyond it they share it, so that many of them do
    not burn the image. None = no limit, as published"""
    layers: tuple[str, ...] = Field(default=("*",), min_length=1)
    """names of attention layers, with wildcards: `mid_block*`, `up_blocks*`, `transformer_blocks*`"""
    prompt: str | None = ""
    """text of the reference passes; None = the text of the drawn image itself (of the batch's first), so that the
    passes belong to that prompt alone; FLUX under `branches` negative-first begins with the negative one's"""
    seed: int = Field(default=0, ge=0)
    """the references' noise follows from it, the image and the step"""
    noise: Literal["fresh", "fixed"] = "fresh"
    """fresh noise for each step, as published, or one noise for an image"""
    dislikes: Literal["auto", "branch", "attention"] = "auto"
    """where dislikes act: in the negative branch; away from them inside attention, for calls without a negative branch;
    auto = the branch when the call has one. FLUX shows only with its second pass whether it has one: under auto the
    first step of a call there has no dislikes"""
    push: float = Field(default=1.0, ge=0, le=10)
    """of dislikes inside attention: out + push * (own - away), as long as before"""
    branches: Literal["auto", "negative-first", "positive-first", "positive-only"] = "auto"
    """order of the two halves of the denoiser's batch, for pipelines that do not say it"""
    positions: Literal["same", "apart"] = "same"
    """FLUX: references lie on the image's own places (layout counts), or on a plane of their own"""
    reference_scale: float = Field(default=1.0, gt=0, le=1)
    """side of the references relative to the drawn image: 0.5 needs a quarter of the memory and time; their weight as
    a whole stays the same"""
    reference_batch: int = Field(default=8, ge=1)
    """references in one pass of the denoiser"""
    stride: int = Field(default=1, ge=1)
    """so many neighbouring steps share the first one's keys and values"""
    keep: Literal["device", "cpu", "nothing"] = "device"
    """where keys and values wait for their next use; nothing = computed again at each step"""
    bits: Literal[16, 8] = 16
    """16 = kept as they are, whatever the precision; 8 = rounded to 8 bits"""
    budget_mib: float | None = Field(default=None, gt=0)
    """most memory for what is kept; what does not fit is computed again at each step, which changes nothing but time"""

    @field_validator("layers", mode="before")
    @classmethod
    def _one_name(cls, layers: Any) -> Any:
        return (layers,) if isinstance(layers, str) else layers

    @model_validator(mode="after")
    def _ranges(self) -> FabricSettings:
        start, end = self.window
        if not 0 <= start <= end <= 1:
            raise ValueError(f"window = {self.window}; expected two numbers, 0 <= start <= end <= 1, like (0.0, 0.8)")
        if self.strength and self.floor > self.strength:
            raise ValueError(f"floor = {self.floor} is above strength = {self.strength}; expected at most that")
        return self


def settings_of(knobs: dict[str, Any]) -> FabricSettings:
    """Knobs as settings. Raises InputError in one line for an unknown one or a value out of range."""
    known = FabricSettings.model_fields
    for name in knobs:
        if name not in known:
            raise InputError(f"fabric has no knob {name!r}{nearest(name, known)}")
    try:
        return FabricSettings(**knobs)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        where = ".".join(map(str, first["loc"]))
        if first["loc"][:1] == ("window",):
            where, said = "window", "two numbers, 0 <= start <= end <= 1, like (0.0, 0.8)"
            first["input"] = knobs["window"]
        raise InputError(
            f"fabric: {where} = {first['input']!r}; expected {said}" if where else f"fabric: {said}"
        ) from None
