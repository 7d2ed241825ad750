"""The with-block on whole pipelines of every family: what it changes, what it leaves, what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from tiny_pipelines import make, vae

import visfeedback as vf
from visfeedback.plugins import InputError

FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def processors(pipe: Any) -> dict[str, Any]:
    part = getattr(pipe, "unet", None) or pipe.transformer
    return dict(part.attn_processors)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_change_inside_and_nothing_is_left_outside(family: str, tiny: Any, draw: Any, photo: Any) -> None:
    """Bit for bit: the plain pipeline before, after, with strength 0, and without images."""
    pipe = tiny(family)
    before, plain = processors(pipe), draw(pipe)
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)], strength=0.8) as session:
        steered = draw(pipe)
    assert (steered - plain).abs().max() > 1e-3
    assert session.passes > 0
    for options in ({"liked": [photo(1)], "strength": 0.0}, {}, {"liked": [(photo(1), 0)]}):
        with vf.fabric(pipe, **options) as session:
            assert torch.equal(draw(pipe), plain)
        assert session.passes == 0
    assert torch.equal(draw(pipe), plain)
    after = processors(pipe)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pipeline_is_whole_after_an_exception(family: str, tiny: Any, draw: Any, photo: Any) -> None:
    pipe = tiny(family)
    part = getattr(pipe, "unet", None) or pipe.transformer
    before, plain = processors(pipe), draw(pipe)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), vf.fabric(pipe, liked=[photo(1)]):
        draw(pipe, callback_on_step_end=stop)
    assert processors(pipe) == before
    assert not part._forward_pre_hooks
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_is_uncached(family: str, tiny: Any, draw: Any, photo: Any) -> None:
    """Bit for bit at the same batch shape of references; within 1e-5 when a round added one of them later."""
    pipe, options = tiny(family), {"disliked": [photo(2)], "strength": 0.8}
    with vf.fabric(pipe, liked=[photo(1), photo(3)], **options, keep="nothing") as session:
        uncached = draw(pipe)
        once = session.passes
        assert torch.equal(draw(pipe), uncached)
        assert session.passes == 2 * once
    with vf.fabric(pipe, liked=[photo(1), photo(3)], **options) as session:
        assert torch.equal(draw(pipe), uncached)
        assert torch.equal(draw(pipe), uncached)
        assert session.passes == once
    with vf.fabric(pipe, liked=[photo(1)], **options) as session:
        draw(pipe)
        session.like(photo(3))
        assert (draw(pipe) - uncached).abs().max() <= 1e-5 * uncached.abs().max()
        assert session.passes == once


CONDITIONS = {
    "flux": [{"guidance_scale": 1.0}, {"guidance_scale": 9.0}],
    "sdxl": [{}, {"original_size": (512, 512), "crops_coords_top_left": (256, 0)}],
}


@pytest.mark.parametrize("family", CONDITIONS)
def test_references_follow_the_conditions_of_the_call(family: str, tiny: Any, draw: Any, photo: Any) -> None:
    """Guidance of FLUX and the sizes of SDXL go into a reference's pass: other ones need other passes."""
    pipe, (first, second) = tiny(family), CONDITIONS[family]
    with vf.fabric(pipe, liked=[photo(1)]) as session:
        expected = draw(pipe, **second)
        once = session.passes
    with vf.fabric(pipe, liked=[photo(1)]) as session:
        draw(pipe, **first)
        assert torch.equal(draw(pipe, **second), expected)
        assert session.passes == 2 * once
        draw(pipe, **first)
        assert session.passes == 2 * once


def scaled_in_place(pipe: Any) -> None:
    for parameter in pipe.unet.parameters():
        parameter.data.mul_(1.3)


def fused(pipe: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False), "mine")
    pipe.fuse_lora(adapter_names=["mine"])
    pipe.unload_lora_weights()


def another_vae(pipe: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        pipe.vae = vae().eval()


def another_table(pipe: Any) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_schedule="linear", beta_end=0.02)


def rounded(pipe: Any) -> None:
    pipe.unet.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("change", [scaled_in_place, fused, another_vae, another_table, rounded])
