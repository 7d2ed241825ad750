"""Wrong input is one line that says what to do, and the pipeline is left as it was found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import make

import visfeedback as vf
from visfeedback.plugins import InputError
from visfeedback.sampling.fabric.references import read_reference, rgb
from visfeedback.sampling.fabric.schedule import capped, strength_at
from visfeedback.sampling.fabric.settings import FabricSettings, settings_of

WRONG = [
    ({"strength": 1.5}, "strength = 1.5"),
    ({"strength": -0.1}, "strength"),
    ({"strength": math.nan}, "strength"),
    ({"window": (0.8, 0.2)}, "0 <= start <= end <= 1"),
    ({"window": (0, 2)}, "window"),
    ({"window": 3}, "window"),
    ({"floor": 0.9}, "above strength"),
    ({"cap": 0}, "cap"),
    ({"stride": 0}, "stride"),
    ({"bits": 4}, "bits"),
    ({"layers": ()}, "layers"),
    ({"strenght": 1}, "did you mean 'strength'"),
    ({"liked": ["nowhere.png"]}, "no reference image nowhere.png"),
    ({"liked": ["https://example.org/a.png"]}, "allow_urls=True"),
    ({"liked": [3]}, "expected a path"),
    ({"liked": 3}, "expected paths"),
    ({"liked": [(Image.new("RGB", (8, 8)), -1)]}, "weight -1"),
    ({"disliked": [(Image.new("RGB", (8, 8)), math.inf)]}, "weight inf"),
    ({"liked": Image.new("RGB", (0, 5))}, "0 x 5 px"),
    ({"liked": Image.new("La", (8, 8))}, "mode La"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_one_line(options: dict[str, Any], words: str, tiny: Any) -> None:
    with pytest.raises(InputError) as error:
        vf.fabric(tiny("sd"), **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_layer_that_is_not_there(tiny: Any) -> None:
    pipe = tiny("sd")
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(InputError, match="mid_blok") as error, vf.fabric(pipe, layers=("mid_blok*",)):
        pass
    assert "did you mean 'mid_block*'" in str(error.value)
    assert dict(pipe.unet.attn_processors) == before


def test_a_file_that_is_no_image(tmp_path: Any, tiny: Any) -> None:
    (tmp_path / "a.png").write_text("hello")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match="no image that can be read"):
            vf.fabric(tiny("sd"), liked=[tmp_path / name])


def test_other_peoples_processors_and_networks_are_named(photo: Any) -> None:
    class Odd:
        def __call__(self, *_: Any) -> None: ...

    pipe = make("sd")
    usual = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    good = usual.processor
    usual.set_processor(Odd())
    with pytest.raises(InputError, match="attention processor Odd"), vf.fabric(pipe):
        pass
    usual.set_processor(good)
    cross = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    cross.set_processor(type("IPAdapterAttnProcessor", (), {"__call__": lambda *_: None})())
    with pytest.raises(InputError, match="unload_ip_adapter"), vf.fabric(pipe):
        pass
    assert usual.processor is good
    pipe = make("sd")
    pipe.fuse_qkv_projections()
    with pytest.raises(InputError, match="unfuse_qkv_projections"), vf.fabric(pipe):
        pass
    pipe.register_modules(unet=torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"attention of Linear in StableDiffusionPipeline.*family=module"):
        vf.fabric(pipe)


def test_three_branches_are_refused() -> None:
    class Perturbed:
        do_perturbed_attention_guidance = True

    with pytest.raises(InputError, match="three branches"):
        vf.fabric(Perturbed())


def test_a_pipeline_that_does_not_say_whether_it_guides(tiny: Any, draw: Any, photo: Any) -> None:
    """Then the order of the branches is asked for; and given, it works."""

    class Silent:
        def __init__(self, pipe: Any) -> None:
            self.components, self.scheduler, self.unet, self.vae = pipe.components, pipe.scheduler, pipe.unet, pipe.vae
            self.vae_scale_factor, self.device, self.text_encoder = (
                pipe.vae_scale_factor,
                pipe.device,
                pipe.text_encoder,
            )
            self.encode_prompt = pipe.encode_prompt

    pipe = tiny("sd")
    plain = draw(pipe)
    with pytest.raises(InputError, match="branches='negative-first'"), vf.fabric(Silent(pipe), liked=[photo(1)]):
        draw(pipe)
    assert torch.equal(draw(pipe), plain)
    with vf.fabric(Silent(pipe), liked=[photo(1)], branches="negative-first"):
        silent = draw(pipe)
    with vf.fabric(pipe, liked=[photo(1)]):
        assert torch.equal(draw(pipe), silent)


def test_without_a_text_encoder_the_call_lends_its_text(photo: Any) -> None:
    pipe = make("flux")
    states, pooled, _ = pipe.encode_prompt("a dog", None, max_sequence_length=16)
    pipe.text_encoder = pipe.text_encoder_2 = None
    call = {"prompt_embeds": states, "pooled_prompt_embeds": pooled, "height": 16, "width": 16,
            "num_inference_steps": 2, "output_type": "latent"}  # fmt: skip
    with pytest.raises(InputError, match="prompt=None"), vf.fabric(pipe, liked=[photo(1)]):
        pipe(**call)
    with vf.fabric(pipe, liked=[photo(1)], prompt=None) as session:
        pipe(**call)
    assert session.passes == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode: str, photo: Any) -> None:
    image = Image.new("I;16", (5, 3), 65535) if mode == "I;16" else photo(0, (5, 3)).convert(mode)
    assert (rgb(image).mode, rgb(image).size) == ("RGB", (5, 3))


def test_transparency_lies_on_white_and_16_bits_keep_their_brightness() -> None:
    assert rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert rgb(Image.new("I;16", (1, 1), 32896)).getpixel((0, 0)) == (128, 128, 128)
    assert rgb(Image.new("I", (1, 1), 32896)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(("mode", "value"), [("I", 200), ("F", 200.0), ("F", 200 / 255)])
def test_whole_and_floating_numbers_keep_their_brightness(mode: str, value: float) -> None:
    assert rgb(Image.new(mode, (2, 1), value)).getpixel((1, 0)) == (200, 200, 200)


def test_floating_numbers_beyond_their_range_are_cut() -> None:
    """What resizing overshoots, and numbers that are none, make a picture no darker."""
    values = np.array([[0.0, 0.5, 1.1, np.inf, np.nan]], dtype=np.float32)
    assert [rgb(Image.fromarray(values)).getpixel((x, 0))[0] for x in range(5)] == [0, 128, 255, 255, 0]


def test_a_weight_may_be_any_real_number(photo: Any) -> None:
    """float32 of numpy is no float of Python; scores of rewards are often that."""
    assert read_reference((photo(1), np.float32(0.5))).weight == 0.5


def test_equal_pixels_are_one_reference(photo: Any, tmp_path: Any) -> None:
    photo(1).save(tmp_path / "a.png")
    photo(1).save(tmp_path / "b.bmp")
    ids = {read_reference(source).id for source in (photo(1), tmp_path / "a.png", str(tmp_path / "b.bmp"))}
    assert len(ids) == 1


def test_the_box_is_that_of_the_released_code() -> None:
    """T = 20, end = .8: steps 0 ... 16, both ends included, 17 steps; the floor elsewhere."""
    settings = FabricSettings(strength=0.3, window=(0.0, 0.8), floor=0.1)
    values = [strength_at(i, 20, settings) for i in range(20)]
    assert values == [0.3] * 17 + [0.1] * 3
    assert [strength_at(i, 20, FabricSettings(strength=0.0)) for i in (0, 19)] == [0, 0]


def test_smooth_schedules_stay_between_floor_and_strength() -> None:
    """fade: 1 at the first step of the window, half-way down in its middle, the floor at its last; bump: sin^2 of 1/6,
    2/6 ... of pi: up, down, and with one step the whole strength."""
    fade = FabricSettings(strength=0.8, window=(0.0, 1.0), schedule="fade")
    assert [round(strength_at(i, 5, fade), 6) for i in range(5)] == [0.8, 0.682843, 0.4, 0.117157, 0.0]
    bump = settings_of({"strength": 0.8, "window": (0.0, 1.0), "schedule": "bump"})
    assert [round(strength_at(i, 5, bump), 6) for i in range(5)] == [0.2, 0.6, 0.8, 0.6, 0.2]
    assert strength_at(0, 1, fade) == strength_at(0, 1, bump) == 0.8


def test_the_cap_shares_what_it_allows() -> None:
    assert capped([0.5, 0.25], 1.0) == [0.5, 0.25]
    assert capped([1.0, 3.0], 2.0) == [0.5, 1.5]
    assert capped([1.0, 3.0], None) == [1.0, 3.0]


def test_references_put_into_the_lists_by_hand(tiny: Any, draw: Any, photo: Any) -> None:
    """As the session says: the lists may be changed; weights in every way of saying them."""
    pipe = tiny("sd")
    with vf.fabric(pipe, liked=[(photo(1), 0.5)]) as session:
        expected = draw(pipe)
        session.liked[:] = [(photo(1), 0.5)]
        assert torch.equal(draw(pipe), expected)
        session.liked.clear()
        session.like((photo(1), 0.5))
        assert torch.equal(draw(pipe), expected)
        session.liked.append(3)
        with pytest.raises(InputError, match="a reference is int"):
            draw(pipe)


def test_processors_changed_inside_the_block(tiny: Any, draw: Any, photo: Any) -> None:
    pipe = make("sd")
    with pytest.raises(InputError, match="changed inside the fabric block"), vf.fabric(pipe, liked=[photo(1)]):
        pipe.enable_attention_slicing()
        draw(pipe)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"generator": [torch.Generator()]}, "generator is list; expected one"),
        ({"family": 3}, "family is int; expected a module"),
        ({"window": (0,)}, "window = .*; expected two numbers"),
        ({"window": 0.5}, "window = 0.5; expected two numbers"),
        ({"liked": ""}, "a reference has no name"),
    ],
)
def test_knobs_of_the_wrong_kind_are_one_line(knobs: dict[str, Any], words: str, tiny: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        vf.fabric(tiny("sd"), **knobs)
    assert "\n" not in str(caught.value)


def test_one_layer_name_is_a_list_of_one() -> None:
    assert settings_of({"layers": "mid_block*"}).layers == ("mid_block*",)
