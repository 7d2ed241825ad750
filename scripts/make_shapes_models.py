#!/usr/bin/env python
"""Train the models of the shapes world: ``python scripts/make_shapes_models.py vae|sd|clip|cards|all``.

Each stage trains from a seed, saves its whole state to ``--work`` every ``--save-every`` steps, and goes on from there
when it is started again. Without a state it starts from the shipped weights in visfeedback/shapes/models, unless
``--fresh``. At the end it writes half-precision weights and a card with measured accuracy into ``--out``.

  vae   AutoencoderKL, until the verifier reads its reconstructions
  sd    UNet and CLIP text encoder of a StableDiffusionPipeline, on latents of the VAE
  clip  a two-tower open_clip model, contrastive, with captions changed in one word as hard negatives
  cards measure the models that are in --out and write their cards
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from visfeedback.shapes import MODELS, grammar, renderer, verify

log = logging.getLogger("make_shapes_models")

LATENT_CHANNELS = 12
CONTEXT = 24  # tokens of a prompt, with start and end
TEXT_WIDTH = 64
DROPPED_CAPTIONS = 0.1  # empty captions teach the unconditional branch
GUIDANCE = 3.0
FORGETS = 0.7  # of the careless captions of two objects, how many forget one
TURNED = (("left of", "right of"), ("above", "below"), ("bigger than", "smaller than"), ("on the left", "on the right"),
          ("at the top", "at the bottom"), ("small", "big"))  # fmt: skip
OPPOSITES: dict[str | None, str] = {a: b for pair in TURNED for a, b in (pair, pair[::-1])}
STEPS = 20
LATE = 600  # of 1000: above this, noise hides where things are, and only the prompt can tell


# ------------------------------------------------------------------------------------------------------ the loop


@dataclass
class Stage:
    """What a training stage is made of; ``loss(step)`` draws its own batch."""

    name: str
    model: nn.Module
    loss: Callable[[int], Tensor]
    lr: float
    ema: float = 0.999
    half_on_cpu: bool = True  # bfloat16 does not pay for small matrices


def learning_rate(step: int, first: int, last: int, peak: float) -> float:
    """Warm up over 100 steps, stay, and fall linearly to 2% over the last 40% of this run."""
    warm = min(1.0, (step - first + 1) / 100)
    fall = min(1.0, (last - step) / (0.4 * (last - first)))
    return peak * warm * max(fall, 0.02)


def train(stage: Stage, args: argparse.Namespace) -> nn.Module:
    """Train to ``args.steps`` and return the model with its averaged weights; resumes from ``args.work``."""
    state_file = args.work / f"{stage.name}.pt"
    model = stage.model.to(args.device)
    average = {k: v.detach().clone().float() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    first, step = 0, 0
    if args.fresh:
        state_file.unlink(missing_ok=True)
    if state_file.exists():
        state = torch.load(state_file, map_location=args.device, weights_only=True)
        if state.get("seed", args.seed) != args.seed:
            raise SystemExit(f"error: {state_file} is of seed {state['seed']}; give --fresh or another --work")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, step = state["average"], state["first"], state["step"]
        if state["last"] != args.steps:  # a new goal is a new schedule
            first = step
        log.info("%s goes on at step %d", stage.name, step)
    started, losses = time.time(), []
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, first, args.steps, stage.lr)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device != "cpu" or stage.half_on_cpu):
            loss = stage.loss(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(stage.ema, (step - first + 1) / (step - first + 10))
        for key, value in model.state_dict().items():
            average[key].lerp_(value.float(), 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0:
            pace = (time.time() - started) / len(losses)
            log.info("%s step %d loss %.4f, %.3f s/step", stage.name, step, np.mean(losses[-50:]), pace)
        if step % args.save_every == 0 or step == args.steps:
            state = {"model": model.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            save_state({**state, "first": first, "step": step, "last": args.steps, "seed": args.seed}, state_file)
    model.load_state_dict({k: v.to(model.state_dict()[k].dtype) for k, v in average.items()})
    return model.eval()


def save_state(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


# -------------------------------------------------------------------------------------------------------- the data


def draw(seed: tuple[int, ...], count: int, split: str = "train") -> tuple[list[grammar.Spec], np.ndarray, np.ndarray]:
    """Specs, pictures (count, 64, 64, 3) uint8 and object masks (count, 64, 64), all categories equally often."""
    rng = np.random.default_rng(seed)
    specs, pictures, masks = [], np.empty((count, 64, 64, 3), np.uint8), np.empty((count, 64, 64), np.float32)
    for i in range(count):
        category = grammar.CATEGORIES[rng.integers(len(grammar.CATEGORIES))]
        choices = grammar.split_specs(category, split)
        spec = choices[rng.integers(len(choices))]
        scene = renderer.draw_scene(spec, rng)
        pictures[i], masks[i] = renderer.render(scene), renderer.object_mask(scene)
        specs.append(spec)
    return specs, pictures, masks


def to_tensor(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (B, 64, 64, 3) -> (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(pixels: Tensor) -> np.ndarray:
    pixels = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def caption(spec: grammar.Spec, rng: np.random.Generator, careless: float = 0.0) -> str:
    """What the scene shows; a share ``careless`` of captions says it as a careless writer would."""
    if careless and rng.random() < careless:
        spec = careless_writer(spec, rng)
    return grammar.write(spec, str(rng.choice(grammar.PREFIXES)))


def careless_writer(spec: grammar.Spec, rng: np.random.Generator) -> grammar.Spec:
    """The mistakes of web captions: most forget an object, others swap colours, turn a relation, a place or a size
    round, or count one more or less.

    A model that learnt from them knows what is right and has habits that keep it from doing so: what preferences mend.
    """
    wrong, first = [], spec.items[0]
    if len(spec.items) == 2 and rng.random() < FORGETS:
        return grammar.Spec("colors", (spec.items[rng.integers(2)],))
    if len(spec.items) == 2 and first.color != spec.items[1].color:
        second = spec.items[1]
        swapped = replace(first, color=second.color), replace(second, color=first.color)
        wrong.append(replace(spec, items=swapped))
    if spec.relation in OPPOSITES:
        wrong.append(replace(spec, relation=OPPOSITES[spec.relation]))
    if spec.place in OPPOSITES:
        wrong.append(replace(spec, place=OPPOSITES[spec.place]))
    if first.size in OPPOSITES:
        wrong.append(replace(spec, items=(replace(first, size=OPPOSITES[first.size]), *spec.items[1:])))
    if first.count > 1:
        count = 3 if first.count != 3 else int(rng.choice([2, 4]))
        wrong.append(replace(spec, items=(replace(first, count=count),)))
    return wrong[rng.integers(len(wrong))] if wrong else spec


def all_texts() -> Iterator[str]:
    for category in grammar.CATEGORIES:
        for spec in grammar.specs(category):
            yield from (grammar.write(spec, prefix) for prefix in grammar.PREFIXES)


# --------------------------------------------------------------------------------------------------- text encoding


def make_tokenizer() -> Any:
    """A CLIPTokenizer of under 1,000 entries: all bytes, and this world's words as one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    frame = CLIPTokenizer(vocab={"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = frame.normalizer, frame.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", special_tokens=[], show_progress=False)
    learner.train_from_iterator(sorted(set(all_texts())), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=CONTEXT)


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    return tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


