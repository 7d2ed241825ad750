"""For bench_score.py: random checkpoints of the published kinds, and each reward as people's scripts run it.

``MODELS`` writes the weights; ``PLAIN`` scores images the usual way: every script decodes every image for itself, one
image and one prompt at a time, text padded to its full length where the published code does that, and hpsv2 reads its
checkpoint again for every call, as its package does. In their favour the others load their models once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

Scores = list[float]
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "patch_size": 32},
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "bert": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
        "blip": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "patch_size": 32},
        "joint": {"width": 32},
    },
    "large": {
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                   "patch_size": 14},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "bert": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "blip": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "patch_size": 16},
        "joint": {"width": 768},
    },
}  # fmt: skip
"""``large``: CLIP ViT-L/14 everywhere and BLIP ViT-L/16; ``tiny``: two layers, 49 image tokens."""
SIDE, CONTEXT, BERT_TOKENS = 224, 77, 35
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD = (0, 2, 4, 6, 7)


# weights


def write_models(folder: Path, size: str) -> dict[str, str]:
    """Reward -> the reference that ``rewards.load`` takes. clipscore and aesthetic share their CLIP, as published."""
    torch.manual_seed(0)
    write_clip(folder / "aesthetic" / "clip", size)
    write_head(folder / "aesthetic", size)
    write_clip(folder / "pickscore", size)
    write_open_clip(folder / "hpsv2", size)
    write_blip(folder / "imagereward", size)
    return {"clipscore": f"clipscore@{folder}/aesthetic/clip", "aesthetic": f"aesthetic@{folder}/aesthetic",
            "pickscore": f"pickscore@{folder}/pickscore", "hpsv2": f"hpsv2@{folder}/hpsv2",
            "imagereward": f"imagereward@{folder}/imagereward"}  # fmt: skip


def write_clip(folder: Path, size: str) -> None:
    """A CLIPModel folder with CLIP's own vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    published = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): number for word, number in published.encoder.items()}
    merges = list(published.bpe_ranks)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    end = tokenizer.eos_token_id
    text = {**SIZES[size]["text"], "vocab_size": len(vocabulary), "max_position_embeddings": CONTEXT,
            "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}  # fmt: skip
    vision = {**SIZES[size]["vision"], "image_size": SIDE}
    config = CLIPConfig.from_dict(
        {"text_config": text, "vision_config": vision, "projection_dim": SIZES[size]["joint"]["width"]}
    )
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)


def mlp(width: int) -> dict[str, torch.Tensor]:
    """Five linear layers under the published names, without activations between."""
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = {str(n): torch.nn.Linear(*pair) for n, pair in zip(HEAD, pairwise(sizes), strict=True)}
    return {
        f"layers.{n}.{name}": value.detach() for n, layer in layers.items() for name, value in layer.named_parameters()
    }


def write_head(folder: Path, size: str) -> None:
    torch.save(mlp(SIZES[size]["joint"]["width"]), folder / "sac+logos+ava1-l14-linearMSE.pth")


def open_config(size: str) -> dict[str, Any]:
    vision, text = SIZES[size]["vision"], SIZES[size]["text"]
    return {
        "embed_dim": SIZES[size]["joint"]["width"],
        "vision_cfg": {"image_size": SIDE, "layers": vision["num_hidden_layers"], "width": vision["hidden_size"],
                       "patch_size": vision["patch_size"],
                       "head_width": vision["hidden_size"] // vision["num_attention_heads"]},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": text["hidden_size"],
                     "heads": text["num_attention_heads"], "layers": text["num_hidden_layers"]},
    }  # fmt: skip


def write_open_clip(folder: Path, size: str) -> None:
    """An open_clip folder; the package's checkpoint is the same weights under ``state_dict`` in a .pt file."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": open_config(size), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = open_clip.CLIP(**open_config(size)).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "package").mkdir(exist_ok=True)
    torch.save({"state_dict": state}, folder / "package" / "weights.pt")


def write_blip(folder: Path, size: str) -> None:
    """An ImageReward checkpoint under its published names, with configs and a BERT vocabulary."""
    from visfeedback.rewards._blip import RENAMES, TEXT, VISION, BlipNetwork

    vision = {**VISION, **SIZES[size]["blip"], "image_size": SIDE}
    text = {**TEXT, **SIZES[size]["bert"], "vocab_size": len(words()) + 2}
    network = BlipNetwork(vision, text)
    state = {f"blip.text_encoder.{name}": value for name, value in network.text.state_dict().items()}
    for name, value in network.vision.state_dict().items():
        for published, ours in RENAMES:
            name = name.replace(ours, published)
        name = f"norm.{name.removeprefix('post_layernorm.')}" if name.startswith("post_layernorm.") else name
        state[f"blip.visual_encoder.{name}"] = value
    state |= {f"mlp.{name}": value for name, value in mlp(text["hidden_size"]).items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ImageReward.pt")
    (folder / "vision_config.json").write_text(json.dumps(vision))
    (folder / "med_config.json").write_text(json.dumps(text))
    (folder / "vocab.txt").write_text("\n".join(words()) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def words() -> list[str]:
    """As many entries as bert-base-uncased: letters, pieces of words, fillers."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return [*pieces, *(f"[unused{n}]" for n in range(30522 - len(pieces)))]


# the usual way


