"""Measures import and export of feedback: rows a second, against plain sqlite3, and the peak of memory.

    python scripts/bench_store.py [--rows 1000000] [--json FILE]

A store is filled with N votes on a few images (images are copied once each, so the rows are what is measured), exported
as Parquet and JSON lines, and each file is imported into an empty store. Every step runs in a process of its own, whose
peak memory is taken; flat memory means that the peak at N rows is that at N / 10. Plain sqlite3: the same rows into the
same columns and indexes with executemany in one transaction, without validation; or read and written as text.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from visfeedback import store
from visfeedback.store.transfer import export_file, import_file
from visfeedback.types.records import Feedback, Sample, image_id, text_id

IMAGES = 200
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def samples(folder: Path) -> list[Sample]:
    folder.mkdir(exist_ok=True)
    made = []
    for k in range(IMAGES):
        image = Image.new("RGB", (16, 16), (k, 255 - k, 7))
        image.save(folder / f"{k}.png")
        prompt = f"prompt {k // 4}"
        made.append(Sample(
            id=image_id(16, 16, image.tobytes()), prompt_id=text_id(prompt, ""), prompt=prompt, path=f"{k}.png",
            width=16, height=16, model=f"model-{k % 4}",
        ))  # fmt: skip
    return made


def votes(made: list[Sample], rows: int) -> Iterator[Feedback]:
    for i in range(rows):
        a = made[i % IMAGES]
        b = made[(i % IMAGES) // 4 * 4 + (i + 1) % 4]
        choice, values = (("a", (1.0, 0.0)), ("b", (0.0, 1.0)), ("tie", (0.5, 0.5)))[i % 3]
        yield Feedback(
            id=f"{i:032x}", judge=f"human:{i % 50}", prompt_id=a.prompt_id, sample_ids=(a.id, b.id), choice=choice,
            values=values, sides=(i % 2, 1 - i % 2), seconds=2.5, created_at=BEGAN + timedelta(seconds=i),
        )  # fmt: skip


def fill(folder: Path, rows: int) -> int:
    made = samples(folder / "pictures")
    with store.open(f"sqlite:///{folder}/full.db") as opened:
        opened.add_samples(made, folder / "pictures")
        return opened.add_feedback(votes(made, rows))


def move(step: str, layout: str) -> Callable[[Path, int], int]:
    def export(folder: Path, rows: int) -> int:
        with store.open(f"sqlite:///{folder}/full.db") as opened:
            return export_file(opened, folder / f"all.{layout}", layout)["feedback"]

    def bring(folder: Path, rows: int) -> int:
        with store.open(f"sqlite:///{folder}/{layout}.db") as opened:
            return import_file(opened, folder / f"all.{layout}", layout)["feedback"]

    return export if step == "export" else bring


def plain_import(folder: Path, rows: int) -> int:
    """The yardstick: rows of the first store into a table of the same columns and indexes."""
    with sqlite3.connect(folder / "full.db") as source, sqlite3.connect(folder / "plain.db") as target:
        target.execute("PRAGMA journal_mode = WAL")
        target.execute("PRAGMA synchronous = FULL")
        (table,) = source.execute("SELECT sql FROM sqlite_master WHERE name = 'feedback'").fetchone()
        target.execute(table)
        for (index,) in source.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'feedback' AND type = 'index'"):
            if index:
                target.execute(index)
        marks = ", ".join("?" * 12)
        target.executemany(f"INSERT INTO feedback VALUES ({marks})", source.execute("SELECT * FROM feedback"))
        return target.execute("SELECT count(*) FROM feedback").fetchone()[0]


def plain_export(folder: Path, rows: int) -> int:
    with sqlite3.connect(folder / "full.db") as source, (folder / "plain.jsonl").open("w") as file:
        count = 0
        for (record,) in source.execute("SELECT record FROM feedback ORDER BY row"):
            file.write(record + "\n")
            count += 1
        return count


STEPS: dict[str, Callable[[Path, int], int]] = {
    "fill": fill,
    "plain sqlite3 import": plain_import,
    "plain sqlite3 export": plain_export,
    "export parquet": move("export", "parquet"),
    "export jsonl": move("export", "jsonl"),
    "import parquet": move("import", "parquet"),
    "import jsonl": move("import", "jsonl"),
}


def one(name: str, folder: Path, rows: int) -> None:
    """A step in this process: prints rows, seconds and peak MiB as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, cpu = time.perf_counter(), time.process_time()
    count = STEPS[name](folder, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"rows": count, "seconds": seconds, "cpu_seconds": spent, "peak_mib": peak, "start_mib": before}))


def series(rows: int) -> dict[str, dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="bench-store-"))
    found = {}
    try:
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--rows", str(rows)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout)
            assert found[name]["rows"] == rows, f"{name}: {found[name]['rows']} of {rows} rows"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rows", type=int, default=1_000_000)
    flags.add_argument("--json", type=Path)
    flags.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    flags.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = flags.parse_args()
    if asked.step:
        one(asked.step, asked.folder, asked.rows)
        return
    small, large = series(asked.rows // 10), series(asked.rows)
    print(f"N = {asked.rows:,}; 'plain' is the same with sqlite3 alone, by processor time, which others cannot disturb")
    print(f"{'step':22} {'rows/s':>9} {'seconds':>8} {'cpu s':>7} {'plain/ours':>10} {'peak MiB':>9} {'at N/10':>8}")
    for name, row in large.items():
        plain = large["plain sqlite3 export" if "export" in name else "plain sqlite3 import"]
        print(
            f"{name:22} {row['rows'] / row['seconds']:9,.0f} {row['seconds']:8.1f} {row['cpu_seconds']:7.1f} "
            f"{plain['cpu_seconds'] / row['cpu_seconds']:10.2f} {row['peak_mib']:9.0f} {small[name]['peak_mib']:8.0f}"
        )
    if asked.json:
        asked.json.write_text(json.dumps({"rows": asked.rows, "small": small, "large": large}, indent=2) + "\n")


if __name__ == "__main__":
    main()