# ------------------------------------------------------------------------------------------------------------- VAE


def new_vae() -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64), layers_per_block=1, mid_block_add_attention=False,
        norm_num_groups=2,  # many groups forget how the channels compare, and with it the flat colours
    )  # fmt: skip
    assert vae.quant_conv is not None and vae.quant_conv.bias is not None
    nn.init.zeros_(vae.quant_conv.weight[LATENT_CHANNELS:])
    nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -7.0)  # begin with a posterior of little noise
    return vae


def vae_stage(vae: Any, args: argparse.Namespace) -> Stage:
    def loss(step: int) -> Tensor:
        _, pictures, masks = draw((args.seed, 1, step), args.batch)
        x = to_tensor(pictures, args.device)
        # Objects are a tenth of the pixels and all of the meaning.
        weight = 1 + 4 * F.max_pool2d(torch.from_numpy(masks).to(args.device)[:, None], 3, 1, 1)
        posterior = vae.encode(x).latent_dist
        error = (vae.decode(posterior.sample()).sample - x).float()
        pixels = (weight * (error.abs() + error.square())).mean() / weight.mean()
        return pixels + F.avg_pool2d(error, 4).abs().mean() + 2e-6 * posterior.kl().mean()

    return Stage("vae", vae, loss, args.lr or 2e-3)


