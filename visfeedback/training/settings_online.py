"""What a preset may say about images that the model makes while it learns: how they are drawn, and who scores them.

May import: types.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from visfeedback.types.records import Frozen


class Rollout(Frozen):
    """Fresh images of the current policy, drawn in rounds, for methods that do not learn from stored pairs."""

    source: Literal["auto", "fresh", "stored"] = "auto"
    """`stored` learns from what [data] names; `auto` is stored when [data] names something, else fresh"""
    prompts: tuple[str, ...] = ()
    """what is drawn: texts, files (txt, jsonl), or `shapes:train`"""
    prompts_per_round: int = Field(default=8, ge=1)
    """prompts of a round, over all processes; a new round takes the next ones of an endless shuffled stream"""
    per_prompt: int = Field(default=4, ge=1)
    """images of each prompt in a round"""
    steps: int = Field(default=0, ge=0, le=1000)
    """denoising steps; 0 = the model's own"""
    guidance: float = Field(default=-1.0, ge=-1.0)
    """classifier-free guidance scale; 0 or 1 = none, -1 = the model's own"""
    eta: float = Field(default=1.0, ge=0.0, le=1.0)
    """randomness of a step: 0 = DDIM's deterministic one, 1 = DDPM's"""
    random_times: tuple[float, float] = (0.0, 1.0)
    """part of the schedule whose steps are random; the others are DDIM's deterministic ones, as in MixGRPO. A reward
    then says more of each random step, and the finished images have less noise; with `times` the same part"""
    sampler: str = ""
    """who draws for methods that learn from images alone (rwr, raft): ddim, euler, dpm++2m, or a diffusers scheduler
    class, as `visfeedback generate --sampler`; with `eta` 0. Empty: the model's own steps, random by `eta`"""
    shared_noise: bool = False
    """images of a prompt begin with the same noise and differ by the noise of their steps"""
    every: int = Field(default=0, ge=0)
    """optimizer steps that learn from a round; 0 = as many as `epochs` passes over what it teaches take"""
    epochs: int = Field(default=1, ge=1)
    """passes over a round before the next one; raft, and rwr with `sparse`, pass over the images that they keep"""
    times: tuple[float, float] = (0.0, 1.0)
    """part of the schedule whose steps are learned (methods that learn from paths); 1 = pure noise"""
    train_steps: int = Field(default=0, ge=0)
    """so many of these steps, drawn anew for every network call; 0 = all of them"""
    micro_batch: int = Field(default=16, ge=1)
    """images drawn at once"""
    half: bool = False
    """keep paths in fp16: half the memory; log-probabilities are those of the rounded path"""
    overlap: Literal["auto", "on", "off"] = "auto"
    """score images while the next ones are drawn; auto = where drawing is not on the CPU, or a reward is a server"""

    @field_validator("times", "random_times")
    @classmethod
    def _a_part(cls, times: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= times[0] < times[1] <= 1:
            raise ValueError("expected 0 <= low < high <= 1, for example 0.4 1.0")
        return times


class RewardChoice(Frozen):
    """Who scores images; higher is better."""

    name: str = ""
    """a reward, `NAME[:VARIANT][@PATH]`, or a mix, `mix@FILE.toml`"""
    watch: str = ""
    """a second reward that is only logged: when the trained one rises and this one falls, the model games it"""
    normalise: Literal["none", "batch", "prompt"] = "none"
    """`batch`: minus the mean, over the spread, of each set of scored images; `prompt`: of what a prompt's images got
    so far, once there are enough of them. Methods that compare images of a prompt themselves need none"""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """precision of reward networks"""
    retries: int = Field(default=5, ge=0)
    """further attempts when a reward that is a server does not answer; then the run stops with its state saved"""
    wait: float = Field(default=5.0, ge=0)
    """seconds before the second attempt; twice as many before each further one"""
