"""The tabs in real Chromium, at the size of a desktop and of a phone: clicks, keys, downloads, reloads."""

from __future__ import annotations

import json
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import app_server
import pytest
import tabs_session
import uvicorn
from app_server import until

from visfeedback.app import server, train_runs
from visfeedback.app.context import Context
from visfeedback.app.tabs import data, leaderboard, rounds, train
from visfeedback.types.records import Feedback

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::ResourceWarning")]
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
NASTY = "<img src=x onerror=alert(1)> ${alert(2)} {{alert}}"
STAND_IN = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
start = 5 if "--resume" in sys.argv else 0
try:
    for step in range(start + 1, 11):
        with (out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 0.7 - step / 50, "seconds": step}) + chr(10))
        while step == 5 and "--resume" not in sys.argv:
            time.sleep(0.05)
except KeyboardInterrupt:
    print(json.dumps({"error": "interrupted, state saved"}))
    sys.exit(130)
(out / "adapter").mkdir()
(out / "adapter" / "x.safetensors").write_bytes(b"x")
print(json.dumps({"steps": 10}))
"""
"""stands for `visfeedback train`: five steps, then it waits to be stopped; resumed, it ends"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """Twelve votes for the base model, against the adapter; training is the program above."""
    package = tmp_path / "stand-in" / "visfeedback"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    url = f"sqlite:///{tmp_path}/p.db"
    samples = app_server.fill(url, tmp_path / "images", prompts=12, each=2)
    monkeypatch.chdir(package.parent)
    with app_server.context(url, tabs=True) as made:
        made.model = "shapes:sd"
        made.rounds = SimpleNamespace(engines={"noise": tabs_session.Noise(made.store)})  # type: ignore[assignment]
        made.store.add_feedback(
            Feedback(judge="human:ada", prompt_id=a.prompt_id, sample_ids=(a.id, b.id), choice="a", values=(1.0, 0.0),
                     sides=(0, 1), seconds=2.0)
            for a, b in zip(samples[::2], samples[1::2], strict=True)
        )  # fmt: skip
        yield made
        for run in train_runs.runs(made.runs):
            if run.train.running:
                os.killpg(json.loads(run.train.note.read_text())["process"], signal.SIGKILL)


@pytest.fixture
def address(context: Context) -> Iterator[str]:
    bound = server.listen("127.0.0.1", 0)
    app = server.application(context, tabs=(train, rounds, leaderboard, data))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
    thread.start()
    until(lambda: running.started)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    running.should_exit = True
    thread.join(timeout=20)


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """``page = visit("Train", PHONE)``; no script may fail and no dialogue open."""
    made: list[Any] = []
    complaints: list[str] = []

    def go(tab: str, size: dict[str, int] = DESKTOP) -> Any:
        made.append(chromium.new_context(viewport=size, accept_downloads=True))
        page = made[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        enter(page, tab)
        return page

    yield go
    for browser in made:
        browser.close()
    assert complaints == []


def enter(page: Any, tab: str) -> None:
    """On a phone tabs that have no room stand behind a button."""
    page.get_by_role("tab", name="Compare").wait_for()
    page.wait_for_timeout(500)  # the row of tabs measures itself
    found = page.get_by_role("tab", name=tab)
    if found.count() and found.first.is_visible():
        found.first.click()
    else:
        page.get_by_label("More tabs").first.click()
        page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click()


def says(page: Any, place: str, words: str) -> None:
    page.wait_for_function("([p, w]) => document.querySelector(p)?.innerText.includes(w)", arg=[place, words])


def fits(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@SIZES
def test_training_is_started_stopped_resumed_and_survives_a_reload(
    visit: Callable[..., Any], context: Context, size: dict[str, int], tmp_path: Path
) -> None:
    page = visit("Train", size)
    says(page, "#train-ready", "12 usable pairs")
    page.locator("#train-name input, #train-name textarea").first.fill("one")
    page.locator("#train-steps input").fill("10")
    page.locator("#train-start").click()
    says(page, "#train-progress", "5 of 10 steps")
    page.locator("#train-curves svg").first.wait_for()
    page.reload()
    enter(page, "Train")
    says(page, "#train-progress", "one is learning")
    page.locator("#train-stop").click()
    says(page, "#train-progress", "has stopped")
    page.locator("#train-resume").click()
    says(page, "#train-progress", "one has learned")
    assert fits(page)
    with page.expect_download() as download:
        page.locator("#train-download").click()
    download.value.save_as(tmp_path / "a.zip")
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist()[-1] == "adapter/x.safetensors"
    assert "load_lora_weights" in page.locator("#train-code").inner_text()
    assert train_runs.find(context.runs, "one").steps == 10


def test_what_is_wrong_is_said_on_the_page(visit: Callable[..., Any]) -> None:
    page = visit("Train")
    page.locator("#train-name input, #train-name textarea").first.fill("../x")
    page.locator("#train-start").click()
    says(page, "#train-said", "'../x' is no name; expected letters")


@SIZES
def test_rounds_by_keyboard_and_mouse(visit: Callable[..., Any], context: Context, size: dict[str, int]) -> None:
    """Five fast keys are five marks; the next round takes all of them; going back shows them again."""
    page = visit("Rounds", size)
    page.locator("#rounds-prompt input, #rounds-prompt textarea").first.fill(NASTY)
    page.locator("#rounds-start").click()
    page.locator("#rounds-grid [data-place]").first.wait_for()
    assert page.locator("#rounds-grid img").first.get_attribute("alt").startswith("<img src=x")
    page.locator("#rounds-grid [data-place='0'][data-mark='1']").click()
    page.locator("#rounds-said").click()
    for key in ("2", "Shift+3", "4", "4", "n"):
        page.keyboard.press(key)
    says(page, "#rounds-said", "Round 2: 2 liked and 1 disliked")
    assert fits(page)
    page.locator("#rounds-history input").first.click()
    says(page, "#rounds-said", "Round 1: 2 liked")
    pressed = page.locator("#rounds-grid [aria-pressed=true]")
    assert [pressed.nth(i).get_attribute("aria-label") for i in range(pressed.count())] == [
        "Like image 1", "Like image 2", "Dislike image 3",
    ]  # fmt: skip
    page.reload()
    enter(page, "Rounds")
    says(page, "#rounds-said", "Round 2: 2 liked and 1 disliked")
    assert sum(record.kind == "like" for record in context.store.feedback()) == 3


def test_digits_in_a_field_are_text(visit: Callable[..., Any], context: Context) -> None:
    page = visit("Rounds")
    field = page.locator("#rounds-prompt input, #rounds-prompt textarea").first
    field.fill("a hat")
    page.locator("#rounds-start").click()
    page.locator("#rounds-grid [data-place]").first.wait_for()
    field.click()
    page.keyboard.type(" 12n")
    assert field.input_value() == "a hat 12n"
    assert not any(record.kind == "like" for record in context.store.feedback())


@SIZES
def test_names_are_shown_when_asked_for(visit: Callable[..., Any], context: Context, size: dict[str, int]) -> None:
    context.store.add_feedback(
        record.model_copy(update={"id": f"{record.id}{n}", "judge": f"human:{n}"})
        for record in list(context.store.feedback()) for n in range(3)
    )  # fmt: skip
    page = visit("Leaderboard", size)
    says(page, "#board", "is ahead of Model")
    assert "must-not-leak" not in page.content()
    page.locator("#board-names input").check()
    says(page, "#board", "must-not-leak is ahead of")
    assert fits(page)


@SIZES
def test_data_goes_out_and_in(
    visit: Callable[..., Any], context: Context, size: dict[str, int], tmp_path: Path
) -> None:
    page = visit("Data", size)
    says(page, "#data-numbers", "human:ada")
    says(page, "#data-recent", "chosen by human:ada")
    page.locator("#data-export").click()
    says(page, "#data-said", "12 pairs")
    with page.expect_download() as download:
        page.locator("#data-download").click()
    download.value.save_as(tmp_path / "out.zip")
    assert {"pickapic.parquet", "pickapic.parquet.export.json"} == set(zipfile.ZipFile(tmp_path / "out.zip").namelist())
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("liked/x.txt", "a hat")
        archive.writestr("liked/x.png", tabs_session.png(7))
    page.locator("#data-read-format input").click()
    page.get_by_role("option", name="folders").click()
    page.locator("#data-upload input[type=file]").set_input_files(tmp_path / "in.zip")
    says(page, "#data-upload", "in.zip")
    page.locator("#data-import").click()
    says(page, "#data-import-said", "Read in.zip: 1 sample, 1 feedback")
    assert fits(page)
    assert [record.kind for record in context.store.feedback()].count("like") == 1