@torch.no_grad()
def reconstructions_read(vae: Any, count: int, device: str, seed: int = 7) -> float:
    """Share of held-out renders whose reconstruction the verifier reads fully right."""
    specs, pictures, _ = draw((seed, 99), count, "heldout")
    right = 0
    for at in range(0, count, 50):
        z = vae.encode(to_tensor(pictures[at : at + 50], device)).latent_dist.mean
        redrawn = to_pictures(vae.decode(z).sample)
        right += sum(verify.check(s, verify.detect(p)).right for s, p in zip(specs[at : at + 50], redrawn, strict=True))
    return right / count


@torch.no_grad()
def set_scale(vae: Any, device: str) -> None:
    """Latents times ``scaling_factor`` have a standard deviation of 1."""
    _, pictures, _ = draw((7, 98), 500)
    z = torch.cat([vae.encode(to_tensor(pictures[i : i + 50], device)).latent_dist.mean for i in range(0, 500, 50)])
    vae.register_to_config(scaling_factor=round(float(1 / z.std()), 4))


def load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, dtype=torch.float32)


def make_vae(args: argparse.Namespace) -> None:
    target = args.out / "sd" / "vae"
    vae = load_vae(target) if target.exists() and not args.fresh else new_vae()
    vae = train(vae_stage(vae, args), args)
    set_scale(vae, args.device)
    log.info("the verifier reads %.1f%% of the reconstructions", 100 * reconstructions_read(vae, 1000, args.device))
    vae.half().save_pretrained(target)


# -------------------------------------------------------------------------------------------------------------- SD


def new_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 128),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


def new_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    last = len(tokenizer) - 1
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT, bos_token_id=last - 1, eos_token_id=last,
        pad_token_id=last, projection_dim=TEXT_WIDTH,
    )  # fmt: skip
    return CLIPTextModel(config)


def new_scheduler() -> Any:
    from diffusers import DDIMScheduler

    # More noise at the end than Stable Diffusion's 0.012, or the mean colour shines through and the background comes
    # from the noise instead of the prompt; v, as in 2.1, because an eps loss hardly feels what is decided up there.
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.025, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing", prediction_type="v_prediction",
    )  # fmt: skip


