"""ImageReward v1.0: how much people would like a picture for its prompt, about normal with mean 0 and deviation 1.

Paper: https://arxiv.org/abs/2304.05977. Nothing of the ``image-reward`` package is needed: the network is
transformers' BLIP (``_blip.py``) and equals the package to rounding.

``imagereward`` loads ``THUDM/ImageReward`` and the tokenizer of ``bert-base-uncased`` from the hub's cache or the hub.
``imagereward@FOLDER`` takes everything from a folder: ``ImageReward.safetensors`` or ``ImageReward.pt``, the tokenizer
(``tokenizer.json`` or ``vocab.txt``), and, where they differ from what was published, ``med_config.json`` (BERT's
sizes) and ``vision_config.json`` (fields of BlipVisionConfig). ``imagereward@FILE`` takes the rest from FILE's folder.
Left out: sharing lower layers with rewards that were trained from this one. May import: types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visfeedback.plugins import InputError
from visfeedback.rewards import _weights
from visfeedback.rewards._bank import Bank
from visfeedback.rewards._blip import BlipNetwork, load_network
from visfeedback.rewards._pixels import Recipe
from visfeedback.types.files import file_sha256
from visfeedback.types.records import About, Origin

ABOUT = About(
    measures="how much people would like the picture for its prompt",
    typical="-2 to 2",
    accuracy={"ImageReward test": 65.1, "Pick-a-Pic test": 61.1, "HPDv2 test": 74.0, "HPDv3 test": 58.6,
              "MMRB2": 54.0},
    accuracy_source="READMEs of HPSv2, HPSv3 and MMRB2",
    licence="Apache-2.0",
    megabytes=1787.0,
    paper="https://arxiv.org/abs/2304.05977",
    hub="THUDM/ImageReward",
)  # fmt: skip
FILES = ("ImageReward.safetensors", "ImageReward.pt")
TOKENIZER_HUB = "google-bert/bert-base-uncased"
TOKENS = 35
"""Longer prompts are cut, as published; the end token stays."""
BANK_MIB = 512
"""Memory for keys and values of images that were seen: about 36 images of ViT-L size in fp32."""
IMAGES_AT_ONCE = 8
"""Images whose keys and values are in memory together when every image meets every prompt: 116 MB at full size."""
TOKENS_AT_ONCE = 4096
"""Text tokens that run through BERT together, over all images and prompts of a batch."""


class KnownAnswer(NamedTuple):
    """A score that was published for a picture."""

    prompt: str
    file: str
    """name of the picture, see ``KNOWN_PICTURES``"""
    score: float


KNOWN_ANSWERS = tuple(
    KnownAnswer("a painting of an ocean with clouds and birds, day time, low depth field effect", f"{n}.webp", score)
    for n, score in enumerate((0.5812, 0.2745, -1.4132, -2.0296), 1)
)
"""From the README of ImageReward, for `visfeedback rewards check`."""
KNOWN_PICTURES = "assets/images of https://github.com/THUDM/ImageReward"
"""Where the pictures are."""
KNOWN_TOLERANCE = 5e-3
"""Published on a GPU and rounded to four digits; JPEG and WebP decoders differ a little."""


class BlipReward:
    """Reward protocol (and DifferentiableReward) around a BlipNetwork.

    Encoded images are all tokens of the image tower; encoded texts are token ids, a tensor (L,) each.
    """

    range = (-float("inf"), float("inf"))
    differentiable = True
    reads_prompt = True

    def __init__(self, name: str, network: BlipNetwork, tokenizer: Any, origin: Origin, device: str = "cpu") -> None:
        self.name = name
        self.origin = origin
        self.encoder = f"blip-{_weights.tower_hash(network.vision, str(_not_in_shapes(network.vision.config)))}"
        head = network.head.float()
        self.network = network.to(device, _weights.dtype_of(origin.dtype))
        self.network.head = head.to(device, torch.float32)
        self.bank = Bank(BANK_MIB)
        self._tokenizer = tokenizer
        self._device = device
        side: Any = network.vision.config.image_size
        self._recipe = Recipe("open_clip", (side, side))

    @property
    def preprocessing(self) -> str:
        """The recipe, shared with the CLIP models that open_clip publishes."""
        return self._recipe.id

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image of any mode exactly as published -> (3, H, W), normalised.

        Short side to the network's size, bicubic, in the image's own mode; the centre; then RGB. So palettes are
        resized without interpolation, transparency is dropped, and 16-bit gray values above 255 become white.
        """
        return self._recipe.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Preprocessed (N, 3, H, W) -> tokens of the image tower (N, T, D)."""
        return self.network.image_features(pixels.to(self._device))

    def encode_texts(self, prompts: Sequence[str]) -> list[Tensor]:
        """Token ids (L,) of each prompt, unpadded, at most 35: the first is [CLS], the last [SEP]."""
        ids = self._tokenizer(list(prompts), truncation=True, max_length=TOKENS)["input_ids"] if prompts else []
        return [torch.tensor(row) for row in ids]

    def combine(self, images: Tensor, texts: list[Tensor], pairing: Literal["paired", "matrix"] = "paired") -> Tensor:
        """(B,) when paired, (N images, P prompts) for the matrix; float32, on the device of the network."""
        images = images.to(self._device)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # alike in length together: little padding
        if pairing == "matrix":
            if not len(images):
                return torch.empty(0, len(texts), device=self._device)
            return torch.cat([self._all_prompts(part, texts, order) for part in images.split(IMAGES_AT_ONCE)])
        scores = torch.empty(len(texts), device=self._device)
        for rows in _chunks(order, texts, TOKENS_AT_ONCE, IMAGES_AT_ONCE):
            ids, lengths = self._padded(texts, rows)
            chosen = images[rows]
            kept = self._keys_values(chosen, ids.shape[-1])
            scores[rows] = self.network.scores(chosen, ids[:, None], lengths[:, None], kept)[:, 0]
        return scores

    def _all_prompts(self, images: Tensor, texts: list[Tensor], order: list[int]) -> Tensor:
        """(G images, P prompts); keys and values of the images are computed at most once."""
        kept = self._keys_values(images, sum(len(text) for text in texts))
        scores = torch.empty(len(images), len(texts), device=self._device)
        for columns in _chunks(order, texts, TOKENS_AT_ONCE // len(images), len(texts)):
            ids, lengths = self._padded(texts, columns)
            each = (part.expand(len(images), *part.shape) for part in (ids, lengths))
            scores[:, columns] = self.network.scores(images, *each, keys_values=kept)
        return scores

    def _keys_values(self, features: Tensor, tokens: int) -> Tensor | None:
        """Kept or new, or None when this many text tokens per image are better off without."""
        learning = any(parameter.requires_grad for parameter in self.network.text.parameters())
        learning = learning or (features.requires_grad and torch.is_grad_enabled())
        if not learning and self.bank.holds(features):  # what is kept has no gradient and old weights
            return self.bank.fetch(features, self.network.keys_values)
        if not self.network.worth_keys(features, tokens):
            return None
        return self.network.keys_values(features) if learning else self.bank.fetch(features, self.network.keys_values)

    def from_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) with a gradient to the pixels.

        Torch's antialiased bicubic in floats stands for Pillow's, which rounds to bytes: on 20 pictures resized to 224
        pixels differ by at most 1 of 255 levels (mean score difference 4e-4, largest 1.1e-3, where scores deviated by
        0.07 in a small random network); a picture that is 224 x 224 already gives the published score to rounding.
        """
        return self.combine(self.encode_images(self.from_unit(pixels)), self.encode_texts(prompts))

    def from_unit(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what ``encode_images`` reads, with a gradient."""
        return self._recipe.from_pixels(pixels.to(self._device))

    def _padded(self, texts: list[Tensor], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some texts as ids (P, L) and lengths (P,)."""
        chosen = [texts[row] for row in rows]
        lengths = torch.tensor([len(text) for text in chosen], device=self._device)
        return pad_sequence(chosen, batch_first=True).to(self._device), lengths


def _not_in_shapes(config: Any) -> tuple[Any, ...]:
    """What of an image tower's configuration its weights do not show: other numbers make other features of them."""
    return config.hidden_act, config.num_attention_heads, config.layer_norm_eps, config.patch_size


def _chunks(order: Sequence[int], texts: Sequence[Tensor], tokens: int, most: int) -> Iterator[list[int]]:
    """``order``, which goes from short to long texts, in pieces of at most so many padded tokens and texts."""
    piece: list[int] = []
    for row in order:
        if piece and (len(piece) == most or (len(piece) + 1) * len(texts[row]) > tokens):
            yield piece
            piece = []
        piece.append(row)
    if piece:
        yield piece


def load(variant: str = "", path: str = "", device: str = "cpu", dtype: str = "fp32") -> BlipReward:
    """ImageReward v1.0 from the hub, or from a local file or folder ``path`` (see the module's docstring).

    Raises InputError for a variant, for files that are missing or damaged, and for weights of another model.
    """
    if variant:
        raise InputError(f"imagereward has no variant {variant!r}; write --reward imagereward or imagereward@FOLDER")
    folder = Path(path).expanduser()
    here = [name for name in FILES if path and (folder / name).is_file()]
    file = _weights.resolve(path, ABOUT.hub, here[0] if here else FILES[-1], "imagereward")
    return open_reward("imagereward", file, path or ABOUT.hub, device, dtype)


def open_reward(name: str, file: Path, model: str, device: str, dtype: str, root: Path | None = None) -> BlipReward:
    """A checkpoint of this architecture as the reward ``name``; ``model`` is what its origin says.

    Configs and tokenizer are looked for beside ``file`` and then in ``root``.
    """
    _weights.dtype_of(dtype)
    places = [file.parent, *([root] if root else [])]
    network = load_network(file, places, name)
    tokenizer = _tokenizer(places, network, name)
    origin = Origin(
        model=model, revision=_weights.revision(file), checkpoint_sha256=file_sha256(file),
        dtype=dtype,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return BlipReward(name, network, tokenizer, origin, device)


def _tokenizer(places: Sequence[Path], network: BlipNetwork, name: str) -> Any:
    """bert-base-uncased with the two tokens that BLIP adds."""
    from transformers import BertTokenizer

    folder = _tokenizer_folder(places, name)
    try:
        tokenizer = BertTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{name}: {folder} has no tokenizer that can be loaded: {_weights.first_line(error)}"
        ) from None
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    words = network.text.config.vocab_size
    if len(tokenizer) != words:
        raise InputError(f"{name}: the tokenizer in {folder} has {len(tokenizer)} tokens, the network {words}")
    return tokenizer


def _tokenizer_folder(places: Sequence[Path], name: str) -> Path:
    """The first of ``places`` that has one, else the hub's."""
    here = (place for place in places for file in ("tokenizer.json", "vocab.txt") if (place / file).is_file())
    if (folder := next(here, None)) is not None:
        return folder
    try:
        return _weights.resolve("", TOKENIZER_HUB, "", name, files=("tokenizer*.json", "vocab.txt"))
    except InputError:
        raise InputError(
            f"{name}: no tokenizer in {places[0]}, and {TOKENIZER_HUB} is not on this machine; put that model's "
            "tokenizer.json or vocab.txt beside the weights"
        ) from None
