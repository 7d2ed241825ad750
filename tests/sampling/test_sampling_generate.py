"""Images depend on their seeds alone, folders can be resumed, and nothing is mixed or listed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from visfeedback.backbones.load import Loaded, load, load_pipeline
from visfeedback.plugins import InputError
from visfeedback.sampling import generate as room
from visfeedback.sampling.crew import Crew
from visfeedback.sampling.generate import GenerateSettings, derive_seed, generate, plan, render
from visfeedback.sampling.samples import open_image, read_samples
from visfeedback.types.locks import only_writer
from visfeedback.types.records import Prompt, image_id

ROOT = Path(__file__).parents[2]

FAST = GenerateSettings(steps=2, batch_size=4)
TEXTS = ("a red dog", "two blue cups", "sky", "a green hat on a table")
PROMPTS = [Prompt.of(text, category="colors") for text in TEXTS]


@pytest.fixture(scope="module")
def loaded(tiny_sd: Path) -> Loaded:
    return load_pipeline(str(tiny_sd), device="cpu")


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.array(image) for image in images]).astype(int)


def test_seeds_are_fixed_for_ever() -> None:
    """sha256("0\\0abc\\0" + "1"), first 8 bytes, shifted to 53 bits: a changed rule would change every image."""
    import hashlib

    expected = int(hashlib.sha256(b"0\0abc\x001").hexdigest()[:16], 16) >> 11
    assert derive_seed(0, "abc", 1) == expected
    seeds = {derive_seed(s, p, k) for s in range(5) for p in ("a", "b") for k in range(50)}
    assert len(seeds) == 500
    assert max(seeds) < 2**53


def test_the_plan_goes_prompt_by_prompt_and_counts_a_prompt_once() -> None:
    jobs = plan([PROMPTS[0], PROMPTS[1], PROMPTS[0]], 2, seed=3)
    assert [(job.prompt.text, job.k) for job in jobs] == [(t, k) for t in TEXTS[:2] for k in (0, 1)]
    assert jobs[1].seed == derive_seed(3, PROMPTS[0].id, 1)
    for prompts, per_prompt in (([], 1), (PROMPTS, 0)):
        with pytest.raises(InputError, match="nothing to draw"):
            plan(prompts, per_prompt, 0)


def test_a_stock_call_makes_the_same_image(loaded: Loaded, tiny_sd: Path) -> None:
    """Alone bit for bit; out of a batch of four within 2/255."""
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.float32, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(11)
    expected = pixels(stock(TEXTS[0], generator=generator, num_inference_steps=3).images)
    settings = GenerateSettings(steps=3)
    assert np.array_equal(pixels(render(loaded.pipe, [TEXTS[0]], [11], settings=settings)), expected)
    batch = pixels(render(loaded.pipe, TEXTS, [11, 1, 2, 3], settings=settings))
    assert np.abs(batch[:1] - expected).max() <= 2


def test_neighbours_do_not_matter(loaded: Loaded) -> None:
    """One batch shape, another slot, other prompts and seeds beside it: the same bits. The images do differ."""
    one = pixels(render(loaded.pipe, TEXTS[:3], [5, 6, 7], settings=FAST))
    two = pixels(render(loaded.pipe, [TEXTS[3], TEXTS[3], TEXTS[0]], [8, 9, 5], settings=FAST))
    assert np.array_equal(one[0], two[2])
    assert np.abs(one[0] - one[1]).max() > 10
    assert np.abs(two[0] - two[1]).max() > 10  # same prompt, other seed


def test_a_stochastic_sampler_keeps_the_promise(loaded: Loaded) -> None:
    """Ancestral noise, too, comes from each image's own generator; the pipeline gets its scheduler back."""
    settings = GenerateSettings(steps=3, sampler="euler_a")
    one = pixels(render(loaded.pipe, TEXTS[:2], [5, 6], settings=settings))
    two = pixels(render(loaded.pipe, [TEXTS[3], TEXTS[0]], [9, 5], settings=settings))
    assert np.array_equal(one[0], two[1])
    assert type(loaded.pipe.scheduler).__name__ == "DDIMScheduler"
    assert not np.array_equal(one, pixels(render(loaded.pipe, TEXTS[:2], [5, 6], settings=FAST)))


def test_negative_prompts_size_and_guidance_are_passed_on(loaded: Loaded) -> None:
    plain = pixels(render(loaded.pipe, TEXTS[:2], [5, 6], settings=FAST))
    negative = pixels(render(loaded.pipe, TEXTS[:2], [5, 6], settings=FAST, negatives=["", "blurry"]))
    assert np.array_equal(plain[0], negative[0])
    assert not np.array_equal(plain[1], negative[1])
    large = GenerateSettings(steps=2, height=24, width=32)
    assert render(loaded.pipe, TEXTS[:1], [5], settings=large)[0].size == (32, 24)
    weak = GenerateSettings(steps=2, guidance=1.0)
    assert not np.array_equal(plain[0], pixels(render(loaded.pipe, TEXTS[:1], [5], settings=weak))[0])