@torch.no_grad()
def latents_of(vae: Any, count: int, args: argparse.Namespace) -> tuple[list[grammar.Spec], Tensor]:
    """Specs and scaled latents of fresh training scenes; kept in the work folder."""
    file = args.work / "latents.pt"
    made_from = {"count": count, "seed": args.seed, "scale": float(vae.config.scaling_factor)}
    if file.exists():
        kept = torch.load(file, weights_only=True)
        if kept.get("of") == made_from:
            return [grammar.read(text) for text in kept["texts"]], kept["latents"]
    specs, parts = [], []
    for chunk in range(count // 500):
        some, pictures, _ = draw((args.seed, 2, chunk), 500)
        specs += some
        for at in range(0, 500, 100):
            x = to_tensor(pictures[at : at + 100], args.device)
            parts.append((vae.encode(x).latent_dist.mean * vae.config.scaling_factor).cpu())
        if chunk % 10 == 0:
            log.info("encoded %d scenes", len(specs))
    texts = [grammar.write(spec) for spec in specs]
    save_state({"texts": texts, "latents": torch.cat(parts), "of": made_from}, file)
    return specs, torch.cat(parts)


def sd_stage(unet: Any, text_encoder: Any, tokenizer: Any, args: argparse.Namespace) -> Stage:
    specs, latents = latents_of(load_vae(args.out / "sd" / "vae").to(args.device), args.scenes, args)
    alphas = new_scheduler().alphas_cumprod.to(args.device)
    placed = [i for i, spec in enumerate(specs) if spec.place or spec.relation in grammar.SPATIAL]

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((args.seed, 3, step))
        rows = rng.integers(0, len(specs), args.batch)
        if args.places:  # of all words those of place are learnt last: so much of the picture says the same
            rows = np.where(rng.random(args.batch) < args.places, rng.choice(placed, args.batch), rows)
        texts = ["" if rng.random() < DROPPED_CAPTIONS else caption(specs[i], rng, args.careless) for i in rows]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        x0 = latents[torch.from_numpy(rows)]
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (args.batch,), generator=generator)
        if args.late:
            late = torch.rand(args.batch, generator=generator) < args.late
            t = torch.where(late, LATE + t * (1000 - LATE) // 1000, t)
        x0, eps, t = x0.to(args.device), eps.to(args.device), t.to(args.device)
        a = alphas[t].view(-1, 1, 1, 1)
        tokens = text_encoder(tokenize(tokenizer, texts).to(args.device))[0]
        v = a.sqrt() * eps - (1 - a).sqrt() * x0
        return F.mse_loss(unet(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, tokens).sample.float(), v)

    return Stage("sd", nn.ModuleDict({"unet": unet, "text": text_encoder}), loss, args.lr or 1e-3, half_on_cpu=False)


def make_pipeline(unet: Any, text_encoder: Any, tokenizer: Any, vae: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    for part in (unet, vae):
        part.register_to_config(_name_or_path="")  # where this machine keeps it is nobody's business
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def load_pipeline(folder: Path, device: str) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_sd(args: argparse.Namespace) -> None:
    folder = args.out / "sd"
    if (folder / "unet").exists() and not args.fresh:
        pipe = load_pipeline(folder, "cpu")
        unet, text_encoder, tokenizer = pipe.unet, pipe.text_encoder, pipe.tokenizer
    else:
        torch.manual_seed(args.seed)
        unet, tokenizer = new_unet(), make_tokenizer()
        text_encoder = new_text_encoder(tokenizer)
    train(sd_stage(unet, text_encoder, tokenizer, args), args)
    vae = load_vae(folder / "vae")
    make_pipeline(unet.half(), text_encoder.half(), tokenizer, vae.half()).save_pretrained(folder)
    words = folder / "text_encoder" / "config.json"  # transformers obeys its dtype, diffusers computes in fp32
    write_json(words, json.loads(words.read_text()) | {"dtype": "float32"})
    write_json(folder / "visfeedback.json", {"steps": STEPS, "guidance": GUIDANCE, "height": 64, "width": 64})


@torch.no_grad()
def drawn_right(pipe: Any, prompts: list[Any], steps: int, guidance: float, batch: int = 64) -> dict[str, list[bool]]:
    """Per category, whether each prompt came out fully right (one image a prompt, seed = its position)."""
    right: dict[str, list[bool]] = {}
    for at in range(0, len(prompts), batch):
        some = prompts[at : at + batch]
        generators = [torch.Generator("cpu").manual_seed(at + i) for i in range(len(some))]
        call = {"num_inference_steps": steps, "guidance_scale": guidance, "height": 64, "width": 64}
        images = pipe([p.text for p in some], generator=generators, **call).images
        for prompt, image in zip(some, images, strict=True):
            verdict = verify.check(grammar.read(prompt.text), verify.detect(image))
            right.setdefault(prompt.category, []).append(verdict.right)
    return right


# ------------------------------------------------------------------------------------------------------------ CLIP

CLIP_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32, "mlp_ratio": 2.0},
    "text_cfg": {
        "context_length": CONTEXT, "width": 96, "heads": 4, "layers": 3, "mlp_ratio": 2.0,
        "hf_tokenizer_name": "local", "tokenizer_kwargs": {"strip_sep_token": False},
    },
}  # fmt: skip