def clipscore(folder: Path, images: Sequence[Path], prompts: Sequence[str], device: str) -> Scores:
    """100 cos, as torchmetrics with a model that was loaded beforehand."""
    model, processor = _clip(folder / "aesthetic" / "clip", device)
    found = []
    for path, prompt in zip(images, prompts, strict=True):
        pixels, ids = _inputs(processor, Image.open(path), prompt, device)
        image, text = _unit(model.get_image_features(**pixels)), _unit(model.get_text_features(**ids))
        found.append(100 * float((image * text).sum()))
    return found


def pickscore(folder: Path, images: Sequence[Path], prompts: Sequence[str], device: str) -> Scores:
    """The README's lines."""
    model, processor = _clip(folder / "pickscore", device)
    found = []
    for path, prompt in zip(images, prompts, strict=True):
        pixels, ids = _inputs(processor, Image.open(path), prompt, device)
        image, text = _unit(model.get_image_features(**pixels)), _unit(model.get_text_features(**ids))
        found.append(float(model.logit_scale.exp() * (text @ image.T)[0, 0]))
    return found


def aesthetic(folder: Path, images: Sequence[Path], prompts: Sequence[str], device: str) -> Scores:
    """improved-aesthetic-predictor: CLIP's image tower, then the head."""
    model, processor = _clip(folder / "aesthetic" / "clip", device)
    state = torch.load(folder / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    head = _head(state, model.projection_dim).to(device)
    found = []
    for path in images:
        pixels, _ = _inputs(processor, Image.open(path), "", device)
        found.append(float(head(_unit(model.get_image_features(**pixels)))))
    return found


def hpsv2(folder: Path, images: Sequence[Path], prompts: Sequence[str], device: str) -> Scores:
    """hpsv2.score for each image: its model is kept, its checkpoint is read again in every call."""
    import open_clip

    config = json.loads((folder / "hpsv2" / "open_clip_config.json").read_text())["model_cfg"]
    model, tokenizer = open_clip.CLIP(**config).to(device).eval(), open_clip.SimpleTokenizer()
    found = []
    for path, prompt in zip(images, prompts, strict=True):
        checkpoint = torch.load(folder / "hpsv2" / "package" / "weights.pt", map_location=device, weights_only=True)
        model.load_state_dict(checkpoint["state_dict"])
        pixels = letterbox(Image.open(path))[None].to(device)
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer([prompt]).to(device), normalize=True)
        found.append(float((image * text).sum()))
    return found


def imagereward(folder: Path, images: Sequence[Path], prompts: Sequence[str], device: str) -> Scores:
    """ImageReward.score: image tower and text tower for each pair, text padded to 35."""
    from transformers import BertTokenizer

    from visfeedback.rewards._blip import SCALE, SHIFT, load_network

    file = folder / "imagereward" / "ImageReward.pt"
    network = load_network(file, [file.parent], "imagereward").to(device)
    state = {name.removeprefix("mlp."): value for name, value in torch.load(file, weights_only=True).items()
             if name.startswith("mlp.")}  # fmt: skip
    head = _head(state, network.text.config.hidden_size).to(device)
    tokenizer = BertTokenizer.from_pretrained(file.parent)
    found = []
    for path, prompt in zip(images, prompts, strict=True):
        features = network.vision(pixel_values=centre(Image.open(path))[None].to(device)).last_hidden_state
        ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=BERT_TOKENS, return_tensors="pt").to(
            device
        )
        hidden = network.text(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state  # fmt: skip
        found.append((float(head(hidden[:, 0])) - SHIFT) / SCALE)
    return found


PLAIN: dict[str, Callable[[Path, Sequence[Path], Sequence[str], str], Scores]] = {
    "clipscore": clipscore, "aesthetic": aesthetic, "pickscore": pickscore, "hpsv2": hpsv2, "imagereward": imagereward,
}  # fmt: skip


def _clip(folder: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder).to(device).eval()
    return model, (CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def _inputs(processor: Any, image: Image.Image, prompt: str, device: str) -> tuple[Any, Any]:
    images, texts = processor
    ids = texts([prompt], padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    return images(images=image, return_tensors="pt").to(device), ids.to(device)


def _unit(output: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(output.pooler_output, dim=-1)


def _head(state: dict[str, torch.Tensor], width: int) -> torch.nn.Module:
    sizes = (width, 1024, 128, 64, 16, 1)
    head = torch.nn.Sequential(*(torch.nn.Linear(*pair) for pair in pairwise(sizes)))
    names = [f"layers.{n}.{part}" for n in HEAD for part in ("weight", "bias")]
    head.load_state_dict(dict(zip(head.state_dict(), (state[name] for name in names), strict=True)))
    return head.eval()


def centre(image: Image.Image) -> torch.Tensor:
    """Short side to 224, the centre, RGB, normalised: torchvision's transforms, as published."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    image = F.center_crop(F.resize(image, SIDE, InterpolationMode.BICUBIC), [SIDE, SIDE]).convert("RGB")
    return F.normalize(F.to_tensor(image), list(MEAN), list(STD))


def letterbox(image: Image.Image) -> torch.Tensor:
    """Longest side to 224 as a tensor, bars, normalised: hpsv2's own transform, for square images."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    pixels = F.resize(F.to_tensor(image.convert("RGB")), [SIDE, SIDE], InterpolationMode.BICUBIC, antialias=True)
    return F.normalize(pixels, list(MEAN), list(STD))
