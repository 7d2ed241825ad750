"""How images are scored: the knobs that change speed, memory and what counts as an image, never a score.

May import: types.
"""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from visfeedback.types.records import Frozen

Pairing = Literal["paired", "one", "matrix"]
LARGEST_SHARD = 256


class ScoreSettings(Frozen):
    """Sizes and limits of a scoring run."""

    batch_size: int = Field(default=32, ge=1)
    """images a network sees at once; halved by itself when memory runs out"""
    shard: int = Field(default=0, ge=0)
    """images that one process takes at a time; 0 = 256, fewer when several processes share few images"""
    workers: int = Field(default=0, ge=0)
    """threads that read, decode and preprocess; 0 = one for each core, at most 16"""
    max_megapixels: float = Field(default=64.0, gt=0, le=178)
    """larger images are refused before they are decoded"""
    cache: str = "auto"
    """folder for image embeddings; auto = visfeedback/features in the user's cache folder; off = none"""
    cache_gib: float = Field(default=4.0, gt=0)
    """size of that folder; the oldest embeddings go first"""
    cache_feature_kib: float = Field(default=64.0, ge=0)
    """embeddings larger than this for one image are not kept on disk"""
    image_column: str = "image"
    """of a parquet: bytes, or a struct with `bytes` and `path`"""
    prompt_column: str = "prompt"
    """of a parquet; it may be absent"""

    def images_at_once(self, images: int, processes: int) -> int:
        """``shard``, resolved: about four for each process, but no smaller than a batch."""
        if self.shard or processes < 2:
            return self.shard or LARGEST_SHARD
        return min(LARGEST_SHARD, max(self.batch_size, -(-images // (4 * processes))))

    @property
    def threads(self) -> int:
        """Worker threads, resolved."""
        return self.workers or min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