def new_clip(folder: Path, tokenizer: Any) -> Any:
    """Write the folder of an untrained open_clip model and load it the way everybody does."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = json.loads(json.dumps(CLIP_CONFIG))
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    model = open_clip.CLIP(**config)
    mean_std = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": mean_std})
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def load_clip(folder: Path) -> Any:
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}", precision="fp32")


def clip_stage(model: Any, tokenizer: Any, args: argparse.Namespace) -> Stage:
    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((args.seed, 4, step))
        specs, pictures, _ = draw((args.seed, 5, step), args.batch)
        texts = [grammar.write(spec, str(rng.choice(grammar.PREFIXES))) for spec in specs]
        wrong = [grammar.change_one_word(text, rng) for text in texts]
        images, words, scale = model(
            to_tensor(pictures, args.device), tokenize(tokenizer, texts + wrong).to(args.device)
        )
        logits = scale.float() * images.float() @ words.float().T  # (B, 2B): captions, then the changed ones
        target = torch.arange(len(specs), device=args.device)
        return F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(specs)].T, target)

    return Stage("clip", model, loss, args.lr or 1e-3)


def make_clip(args: argparse.Namespace) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    folder = args.out / "clip"
    tokenizer = make_tokenizer()
    if (folder / "open_clip_model.safetensors").exists() and not args.fresh:
        model, tokenizer = load_clip(folder), CLIPTokenizer.from_pretrained(folder)
    else:
        torch.manual_seed(args.seed)
        model = new_clip(folder, tokenizer)
    model = train(clip_stage(model, tokenizer, args), args)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")


@torch.no_grad()
def one_word_right(model: Any, tokenizer: Any, count: int, seed: int = 11) -> dict[str, list[bool]]:
    """Per category: does a held-out render fit its own caption better than the caption changed in one word?"""
    specs, pictures, _ = draw((seed, 97), count, "heldout")
    rng = np.random.default_rng((seed, 96))
    texts = [grammar.write(spec) for spec in specs]
    wrong = [grammar.change_one_word(text, rng) for text in texts]
    images = model.encode_image(to_tensor(pictures, "cpu"), normalize=True)
    own = (images * model.encode_text(tokenize(tokenizer, texts), normalize=True)).sum(-1)
    other = (images * model.encode_text(tokenize(tokenizer, wrong), normalize=True)).sum(-1)
    found: dict[str, list[bool]] = {}
    for spec, good in zip(specs, (own > other).tolist(), strict=True):
        found.setdefault(spec.category, []).append(good)
    return found


# ----------------------------------------------------------------------------------------------------------- cards


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def table(right: dict[str, list[bool]], what: str = "fully right") -> str:
    """Markdown: share, n and a Wilson 95% interval a category, and the equal-weight mean."""
    lines = [f"| category | {what} | 95% interval | n |", "|---|---|---|---|"]
    for category in grammar.CATEGORIES:
        hits, n = sum(right[category]), len(right[category])
        low, high = binomtest(hits, n).proportion_ci(method="wilson")
        lines.append(f"| {category} | {hits / n:.1%} | {low:.1%} to {high:.1%} | {n} |")
    mean = np.mean([np.mean(right[c]) for c in grammar.CATEGORIES])
    return "\n".join([*lines, f"| equal-weight mean | {mean:.1%} | | {sum(map(len, right.values()))} |"])


SD_CARD = """# shapes:sd

A StableDiffusionPipeline of the shapes world: 64 x 64 pictures, f=8 autoencoder with {latents} latent channels, a UNet
of {unet:.2f} M parameters and a two-layer CLIP text encoder of {words} tokens. Stored in half precision, computed in
fp32: `DiffusionPipeline.from_pretrained(folder)`.

- Data: scenes of the renderer for the train combinations of the grammar, as many as said below for the UNet, fresh ones
  at every step for the autoencoder. No pictures of others.
- Training: {steps}
- Known flaws: objects nobody asked for, wrong counts, colours on the wrong object, blurred crosses and triangles. It is
  meant to be improved: the careless captions at the end of its training (they forget an object, swap colours, turn a
  relation round) left it with habits worse than what it knows. Before them the equal-weight mean below was 63.9%.
- Licence: Apache-2.0.

The verifier reads {read:.1%} of {n_read} held-out renders fully right after a pass through the autoencoder.

Held-out prompts at {sampler_steps} DDIM steps, guidance {guidance}, one image a prompt, every held-out prompt, judged
by the verifier. Measured by `python scripts/make_shapes_models.py cards`:

{table}
"""

CLIP_CARD = """# shapes:clip

An open_clip model of the shapes world ({parameters:.2f} M parameters), loaded by
`open_clip.create_model_and_transforms("local-dir:FOLDER")` with the tokenizer of the same folder.

- Data: fresh scenes of the renderer for the train combinations, seed {seed}; negatives are captions changed in one
  word.
