"""The pairs file that `visfeedback train` reads: JSON lines with prompt, image_a, image_b and label.

Label: `a`, `b`, `tie`, or P(a) as a number. Paths are relative to the file; images lie in a folder beside it. Two more
columns, judge and criterion, are written, and read where they are there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visfeedback.plugins import InputError
from visfeedback.store.core import CHUNK, Store
from visfeedback.store.formats._carries import Carries
from visfeedback.store.formats._export import judged
from visfeedback.store.formats._people import People, keep
from visfeedback.store.formats.jsonl import carry_image
from visfeedback.store.images import ImageFolder, inspect
from visfeedback.store.images import read as read_bytes
from visfeedback.store.rows import chunks
from visfeedback.types.files import open_atomic
from visfeedback.types.records import PAIR_VALUES, Feedback, Sample, text_id

CARRIES = Carries(
    kinds=("pair",), choices=("a", "b", "tie", "both_bad"),
    feedback=("kind", "values", "sample_ids", "judge", "criterion", "prompt_id"), sample=("prompt",), datasets="json",
)  # fmt: skip
JUDGE = "import:pairs"
COLUMNS = ("prompt", "image_a", "image_b", "label")


def write(store: Store, path: Path, people: People | None = None) -> dict[str, Any]:
    """One row per judgement of a pair that holds. Dropped: skips, flags, other kinds, gold items, missing samples.

    Judges keep their names unless ``people`` says otherwise.
    """
    people = people or keep
    dropped = Counter[str]()
    folder = ImageFolder(path.with_suffix(".images"))
    written = 0
    with open_atomic(path) as file:
        for record, pair in judged(store, CARRIES, dropped):
            a, b = (carry_image(sample, folder) for sample in pair)
            file.write(json.dumps(_row(record, a, b, people), ensure_ascii=False) + "\n")
            written += 1
    return {"pairs": written, "dropped": dict(sorted(dropped.items()))}


def _row(record: Feedback, a: Sample, b: Sample, people: People) -> dict[str, Any]:
    label: str | float = "tie" if record.choice in ("tie", "both_bad") else str(record.choice)
    if record.values and record.values != PAIR_VALUES[str(record.choice)]:
        label = record.values[0]
    return {
        "prompt": a.prompt, "image_a": a.path, "image_b": b.path, "label": label,
        "judge": people(record.judge), "criterion": record.criterion,
    }  # fmt: skip


def read(path: Path, store: Store) -> dict[str, Any]:
    """Add images, prompts and judgements. Reading a file again adds nothing. InputError names the line at fault."""
    added = {"sample": 0, "feedback": 0}
    for part in chunks(_rows(path), CHUNK):
        added["sample"] += store.add_samples([sample for pair, _ in part for sample in pair], path.parent)
        added["feedback"] += store.add_feedback(record for _, record in part)
    return added


def _rows(path: Path) -> Iterator[tuple[tuple[Sample, Sample], Feedback]]:
    if not path.is_file():
        raise InputError(f"no file {path}")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                row = _columns(line, where)
                pair = (_sample(row["prompt"], row["image_a"], path), _sample(row["prompt"], row["image_b"], path))
                yield pair, _feedback(row, pair, where, number)


def _columns(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object with {', '.join(COLUMNS)}")
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise InputError(f"{where}: no {missing[0]!r}; expected {', '.join(COLUMNS)}")
    texts = [name for name in COLUMNS[:3] if not isinstance(row[name], str) or not row[name]]
    if texts:
        raise InputError(f"{where}: {texts[0]} must be a text, not {row[texts[0]]!r}")
    return row


def _sample(prompt: str, name: str, file: Path) -> Sample:
    path = file.parent / name
    picture = inspect(read_bytes(path), path)
    return Sample(
        id=picture.id, prompt_id=text_id(prompt, ""), prompt=prompt, path=name,
        width=picture.width, height=picture.height,
    )  # fmt: skip


def _feedback(row: dict[str, Any], pair: tuple[Sample, Sample], where: str, number: int) -> Feedback:
    share = _share(row["label"], where)
    judge, criterion = str(row.get("judge") or JUDGE), str(row.get("criterion") or "overall")
    ids = (pair[0].id, pair[1].id)
    return Feedback(
        id=text_id("pairs", row["prompt"], *ids, str(share), judge, criterion, str(number)),
        judge=judge, criterion=criterion, prompt_id=pair[0].prompt_id, sample_ids=ids,
        values=(share, 1 - share), choice="a" if share > 0.5 else "b" if share < 0.5 else "tie",
    )  # fmt: skip


def _share(label: Any, where: str) -> float:
    """P(a) of a label."""
    if label in ("a", "b", "tie"):
        return PAIR_VALUES[label][0]
    if isinstance(label, int | float) and not isinstance(label, bool) and 0 <= label <= 1:
        return float(label)
    raise InputError(f"{where}: label {label!r}; expected a, b, tie or P(a) between 0 and 1")