def test_what_is_kept_belongs_to_weights_vae_and_table(change: Any, draw: Any, photo: Any) -> None:
    """An average of weights is put in place, a LoRA fused and forgotten, ...: what was kept before serves no more."""
    pipe = make("sd")
    with vf.fabric(pipe, liked=[photo(1)], strength=0.8) as session:
        before = draw(pipe)
        change(pipe)
        after = draw(pipe)
        assert session.passes == 6
    assert not torch.equal(before, after)
    with vf.fabric(pipe, liked=[photo(1)], strength=0.8):
        assert torch.equal(draw(pipe), after)


def test_kept_passes_serve_other_prompts_seeds_batches_and_entries(tiny: Any, draw: Any, photo: Any) -> None:
    """3 steps, the window of 0.8 covers rounds 0 ... 2: three passes for each of two references, whatever follows."""
    pipe = tiny("sd")
    session = vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)])
    with session:
        draw(pipe)
        assert session.passes == 6
        draw(pipe, "two cups", seed=9, num_images_per_prompt=2)
    with session:
        draw(pipe, ["a cat", "a dog"])
    assert session.passes == 6


def test_a_prompt_of_a_batch_does_not_matter_to_the_others(tiny: Any, draw: Any, photo: Any) -> None:
    pipe = tiny("sdxl")
    with vf.fabric(pipe, liked=[photo(1)], disliked=[photo(2)]):
        together = draw(pipe, ["a cat", "a dog"])
        alone = torch.cat([draw(pipe, "a cat"), draw(pipe, "a dog", seed=1)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_likes_act_in_the_positive_and_dislikes_in_the_negative_branch(tiny: Any, photo: Any) -> None:
    """The rows of a batch are [negative, positive]: each reference changes its own half alone."""
    pipe, halves = tiny("sd"), []
    for images in ({}, {"liked": [photo(1)]}, {"disliked": [photo(1)]}):
        with vf.fabric(pipe, strength=0.8, **images):
            seen = pipe.unet.register_forward_hook(lambda module, args, out: halves.append(out[0]))
            try:
                pipe("a dog", num_inference_steps=1, height=16, width=16, output_type="latent",
                     generator=torch.Generator().manual_seed(0))  # fmt: skip
            finally:
                seen.remove()
    plain, likes, dislikes = [half for half in halves if len(half) == 2]
    changed = [[float((half[row] - plain[row]).abs().max()) > 1e-4 for row in (0, 1)] for half in (likes, dislikes)]
    assert changed == [[False, True], [True, False]]


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_without_guidance_dislikes_act_inside_attention(family: str, tiny: Any, draw: Any, photo: Any) -> None:
    pipe = tiny(family)
    plain = draw(pipe, guidance_scale=1.0)
    with vf.fabric(pipe, disliked=[photo(1)]):
        auto = draw(pipe, guidance_scale=1.0)
    with vf.fabric(pipe, disliked=[photo(1)], dislikes="attention"):
        assert torch.equal(draw(pipe, guidance_scale=1.0), auto)
    with vf.fabric(pipe, disliked=[photo(1)], dislikes="branch"):
        assert torch.equal(draw(pipe, guidance_scale=1.0), plain)
    assert (auto - plain).abs().max() > 1e-4


def test_flux_finds_its_negative_pass(tiny: Any, draw: Any, photo: Any) -> None:
    """With true CFG: a pass of the reference for each of 3 steps, all in the negative call. Without: the first step
    of a call cannot know, the others push inside attention; and a new call starts anew."""
    pipe = tiny("flux")
    true = {"negative_prompt": "blurry", "true_cfg_scale": 3.0}
    plain, guided = draw(pipe), draw(pipe, **true)
    with vf.fabric(pipe, disliked=[photo(1)], dislikes="branch") as session:
        assert torch.equal(draw(pipe), plain)
        assert session.passes == 0
        steered = draw(pipe, **true)
        assert session.passes == 3
    assert (steered - guided).abs().max() > 1e-4
    with vf.fabric(pipe, disliked=[photo(1)]) as session:
        assert torch.equal(draw(pipe, **true), steered)
        assert session.passes == 3
    with vf.fabric(pipe, disliked=[photo(1)]) as session:
        pushed = draw(pipe)
        assert session.passes == 2
        assert torch.equal(draw(pipe), pushed)
        draw(pipe, num_inference_steps=1)
        draw(pipe, num_inference_steps=1)
        assert session.passes == 2
    assert (pushed - plain).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_are_not_square_and_references_of_another_shape(family: str, tiny: Any, draw: Any, photo: Any
                                                                   ) -> None:  # fmt: skip
    pipe = tiny(family)
    size = {"height": 16, "width": 24}
    with vf.fabric(pipe, liked=[photo(1, (40, 10)), photo(2, (7, 90), "RGBA")], reference_scale=0.5) as session:
        small = draw(pipe, **size)
    with vf.fabric(pipe, liked=[photo(1, (40, 10)), photo(2, (7, 90), "RGBA")]) as whole:
        large = draw(pipe, **size)
    assert small.shape == large.shape
    assert 3.5 <= whole.bank.bytes / session.bank.bytes <= 6
    assert torch.isfinite(small).all()


CHOICES = [
    {"stride": 2},
    {"bits": 8},
    {"keep": "cpu"},
    {"layers": ("up_blocks*",)},
    {"noise": "fixed"},
    {"prompt": "a photo"},
    {"prompt": None},
    {"seed": 1},
]


@pytest.mark.parametrize("option", CHOICES, ids=lambda option: next(iter(option)))
def test_each_choice_draws_and_what_it_may_change(option: dict[str, Any], tiny: Any, draw: Any, photo: Any) -> None:
    """Waiting on the CPU is exact; 8 bits are close; the others are another, finite picture, the same each time."""
    pipe, images = tiny("sd"), {"liked": [photo(1)], "disliked": [photo(2)]}
    with vf.fabric(pipe, **images) as plain:
        full = draw(pipe)
    with vf.fabric(pipe, **images, **option) as session:
        once, twice = draw(pipe), draw(pipe)
    assert torch.equal(once, twice)
    difference = (once - full).abs().max()
    if option == {"keep": "cpu"}:
        assert difference == 0
    elif option == {"bits": 8}:
        assert 0 < difference < 0.1
        assert session.bank.bytes < 0.4 * plain.bank.bytes
    else:
        assert difference > 1e-5
    assert session.passes == (4 if option == {"stride": 2} else 6)


def test_the_reference_text_none_belongs_to_the_prompt(tiny: Any, draw: Any, photo: Any) -> None:
    pipe = tiny("sd")
    with vf.fabric(pipe, liked=[photo(1)], prompt=None) as session:
        draw(pipe, "a dog")
        draw(pipe, "a dog", seed=3)
        assert session.passes == 3
        draw(pipe, "a cat")
        assert session.passes == 6


def test_the_reference_text_none_is_the_prompt_in_the_negative_call_too(tiny: Any, draw: Any, photo: Any) -> None:
    """FLUX with true CFG shows the negative text alone; the references are still seen with the prompt."""
    pipe, true = tiny("flux"), {"true_cfg_scale": 3.0}
    with vf.fabric(pipe, disliked=[photo(1)], dislikes="branch", prompt=None) as session:
        draw(pipe, "a dog", negative_prompt="blurry", **true)
        draw(pipe, "a dog", negative_prompt="a cat", **true)
        assert session.passes == 3
        draw(pipe, "a cat", negative_prompt="blurry", **true)
        assert session.passes == 6


def test_weights_that_go_on_changing_fill_no_memory(tiny: Any, draw: Any, photo: Any) -> None:
    """Without a budget: what the last 8 states of the network left stays, as two adapters in turn would want it."""
    pipe = make("sd")
    with vf.fabric(pipe, liked=[photo(1)]) as session:
        for _ in range(10):
            draw(pipe)
            with torch.no_grad():
                pipe.unet.conv_in.bias.mul_(0.99)
        assert session.passes == 30
        assert len(session.bank) == 24
    with vf.fabric(pipe, liked=[photo(1)], prompt=None) as session:
        for _ in range(2):
            for number in range(10):  # texts are no states of the network
                draw(pipe, f"{number} dogs", num_inference_steps=1)
        assert session.passes == 10


def test_a_small_budget_changes_nothing_but_time(tiny: Any, draw: Any, photo: Any) -> None:
    """50 references: what does not fit is computed at each step, and one warning says so."""
    pipe, many = tiny("sd"), [photo(i) for i in range(50)]
    with vf.fabric(pipe, liked=many) as roomy:
        expected = draw(pipe)
    with pytest.warns(UserWarning, match="budget_mib") as said, vf.fabric(pipe, liked=many, budget_mib=1) as session:
        assert torch.equal(draw(pipe), expected)
        assert session.bank.bytes <= 2**20
        draw(pipe)
    assert len(said) == 1
    assert roomy.passes == 150 < session.passes


def test_stale_references_make_room(tiny: Any, draw: Any, photo: Any) -> None:
    """A budget of one reference: the second round's image takes the place of the first's."""
    pipe = tiny("sd")
    with vf.fabric(pipe, liked=[photo(1)]) as session:
        draw(pipe)
        size = session.bank.bytes / 2**20
    with vf.fabric(pipe, liked=[photo(1)], budget_mib=size) as session:
        draw(pipe)
        session.liked.clear()
        session.like(photo(2))
        draw(pipe)
        draw(pipe)
        assert session.passes == 6
        assert len(session.bank) == 3


def test_what_the_call_has_no_use_for_makes_room(draw: Any, photo: Any) -> None:
    """A budget of one reference at 3 steps: other weights, another size and other steps take the place in turn. The
    last of 2 steps, t = 1, is also the last of 3."""
    pipe = make("sd")
    with vf.fabric(pipe, liked=[photo(1)]) as session:
        draw(pipe)
        size = session.bank.bytes / 2**20
    with vf.fabric(pipe, liked=[photo(1)], budget_mib=size) as session:
        draw(pipe)
        pipe.unet.conv_in.bias.data.add_(0.1)
        for expected, call in ((6, {}), (9, {"height": 8}), (10, {"height": 8, "num_inference_steps": 2})):
            draw(pipe, **call)
            draw(pipe, **call)
            assert session.passes == expected


def test_eight_bits_are_the_same_images_on_any_budget(tiny: Any, draw: Any, photo: Any) -> None:
    """What finds no room is rounded like what does."""
    pipe, drawn = tiny("sd"), []
    for way in ({}, {"keep": "nothing"}):
        with vf.fabric(pipe, liked=[photo(1)], bits=8, **way):
            drawn.append(draw(pipe))
    assert torch.equal(*drawn)


def test_a_weight_counts_like_more_of_the_image(tiny: Any, draw: Any, photo: Any) -> None:
    """The same image twice is the image with weight 2; a cap leaves of both what it allows."""
    pipe = tiny("sd")

    def drawn(*liked: Any, **options: Any) -> torch.Tensor:
        with vf.fabric(pipe, liked=list(liked), **options):
            return draw(pipe)

    free = {"strength": 0.3, "cap": None}
    assert torch.equal(drawn(photo(1), photo(1), **free), drawn((photo(1), 2), **free))
    assert torch.allclose(drawn((photo(1), 2), strength=1.0, cap=0.6), drawn(photo(1), strength=0.6), atol=1e-6)
    many = [photo(i) for i in range(8)]
    capped = drawn(*many, strength=0.8)
    assert torch.allclose(capped, drawn(*many, strength=0.125, cap=None), atol=1e-5)


def test_the_generator_decides_the_reference_noise(tiny: Any, draw: Any, photo: Any) -> None:
    pipe = tiny("sd")
    drawn = []
    for seed in (1, 1, 2):
        with vf.fabric(pipe, liked=[photo(1)], generator=torch.Generator().manual_seed(seed)):
            drawn.append(draw(pipe))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_block_inside_a_block_is_refused(tiny: Any, photo: Any) -> None:
    pipe = tiny("sd")
    with (
        vf.fabric(pipe, liked=[photo(1)]) as session,
        pytest.raises(InputError, match="a fabric block already"),
        vf.fabric(pipe, liked=[photo(2)]),
    ):
        pass
    with session:
        pass


def test_images_are_files_pictures_and_pairs(tiny: Any, photo: Any, tmp_path: Any) -> None:
    photo(1).save(tmp_path / "a.png")
    session = vf.fabric(tiny("sd"), liked=[tmp_path / "a.png", photo(1), (str(tmp_path / "a.png"), 0.5)])
    assert len({ref.id for ref in session.liked}) == 1
    assert [ref.weight for ref in session.liked] == [1, 1, 0.5]
    assert len(vf.fabric(tiny("sd"), liked=tmp_path / "a.png").liked) == 1
    assert isinstance(session.liked[0].image, Image.Image)
