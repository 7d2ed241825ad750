"""D3PO by hand: rounds of the app's Rounds tab, drawn by a LoRA that learns from the marks between them.

    STORE.collect/rounds/SESSION/round-N/samples.jsonl, images/, trajectories/    what was drawn, and by which paths
                                 round-N/marks-KEY.db, learned-KEY/               a run of `train` on it, with adapter/

KEY follows from the marks of all rounds up to N: what is learned is a function of what stands in the tab. Marks that
are changed later are learned anew, another way through the rounds has a LoRA of its own, and what is finished is used
again, so a session that was killed at any moment goes on to the same bits. In a round, liked images are better than
unmarked ones, and these than disliked ones. The reference is the bare model of `collect` in every round. Every stage
loads a copy of the model: the pipeline that other tabs draw with is not touched, only its turn at the device is taken.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visfeedback.plugins import InputError, split_reference
from visfeedback.types.records import Feedback, Sample, text_id

if TYPE_CHECKING:
    from visfeedback.app.rounds import Ask, Past
    from visfeedback.cli.collect_live import Painter
    from visfeedback.types.protocols import Progress

FAMILIES = ("sd",)
"""files of backbones/ whose paths have log-probabilities"""
WORLD: dict[str, Any] = {
    # Of configs/loops/human_d3po_shapes.toml. There 56 images of 8 prompts are learned at once; of 6 images of one
    # prompt, 4 gentler steps. "a blue square", two seeds, five rounds, the two darkest of six liked and the two
    # brightest disliked: 24 images of other seeds went from a mean brightness of .464 to .300 and .338, and those
    # right by the prompt from .50 to .46 and .38. The preset's lr 3e-3 in 8 steps broke pictures in the sixth round.
    "method": {"beta": 1.0, "clip": 0.2},
    # The model's own guidance, for people should see pictures as good as elsewhere in the app.
    "rollout": {"steps": 8, "times": (0.5, 1.0)},
    "optim": {"lr": 1e-3, "steps": 4},
    "lora": {
        "rank": 16, "targets": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
    },
}  # fmt: skip
OTHERS: dict[str, Any] = {
    # The authors', of configs/d3po/sd15.toml, but 10 times their learning rate: they had thousands of images, a person
    # has tens (not measured; strength .05 is theirs). Only high noise, where it is decided what a picture shows.
    "method": {"beta": 0.1, "clip": 0.1},
    "rollout": {"steps": 20, "guidance": 5.0, "times": (0.5, 1.0), "micro_batch": 4},
    "optim": {"lr": 3e-4, "steps": 4},
    "lora": {"rank": 4},
    "engine": {"gradient_checkpointing": True},  # the app's own copy of the model is in memory, too
}


class D3PORounds:
    """Satisfies `app.rounds.Engine`: learns from the marks of each round, then draws the next one with what it has
    learned."""

    title = "D3PO: learns between rounds"

    def __init__(self, painter: Painter) -> None:
        """Raises InputError for a model whose family has no log-probabilities of its steps."""
        family = painter._loaded.family
        if family not in FAMILIES:
            raise InputError(f"{painter.model} is of the family {family}; D3PO rounds need one of {FAMILIES}")
        self.painter = painter
        self.root = painter.store.image_folder.root.with_suffix(".collect") / "rounds"
        self.table = WORLD if split_reference(painter.model) else OTHERS

    def draw(self, ask: Ask, said: Callable[[str], None]) -> list[Sample]:
        from visfeedback.types.locks import only_writer

        folder = self.root / ask.session
        said("Waiting for a turn at the device.")
        with self.painter.device, only_writer(folder):
            adapter = self._learned(ask, folder, said)
            said(f"Drawing {ask.wish.images} images with {'what was learned' if adapter else 'the model as it is'}.")
            samples = self._drawn(ask, folder / f"round-{ask.number}", adapter)
        about = {"session": ask.session, "round": ask.number}
        self.painter.store.add_samples(
            [one.model_copy(update={"call": {**one.call, **about}}) for one in samples], folder / f"round-{ask.number}"
        )
        found = self.painter.store.samples_of([one.id for one in samples])
        return [found[ask.prompt.id, one.id] for one in samples]

    # learning

    def _learned(self, ask: Ask, folder: Path, said: Callable[[str], None]) -> str:
        """The LoRA after all rounds so far; empty while nothing is learned."""
        adapter = key = ""
        for past in ask.past:
            key = text_id(key, str(past.number), str(past.marks))[:12]
            if len(set(past.marks)) > 1 and ask.wish.strength > 0:  # else no image is better than another one
                adapter = self._after(ask, past, key, adapter, folder / f"round-{past.number}", said)
        return adapter

    def _after(
        self, ask: Ask, past: Past, key: str, adapter: str, folder: Path, said: Callable[[str], None]
    ) -> str:  # fmt: skip
        """The LoRA after one round, which began with ``adapter``."""
        from visfeedback.training.fit import fit
        from visfeedback.training.run import Run

        run, address = Run(folder / f"learned-{key}"), f"sqlite:///{folder / f'marks-{key}.db'}"
        if not run.summary.is_file():
            self._check(past, folder)
            _write_marks(ask, past, address)
            fit(self._training(ask, past, adapter, folder, address), run.root, resume=True, progress=_told(past, said))
        return str(run.adapter)

    def _check(self, past: Past, folder: Path) -> None:
        """Raises InputError unless the paths of a round are there, and of this model."""
        listed = _listed(folder)
        if {one.id for one in listed} != {one.id for one in past.samples}:
            raise InputError(f"the paths of round {past.number + 1} are not in {folder}; begin a new session")
        before, now = (listed[0].model, listed[0].revision), (self.painter.model, self.painter._loaded.revision)
        if before != now:
            raise InputError(
                f"round {past.number + 1} was drawn with {'@'.join(before)}, and this is {'@'.join(now)}; "
                f"start with: visfeedback collect --model {before[0]} --store URL, or begin a new session"
            )

    def _training(self, ask: Ask, past: Past, adapter: str, folder: Path, address: str) -> Any:
        """What `visfeedback train` would be told."""
        from visfeedback.config import merge
        from visfeedback.sampling.generate import derive_seed
        from visfeedback.training.settings import settings_for

        count, live, optim = len(past.samples), self.painter.live, self.table["optim"]
        return settings_for("d3po").model_validate(merge(self.table, {
            "model": {
                "id": self.painter.model, "adapter": adapter, "dtype": live.dtype,
                "reference": "bare" if adapter else "start",
            },
            "data": {"paths": str(folder), "store": address},
            "rollout": {"source": "stored", "per_prompt": count},
            "optim": {"lr": 2 * ask.wish.strength * optim["lr"], "batch_size": count},
            "engine": {
                **self._device(), "seed": derive_seed(ask.wish.seed, "learned", past.number), "checkpoint_every": 1,
                "drift_every": 0,
            },
            "eval": {"count": 0},
        }))  # fmt: skip

    def _device(self) -> dict[str, str]:
        """As the app draws; gradients in fp16 are lost unless the loss is scaled, which mixed precision does."""
        live = self.painter.live
        return {"device": live.device, "mixed_precision": "fp16" if live.dtype == "fp16" else "no"}

    # drawing

    def _drawn(self, ask: Ask, folder: Path, adapter: str) -> list[Sample]:
        """Images and their paths. A round that nobody was shown is drawn again where other marks led to it."""
        from visfeedback.backbones.load import load
        from visfeedback.loops._path_drawing import Artist, draw_groups
        from visfeedback.sampling.generate import derive_seed
        from visfeedback.training.openers import walk_of
        from visfeedback.training.settings_online import Rollout

        painter, rollout = self.painter, Rollout(**self.table["rollout"])
        if [(adapter, painter.model)] * ask.wish.images != [(one.adapter, one.model) for one in _listed(folder)]:
            shutil.rmtree(folder, ignore_errors=True)
        backbone = load(painter.model, adapter=adapter, dtype=painter.live.dtype, device=painter.live.device)  # type: ignore[arg-type]
        autocast = self._autocast(folder)
        artist = Artist(backbone, walk_of(rollout, backbone), adapter, rollout.micro_batch, autocast=autocast)
        seed = derive_seed(ask.wish.seed, "round", ask.number)
        return draw_groups(artist, [ask.prompt], ask.wish.images, seed, folder, lambda count: None)

    def _autocast(self, folder: Path) -> Callable[[], AbstractContextManager[Any]]:
        """Around the network's calls, as the training has it."""
        from visfeedback.training.run import Run
        from visfeedback.training.settings import Engine
        from visfeedback.training.setup import make_accelerator

        engine = Engine.model_validate(self._device())
        if engine.mixed_precision == "no":
            return nullcontext
        accelerator = make_accelerator(engine, Run(folder))
        return lambda: accelerator.autocast()


def _listed(folder: Path) -> list[Sample]:
    """What was drawn into a folder; empty when nothing was, or not to the end."""
    from visfeedback.sampling.samples import SAMPLES
    from visfeedback.types.files import read_jsonl

    return list(read_jsonl(folder / SAMPLES, Sample)) if (folder / SAMPLES).is_file() else []


def _write_marks(ask: Ask, past: Past, address: str) -> None:
    """One rating of all images of a round, in a store of its own: the app's store knows nothing of unmarked images, and
    has what others say of the same ones."""
    from visfeedback import store

    marks = Feedback(
        id=f"round-{past.number}", kind="rating", judge=f"human:{ask.session}", prompt_id=ask.prompt.id,
        sample_ids=tuple(one.id for one in past.samples), values=tuple(map(float, past.marks)),
    )  # fmt: skip
    with closing(store.open(address)) as opened:
        opened.add_feedback([marks])


def _told(past: Past, said: Callable[[str], None]) -> Progress:
    """A training's progress in the words of the tab."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            said(f"Learning from the marks of round {past.number + 1}: step {done} of {total}.")

        yield advance

    return progress
