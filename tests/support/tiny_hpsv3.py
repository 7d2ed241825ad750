"""A random HPSv3 at tiny size in a folder: weights in the layout of transformers 4.45, small files of the base model.

The weights are drawn by name in one fixed order, so that another implementation can draw the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_vlm import tiny_config, tiny_processor

REWARD_TOKEN = "<|Reward|>"


def old_config(vocabulary: int) -> dict[str, Any]:
    """A ``config.json`` as Qwen2-VL's own: the language model's numbers at the top, not in ``text_config``."""
    config = tiny_config(vocabulary)
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "max_position_embeddings", "vocab_size", "rms_norm_eps", "hidden_act", "bos_token_id",
             "eos_token_id")  # fmt: skip
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **{name: text[name] for name in names},
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]},
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "tie_word_embeddings": False,
        "vision_config": {
            name: vision[name] for name in ("depth", "embed_dim", "hidden_size", "num_heads", "mlp_ratio")
        },
    }


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, by the names of transformers 4.45."""
    c = old_config(vocabulary)
    d, f, kv = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // 2
    v = c["vision_config"]["embed_dim"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, d),
        "lm_head.weight": (vocabulary, d),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.q_proj.weight": (d, d), f"{at}.self_attn.q_proj.bias": (d,)}
        for name in ("k_proj", "v_proj"):
            found |= {f"{at}.self_attn.{name}.weight": (kv, d), f"{at}.self_attn.{name}.bias": (kv,)}
        found |= {f"{at}.self_attn.o_proj.weight": (d, d), f"{at}.mlp.gate_proj.weight": (f, d),
                  f"{at}.mlp.up_proj.weight": (f, d), f"{at}.mlp.down_proj.weight": (d, f),
                  f"{at}.input_layernorm.weight": (d,), f"{at}.post_attention_layernorm.weight": (d,)}  # fmt: skip
    found |= {"model.norm.weight": (d,), "visual.patch_embed.proj.weight": (v, 3, 2, 14, 14)}
    linear = {"attn.qkv": (3 * v, v), "attn.proj": (v, v), "mlp.fc1": (2 * v, v), "mlp.fc2": (v, 2 * v)}
    for name, shape in linear.items():
        found |= {f"visual.blocks.0.{name}.weight": shape, f"visual.blocks.0.{name}.bias": shape[:1]}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "merger.ln_q"):
        found |= {f"visual.{name}.weight": (v,), f"visual.{name}.bias": (v,)}
    for name, shape in (("0", (4 * v, 4 * v)), ("2", (d, 4 * v))):
        found |= {f"visual.merger.mlp.{name}.weight": shape, f"visual.merger.mlp.{name}.bias": shape[:1]}
    for name, shape in (("0", (1024, d)), ("3", (16, 1024)), ("5", (2, 16))):
        found |= {f"rm_head.{name}.weight": shape, f"rm_head.{name}.bias": shape[:1]}
    return found


def tiny_state(vocabulary: int, seed: int = 0) -> dict[str, Any]:
    """Weights drawn in the order of their names: norms around 1, everything else around 0; bf16 values in fp32."""
    import numpy as np
    import torch

    generator = np.random.default_rng(seed)
    state: dict[str, Any] = {}
    for name, shape in sorted(shapes(vocabulary).items()):
        drawn = generator.standard_normal(shape) * (0.5 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        is_norm = "norm" in name or "ln_q" in name
        values = torch.from_numpy(
            drawn * (3.0 if len(shape) > 1 else 1.0) + (1.0 if is_norm and name.endswith("weight") else 0.0)
        )
        state[name] = values.float().bfloat16().float()
    return state


def write_tiny_hpsv3(folder: Path, seed: int = 0) -> Path:
    """``HPSv3.safetensors`` with the small files of its base model beside it; ``hpsv3@FOLDER`` loads it."""
    from safetensors.torch import save_file

    processor = tiny_processor()
    processor.save_pretrained(folder)
    vocabulary = len(processor.tokenizer) + 1  # and the reward token
    (folder / "config.json").write_text(json.dumps(old_config(vocabulary - 1)))
    save_file(tiny_state(vocabulary, seed), folder / "HPSv3.safetensors")
    return folder
