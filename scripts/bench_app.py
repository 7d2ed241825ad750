"""Measures the collection app under load: votes by many clients at once, kill -9 in the middle, and a real browser.

    python scripts/bench_app.py [--clients 20] [--think 2] [--seconds 60] [--store URL] [--browser] [--json FILE]

Load: `visfeedback collect` runs as a process of its own; clients fetch a question, look at it for the think time and
answer. Vote-to-next is the time from sending an answer to holding the next question: the answer is on disk by then
(SQLite with synchronous=FULL, or whatever PostgreSQL has). Afterwards the store is compared with what the clients were
told: lost, doubled and misattributed votes, each of which must be 0.
Browser: key to painted, from the keyboard event's own time to the second animation frame after the next pair is in
place, in Chromium (/usr/bin/chromium).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import app_server

from visfeedback import store
from visfeedback.app.choosing import Asking
from visfeedback.plugins import InputError

CHOICES = ("left", "right", "tie", "both_bad")


class Client:
    """One person at a keyboard; keeps what the server acknowledged."""

    def __init__(self, base: str, think: float, seed: int) -> None:
        self.person = app_server.Person(httpx.Client(base_url=base, timeout=60)).enter()
        self.name = f"human:{self.person.client.get('/api/state').json()['judge']}"
        self.think, self.random = think, random.Random(seed)
        self.acknowledged: list[str] = []  # tokens
        self.milliseconds: list[float] = []
        self.failures: list[str] = []

    def run(self, until: float) -> None:
        time.sleep(self.random.uniform(0, self.think))  # people do not begin all at once
        question = self.person.next()
        try:
            while question and time.monotonic() < until:
                self.person.post("shown", token=question["token"])
                for path in question["images"]:
                    self.person.client.get(f"/{path}")
                time.sleep(self.random.uniform(0.5, 1.5) * self.think)
                question = self.vote(question["token"])
        except httpx.HTTPError as error:
            self.failures.append(type(error).__name__)

    def vote(self, token: str) -> dict[str, Any] | None:
        began = time.perf_counter()
        answer = self.person.vote(token, choice=self.random.choice(CHOICES))
        self.milliseconds.append(1000 * (time.perf_counter() - began))
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code}: {answer.text[:100]}")
            return None
        self.acknowledged.append(token)
        return answer.json()["question"]


def fresh(folder: Path, url: str, pairs: int) -> None:
    """A store with at least ``pairs`` questions; 15 pairs a prompt. A store that has votes is left alone."""
    with store.open(url) as opened:
        if opened.feedback_count():
            raise InputError(f"{url} has votes; name a new store")
    app_server.fill(url, folder / "images", Asking(repeats=0), prompts=pairs // 15 + 1, each=6, side=64)


def load(folder: Path, url: str, clients: int, think: float, seconds: float) -> dict[str, Any]:
    fresh(folder, url, round(clients * seconds / max(think, 0.05) * 1.6) + 10 * clients)
    with app_server.Server("--store", url, "--no-tabs", cwd=folder) as server:
        people = [Client(server.url, think, seed) for seed in range(clients)]
        before = processor_seconds(server.process.pid)
        drive(people, seconds)
        used = processor_seconds(server.process.pid) - before
        code = server.stop()
    times = sorted(time for one in people for time in one.milliseconds)
    return {
        "store": url.partition(":")[0], "clients": clients, "think_seconds": think, "seconds": seconds,
        "votes": len(times), "p50_ms": statistics.median(times), "p95_ms": times[int(0.95 * len(times))],
        "p99_ms": times[int(0.99 * len(times))], "max_ms": times[-1], "exit_code": code,
        "server_processor_ms_per_vote": 1000 * used / len(times),
        "failures": [line for one in people for line in one.failures][:5], **compared(url, people),
    }  # fmt: skip


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def drive(people: list[Client], seconds: float) -> None:
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=one.run, args=(until,)) for one in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in people:
        one.person.client.close()


def compared(url: str, people: list[Client]) -> dict[str, int]:
    """What the store holds against what the clients were told. An answer's id is made from its question's token."""
    from visfeedback.types.records import text_id

    told = {text_id("answer", token, "overall"): one.name for one in people for token in one.acknowledged}
    with store.open(url, create=False) as opened:
        kept = {record.id: record for record in opened.feedback()}
    pairs = Counter(frozenset(record.sample_ids) for record in kept.values())
    return {
        "acknowledged": len(told),
        "lost": len(told.keys() - kept.keys()),
        "not_acknowledged": len(kept.keys() - told.keys()),
        "doubled": sum(count - 1 for count in pairs.values()),
        "misattributed": sum(kept[name].judge != judge for name, judge in told.items() if name in kept),
    }


def killed(folder: Path, url: str, clients: int, seconds: float) -> dict[str, int]:
    """kill -9 under load, then a new server on the same store: every acknowledged vote is there."""
    fresh(folder, url, 4000)
    with app_server.Server("--store", url, "--no-tabs", cwd=folder) as server:
        people = [Client(server.url, 0.02, seed) for seed in range(clients)]
        threading.Timer(seconds, server.kill).start()
        drive(people, 10 * seconds)
    with app_server.Server("--store", url, "--no-tabs", cwd=folder) as server:
        after = Client(server.url, 0.02, 99)
        question = after.person.next()
        assert question is not None
        after.vote(question["token"])
        after.person.client.close()
        server.stop()
    return compared(url, [*people, after])


def browser(folder: Path, url: str, presses: int) -> dict[str, Any]:
    """Milliseconds from key to painted, with a second between presses, so that the next pair waits as for a person."""
    from playwright.sync_api import sync_playwright

    app_server.fill(url, folder / "large", Asking(repeats=0), prompts=presses // 6 + 4, each=4, side=512)
    with app_server.Server("--store", url, "--no-tabs", cwd=folder) as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{server.url}/compare")
        page.wait_for_selector("visfeedback-compare .frame img")
        page.evaluate(
            """() => { window.waits = []; let pressed = 0;
            addEventListener("keydown", (event) => { pressed = event.timeStamp; }, true);
            addEventListener("visfeedback:painted", () => window.waits.push(performance.now() - pressed)); }"""
        )
        for number in range(presses):
            page.wait_for_timeout(1000)
            page.keyboard.press("12tb"[number % 4])
        page.wait_for_timeout(1000)
        waits = sorted(page.evaluate("window.waits"))
        chromium.close()
        server.stop()
    return {"presses": presses, "painted": len(waits), "p50_ms": statistics.median(waits),
            "p95_ms": waits[int(0.95 * len(waits))], "max_ms": waits[-1]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--think", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--store", default="", help="a new store's URL; a SQLite file of its own when left out")
    parser.add_argument("--browser", action="store_true", help="measure Chromium as well")
    parser.add_argument("--presses", type=int, default=40)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):  # images of a PostgreSQL store go here
        folder = Path(scratch)
        result: dict[str, Any] = {
            "load": load(
                folder, flags.store or f"sqlite:///{folder}/load.db", flags.clients, flags.think, flags.seconds
            )
        }
        if not flags.store:
            result["killed"] = killed(folder, f"sqlite:///{folder}/killed.db", flags.clients, 6)
        if flags.browser:
            result["browser"] = browser(folder, f"sqlite:///{folder}/browser.db", flags.presses)
    text = json.dumps(result, indent=2)
    print(text)
    if flags.json:
        flags.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
