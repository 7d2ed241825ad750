"""Prompts that image programs leave inside their files: A1111's `parameters` text and ComfyUI's `prompt` graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ENCODERS = ("CLIPTextEncode",)
SAMPLERS = ("positive", "negative")


def prompt_of(info: Mapping[Any, Any]) -> tuple[str, str]:
    """(prompt, negative prompt) from PIL's ``image.info``; empty texts where there is none."""
    if isinstance(info.get("parameters"), str):
        return a1111(info["parameters"])
    if isinstance(info.get("prompt"), str):
        return comfyui(info["prompt"])
    return "", ""


def a1111(text: str) -> tuple[str, str]:
    """The prompt's lines, then `Negative prompt: ...`, then one line `Steps: 20, Sampler: ...`."""
    lines = text.strip().splitlines()
    if lines and lines[-1].startswith("Steps: "):
        lines = lines[:-1]
    text = "\n".join(lines)
    prompt, found, negative = text.partition("Negative prompt:")
    return prompt.strip(), negative.strip() if found else ""


def comfyui(text: str) -> tuple[str, str]:
    """The texts that lead into a sampler's `positive` and `negative` inputs, through whatever lies between."""
    try:
        nodes = json.loads(text)
    except ValueError:
        return "", ""
    if not isinstance(nodes, dict):
        return "", ""
    for node in nodes.values():
        inputs = node.get("inputs", {}) if isinstance(node, dict) else {}
        if isinstance(inputs, dict) and "positive" in inputs:
            prompt, negative = (_text(nodes, inputs.get(name), set()) for name in SAMPLERS)
            if prompt:
                return prompt, negative
    return next(((found, "") for node in nodes.values() if (found := _own_text(node))), ("", ""))


def _text(nodes: dict[str, Any], link: Any, seen: set[str]) -> str:
    """Follow a link [node, output] upwards until a node has a text of its own."""
    if not isinstance(link, list) or not link or str(link[0]) in seen:
        return ""
    seen.add(str(link[0]))
    node = nodes.get(str(link[0]))
    if not isinstance(node, dict):
        return ""
    if found := _own_text(node):
        return found
    inputs = node.get("inputs")
    values = inputs.values() if isinstance(inputs, dict) else ()
    return next((found for value in values if (found := _text(nodes, value, seen) or _literal(value, node))), "")


def _own_text(node: Any) -> str:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict) or not str(node.get("class_type", "")).startswith(ENCODERS):
        return ""
    return next(
        (inputs[name] for name in ("text", "text_g", "t5xxl", "clip_l") if isinstance(inputs.get(name), str)), ""
    )


def _literal(value: Any, node: dict[str, Any]) -> str:
    """A text node that an encoder is fed from."""
    kind = str(node.get("class_type", "")).lower()
    return value if isinstance(value, str) and ("string" in kind or "text" in kind) else ""
