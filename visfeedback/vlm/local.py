"""A vision-language model whose weights are on this machine: any image-and-text model that transformers can load.

Chances are those of the first generated token: the softmax over the whole vocabulary of the raw logits, in fp32 (no
temperature, no repetition penalty). Batches are padded on the left, so that every row ends where its answer begins.
Only safetensors are read and no code of a repository is run. May import: types.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from visfeedback.plugins import InputError
from visfeedback.types.files import file_sha256, small_files_id
from visfeedback.types.records import Origin
from visfeedback.vlm.questions import Question, Reply

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
USAGE = "write local:FOLDER with a folder that save_pretrained wrote, a hub id owner/name, or MODEL@http://host:8000/v1"
LIBRARY_ERRORS = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
"""What transformers raises for folders that are not what it expects."""


def load(path: str, device: str = "cpu", dtype: str = "fp32", batch: int = 8) -> LocalVlm:
    """A folder that ``save_pretrained`` wrote (model and processor), or a hub id that is cached or can be downloaded.

    Raises InputError for a folder without a vision-language model, with weights that are missing, NaN or of other
    shapes, and without a chat template.
    """
    if dtype not in DTYPES:
        raise InputError(f"no dtype {dtype!r}; expected fp32, bf16 or fp16")
    folder = _folder(path)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"no .safetensors weights in {folder}; {USAGE}")
    model, processor = _open(folder, dtype)
    _check(model, folder)
    if not getattr(processor, "chat_template", None):
        raise InputError(
            f"{folder} has no chat template; expected a model that was trained to answer (an instruct model)"
        )
    digests = [file_sha256(file) for file in files]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    origin = Origin.model_validate(
        {"model": path, "revision": _revision(folder), "checkpoint_sha256": whole, "dtype": dtype}
    )
    return LocalVlm(model.to(device).eval().requires_grad_(False), processor, origin, batch)


def _revision(folder: Path) -> str:
    """The hub's commit, or ``files-`` and a digest of the small files: a chat template changes answers, too."""
    found = re.search(r"/snapshots/([0-9a-f]{40})$", folder.absolute().as_posix())
    if found is not None:
        return found[1]
    names = [file.name for pattern in FILES if pattern != "*.safetensors" for file in folder.glob(pattern)]
    return f"files-{small_files_id(folder, names)}"


class LocalVlm:
    """``Vlm`` around a transformers model and its processor."""

    def __init__(self, model: Any, processor: Any, origin: Origin, batch: int = 8) -> None:
        self.name = origin.model
        self.origin = origin
        self._model = model
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._batch = batch
        added = self._tokenizer.added_tokens_decoder.values()
        self._control = sorted({*self._tokenizer.all_special_tokens, *(t.content for t in added if t.special)} - {""})
        # templates of models that think aloud first know this switch, others would warn of it
        self._quiet = {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}

    def ask(self, questions: Sequence[Question], max_tokens: int = 512) -> list[Reply]:
        """One reply with ``text`` per question, word after word the likeliest."""
        replies = self._spoofed(questions)
        for rows in self._batches(replies):
            inputs = self._inputs([questions[row] for row in rows])
            tokens = self._generate(inputs, max_tokens).sequences[:, inputs["input_ids"].shape[1] :]
            for row, text in zip(rows, self._tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                replies[row] = Reply(text=text) if text.strip() else Reply(error="the answer is empty")
        return [reply or Reply() for reply in replies]

    def probability(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Reply]:
        """One reply with ``chances`` per question: of exactly the tokens that spell ``answers``, not of variants.

        Raises InputError when the tokenizer writes an answer with several tokens.
        """
        tokens = [self._token(answer) for answer in answers]
        replies = self._spoofed(questions)
        for rows in self._batches(replies):
            chances = self._first([questions[row] for row in rows])  # (len(rows), vocabulary)
            for row, chance in zip(rows, chances, strict=True):
                likeliest = self._tokenizer.decode([int(chance.argmax())])
                replies[row] = Reply(likeliest, dict(zip(answers, chance[tokens].tolist(), strict=True)))
        return [reply or Reply() for reply in replies]

    def _token(self, answer: str) -> int:
        ids = self._tokenizer.encode(answer, add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(
                f"{self.name} writes {answer!r} with {len(ids)} tokens; expected a model that has it as one"
            )
        return ids[0]

    def _spoofed(self, questions: Sequence[Question]) -> list[Reply | None]:
        """A reply for each question that holds a control token (it would end the turn, or stand for an image)."""
        replies: list[Reply | None] = []
        for question in questions:
            text = " ".join((question.system, *question.texts))
            token = next((token for token in self._control if token in text), None)
            replies.append(
                None if token is None else Reply(error=f"the text holds {token!r}, a control token of the model")
            )
        return replies

    def _batches(self, replies: Sequence[Reply | None]) -> Iterator[list[int]]:
        rows = [row for row, reply in enumerate(replies) if reply is None]
        return (rows[start : start + self._batch] for start in range(0, len(rows), self._batch))

    def _first(self, questions: Sequence[Question]) -> Tensor:
        """(B, vocabulary) probabilities of the first generated token, float32."""
        logits = self._generate(self._inputs(questions), 1, output_logits=True).logits[0]
        return logits.float().softmax(-1).cpu()

    def _inputs(self, questions: Sequence[Question]) -> Any:
        inputs = self._processor.apply_chat_template(
            [_conversation(question) for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
            **self._quiet,
        )
        moved = {name: value.to(self._model.device) for name, value in inputs.items()}
        return {k: v.to(self._model.dtype) if v.is_floating_point() else v for k, v in moved.items()}

    @torch.no_grad()
    def _generate(self, inputs: Any, max_tokens: int, **more: bool) -> Any:
        return self._model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self._tokenizer.pad_token_id,
            return_dict_in_generate=True,
            **more,
        )


def _conversation(question: Question) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p.convert("RGB")}
               for p in question.parts]  # fmt: skip
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return (
        [{"role": "system", "content": [{"type": "text", "text": question.system}]}, *turns]
        if question.system
        else turns
    )


def _folder(path: str) -> Path:
    local = Path(path).expanduser()
    if path and local.is_dir():
        return local
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
        raise InputError(f"no folder {path!r} with a vision-language model; {USAGE}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(path, allow_patterns=list(FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else f"it cannot be downloaded ({_first_line(error)})"
        raise InputError(f"{path} is not on this machine and {why}; {USAGE}") from None


def _open(folder: Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        with _quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=DTYPES[dtype], use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"{folder} is no vision-language model that can be loaded: {_first_line(error)}; {USAGE}"
        ) from None
    model, report = loaded
    for what, names in (("lacks", report["missing_keys"]), ("has other shapes for", report["mismatched_keys"])):
        if names:
            first = min(str(name[0] if isinstance(name, tuple) else name) for name in names)
            raise InputError(f"{folder} {what} {len(names)} weights of its model, the first is {first}")
    if not hasattr(processor, "tokenizer"):
        raise InputError(f"{folder} has no processor with a tokenizer; {USAGE}")
    return model, processor


@contextmanager
def _quiet() -> Iterator[None]:
    """No table of missing weights and no progress bar: what is wrong is said in one line, by whoever loads."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _check(model: Any, folder: Path) -> None:
    for name, value in model.named_parameters():
        if not torch.isfinite(value).all():
            raise InputError(f"the weight {name} in {folder} is NaN or infinite; fetch the files again")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