- Training: {steps}
- Licence: Apache-2.0.

Share of {n} held-out renders that fit their own caption better than the caption changed in one word. Measured by
`python scripts/make_shapes_models.py cards`:

{table}
"""


def history(args: argparse.Namespace, name: str) -> str:
    """What is written in the folder's history file, one line a run."""
    file = args.out / name / "history.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    return "; ".join(
        f"{r['stage']} to step {r['steps']}, batch {r['batch']}, lr {r['lr']}, seed {r['seed']}, {r['device']}"
        + (f", {r['scenes']} scenes" if "scenes" in r else "")
        + (f", {r['careless']:.0%} of the captions careless" if r.get("careless") else "")
        + (f", {r['late']:.0%} of the times from the noisiest 40%" if r.get("late") else "")
        + (f", {r['places']:.0%} of the scenes with a place or a spatial relation" if r.get("places") else "")
        for r in runs
    )


def remember(args: argparse.Namespace, stage: str, lr: float) -> None:
    folder = args.out / ("clip" if stage == "clip" else "sd")
    file = folder / "history.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    run = {"stage": stage, "steps": args.steps, "batch": args.batch, "lr": args.lr or lr, "seed": args.seed}
    if stage == "sd":
        run |= {"scenes": args.scenes, "careless": args.careless, "late": args.late, "places": args.places}
    run |= {"device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU", "torch": torch.__version__}
    write_json(file, [*([] if args.fresh else runs), run] if stage != "vae" else [run])


def make_cards(args: argparse.Namespace) -> None:
    from transformers import CLIPTokenizer

    if (args.out / "sd" / "unet").exists():
        pipe = load_pipeline(args.out / "sd", args.device)
        right = drawn_right(pipe, list(grammar.prompts("heldout")), STEPS, GUIDANCE)
        card = SD_CARD.format(
            latents=LATENT_CHANNELS, unet=pipe.unet.num_parameters() / 1e6, words=len(pipe.tokenizer),
            steps=history(args, "sd"), read=reconstructions_read(pipe.vae, 2000, args.device), n_read=2000,
            sampler_steps=STEPS, guidance=GUIDANCE, table=table(right),
        )  # fmt: skip
        (args.out / "sd" / "README.md").write_text(card)
        log.info("%s", table(right))
    if (args.out / "clip").exists():
        model = load_clip(args.out / "clip").eval()
        right = one_word_right(model, CLIPTokenizer.from_pretrained(args.out / "clip"), 2000)
        size = sum(p.numel() for p in model.parameters()) / 1e6
        card = CLIP_CARD.format(
            parameters=size,
            seed=args.seed,
            steps=history(args, "clip"),
            n=2000,
            table=table(right, "own caption fits better"),
        )
        (args.out / "clip" / "README.md").write_text(card)
        log.info("%s", table(right))


DEFAULTS = {"vae": (6000, 16), "sd": (8000, 64), "clip": (3000, 128)}
MAKERS = {"vae": make_vae, "sd": make_sd, "clip": make_clip}
RATES = {"vae": 2e-3, "sd": 1e-3, "clip": 1e-3}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*MAKERS, "cards", "all"])
    parser.add_argument("--steps", type=int, help="train until this step (default: " + str(DEFAULTS) + ")")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float, help=f"peak learning rate (default: {RATES})")
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes whose latents the UNet is trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="from random weights, not from the shipped ones")
    parser.add_argument("--work", type=Path, default=Path("runs/shapes_models"), help="states to resume from")
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--careless", type=float, default=0.0, help="share of sd's captions with a mistake")
    parser.add_argument("--late", type=float, default=0.0, help="share of sd's times drawn from the noisiest 40%%")
    parser.add_argument("--places", type=float, default=0.0, help="share of sd's scenes chosen for saying where")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    chosen = args
    for stage in MAKERS if args.stage == "all" else [args.stage] if args.stage in MAKERS else []:
        steps, batch = DEFAULTS[stage]
        chosen = argparse.Namespace(**{**vars(args), "steps": args.steps or steps, "batch": args.batch or batch})
        MAKERS[stage](chosen)
        remember(chosen, stage, RATES[stage])
    make_cards(chosen)


if __name__ == "__main__":
    main()