def test_dropout_is_off_while_drawing(tiny_sd: Path) -> None:
    """A network in training would draw its dropout from the global generator: two calls would differ."""
    sd = load(str(tiny_sd), device="cpu")
    sd.add_lora(rank=2, dropout=0.5)
    for name, parameter in sd.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    sd.pipe.unet.train()
    one, two = (pixels(render(sd.pipe, TEXTS[:1], [5], settings=FAST)) for _ in range(2))
    assert np.array_equal(one, two)
    assert all(module.training for module in sd.pipe.unet.modules())


def test_what_is_left_out_comes_from_the_model(tiny_sd: Path, tmp_path: Path) -> None:
    """Without visfeedback.json: 20 steps and the pipeline's 7.5; with it: its values; flags win."""
    import shutil

    assert room.resolve(GenerateSettings(), load_pipeline(str(tiny_sd), device="cpu").pipe) == GenerateSettings(
        steps=20, guidance=7.5, sampler="DDIMScheduler"
    )
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "sd"))
    (folder / "visfeedback.json").write_text('{"steps": 7, "guidance": 2.5}')
    pipe = load_pipeline(str(folder), device="cpu").pipe
    own = room.resolve(GenerateSettings(), pipe)
    assert (own.steps, own.guidance) == (7, 2.5)
    assert room.resolve(GenerateSettings(steps=3, guidance=0.0), pipe).guidance == 0.0
    (folder / "visfeedback.json").write_text('{"steps": "many"}')
    with pytest.raises(InputError, match=r"visfeedback.json: expected"):
        room.resolve(GenerateSettings(), pipe)


def test_samples_say_how_to_make_them_again(loaded: Loaded, tmp_path: Path) -> None:
    made = generate(loaded, PROMPTS, 2, 7, tmp_path, FAST)
    assert made == read_samples(tmp_path) == read_samples(tmp_path / "samples.jsonl")
    assert [(s.prompt, s.seed) for s in made] == [(j.prompt.text, j.seed) for j in plan(PROMPTS, 2, 7)]
    sample = made[3]
    image = open_image(sample, tmp_path)
    assert sample.id == image_id(*image.size, image.tobytes())
    assert sample.path == f"images/{sample.prompt_id}-1.png"
    assert (sample.revision, sample.category, sample.guidance) == (loaded.revision, "colors", 7.5)
    again = render(
        loaded.pipe, [sample.prompt], [sample.seed or 0],
        settings=GenerateSettings(steps=sample.steps, guidance=sample.guidance, sampler=sample.sampler),
    )  # fmt: skip
    assert np.abs(pixels(again) - pixels([image])).max() <= 2


def test_what_is_there_is_kept(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 then 3 images of each prompt: only the third ones are drawn; a deleted image is drawn again, listed once."""
    first = generate(loaded, PROMPTS, 2, 7, tmp_path, FAST)
    drawn = count_drawn(monkeypatch)
    more = generate(loaded, PROMPTS, 3, 7, tmp_path, FAST)
    assert sum(drawn) == 4
    assert [s for s in more if s.path[-5] != "2"] == first
    (tmp_path / first[0].path).unlink()
    assert {s.path for s in generate(loaded, PROMPTS, 3, 7, tmp_path, FAST)} == {s.path for s in more}
    assert sum(drawn) == 5
    assert len(read_samples(tmp_path)) == 12


def count_drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    drawn: list[int] = []

    def counting(pipe: Any, prompts: Sequence[str], *rest: Any, **more: Any) -> list[Image.Image]:
        drawn.append(len(prompts))
        return render(pipe, prompts, *rest, **more)

    monkeypatch.setattr(room, "render", counting)
    return drawn


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third batch; the images of the second run are those of one run, bit for bit, and listed once."""
    whole = generate(loaded, PROMPTS, 4, 7, tmp_path / "whole", FAST)
    calls = 0

    def stopping(*args: Any, **more: Any) -> list[Image.Image]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return render(*args, **more)

    monkeypatch.setattr(room, "render", stopping)
    with pytest.raises(KeyboardInterrupt):
        generate(loaded, PROMPTS, 4, 7, tmp_path / "twice", FAST)
    assert len(read_samples(tmp_path / "twice")) == 8
    assert generate(loaded, PROMPTS, 4, 7, tmp_path / "twice", FAST) == whole


KILLED = """
import os, sys
from pathlib import Path
from visfeedback.backbones.load import load_pipeline
from visfeedback.sampling import generate as room
from visfeedback.types.records import Prompt
real = room.append_jsonl
def deadly(path, rows):
    real(path, rows[:2])
    with path.open("a") as file: file.write(rows[2].model_dump_json()[:40]); file.flush()
    os.kill(os.getpid(), 9)
room.append_jsonl = deadly
room.generate(load_pipeline(sys.argv[1], device="cpu"), [Prompt.of(t) for t in sys.argv[3:]], 1, 7, Path(sys.argv[2]),
              room.GenerateSettings(steps=2, batch_size=4))
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_a_line(loaded: Loaded, tiny_sd: Path, tmp_path: Path) -> None:
    """kill -9 after two lines and a torn third: the next run keeps two, draws two, lists four."""
    command = [sys.executable, "-c", KILLED, str(tiny_sd), str(tmp_path), *TEXTS]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    prompts = [Prompt.of(text) for text in TEXTS]
    made = generate(loaded, prompts, 1, 7, tmp_path, FAST)
    assert [s.prompt for s in made] == list(TEXTS)
    assert len(read_samples(tmp_path)) == 4
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_a_folder_has_one_writer(loaded: Loaded, tmp_path: Path) -> None:
    """Two processes that draw into one folder would list images twice; a finished folder can be read on."""
    with only_writer(tmp_path), pytest.raises(InputError, match="being written by another process"):
        generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)
    assert not list(tmp_path.glob("*"))
    whole = generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)
    assert not (tmp_path / ".lock").exists()
    assert generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST) == whole


def test_lists_of_processes_that_were_killed_are_joined(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 images process 1 has listed the last two, in its own order, when all are killed: a later run draws the two
    that are missing, and its list is that of one process."""
    whole = generate(loaded, PROMPTS, 1, 7, tmp_path, FAST)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / ".samples-of-process-1.jsonl").write_text(lines[3] + lines[2] + lines[1][:9])
    (tmp_path / "samples.jsonl").unlink()
    drawn = count_drawn(monkeypatch)
    assert generate(loaded, PROMPTS, 1, 7, tmp_path, FAST) == whole
    assert sum(drawn) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generate.json", "images", "samples.jsonl"]


class Deaf(Crew):
    """One of two processes that does not wait for the other."""

    def meet(self) -> None: ...

    def first(self, work: Callable[[], Any]) -> None:
        work()


def test_processes_divide_the_work(loaded: Loaded, tmp_path: Path) -> None:
    """Of 4 images each of two processes draws two others; alone it cannot answer for all."""
    found = []
    for rank in (0, 1):
        with pytest.raises(KeyError):
            generate(loaded, PROMPTS, 1, 7, tmp_path / str(rank), FAST, crew=Deaf(rank, 2))
        found.append({s.path for s in read_samples(tmp_path / str(rank))})
    assert [len(paths) for paths in found] == [2, 2]
    assert len(found[0] | found[1]) == 4


@pytest.mark.slow
def test_processes_of_a_launcher_draw_what_one_draws(tiny_sd: Path, tmp_path: Path) -> None:
    """4 prompts x 3 images by two processes: 12 rows, in the order and with the pictures (to 2/255) of one process.

    A mistake of the first process ends both, in a line.
    """
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    flags = ["--model", str(tiny_sd), "--prompts", str(tmp_path / "p.txt"), "--per-prompt", "3", "--steps", "2",
             "--batch-size", "2", "--device", "cpu", "--json"]  # fmt: skip
    script = [str(ROOT / "scripts/generate.py"), *flags]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]

    def launch(command: list[str], out: Path, *more: str) -> Any:
        return subprocess.run([*command, *script, "--out", str(out), *more], env=environment, capture_output=True,
                              text=True, timeout=250, check=False)  # fmt: skip

    two, one = launch(torchrun, tmp_path / "two"), launch([sys.executable], tmp_path / "one")
    assert two.returncode == one.returncode == 0, two.stderr
    assert json.loads(two.stdout)["images"] == json.loads(two.stdout)["made"] == 12
    rows = [read_samples(tmp_path / name) for name in ("two", "one")]
    assert [(s.path, s.seed) for s in rows[0]] == [(s.path, s.seed) for s in rows[1]]
    assert len(rows[0]) == 12
    for sample in rows[0]:
        a, b = (np.array(open_image(sample, tmp_path / name)).astype(int) for name in ("two", "one"))
        assert np.abs(a - b).max() <= 2
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["generate.json", "images", "samples.jsonl"]
    wrong = launch(torchrun, tmp_path / "two", "--seed", "9")
    assert wrong.returncode != 0
    assert "error: " in wrong.stderr
    assert "made with seed 0, now it is 9" in wrong.stderr


def test_a_folder_never_mixes(loaded: Loaded, make_tiny_sd: Callable[..., Path], tmp_path: Path) -> None:
    generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)
    other = load_pipeline(str(make_tiny_sd(seed=1)), device="cpu")
    cases: list[tuple[Any, int, GenerateSettings, str]] = [
        (loaded, 8, FAST, "made with seed 7, now it is 8"),
        (loaded, 7, GenerateSettings(steps=3), "steps 2, now it is 3"),
        (loaded, 7, GenerateSettings(steps=2, sampler="euler"), "sampler 'DDIMScheduler'"),
        (other, 7, FAST, "made with model"),
    ]
    for source, seed, settings, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            generate(source, PROMPTS[:1], 1, seed, tmp_path, settings)
        assert "\n" not in str(caught.value)
    (tmp_path / "generate.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)
    (tmp_path / "generate.json").unlink()
    with pytest.raises(InputError, match="something else"):
        generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)


def test_another_name_of_the_same_model_goes_on(loaded: Loaded, tiny_sd: Path, tmp_path: Path) -> None:
    """The revision says it is the same; batch size is no part of the recipe."""
    generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)
    renamed = Loaded(loaded.pipe, os.path.relpath(tiny_sd), loaded.revision, "", "sd")
    assert len(generate(renamed, PROMPTS[:2], 1, 7, tmp_path, GenerateSettings(steps=2, batch_size=1))) == 2


def test_the_adapter_belongs_to_the_recipe(tiny_sd: Path, tmp_path: Path) -> None:
    """Another LoRA under the same path is another model; the reference of a backbone says it has none."""
    sd = load(str(tiny_sd), device="cpu")
    sd.add_lora(rank=2)
    sd.save_adapter(tmp_path / "adapter")
    first = load(str(tiny_sd), adapter=str(tmp_path / "adapter"), device="cpu")
    with first.weights("reference"):
        [plain] = generate(first, PROMPTS[:1], 1, 7, tmp_path / "base", FAST)
    [tuned] = generate(first, PROMPTS[:1], 1, 7, tmp_path / "tuned", FAST)
    assert (plain.adapter, tuned.adapter) == ("", str(tmp_path / "adapter"))
    for parameter in sd.parameters():
        parameter.data += 0.1
    sd.save_adapter(tmp_path / "adapter")
    changed = load_pipeline(str(tiny_sd), adapter=str(tmp_path / "adapter"), device="cpu")
    with pytest.raises(InputError, match="adapter_revision"):
        generate(changed, PROMPTS[:1], 1, 7, tmp_path / "tuned", FAST)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_batch(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """8 do not fit, 4 do not, 2 do: 8 images in four batches, each image made once, and two warnings."""
    sizes: list[int] = []

    def small(pipe: Any, prompts: Sequence[str], *rest: Any, **more: Any) -> list[Image.Image]:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise error
        return render(pipe, prompts, *rest, **more)

    monkeypatch.setattr(room, "render", small)
    with pytest.warns(UserWarning, match="going on with [42]"):
        made = generate(loaded, PROMPTS, 2, 7, tmp_path, GenerateSettings(steps=1, batch_size=8))
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert len({s.path for s in made}) == 8


def test_no_memory_for_one_image(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **more: Any) -> list[Image.Image]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(room, "render", never)
    with pytest.raises(InputError, match="smaller --height"):
        generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)


def test_other_errors_are_not_taken_for_memory(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> list[Image.Image]:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(room, "render", broken)
    with pytest.raises(RuntimeError, match="do not match"):
        generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)


def test_a_full_disk_is_passed_up(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed whose image was not written."""

    def full(path: Path, content: bytes) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(room, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        generate(loaded, PROMPTS[:1], 1, 7, tmp_path, FAST)
    assert not (tmp_path / "samples.jsonl").exists()


def test_a_bare_pipeline_will_do(loaded: Loaded, tiny_sd: Path, tmp_path: Path) -> None:
    [sample] = generate(loaded.pipe, PROMPTS[:1], 1, 7, tmp_path, FAST)
    assert (sample.model, sample.revision, sample.adapter) == (str(tiny_sd), "", "")
    assert json.loads((tmp_path / "generate.json").read_text())["seed"] == 7


def test_unknown_samplers_and_half_sizes() -> None:
    with pytest.raises(ValueError, match="height and width together"):
        GenerateSettings(height=16)
    with pytest.raises(ValueError, match="multiple of 8"):
        GenerateSettings(height=20, width=20)
